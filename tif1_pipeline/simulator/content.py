"""What the server serves: seasons or a directory, seen through what is hidden and what was republished."""

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from isal import isal_zlib

from tif1_pipeline.simulator.faults import matches
from tif1_pipeline.simulator.season import Season

_DATA = re.compile(r"TracingInsights/(\d{4})@main/(.+)", re.DOTALL)
_SCHEDULE = re.compile(r"theOehrly/f1schedule@master/schedule_(\d{4})\.json")
_FIRST_TIME = re.compile(rb'("time": ?\[(?:(?:"None"|NaN), ?)*)(\d+\.\d+)')


class Source(Protocol):
    """Where bodies come from, by path below the server's root."""

    def read(self, path: str) -> tuple[bytes, float] | None:
        """Return a file and when it last changed (seconds of the epoch), ``None`` if there is none."""
        ...


class SeasonSource:
    """Simulated seasons."""

    def __init__(self, seasons: Iterable[Season]) -> None:
        self._seasons = {season.year: season for season in seasons}
        self._made_at = float(int(time.time()))

    def read(self, path: str) -> tuple[bytes, float] | None:
        """Generate a file; all of them count as changed when the server was made."""
        body = None
        if found := _DATA.fullmatch(path):
            season = self._seasons.get(int(found[1]))
            body = season.file(found[2]) if season else None
        elif found := _SCHEDULE.fullmatch(path):
            season = self._seasons.get(int(found[1]))
            body = season.schedule() if season else None
        return None if body is None else (body, self._made_at)


class DirectorySource:
    """Files under a directory that has ``TracingInsights/2025@main/…``, or ``2025@main/…`` at its top."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def read(self, path: str) -> tuple[bytes, float] | None:
        """Read a file; nothing outside the directory is served, also not through ``..`` or links."""
        for relative in (path, path.partition("/")[2]):
            if not relative or "\0" in relative:
                continue
            try:
                file = (self._root / relative).resolve()
                if file.is_relative_to(self._root) and file.is_file():
                    return file.read_bytes(), file.stat().st_mtime
            except OSError:
                continue
        return None


class Body:
    """One file as it is served; the compressed form is made once, when it is first asked for."""

    __slots__ = ("_compressed", "etag", "modified", "plain")

    def __init__(self, plain: bytes, modified: float) -> None:
        self.plain = plain
        self.modified = modified
        # Weak, as on jsDelivr: both encodings share it.
        self.etag = f'W/"{blake2b(plain, digest_size=16).hexdigest()}"'
        self._compressed: bytes | None = None

    def compressed(self) -> bytes:
        """Return the file in gzip form, at the fastest level."""
        if self._compressed is None:
            self._compressed = isal_zlib.compress(self.plain, 1, 31)
        return self._compressed

    @property
    def size(self) -> int:
        """Bytes it takes in memory."""
        return len(self.plain) + len(self._compressed or b"")


class Content:
    """A source with an LRU of its bodies in front, with files hidden or republished at run time."""

    def __init__(self, source: Source, cache_bytes: int) -> None:
        self._source = source
        self._limit = cache_bytes
        self._lock = threading.RLock()
        self._bodies: OrderedDict[str, Body] = OrderedDict()
        self._held = 0
        self._visibility: list[tuple[str, bool, float]] = []
        self._republished: list[tuple[str, float]] = []

    def show(self, pattern: str, *, visible: bool) -> None:
        """Hide the files that match a glob, or publish them; the latest rule that matches a path holds."""
        with self._lock:
            self._visibility.append((pattern, visible, time.time()))
            self._drop(pattern)

    def republish(self, pattern: str) -> None:
        """Change the content of the files that match a glob."""
        with self._lock:
            self._republished.append((pattern, time.time()))
            self._drop(pattern)

    def _drop(self, pattern: str) -> None:
        for path in [path for path in self._bodies if matches(path, pattern)]:
            self._held -= self._bodies.pop(path).size

    def get(self, path: str, *, compressed: bool) -> tuple[Body, bytes] | None:
        """Return a file and its bytes in the form asked for, ``None`` if there is none."""
        with self._lock:
            body = self._bodies.get(path)
            if body is None:
                body = self._load(path)
                if body is None:
                    return None
                self._bodies[path] = body
                self._held += body.size
            else:
                self._bodies.move_to_end(path)
            before = body.size
            data = body.compressed() if compressed else body.plain
            self._held += body.size - before
            while self._held > self._limit and len(self._bodies) > 1:
                self._held -= self._bodies.popitem(last=False)[1].size
            return body, data

    def _load(self, path: str) -> Body | None:
        appeared = 0.0
        for pattern, visible, when in reversed(self._visibility):
            if matches(path, pattern):
                if not visible:
                    return None
                appeared = when
                break
        found = self._source.read(path)
        if found is None:
            return None
        plain, modified = found
        changes = [when for pattern, when in self._republished if matches(path, pattern)]
        if changes:
            plain = _changed(plain, len(changes))
        return Body(plain, max([modified, appeared, *changes]))


def _changed(plain: bytes, times: int) -> bytes:
    """Return a file as it is republished: the first lap time corrected by a millisecond a time, or just other bytes."""

    def corrected(found: re.Match[bytes]) -> bytes:
        return found[1] + b"%.3f" % (float(found[2]) + times / 1000)

    # Telemetry and weather have times too, which start at or near zero and must stay in order.
    changed, count = _FIRST_TIME.subn(corrected, plain, count=1) if b'"compound"' in plain[:2_000_000] else (plain, 0)
    return changed if count else plain + b"\n" * times
