"""What happens to a cache within a block of code."""

import json
import os
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tif1_pipeline.cache.connection import FILE_MODE

if TYPE_CHECKING:
    from tif1_pipeline.cache.cache import Cache


@dataclass(slots=True)
class _Counts:
    hits: int = 0
    misses: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        number = self.hits + self.misses
        return {
            "hits": self.hits,
            "misses": self.misses,
            "hit_rate": self.hits / number if number else 0.0,
            "avg_access_ms": 1000 * self.seconds / self.hits if self.hits else 0.0,
        }


class CacheMonitor:
    """Records the look-ups in a cache from the start of a ``with`` block to its end, of all threads of this process.

    Several monitors may watch one cache, also within each other. A new block starts from zero.

    Args:
        cache: What to watch.
    """

    def __init__(self, cache: "Cache") -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._observer = self._record  # one object, whose identity tells it from those of other monitors
        self._is_recording = False
        self._start_anew()

    def _start_anew(self) -> None:
        self._types: defaultdict[str, _Counts] = defaultdict(_Counts)
        self._tiers: defaultdict[str, int] = defaultdict(int)
        self._started: float | None = None
        self._seconds = 0.0

    def __enter__(self) -> Self:
        with self._lock:
            if self._is_recording:
                raise RuntimeError("this CacheMonitor is recording already: make another for the inner block")
            self._start_anew()
            self._is_recording = True
            self._started = time.perf_counter()
        self._cache.observe(self._observer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cache.unobserve(self._observer)
        with self._lock:
            self._seconds = self._elapsed()
            self._started = None
            self._is_recording = False

    def _record(self, key: str, data_type: str, tier: str | None, seconds: float) -> None:
        with self._lock:
            if not self._is_recording:  # a look-up of another thread that ends after the block
                return
            counts = self._types[data_type]
            if tier is None:
                counts.misses += 1
            else:
                counts.hits += 1
                counts.seconds += seconds
                self._tiers[tier] += 1

    def _elapsed(self) -> float:
        return self._seconds if self._started is None else time.perf_counter() - self._started

    # ---- what was recorded

    @property
    def hits(self) -> int:
        """Look-ups that found their entry."""
        return self.to_dict()["hits"]

    @property
    def misses(self) -> int:
        """Look-ups that did not."""
        return self.to_dict()["misses"]

    @property
    def hit_rate(self) -> float:
        """Share of the look-ups that found their entry, from 0 to 1; 0 when there were none."""
        return self.to_dict()["hit_rate"]

    @property
    def avg_access_ms(self) -> float:
        """Mean time of a hit; a miss takes as long as the network does."""
        return self.to_dict()["avg_access_ms"]

    @property
    def by_type(self) -> dict[str, dict[str, Any]]:
        """The figures hits, misses, hit_rate and avg_access_ms by data type."""
        return self.to_dict()["by_type"]

    @property
    def by_tier(self) -> dict[str, int]:
        """Hits by the tier that had the entry."""
        return self.to_dict()["by_tier"]

    @property
    def seconds(self) -> float:
        """How long the block took, or has taken so far."""
        return self.to_dict()["seconds"]

    def to_dict(self) -> dict[str, Any]:
        """Return everything recorded: hits, misses, hit_rate, avg_access_ms, seconds, by_type and by_tier."""
        with self._lock:
            total = _Counts()
            for counts in self._types.values():
                total.hits += counts.hits
                total.misses += counts.misses
                total.seconds += counts.seconds
            return total.to_dict() | {
                "seconds": self._elapsed(),
                "by_type": {name: counts.to_dict() for name, counts in sorted(self._types.items())},
                "by_tier": dict(sorted(self._tiers.items())),
            }

    def to_json(self) -> str:
        """Return everything recorded as a JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def export(self, path: str | Path) -> None:
        """Write everything recorded to a JSON file, which is replaced whole."""
        write_text(Path(path), self.to_json() + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a small file so that whoever reads it sees the former one or the new one, whole."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - it is a descriptor
            os.fchmod(descriptor, FILE_MODE)
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
