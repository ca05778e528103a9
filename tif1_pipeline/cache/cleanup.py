"""Cleanup: which entries go when too much is stored, and when that is looked at."""

import heapq
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from tif1_pipeline.cache import entries, removal, stock
from tif1_pipeline.cache.integrity import is_incomplete
from tif1_pipeline.cache.removal import Removed
from tif1_pipeline.cache.schema import CACHE_METADATA, ENTRIES
from tif1_pipeline.cache.stock import Cleaned, Shelf, Stock
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.config import MIB, Config
from tif1_pipeline.exceptions import CacheError

_log = logging.getLogger(__name__)

LAST_CLEANUP = "last_cleanup"
"""Key in the table ``cache_metadata``: when the last automatic cleanup started, in seconds since 1970."""
LOOK_SECONDS = 1.0
LOOK_BYTES = 64 * MIB
_PAUSE_SECONDS = 0.05
_FUTILE_SECONDS = 60.0
"""Time until the next look when all that is left is pinned, or the cleanup failed."""

_ENDLESS_MB = 1 << 40
"""For infinity, which is no whole number of bytes."""

_IS_OLD = ENTRIES.c.created_at <= sa.bindparam("old_before")
_IS_RARE = ENTRIES.c.access_count < sa.bindparam("rare_below")
_IS_LARGE = ENTRIES.c.compressed_size >= sa.select(sa.func.avg(ENTRIES.c.compressed_size)).scalar_subquery()
_SMART_RANK = sa.case(
    (is_incomplete(), 0),
    (_IS_OLD & _IS_RARE, 1),
    (_IS_OLD & _IS_LARGE, 2),
    else_=3,
)
POLICIES: dict[str, tuple[sa.ColumnElement[Any], ...]] = {
    "lru": (ENTRIES.c.accessed_at,),
    "size": (-ENTRIES.c.compressed_size,),
    "age": (ENTRIES.c.created_at,),
    "smart": (
        _SMART_RANK,
        sa.case((_SMART_RANK == 2, -ENTRIES.c.compressed_size), else_=ENTRIES.c.accessed_at),
    ),
}
"""What each strategy orders the entries by; the first ones go first. Numbers, so that files can be merged by them."""


_STORED = sa.select(sa.func.sum(ENTRIES.c.compressed_size))


class Limits(NamedTuple):
    """Stored bytes that mean something."""

    target: int
    threshold: int
    hard: int

    @classmethod
    def of(cls, config: Config) -> "Limits":
        """Take them from the settings: the threshold is at most the hard limit, the target at most the threshold."""
        hard = config.cache_max_size_mb * MIB
        threshold = min(config.cache_cleanup_threshold_mb * MIB, hard)
        return cls(min(config.cache_cleanup_target_mb * MIB, threshold), threshold, hard)


class _Candidate(NamedTuple):
    rank: tuple[float, ...]
    shelf_number: int
    key: str
    generation: str
    size: int


class _Worth(NamedTuple):
    """By what entries are judged."""

    policy: str
    old_before: float
    rare_below: int

    def parameters(self) -> dict[str, float]:
        # Where no number of reads spares an entry, one that was never read is a rare one all the same.
        return {"old_before": self.old_before, "rare_below": max(self.rare_below, 1)}

    def spares(self) -> sa.ColumnElement[bool]:
        spared = ~_IS_OLD
        if self.rare_below:
            spared = spared | ~_IS_RARE
        if self.policy == "smart":
            spared = spared & ~is_incomplete()
        return spared


