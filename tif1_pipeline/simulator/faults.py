"""Faults that the server can be told to make, and the log of what it was asked."""

import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from tif1_pipeline.exceptions import ConfigError
from tif1_pipeline.simulator.randomness import chance

FaultKind = Literal[
    "latency", "error", "rate_limit", "truncate", "garbage", "bad_json", "hang", "reset", "missing", "forbidden"
]
"""``latency`` waits ``seconds`` and then answers; ``error`` is a 5xx; ``rate_limit`` a 429; ``truncate`` announces
the whole length, sends half and closes; ``garbage`` is an HTML page with status 200; ``bad_json`` half a file, sent
as if it were whole; ``hang`` does not answer for ``seconds`` and then drops the connection; ``reset`` drops it at
once; ``missing`` is a 404, ``forbidden`` a 403."""


def matches(path: str, pattern: str) -> bool:
    """Say whether a glob means this path: the whole path, or the end of it from a folder on. ``*`` crosses slashes."""
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*/{pattern}")


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which the server misbehaves.

    Attributes:
        kind: What goes wrong.
        rate: Share of the matching requests it hits.
        path: Glob over decoded paths such as ``TracingInsights/2025@main/Monaco Grand Prix/Race/drivers.json``; its
            end is enough (``drivers.json``, ``Race/*_tel.json``).
        mirror: Only this mirror (1 is the one without prefix); all by default.
        seconds: How long ``latency`` waits (0.1 by default), or ``hang`` holds the connection (an hour).
        status: Status of ``error``.
        retry_after: Seconds in the ``Retry-After`` header of ``rate_limit`` and ``error``; no header if ``None``.
        times: It hits so many requests of each path and then no more.

    Raises:
        ConfigError: There is no such kind, or the rate is no share.
    """

    kind: FaultKind
    rate: float = 1.0
    path: str = "*"
    mirror: int | None = None
    seconds: float | None = None
    status: int = 503
    retry_after: float | None = None
    times: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise ConfigError(f"there is no fault {self.kind!r}; choose one of {', '.join(get_args(FaultKind))}")
        if not 0.0 <= self.rate <= 1.0:
            raise ConfigError(f"{self.rate!r} is no rate for the fault {self.kind}: choose a value from 0 to 1")


class FaultSet:
    """The faults in force; change them at any time, from any thread.

    Which requests are hit depends on the seed, the path and how often it was asked for: not on the order in which
    concurrent requests happen to arrive.
    """

    def __init__(self, seed: int = 0, faults: Iterable[Fault] = ()) -> None:
        self._seed = seed
        self._lock = threading.Lock()
        self._faults: list[Fault] = list(faults)
        self._asked: Counter[tuple[Fault, int, str]] = Counter()

    def add(self, *faults: Fault) -> None:
        """Put faults in force, after those there are."""
        with self._lock:
            self._faults += faults

    def remove(self, fault: Fault) -> None:
        """Take one fault out of force; it may be gone already."""
        with self._lock:
            self._faults = [other for other in self._faults if other != fault]

    def set(self, *faults: Fault) -> None:
        """Put exactly these faults in force and forget what the others hit."""
        with self._lock:
            self._faults = list(faults)
            self._asked.clear()

    def clear(self) -> None:
        """Behave well again."""
        self.set()

    def __iter__(self) -> Iterator[Fault]:
        return iter(tuple(self._faults))

    def __len__(self) -> int:
        return len(self._faults)

    def hitting(self, path: str, mirror: int) -> list[Fault]:
        """Return the faults that hit this request: all latencies, then at most one of the others."""
        if not self._faults:
            return []
        hits: list[Fault] = []
        with self._lock:
            for fault in self._faults:
                if fault.mirror not in {None, mirror} or not matches(path, fault.path):
                    continue
                key = (fault, mirror, path)
                self._asked[key] += 1
                asked = self._asked[key]
                if fault.times is not None and asked > fault.times:
                    continue
                if fault.rate >= 1.0 or chance(self._seed, fault.kind, fault.path, mirror, path, asked) < fault.rate:
                    hits.append(fault)
        waits = [fault for fault in hits if fault.kind == "latency"]
        return waits + [fault for fault in hits if fault.kind != "latency"][:1]


@dataclass(frozen=True, slots=True)
class Request:
    """One request the server got.

    Attributes:
        method: HTTP method.
        path: Decoded path without the mirror's prefix.
        mirror: Which mirror was asked, from 1.
        status: Status of the answer; 0 if there was none.
        conditional: It had If-None-Match or If-Modified-Since.
        faults: Kinds of the faults that hit it.
    """

    method: str
    path: str
    mirror: int
    status: int
    conditional: bool
    faults: tuple[str, ...] = ()


class RequestLog:
    """What the server was asked, for tests that count. Requests count when they are answered or dropped."""

    def __init__(self, keep: int = 100_000) -> None:
        self._lock = threading.Lock()
        self._entries: deque[Request] = deque(maxlen=keep)
        self._under_way = 0
        self.clear()

    def clear(self) -> None:
        """Start counting anew."""
        with self._lock:
            self._entries.clear()
            self.total = 0
            self.peak = self._under_way
            self.bytes_sent = 0
            self.by_path: Counter[str] = Counter()
            self.by_status: Counter[int] = Counter()

    def begin(self) -> None:
        """Count a request as under way; ``peak`` is the highest number of them."""
        with self._lock:
            self._under_way += 1
            self.peak = max(self.peak, self._under_way)

    def end(self, request: Request, size: int) -> None:
        """Log a request that is over."""
        with self._lock:
            self._under_way -= 1
            self._entries.append(request)
            self.total += 1
            self.bytes_sent += size
            self.by_path[request.path] += 1
            self.by_status[request.status] += 1

    @property
    def entries(self) -> list[Request]:
        """The latest requests, the oldest first."""
        with self._lock:
            return list(self._entries)

    def count(self, pattern: str = "*", *, mirror: int | None = None, status: int | None = None) -> int:
        """Return how many requests were for paths that match a glob (of this mirror, with this status)."""
        return sum(
            matches(entry.path, pattern)
            and (mirror is None or entry.mirror == mirror)
            and (status is None or entry.status == status)
            for entry in self.entries
        )
