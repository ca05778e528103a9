"""Metrics for monitoring systems: files beside the cache file, and a collector for Prometheus.

The files hold what all processes did together and, of memory and failures, what the process that wrote them did
(``pid``). Of several processes on one cache only one writes at a time: a file that is young enough is left alone.
"""

import functools
import json
import logging
import os
import socket
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tif1_pipeline import __version__
from tif1_pipeline.cache.monitor import write_text
from tif1_pipeline.config import MIB
from tif1_pipeline.exceptions import CacheError

if TYPE_CHECKING:
    from prometheus_client import Metric

    from tif1_pipeline.cache.cache import Cache
    from tif1_pipeline.cache.tiered import Tiered

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""Time after which a changed setting is noticed at the latest."""
_RETRY_SECONDS = 30.0
_STOP_SECONDS = 5.0


# ---- the figures


def gather(tiered: "Tiered") -> dict[str, Any]:
    """Return the figures of a cache: those of ``get_stats``, sizes in bytes, and counters by data type and cause."""
    from tif1_pipeline.cache import sizes, stats  # not at the top: they need SQLAlchemy

    types: defaultdict[str, dict[str, float]] = defaultdict(lambda: {"hits": 0, "misses": 0, "seconds": 0.0})
    for file in tiered.files():
        for name, value in file.usage.totals().items():
            counter, _, data_type = name.partition(":")
            if counter in ("hits", "misses", "seconds"):
                types[data_type][counter] += value
    memory = tiered.memory.stats()
    return {
        **stats.stats(tiered),
        "disk_bytes": round(sizes.on_disk(tiered) * MIB),
        "memory_hits": memory["hits"],
        "memory_misses": memory["misses"],
        "memory_evictions": memory["evictions"],
        "by_type": {name: dict(figures) for name, figures in sorted(types.items())},
        "degraded": dict(sorted(tiered.degraded.items())),
    }


def metrics_of(tiered: "Tiered") -> "Iterator[Metric]":
    """Yield the figures of a cache as metrics of Prometheus."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    figures = gather(tiered)
    for name, help_, value in (
        ("entries", "Entries stored on disk.", figures["total_entries"]),
        ("stored_bytes", "Bytes of the stored entries, compressed.", round(figures["compressed_size_mb"] * MIB)),
        ("uncompressed_bytes", "Bytes of the stored entries in memory.", round(figures["total_size_mb"] * MIB)),
        ("disk_bytes", "Bytes of the cache's files, free pages and logs included.", figures["disk_bytes"]),
        ("memory_entries", "Entries in this process's memory.", figures["memory_entries"]),
        ("memory_bytes", "Bytes of the entries in this process's memory.", round(figures["memory_size_mb"] * MIB)),
    ):
        yield GaugeMetricFamily(f"tif1_cache_{name}", help_, value=value)
    for name, help_, value in (
        ("memory_hits", "Look-ups that this process's memory answered.", figures["memory_hits"]),
        ("memory_misses", "Look-ups that this process's memory could not answer.", figures["memory_misses"]),
        ("memory_evictions", "Entries that this process's memory dropped for others.", figures["memory_evictions"]),
    ):
        yield CounterMetricFamily(f"tif1_cache_{name}", help_, value=value)
    for name, help_, counter in (
        ("hits", "Look-ups that found their entry, of all processes.", "hits"),
        ("misses", "Look-ups that did not find their entry, of all processes.", "misses"),
        ("access_seconds", "Time of the look-ups that found their entry, of all processes.", "seconds"),
    ):
        family = CounterMetricFamily(f"tif1_cache_{name}", help_, labels=["data_type"])
        for data_type, counts in figures["by_type"].items():
            family.add_metric([data_type], counts[counter])
        yield family
    family = CounterMetricFamily(
        "tif1_cache_degraded", "Times this process had to do without the disk cache, by cause.", labels=["cause"]
    )
    for cause, number in figures["degraded"].items():
        family.add_metric([cause], number)
    yield family


class CacheCollector:
    """A collector of ``prometheus_client`` that reads the figures of a cache at each scrape.

    Register it in a registry of your own, or in the library's, and serve that as you like::

        prometheus_client.REGISTRY.register(CacheCollector(get_cache()))
        prometheus_client.start_http_server(9100)

    Args:
        cache: Whose figures.
    """

    def __init__(self, cache: "Cache") -> None:
        self._tiered = cache._tiered

    @classmethod
    def _of(cls, tiered: "Tiered") -> "CacheCollector":
        collector = cls.__new__(cls)
        collector._tiered = tiered
        return collector

    def describe(self) -> "list[Metric]":
        """Return nothing: the names are known at the first scrape, and registering must not query the cache."""
        return []

    def collect(self) -> "Iterator[Metric]":
        """Yield the metrics as they are now."""
        return metrics_of(self._tiered)


