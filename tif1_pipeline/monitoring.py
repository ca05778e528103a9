"""What is looked at to tell that the cache is well, and when that is worth an alert.

One look costs a sum over the entries, a count of their parts, and the verification of a few of them.
"""

import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from tif1_pipeline.alerts import Alert
from tif1_pipeline.cache import Cache, entries
from tif1_pipeline.cache.cleanup import Limits
from tif1_pipeline.cache.integrity import is_incomplete
from tif1_pipeline.cache.schema import ENTRIES
from tif1_pipeline.config import MIB, Config
from tif1_pipeline.exceptions import CacheLockedError, Tif1Error

STORED_SIZE = "stored_size"
SIZE_LIMIT = "size_limit"
HIT_RATE = "hit_rate"
FREE_DISK = "free_disk"
INTEGRITY = "integrity"
FAILOVER = "failover"
ERRORS = "errors"

LOOKUPS = 100
"""Look-ups from which a hit rate is told: of fewer, one miss more or less is more than a percentage point."""
SAMPLE = 20
SAMPLE_SECONDS = 2.0
"""After which no further entry of the sample is begun; a race's telemetry alone takes a good part of it."""
_REMEMBERED = 0.8
"""Weight of former samples at each look: in the long run five samples speak together."""
_TELLING = 3 * SAMPLE
"""Entries that a rate is told of at least: one corrupt entry in the first sample must not pass for one in twenty."""
_SUSPECTS = 50
_MARGIN = 0.1
_SIZE_MARGIN = 0.05
"""By how much a value must be better again before its condition is over: of the threshold, or of what is left of 100 %
beyond it if that is less."""
_QUIET_SECONDS = 3600.0
"""How long there must be no error before errors are over."""
_NAMED = 5


@dataclass(frozen=True)
class Condition:
    """One thing that was looked at.

    Attributes:
        name: For programs: one of the constants of this module.
        title: What is wrong, if it is.
        value: What was measured, in ``unit``; None if nothing could be.
        threshold: Beyond which it is wrong.
        unit: Of both: ``"MiB"``, ``"%"`` or ``""``.
        is_active: Whether it is wrong. Where nothing was measured, whether it was before.
        found: What was found, in a sentence.
        remedy: What to do.
    """

    name: str
    title: str
    value: float | None
    threshold: float
    unit: str
    is_active: bool
    found: str
    remedy: str