def smart(
    tiered: Tiered,
    max_age_days: float | None,
    min_access_count: int | None,
    max_size_mb: float | None,
    *,
    dry_run: bool = False,
) -> Cleaned:
    """Remove the corrupt entries and the old and rarely used ones, then what is worth least until the size is right.

    For a size nothing but pinned entries is spared: large and old ones go first, then the least recently used.
    Corrupt is here what lacks a part; :func:`integrity.corrupted` looks at every byte. A dry run removes nothing and
    returns what would go; reads that are not counted yet are written down first, as entries are judged by them.

    Raises:
        InvalidDataError: One of the numbers is below zero, or none; nothing was removed.
    """
    config = tiered.config
    if max_age_days is not None:
        max_age_days = entries.checked_number("max_age_days", max_age_days)
    if min_access_count is not None:
        min_access_count = entries.checked_count("min_access_count", min_access_count)
    if max_size_mb is not None:
        max_size_mb = min(entries.checked_number("max_size_mb", max_size_mb), _ENDLESS_MB)
    age = config.cache_cleanup_min_age.total_seconds() if max_age_days is None else max_age_days * 86400
    rare = config.cache_cleanup_min_access if min_access_count is None else min_access_count
    size = Limits.of(config).target if max_size_mb is None else round(max_size_mb * MIB)
    tiered.flush()
    worth = _Worth("smart", time.time() - age, rare)
    is_useless = (ENTRIES.c.created_at <= worth.old_before) & (ENTRIES.c.access_count < rare)
    with stock.of(tiered, rehearse=dry_run) as stored, _Log(tiered, "smart", dry_run=dry_run) as log:
        log.removed += stored.remove_where(~ENTRIES.c.pinned & (is_incomplete() | is_useless))
        _come_down(stored, worth, sa.true(), size, log)
    return Cleaned(log.removed)


def run(tiered: Tiered, *, dry_run: bool = False) -> Cleaned:
    """Clean as the settings say; returns what was removed.

    Nothing happens while ``cache_cleanup_threshold_mb`` or less is stored. Else entries go in the order of
    ``cache_cleanup_strategy`` until ``cache_cleanup_target_mb`` is reached: first those that are older than
    ``cache_cleanup_min_age`` and were read less than ``cache_cleanup_min_access`` times, and the others only as long
    as more than ``cache_max_size_mb`` is stored. A threshold above that limit counts as the limit, a target above the
    threshold as the threshold. Pinned entries stay.

    What is stored is looked at before each batch, so that several processes that clean at once remove no more than one
    would.

    A dry run does the same on a copy of the metadata in memory: what it returns would go if nothing else happened to
    the cache. Reads that are not counted yet are written down first, as entries are judged by them.
    """
    config = tiered.config
    limits = Limits.of(config)
    if stored_bytes(tiered) <= limits.threshold:
        return Cleaned()
    tiered.flush()
    worth = _Worth(
        config.cache_cleanup_strategy,
        time.time() - config.cache_cleanup_min_age.total_seconds(),
        config.cache_cleanup_min_access,
    )
    spared = worth.spares()
    with stock.of(tiered, rehearse=dry_run) as stored, _Log(tiered, worth.policy, dry_run=dry_run) as log:
        _come_down(stored, worth, ~spared, limits.target, log)
        _come_down(stored, worth, spared, limits.hard, log)
    return Cleaned(log.removed)


def stored_bytes(tiered: Tiered) -> int:
    """Return the sum of the entries' stored sizes over all files."""
    total = 0
    for file in tiered.files():
        if file.database.exists():
            with file.database.querying() as connection:
                total += connection.execute(_STORED).scalar() or 0
    return total


class _Log:
    """Collects what a cleanup removes and says it in one line, also when it ends by an error."""

    def __init__(self, tiered: Tiered, policy: str, *, dry_run: bool) -> None:
        self._wanted = tiered.config.cache_cleanup_log and not dry_run
        self._policy = policy
        self._started = time.perf_counter()
        self.removed: list[Removed] = []

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self._wanted:
            cleaned = Cleaned(self.removed)
            _log.info(
                "cleanup removed %d entries, %.1f MiB, by strategy %s in %.2f s",
                cleaned,
                cleaned.bytes / MIB,
                self._policy,
                time.perf_counter() - self._started,
            )