# ---- the files


def write_files(tiered: "Tiered") -> None:
    """Write ``<cache file>.metrics.json`` and, for the text-file collector of Prometheus, ``<cache file>.prom``.

    Raises:
        CacheError: The cache cannot be queried.
        OSError: The files cannot be written.
    """
    path = tiered.path
    content = {
        "time": datetime.now(UTC).isoformat(),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "version": __version__,
        **gather(tiered),
    }
    if _has_client():
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        registry.register(CacheCollector._of(tiered))
        write_text(path.with_name(f"{path.name}.prom"), generate_latest(registry).decode())
    write_text(_json_file(path), json.dumps(content, indent=2) + "\n")  # last: its age says when to write again


def _json_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.metrics.json")


@functools.lru_cache(maxsize=1)
def _has_client() -> bool:
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        _log.warning("metrics are written as JSON alone: for Prometheus, install prometheus_client")
        return False
    return True


# ---- the thread


class _Writer:
    """The thread that writes the metrics of one cache, while ``cache_enable_metrics`` is on."""

    def __init__(self, tiered: "Tiered") -> None:
        # Weak: a cache that nobody uses any more must not live on for its metrics.
        self._tiered = weakref.ref(tiered)
        self.stopped = threading.Event()
        self._failed = False
        self._not_before = 0.0
        self.thread = threading.Thread(target=self._run, daemon=True, name="tif1-metrics")

    def _run(self) -> None:
        while (seconds := self._step()) is not None:
            if self.stopped.wait(seconds):
                return

    def _step(self) -> float | None:
        """Write if it is time to; returns the seconds until the next look, None when the work has ended."""
        tiered = self._tiered()
        if tiered is None or self.stopped.is_set():
            return None
        with _lock:  # a start that comes now either finds the setting on in time, or no writer
            if not tiered.config.cache_enable_metrics:
                if _writers.get(tiered) is self:
                    del _writers[tiered]
                return None
        if tiered.config.cache_readonly:  # which writes nothing
            return _LOOK_SECONDS
        due = max(self._due(tiered), self._not_before - time.monotonic())
        if due <= 0:
            due = tiered.config.cache_metrics_interval.total_seconds()
            try:
                write_files(tiered)
                self._failed = False
            except (CacheError, OSError) as error:
                self._not_before = time.monotonic() + min(due, _RETRY_SECONDS)
                if not self._failed:
                    self._failed = True
                    _log.warning("the metrics of %s could not be written, tried again later: %s", tiered.path, error)
        return min(_LOOK_SECONDS, max(due, 0.01))

    def _due(self, tiered: "Tiered") -> float:
        """Return the seconds until the files are older than the interval, whoever has written them."""
        try:
            written = _json_file(tiered.path).stat().st_mtime
        except OSError:
            return 0.0
        age = time.time() - written
        # A time ahead of the clock says nothing.
        return tiered.config.cache_metrics_interval.total_seconds() - age if age >= 0 else 0.0


_lock = threading.Lock()
_writers: "weakref.WeakKeyDictionary[Tiered, _Writer]" = weakref.WeakKeyDictionary()


def start(tiered: "Tiered") -> None:
    """Have the metrics of a cache written from now on; costs a look-up where they are already.

    The writing ends when the setting is switched off; call this again once it is on.
    """
    if tiered in _writers:
        return
    with _lock:
        if tiered in _writers or not tiered.config.cache_enable_metrics:
            return
        writer = _Writer(tiered)
        with suppress(RuntimeError):  # the interpreter is shutting down
            writer.thread.start()
            _writers[tiered] = writer


def stop(tiered: "Tiered") -> None:
    """End the writing, for a cache that is closed; its next use starts it again."""
    with _lock:
        writer = _writers.pop(tiered, None)
    if writer is not None:
        writer.stopped.set()
        if writer.thread is not threading.current_thread():
            writer.thread.join(_STOP_SECONDS)


def _after_fork() -> None:
    # The threads are the parent's; a child that uses the cache starts its own, which leaves young files alone.
    global _lock, _writers
    _lock = threading.Lock()
    _writers = weakref.WeakKeyDictionary()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)
