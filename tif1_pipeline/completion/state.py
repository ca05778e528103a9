"""What the sensor remembers from tick to tick: small JSON, versioned; anything unreadable counts as nothing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tif1_pipeline.cdn.base import Validators, Version
from tif1_pipeline.exceptions import SessionNotFoundError
from tif1_pipeline.keys import SessionKey, path_segment

_VERSION = 1


@dataclass(slots=True)
class Watch:
    """One session that is watched. Moments are seconds of the epoch; files are named by their path in its folder.

    Attributes:
        next: When to look again.
        wait: Seconds between the last look and the next.
        asked: Hashes of the versions of changed files that a run was last requested for.
        asked_at: When that was.
        tries: Requests since something new was found.
        seen: Versions that the stored tables hold, of files that are parts of a table: its entry cannot tell.
        pending: Versions that ``seen`` will hold once the requested run has stored the table.
        stored: Generations of these tables at the last look.
        told: Generations of tables that Dagster has as materialized.
        replaced: Generation of the telemetry that a requested run is to replace.
        turn: Where to go on among the laps whose telemetry may still appear.
    """

    next: float = 0.0
    wait: float = 0.0
    asked: dict[str, str] = field(default_factory=dict)
    asked_at: float = 0.0
    tries: int = 0
    seen: dict[str, Version] = field(default_factory=dict)
    pending: dict[str, Version] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    replaced: str | None = None
    turn: int = 0


State = dict[str, Watch]
"""By session partition."""


def dump(state: State) -> str:
    """Return the state as text."""
    return json.dumps(
        {"version": _VERSION, "sessions": {key: _dump_watch(watch) for key, watch in state.items()}},
        separators=(",", ":"),
        ensure_ascii=False,
    )


def load(text: str | None) -> State:
    """Read a state; an empty one where the text is none, of another version, or rubbish."""
    try:
        raw = json.loads(text or "")
        if raw["version"] != _VERSION:
            return {}
        return {SessionKey.parse(key).partition: _load_watch(watch) for key, watch in raw["sessions"].items()}
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, SessionNotFoundError):
        return {}


def _dump_watch(watch: Watch) -> dict[str, Any]:
    # Twenty files a session share a folder on the mirror, and the text is stored with every tick.
    folders: list[str] = []
    return {
        "next": round(watch.next),
        "wait": round(watch.wait),
        "asked": watch.asked,
        "asked_at": round(watch.asked_at),
        "tries": watch.tries,
        "seen": {path: _dump_version(path, version, folders) for path, version in watch.seen.items()},
        "pending": {path: _dump_version(path, version, folders) for path, version in watch.pending.items()},
        "stored": watch.stored,
        "told": watch.told,
        "replaced": watch.replaced,
        "turn": watch.turn,
        "folders": folders,
    }


def _load_watch(raw: Mapping[str, Any]) -> Watch:
    folders = _texts(dict(enumerate(raw["folders"])))
    return Watch(
        next=float(int(raw["next"])),
        wait=float(int(raw["wait"])),
        asked=_texts(raw["asked"]),
        asked_at=float(int(raw["asked_at"])),
        tries=int(raw["tries"]),
        seen={path: _load_version(path, version, folders) for path, version in raw["seen"].items()},
        pending={path: _load_version(path, version, folders) for path, version in raw["pending"].items()},
        stored=_texts(raw["stored"]),
        told=_texts(raw["told"]),
        replaced=None if raw["replaced"] is None else str(raw["replaced"]),
        turn=int(raw["turn"]),
    )


def _dump_version(path: str, version: Version, folders: list[str]) -> list[Any]:
    tail = _tail(path)
    if version.url is None or not version.url.endswith(tail):
        number = None
    else:
        folder = version.url.removesuffix(tail)
        if folder not in folders:
            folders.append(folder)
        number = folders.index(folder)
    # An ETag outranks the date; without a place neither is compared but by the date.
    own = version.validators
    return [own.etag, None if own.etag and number is not None else own.last_modified, number]


def _load_version(path: str, raw: Any, folders: Mapping[Any, str]) -> Version:
    etag, last_modified, number = raw
    if not all(value is None or isinstance(value, str) for value in (etag, last_modified)):
        raise TypeError("validators are texts")
    return Version(Validators(etag, last_modified), None if number is None else folders[number] + _tail(path))


def _tail(path: str) -> str:
    return "/" + "/".join(path_segment(name) for name in path.split("/"))


def _texts(raw: Mapping[Any, Any]) -> dict[Any, str]:
    if not all(isinstance(value, str) for value in raw.values()):
        raise TypeError("these are texts")
    return dict(raw)
