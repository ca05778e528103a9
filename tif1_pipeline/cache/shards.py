"""Over which files the entries are spread."""

import logging
import os
import re
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from tif1_pipeline.cache import shard as sharing
from tif1_pipeline.cache.database import Database
from tif1_pipeline.cache.files import File
from tif1_pipeline.cache.shard import Shard, has_entries, is_there, keys_of, note
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import CacheError, CacheVersionError

_log = logging.getLogger(__name__)

_LEASE = "\0shards"
_MOST_SHARDS = 64
"""As many as the setting allows."""


class Shards:
    """All shares of a cache: ``cache_shards`` of them, an entry in the one that its key says.

    Args:
        config: Settings, read at each use: another number spreads the entries anew.
        path: The first file; ``config.cache_path`` by default.
        on_set_aside: Told when a damaged file had to be set aside.
    """

    def __init__(self, config: Config, path: Path | None, on_set_aside: Callable[[Path, Path], None]) -> None:
        self._config = config
        self._path = path
        self._on_set_aside = on_set_aside
        self._changes = count(1)
        self._made: list[Shard] = []
        self._given: tuple[Any, ...] | None = None
        self._retry_at = 0.0
        self._shards: list[Shard] = []
        self._lock = threading.RLock()

    def forget_inherited(self) -> None:
        """Start anew after a fork."""
        self._lock = threading.RLock()
        for shard in self._made:
            shard.forget_inherited()

    def release(self) -> None:
        """Close the connections, of which none is in use."""
        for shard in self._made:
            shard.primary.database.release()
            shard.fallback.database.release()

    def all(self) -> list[Shard]:
        """Return the shares as the settings are now."""
        config = self._config
        given = (
            config.cache_shards,
            config.cache_dir,
            config.cache_filename,
            config.cache_fallback_dir,
            config.cache_readonly,
        )
        if given == self._given:
            return self._shards
        with self._lock:
            if given != self._given and not (self._shards and time.monotonic() < self._retry_at):
                self._settle(given)
            return self._shards

    def of(self, key: str) -> Shard:
        """Return the share that an entry belongs to."""
        shards = self.all()
        return shards[0] if len(shards) == 1 else shards[shard_of(key, len(shards))]

    def files(self) -> tuple[File, ...]:
        """Return the files that hold entries now."""
        return tuple(file for shard in self.all() for file in shard.files())

    @property
    def path(self) -> Path:
        """The first file."""
        return self._path or self._config.cache_path

    def close(self) -> None:
        """Write down what is pending and close the files."""
        for shard in self._made:
            shard.close()

    # ---- settling

    def _settle(self, given: tuple[Any, ...]) -> None:
        number = self._config.cache_shards
        named = self._named()
        self._make_up_to(max([number - 1, *named]))
        if self._config.cache_readonly:  # nothing can be moved: entries are where they were put
            with suppress(CacheError):
                number = min(int(note(self._made[0].primary, "shards") or number), _MOST_SHARDS)
                self._make_up_to(number - 1)
        top = max([number - 1, *(index for index in named if self._is_share(index))])
        self._shards = self._made[:number]
        for shard in self._made[: top + 1]:
            shard.settle()
        if self._config.cache_readonly:
            # Until there is a file, its number of shards is not known.
            self._given = given if is_there(self.path) else None
            return
        try:
            self._mark(number)
            self._spread(number, top)
        except CacheVersionError:
            raise
        except (CacheError, OSError) as error:
            _log.warning("the entries could not be spread over %d files, trying again: %s", number, error)
            self._retry_at = time.monotonic() + sharing.RETRY_SECONDS
        else:
            self._given = given

    def _make(self, index: int) -> Shard:
        def locate_fallback() -> Path:
            folder = self._config.cache_fallback_dir
            if folder is None:
                raise CacheError("the setting cache_fallback_dir was removed", cause="no fallback")
            return fallback_path(folder, shard_path(self.path, index))

        def database(locate: Callable[[], Path], *, ours: bool) -> Database:
            return Database(self._config, locate, self._on_set_aside, self._changes, ours=ours)

        primary = database(lambda: shard_path(self.path, index), ours=self._path is None)
        return Shard(self._config, primary, database(locate_fallback, ours=True), self._changes)

    def _make_up_to(self, index: int) -> None:
        while len(self._made) <= index:
            self._made.append(self._make(len(self._made)))

    def _named(self) -> list[int]:
        """Return the numbers of files that are called like further shares, or like stand-ins for them."""
        path = self.path
        name = re.compile(rf"{re.escape(path.stem)}\.(\d\d?)(-[0-9a-f]{{8}})?{re.escape(path.suffix)}")
        found = set()
        for folder in (path.parent, self._config.cache_fallback_dir):
            with suppress(OSError):  # one that cannot be looked into is spoken about when it is used
                names = os.listdir(folder) if folder else []  # noqa: PTH208 - at each start; no paths are needed
                found |= {int(match[1]) for match in map(name.fullmatch, names) if match}
        return sorted(index for index in found if 0 < index < _MOST_SHARDS)

    def _is_share(self, index: int) -> bool:
        shard = self._made[index]
        try:
            if self._config.cache_fallback_dir is not None and is_there(shard.fallback.database.path):
                return True
            return is_there(shard.primary.database.path) and self._is_marked(shard, index)
        except CacheError:  # whatever it is, it is not known to be ours
            return False

    def _is_marked(self, shard: Shard, index: int) -> bool:
        # A name alone proves nothing: "a.1.db" may be a cache of its own, or somebody's copy.
        return note(shard.primary, "shard") == f"{index} of {self.path.name}"

    def _mark(self, number: int) -> None:
        """Create the files of all shares, so that none is missed by whoever looks for them.

        Raises:
            CacheVersionError: A file of that name is a cache of its own.
        """
        for index, shard in enumerate(self._made[1:number], 1):
            if self._is_marked(shard, index):
                continue
            if has_entries(shard.primary):
                raise CacheVersionError(
                    f"{shard.primary.database.path} is a cache of its own and cannot be share {index} of {self.path}: "
                    "move it away, or choose another cache_filename or number of cache_shards",
                    path=str(shard.primary.database.path),
                )
            from tif1_pipeline.cache import transfer  # not at the top: SQLAlchemy is no reader's business

            transfer.set_note(shard.primary.database, "shard", f"{index} of {self.path.name}")

    def _spread(self, number: int, top: int) -> None:
        """Move the entries that lie in another file than the settings say."""
        if top == 0:
            return
        first = self._made[0].primary
        misplaced = [
            index
            for index, shard in enumerate(self._made[: top + 1])
            if any(shard_of(key, number) != index for key in keys_of(shard.primary))
        ]
        if misplaced:
            from tif1_pipeline.cache import transfer

            release = first.leases.acquire(_LEASE, lambda: False)
            try:
                for shard in self._made[: top + 1]:
                    shard.primary.usage.flush()  # counts of an entry are written to the file that has it
                for index in misplaced:
                    source = self._made[index].primary.database
                    for other, target in enumerate(self._made[:number]):
                        if other != index:
                            transfer.move(
                                source,
                                target.primary.database,
                                lambda key, other=other: shard_of(key, number) == other,
                            )
                    if index >= number:
                        # The file stays: a process that still writes to it must not lose what it wrote.
                        transfer.move_counters(source, first.database)
                        transfer.shrink(source)
            finally:
                release()
            _log.info("the entries of %s are spread over %d files", self.path, number)
        if note(first, "shards") != str(number):
            from tif1_pipeline.cache import transfer

            transfer.set_note(first.database, "shards", str(number))


def shard_of(key: str, number: int) -> int:
    """Return the index of the share that a key belongs to: with its parts, which are named after it."""
    return zlib.crc32(key.partition("/")[0].encode("utf-8", "surrogatepass")) % number


def fallback_path(folder: Path, path: Path) -> Path:
    """Return the file that stands in for another; several caches may share the folder."""
    path = path.absolute()
    return folder / f"{path.stem}-{zlib.crc32(bytes(path.parent)):08x}{path.suffix}"


def shard_path(path: Path, index: int) -> Path:
    """Return the file of a share: ``tif1_cache.db``, ``tif1_cache.1.db`` and so on."""
    return path.with_name(f"{path.stem}.{index}{path.suffix}") if index else path