def _come_down(stored: Stock, worth: _Worth, condition: sa.ColumnElement[bool], limit: int, log: _Log) -> None:
    """Remove batch after batch in order, until the limit is reached.

    No more entries than there are now: where pinned ones alone are above the limit and others write on, what they write
    would be removed for ever.
    """
    left = 0
    for shelf in stored.shelves():
        with shelf.querying() as connection:
            query = sa.select(sa.func.count()).select_from(ENTRIES).where(~ENTRIES.c.pinned, condition)
            left += connection.execute(query, worth.parameters()).scalar() or 0
    while left > 0 and (removed := _remove_some(stored, worth, condition, limit, log)):
        left -= removed


def _remove_some(stored: Stock, worth: _Worth, condition: sa.ColumnElement[bool], limit: int, log: _Log) -> int:
    """Remove the next batch in order, no more than it takes to come down to the limit; returns how many were to go."""
    shelves = stored.shelves()
    looked = [_look_at(shelf, number, worth, condition) for number, shelf in enumerate(shelves)]
    wanted = min(sum(size for size, _ in looked) - limit, removal.BATCH_BYTES)
    chosen: list[list[tuple[str, str]]] = [[] for _ in shelves]
    for candidate in _until(wanted, heapq.merge(*(candidates for _, candidates in looked))):
        chosen[candidate.shelf_number].append((candidate.key, candidate.generation))
    started = time.perf_counter()
    for shelf, keys in zip(shelves, chosen, strict=True):
        log.removed += shelf.remove(keys)
    if any(chosen):
        # SQLite's waiting writers look at the lock now and then only: without a pause it would be taken each time.
        time.sleep(min(time.perf_counter() - started, _PAUSE_SECONDS))
    return sum(map(len, chosen))


def _look_at(
    shelf: Shelf, number: int, worth: _Worth, condition: sa.ColumnElement[bool]
) -> tuple[int, list[_Candidate]]:
    """Return what a file stores, and what is to go first of it."""
    order = [part.label(f"rank_{index}") for index, part in enumerate(POLICIES[worth.policy])]
    query = (
        sa.select(*order, ENTRIES.c.id, ENTRIES.c.key, ENTRIES.c.generation, ENTRIES.c.compressed_size)
        .where(~ENTRIES.c.pinned, condition)
        .order_by(*order, ENTRIES.c.id)
        .limit(removal.BATCH_ENTRIES)
    )
    # In one transaction: between two, another process that cleans may remove what the size still counts.
    with shelf.querying() as connection:
        stored = connection.execute(_STORED).scalar() or 0
        rows = [tuple(row) for row in connection.execute(query, worth.parameters())]
    found = (_Candidate(tuple(rank), number, key, generation, size) for *rank, key, generation, size in rows)
    return stored, list(_until(removal.BATCH_BYTES, found))


def _until(wanted: int, candidates: Iterable[_Candidate]) -> Iterator[_Candidate]:
    size = 0
    for candidate in candidates:
        if size >= wanted:
            return
        size += candidate.size
        yield candidate


# ---- by itself


@dataclass
class _Watch:
    """What this process knows of one cache between two looks."""

    lock: threading.Lock
    next_look: float = 0.0
    not_before: float = 0.0
    written: int = 0
    due_for: tuple[Any, ...] = ()
    due: float = 0.0


_watches: "weakref.WeakKeyDictionary[Tiered, _Watch]" = weakref.WeakKeyDictionary()


def _after_fork() -> None:
    _watches.clear()  # a lock may be held by a thread that does not exist in the child


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)