@dataclass
class Memory:
    """What one look leaves to the next, all of it JSON.

    Attributes:
        active: Conditions that are active, with the time at which they began (seconds since 1970).
        hits: Counter at the last look that told a hit rate; None before the first look.
        misses: Counter at that look.
        entries: Entries that were stored then.
        suspects: Entries that were found corrupt or incomplete, to be looked at again.
        sampled: Entries verified at random, the older the less they count.
        sampled_bad: Those of them that were corrupt.
        skipped: How often this process had skipped the disk tier.
        failed_at: When there was an error last (seconds since 1970).
    """

    active: dict[str, float] = field(default_factory=dict)
    hits: int | None = None
    misses: int | None = None
    entries: int = 0
    suspects: list[str] = field(default_factory=list)
    sampled: float = 0.0
    sampled_bad: float = 0.0
    skipped: int = 0
    failed_at: float = 0.0

    @classmethod
    def of(cls, state: Any) -> "Memory":
        """Read what :attr:`state` was; anything else is a memory of nothing."""
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            hits, misses = (None if state[name] is None else int(state[name]) for name in ("hits", "misses"))
            return cls(
                active={name: float(at) for name, at in state["active"].items()},
                hits=hits,
                misses=misses,
                entries=int(state["entries"]),
                suspects=[str(key) for key in state["suspects"]],
                sampled=float(state["sampled"]),
                sampled_bad=float(state["sampled_bad"]),
                skipped=int(state["skipped"]),
                failed_at=float(state["failed_at"]),
            )
        return cls()

    @property
    def state(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return asdict(self)


def conditions(cache: Cache, config: Config, memory: Memory | None = None) -> list[Condition]:
    """Look at everything.

    Args:
        cache: The cache.
        config: Settings.
        memory: What the last look left; is changed to what this one leaves, except for ``active``, which
            :func:`changes` keeps.

    Returns:
        All conditions, active or not. What cannot be looked at is told by the condition ``errors``; after a lock that
        is not let go of nothing else is tried.
    """
    memory = memory if memory is not None else Memory()
    found: list[Condition] = []
    failed: list[str] = []
    probes: Sequence[Callable[[Cache, Config, Memory], Iterator[Condition]]] = (
        _free_disk,
        _failover,
        _sizes,
        _hit_rate,
        _integrity,
    )
    for probe in probes:
        try:
            found += probe(cache, config, memory)
        except CacheLockedError as error:
            failed.append(error.message)
            break
        except (Tif1Error, OSError, ValueError, TypeError, OverflowError) as error:  # the latter of rows that are none
            failed.append(str(error))
    return [*found, _errors(cache, memory, failed)]


def changes(found: Sequence[Condition], memory: Memory) -> list[Alert]:
    """Return an alert for each condition that has started, and for each that is over; ``memory`` knows them then."""
    now = time.time()
    alerts = []
    for condition in found:
        since = memory.active.get(condition.name)
        if condition.is_active and since is None:
            memory.active[condition.name] = now
            alerts.append(Alert(condition.name, condition.title, f"{condition.found}. {condition.remedy}."))
        elif not condition.is_active and since is not None:
            del memory.active[condition.name]
            began = datetime.fromtimestamp(since, UTC)
            alerts.append(
                Alert(
                    condition.name,
                    f"Over: {condition.title[0].lower()}{condition.title[1:]}",
                    f"{condition.found}. It had begun at {began:%Y-%m-%d %H:%M} UTC.",
                    "over",
                )
            )
    return alerts


# ---- the probes


def _free_disk(cache: Cache, config: Config, memory: Memory) -> Iterator[Condition]:
    folder = cache.get_cache_dir()
    place = next(each for each in (folder, *folder.parents) if each.is_dir())
    usage = shutil.disk_usage(place)
    share = usage.free / usage.total if usage.total else 1.0
    yield Condition(
        FREE_DISK,
        "The disk under the cache is nearly full",
        100 * share,
        100 * config.alert_free_disk,
        "%",
        _is_too_low(share, config.alert_free_disk, FREE_DISK in memory.active),
        f"{share:.1%} of the disk ({usage.free / MIB:,.0f} MiB) are free under {place}, "
        f"the alert is below {config.alert_free_disk:.0%}",
        "Delete what is not needed on that disk, lower cache_max_size_mb and its companions, "
        "or set cache_dir to another disk",
    )


def _failover(cache: Cache, config: Config, memory: Memory) -> Iterator[Condition]:
    reasons = cache.check_health().reasons
    yield Condition(
        FAILOVER,
        "A cache file cannot be used",
        float(len(reasons)),
        0.0,
        "",
        bool(reasons),
        "; ".join(reasons) or "every cache file can be used",
        "tif1-pipeline doctor says more",
    )


def _sizes(cache: Cache, config: Config, memory: Memory) -> Iterator[Condition]:
    limits = Limits.of(config)
    stored = cache.get_size_info()["compressed_mb"]
    for name, limit, title, setting, what in (
        (
            *(STORED_SIZE, limits.threshold, "The cache is larger than its threshold", "cache_cleanup_threshold_mb"),
            "A cleanup is requested",
        ),
        (
            *(SIZE_LIMIT, limits.hard, "The cache is larger than it may be", "cache_max_size_mb"),
            "A cleanup that spares nothing but pinned entries is requested",
        ),
    ):
        # A cleanup ends at the target, which may lie above what the margin asks for.
        over = max(limits.target, limit * (1 - _SIZE_MARGIN)) / MIB
        yield Condition(
            name,
            title,
            stored,
            limit / MIB,
            "MiB",
            stored > (over if name in memory.active else limit / MIB),
            f"{stored:,.1f} MiB are stored, {setting} is {limit / MIB:,.0f} MiB",
            f"{what}. If it does not help, what is left is pinned or spared: raise {setting}, or clear entries by name",
        )


def _hit_rate(cache: Cache, config: Config, memory: Memory) -> Iterator[Condition]:
    """Tell the share of hits among the look-ups of what could have been stored.

    What is fetched for the first time cannot have been. Each entry that the cache has more than before stands for a
    miss of that kind, so that filling it, by runs, warming or readers, is no fault; fetching again what expired or was
    removed is, for nothing more is stored after it.
    """
    stats = cache.get_stats()
    hits, misses, stored = stats["total_hits"], stats["total_misses"], stats["total_entries"]
    was_active = HIT_RATE in memory.active
    if memory.hits is None or memory.misses is None or hits < memory.hits or misses < memory.misses:
        # The first look, or another file than before.
        memory.hits, memory.misses, memory.entries = hits, misses, stored
    new_hits = hits - memory.hits
    lookups = new_hits + max(0, misses - memory.misses - max(0, stored - memory.entries))
    rate, is_active = None, was_active
    what = "since the last look, first fetches left out"
    found = f"there were {lookups} look-ups {what}, fewer than the {LOOKUPS} that tell a hit rate"
    if lookups >= LOOKUPS:
        memory.hits, memory.misses, memory.entries = hits, misses, stored
        rate = new_hits / lookups
        is_active = _is_too_low(rate, config.alert_hit_rate, was_active)
        found = f"{rate:.1%} of {lookups:,} look-ups {what}, were hits, the alert is below {config.alert_hit_rate:.0%}"
    yield Condition(
        HIT_RATE,
        "The cache has too few hits",
        None if rate is None else 100 * rate,
        100 * config.alert_hit_rate,
        "%",
        is_active,
        found,
        "The cache is too small for what is read (cache_max_size_mb), entries expire too soon (cache_ttl), or what is "
        "read is never stored",
    )


def _integrity(cache: Cache, config: Config, memory: Memory) -> Iterator[Condition]:
    """Verify the entries that were found bad before and some at random, and count those that lack parts.

    The share of sound entries is told from both: what is known to be bad is bad, and of the others as many as the last
    samples say. While it is active, no sample alone ends it: it may have missed the bad ones.
    """
    rows = dict(_keys(cache))
    bad = {key for key, incomplete in rows.items() if incomplete}
    bad |= {key for key in memory.suspects if key in rows and key not in bad and not cache.verify_entry(key)}
    others = [key for key in rows if key not in bad]
    sampled, sampled_bad = _verify_some(cache, others)
    if bad or sampled_bad:  # what was removed meanwhile is not bad
        left = dict(_keys(cache))
        bad, sampled_bad = bad & left.keys(), sampled_bad & left.keys()
    if memory.suspects and not bad:  # repaired: what was found before says nothing of now
        memory.sampled_bad = 0.0
    memory.sampled = memory.sampled * _REMEMBERED + sampled
    memory.sampled_bad = memory.sampled_bad * _REMEMBERED + len(sampled_bad)
    rate = memory.sampled_bad / max(memory.sampled, _TELLING)
    of_others = len(sampled_bad) if sampled == len(others) else len(others) * rate
    share = max(0.0, 1 - (len(bad) + of_others) / len(rows)) if rows else 1.0
    bad |= sampled_bad
    memory.suspects = sorted(bad)[:_SUSPECTS]
    found = f"{share:.1%} of {len(rows):,} entries are sound, by {sampled} verified at random and what was found before"
    if bad:
        named = ", ".join(memory.suspects[:_NAMED]) + (" …" if len(bad) > _NAMED else "")
        found += f"; {len(bad)} known to be corrupt or incomplete: {named}"
    yield Condition(
        INTEGRITY,
        "Entries of the cache are corrupt",
        100 * share,
        100 * config.alert_integrity,
        "%",
        share < config.alert_integrity or (INTEGRITY in memory.active and bool(bad)),
        f"{found}; the alert is below {config.alert_integrity:.0%}",
        "The daily maintenance removes them and fetches them again; daily_maintenance_job does it now. If it happens "
        "again, look at the disk and the memory of this machine",
    )


def _verify_some(cache: Cache, keys: Sequence[str]) -> tuple[int, set[str]]:
    """Verify some of these entries at random; returns how many, and those that are not sound."""
    started, number, bad = time.perf_counter(), 0, set[str]()
    for key in random.sample(keys, min(SAMPLE, len(keys))):
        if time.perf_counter() - started > SAMPLE_SECONDS:
            break
        number += 1
        if not cache.verify_entry(key):
            bad.add(key)
    return number, bad


def _keys(cache: Cache) -> Iterator[tuple[str, bool]]:
    """Return all keys, and whether the entry lacks parts by the tables alone."""
    # The public calls list everything of every entry, and verify all bytes or none.
    for key, incomplete in entries.query(cache._tiered, sa.select(ENTRIES.c.key, is_incomplete())):
        yield str(key), bool(incomplete)


def _errors(cache: Cache, memory: Memory, failed: Sequence[str]) -> Condition:
    degraded = cache.get_degraded()
    total = sum(degraded.values())
    new = total - memory.skipped if total >= memory.skipped else total  # less than before: another process
    memory.skipped = total
    texts = list(failed)
    if new:
        causes = ", ".join(f"{cause} ({number})" for cause, number in sorted(degraded.items()))
        texts.append(f"this process skipped the disk tier {new} more times, in all by cause: {causes}")
    if texts:
        memory.failed_at = time.time()
    return Condition(
        ERRORS,
        "The cache has errors",
        float(len(failed) + new),
        0.0,
        "",
        # Errors come and go: each pause between two is not their end.
        bool(texts) or (ERRORS in memory.active and time.time() < memory.failed_at + _QUIET_SECONDS),
        "; ".join(texts) or "no errors since the last look",
        "tif1-pipeline doctor says more, the log says when",
    )


def _is_too_low(share: float, threshold: float, was_active: bool) -> bool:
    return share < threshold + (_MARGIN * min(threshold, 1 - threshold) if was_active else 0.0)
