"""Where entries lie in an exported tree: names that no key can lead out of the folder, and back."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import quote, unquote

from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.exceptions import InvalidDataError
from tif1_pipeline.keys import EntryKey, generate_cache_key, schedule_entry, session_name

ASSETS = "assets"
"""Folder of the entries that belong to no session."""
_LONGEST = 120
"""Characters of a name: with a hash and a suffix well below the 255 bytes of common file systems."""
_YEAR = re.compile(r"[0-9]{4}")


class Place(NamedTuple):
    """What a path of the layout says of a file."""

    year: int
    event: str | None
    session_type: str | None
    data_type: str
    part: str | None


def part_of(info: EntryInfo | EntryKey) -> str | None:
    """Return which part of a session's table an entry holds alone; None if it is no such entry."""
    head, slash, part = _text(info).partition("/")
    return part if slash and part and head == _session_key(info) else None


def _text(info: EntryInfo | EntryKey) -> str:
    return info.text if isinstance(info, EntryKey) else info.key


def _session_key(info: EntryInfo | EntryKey) -> str | None:
    if info.year is None or not info.event or not info.session_type:
        return None
    return generate_cache_key(info.year, info.event, info.session_type, info.data_type)


def names_of(info: EntryInfo | EntryKey) -> tuple[str, ...]:
    """Return the names, not yet safe ones, of the folders and the file of an entry."""
    part = part_of(info)
    key = _text(info)
    if key == _session_key(info) or part is not None:
        session = (str(info.year), str(info.event), str(info.session_type), info.data_type)
        return session if part is None else (*session, part)
    if info.year is not None and key == schedule_entry(info.year).text:
        return str(info.year), "schedule"
    return ASSETS, key


def is_place_of(path: PurePosixPath, key: EntryKey) -> bool:
    """Tell whether an export could have written an entry to this path."""
    usual = PurePosixPath(*map(_segment, names_of(key)))
    return path.with_suffix("") in (usual, usual.with_name(f"{usual.name}~{_hash(key.text)}"))


def place_of(path: PurePosixPath) -> Place | None:
    """Return what a path says; None if it is none of the layout, or one of an asset, which its path does not name."""
    *folders, name = (unquote(part) for part in path.with_suffix("").parts)
    if not folders or not _YEAR.fullmatch(folders[0]):
        return None
    year = int(folders[0])
    if len(folders) == 1:
        return Place(year, None, None, name, None) if name == "schedule" else None
    if len(folders) == 3:
        return Place(year, folders[1], folders[2], name, None)
    if len(folders) == 4:
        return Place(year, folders[1], folders[2], folders[3], name)
    return None


class Paths:
    """Paths of one export: no two of them are the same file, also where upper and lower case are."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, names: Sequence[str], suffix: str, key: str) -> PurePosixPath:
        """Return the path of an entry, relative to the folder of the tree."""
        path = PurePosixPath(*map(_segment, names))
        chosen = path.with_name(path.name + suffix)
        if str(chosen).casefold() in self._taken:
            chosen = path.with_name(f"{path.name}~{_hash(key)}{suffix}")
        if str(chosen).casefold() in self._taken:
            raise InvalidDataError(f"there is no free name for {key!r}", key=key)
        self._taken.add(str(chosen).casefold())
        return chosen

    def free(self, path: PurePosixPath) -> None:
        """Take a path back that was not used after all."""
        self._taken.discard(str(path).casefold())


def _segment(name: str) -> str:
    """Return a name as one path segment: letters, digits, ``_``, ``-``, everything else percent-encoded."""
    # Dots too: no segment is a dot segment, hidden, or looks as if it had a suffix.
    encoded = quote(name, safe="").replace(".", "%2E").replace("~", "%7E")
    if not encoded:
        return f"~{_hash(name)}"
    if len(encoded) <= _LONGEST:
        return encoded
    return f"{encoded[:_LONGEST].rstrip('%')}~{_hash(name)}"


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def spoken(place: Place) -> tuple[int, str, str]:
    """Return year, event and session type of a session's path in words."""
    assert place.event is not None  # noqa: S101 - a session's path has both
    assert place.session_type is not None  # noqa: S101
    return place.year, place.event.replace("_", " "), session_name(place.session_type.replace("_", " "))