def after_write(tiered: Tiered, written: int = 0) -> None:
    """Clean when it is time to: called after each write while ``cache_auto_cleanup`` is on, and never fails it.

    Above ``cache_max_size_mb`` the cleanup is done here and now. When a time of ``cache_cleanup_schedule`` has passed
    since the last one, it is done by a thread in the background, of one process alone. Both are looked at once a second
    or every 64 MiB.

    Args:
        tiered: The cache.
        written: Stored bytes of what was written.
    """
    watch = _watches.get(tiered)
    if watch is None:
        watch = _watches.setdefault(tiered, _Watch(threading.Lock()))
    watch.written += written
    now = time.monotonic()
    if now < watch.not_before or (now < watch.next_look and watch.written < LOOK_BYTES):
        return
    if not watch.lock.acquire(blocking=False):
        return  # another thread looks or cleans
    try:
        watch.next_look, watch.written = now + LOOK_SECONDS, 0
        _look(tiered, watch)
    except Exception as error:  # noqa: BLE001 - the write has succeeded, whatever becomes of this
        watch.not_before = now + _FUTILE_SECONDS
        _log.warning("the cache could not be cleaned, it is tried again later: %s", error, exc_info=_trace(error))
    finally:
        watch.lock.release()


def _look(tiered: Tiered, watch: _Watch) -> None:
    limit = Limits.of(tiered.config).hard
    if stored_bytes(tiered) > limit:
        _note_start(tiered, time.time())
        run(tiered)
        if (stored := stored_bytes(tiered)) > limit:
            watch.not_before = time.monotonic() + _FUTILE_SECONDS
            _log.warning(
                "%.1f MiB are stored, more than cache_max_size_mb (%d), and what is left is pinned: raise the limit, "
                "or clear entries by name",
                stored / MIB,
                limit // MIB,
            )
    elif _is_due(tiered, watch) and _claim(tiered, watch):
        threading.Thread(target=_run_quietly, args=(tiered,), daemon=True, name="tif1-cleanup").start()


def _run_quietly(tiered: Tiered) -> None:
    try:
        run(tiered)
    except Exception as error:  # noqa: BLE001 - nobody is there to catch it
        _log.warning("the scheduled cleanup failed, the next one comes in time: %s", error, exc_info=_trace(error))


def _trace(error: Exception) -> bool:
    return not isinstance(error, CacheError)


def _is_due(tiered: Tiered, watch: _Watch) -> bool:
    basis = tiered.path, tiered.config.cache_cleanup_schedule
    if watch.due_for != basis:
        watch.due = _next_time(basis[1], _last(tiered))
        watch.due_for = basis
    return time.time() >= watch.due


def _claim(tiered: Tiered, watch: _Watch) -> bool:
    """Note the start, unless another process has noted one for this time; only one of them gets True."""
    schedule = tiered.config.cache_cleanup_schedule
    now = time.time()
    with tiered.files()[0].database.writing() as connection:
        values = _times(connection)
        due = _next_time(schedule, min(_last_of(values), now))
        if now < due:
            watch.due = due
            return False
        _note(connection, now)
    watch.due = _next_time(schedule, now)
    return True


def _last(tiered: Tiered) -> float:
    database = tiered.files()[0].database
    if not database.exists():
        return time.time()
    with database.querying() as connection:
        # One that lies ahead was noted by a clock that was wrong.
        return min(_last_of(_times(connection)), time.time())


def _times(connection: sa.Connection) -> dict[str, str]:
    names = sa.select(CACHE_METADATA).where(CACHE_METADATA.c.key.in_([LAST_CLEANUP, "created_at"]))
    return {row.key: row.value for row in connection.execute(names)}


def _last_of(values: dict[str, str]) -> float:
    for name in (LAST_CLEANUP, "created_at"):
        try:
            return float(values[name])
        except (KeyError, ValueError):
            continue
    return time.time()


def _note_start(tiered: Tiered, now: float) -> None:
    with tiered.files()[0].database.writing() as connection:
        _note(connection, now)


def _note(connection: sa.Connection, now: float) -> None:
    connection.execute(sa.delete(CACHE_METADATA).where(CACHE_METADATA.c.key == LAST_CLEANUP))
    connection.execute(sa.insert(CACHE_METADATA), {"key": LAST_CLEANUP, "value": repr(now)})


def _next_time(schedule: str, after: float) -> float:
    from cronsim import CronSim  # only automatic cleanup needs it

    found = next(CronSim(schedule, datetime.fromtimestamp(after, UTC)), None)
    return found.timestamp() if found else float("inf")
