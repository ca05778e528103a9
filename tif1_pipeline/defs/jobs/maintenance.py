"""Jobs that keep the cache sound, small and backed up."""

from contextlib import suppress
from typing import Any

import dagster as dg
from pydantic import Field

from tif1_pipeline import alerts, api
from tif1_pipeline.cache import Cache
from tif1_pipeline.config import MIB
from tif1_pipeline.defs.assets.source import CDN_POOL
from tif1_pipeline.defs.jobs.backups import backup
from tif1_pipeline.defs.jobs.common import (
    AFTER,
    OUTCOME,
    PROBLEM,
    OpConfig,
    Report,
    disabled,
    hindrance,
    markdown_table,
    op_output,
    perform,
    skipped,
    try_again,
)
from tif1_pipeline.defs.jobs.events import log_materialized
from tif1_pipeline.defs.jobs.refetching import Refetched, is_source, refetch
from tif1_pipeline.defs.jobs.statistics import statistics_report
from tif1_pipeline.defs.resources import TimingDataResource
from tif1_pipeline.exceptions import CacheError

_NAMED = 10
"""Entries that an alert names."""


# ---- daily: whole


@dg.op(out=op_output())
def verify_integrity(
    context: dg.OpExecutionContext, config: OpConfig, timing_data: TimingDataResource
) -> dict[str, Any]:
    """Check the database and every entry. It reads everything and changes nothing; what it finds fails no run."""

    def verify() -> Report:
        if reason := disabled():
            return skipped(reason)
        found = timing_data.cache.verify_integrity()
        corrupted = found.pop("corrupted_list")
        rows = [(item["key"] or "(database)", item["error"]) for item in corrupted]
        tables = {"corrupted": markdown_table(["entry", "what is wrong"], rows)} if rows else {}
        return Report(found, tables, {"corrupted_list": corrupted})

    return perform(context, config, verify)


@dg.op(out=op_output())
def clear_corrupted(
    context: dg.OpExecutionContext, config: OpConfig, timing_data: TimingDataResource, verified: dict
) -> dict[str, Any]:
    """Remove the entries that are corrupt or incomplete.

    Everything is verified again first, so that an entry that was replaced in between stays and one that broke in
    between goes too. Nothing is read where nothing was found.
    """

    def clear() -> Report:
        corrupted = verified.get("corrupted_list", [])
        named = sorted({item["key"] for item in corrupted} - {""})
        if not corrupted:
            return Report({"removed": 0}, handed_on={"lost": []})
        if config.dry_run:
            listed = markdown_table(["would be removed"], [(key,) for key in named])
            return Report({"to_remove": len(named)}, {"to_remove_list": listed}, {"lost": named})
        if reason := hindrance(timing_data.cache):
            return skipped(f"{len(corrupted)} faults were found and nothing is repaired: {reason}")
        cache = timing_data.cache
        before = _keys(cache)
        removed = cache.clear_corrupted()
        gone = {key for key in named if cache.info(key) is None}
        more = before - _keys(cache) - gone
        # If more has gone than was removed here, somebody else removes entries too, and not for being corrupt.
        lost = sorted(gone | more) if len(gone | more) <= removed else sorted(gone)
        listed = markdown_table(["removed"], [(key,) for key in lost])
        return Report({"removed": removed}, {"removed_list": listed}, {"lost": lost})

    return perform(context, config, clear)


def _keys(cache: Cache) -> set[str]:
    """Return what is stored; nothing if an entry is too broken to be listed."""
    with suppress(TypeError, ValueError, OverflowError, CacheError):
        return {row["key"] for row in cache.get_entries()}
    return set()


class RefetchConfig(OpConfig):
    """Options of fetching lost tables again."""

    max_tables: int = Field(default=500, ge=1, description="More are left to be fetched when they are used.")
    retries: int = Field(default=2, ge=0, description="Further tries while the CDN cannot be reached.")
    # Longer than a mirror that has failed again and again is set aside.
    retry_seconds: float = Field(default=90.0, ge=0, description="Time before the first of them; then twice as long.")


@dg.op(out=op_output(), pool=CDN_POOL)
def refetch_corrupted(
    context: dg.OpExecutionContext, config: RefetchConfig, timing_data: TimingDataResource, cleared: dict
) -> dict[str, Any]:
    """Fetch the source tables that were removed, one at a time, and tell Dagster of them.

    What was made from other tables cannot be fetched; the repair sensor has it materialized again. While the CDN cannot
    be reached the op is tried again; what then remains fails the run at its end.
    """

    def fetch() -> Report:
        lost = cleared.get("lost", [])
        keys, left = lost[: config.max_tables], lost[config.max_tables :]
        if config.dry_run:
            sources = [key for key in keys if is_source(key)]
            listed = markdown_table(["would be fetched"], [(key,) for key in sources])
            return Report({"to_fetch": len(sources)}, {"to_fetch_list": listed})
        if keys and (reason := hindrance(timing_data.cache)):
            return skipped(reason)
        cache = timing_data.cache
        result = refetch(keys, timing_data.reader, cache, lambda *stored: log_materialized(context, cache, *stored))
        if result.unreachable:
            problem = f"{len(result.unreachable)} tables could not be fetched: {_first(result.unreachable)}"
            seconds = config.retry_seconds * 2**context.retry_number
            try_again(context, problem, times=config.retries, seconds=seconds)
        return _refetched(result, left)

    return perform(context, config, fetch)


def _refetched(result: Refetched, left: list[str]) -> Report:
    missing = result.unreachable | result.unavailable
    tables = {
        "derived_list": markdown_table(["materialized again by repair_sensor"], [(key,) for key in result.derived]),
        "missing_list": markdown_table(["entry", "why it could not be fetched"], missing.items()),
        "refetched_list": markdown_table(["stored again"], [(key,) for key in result.stored]),
    }
    counts = {
        "refetched": len(result.stored),
        "derived": len(result.derived),
        "missing": len(missing),
        "left_to_readers": len(left),
    }
    problem = None
    if missing:
        problem = (
            f"{len(missing)} tables that were corrupt could not be fetched again: {_first(missing)}. They are fetched "
            "when they are used; what the CDN no longer has, an older backup may hold"
        )
    shown = {name: table for name, table in tables.items() if counts[name.removesuffix("_list")]}
    return Report(counts, shown, {"derived_keys": result.derived}, problem)


def _first(reasons: dict[str, str]) -> str:
    key, reason = next(iter(reasons.items()))
    return f"{key}: {reason}"


# ---- daily: small


@dg.op(ins=AFTER, out=op_output())
def cleanup(context: dg.OpExecutionContext, config: OpConfig, timing_data: TimingDataResource) -> dict[str, Any]:
    """Remove what is worth least where more than ``cache_cleanup_threshold_mb`` is stored; pinned entries stay.

    A dry run removes nothing, but writes down the reads that are not counted yet, by which entries are judged.
    """

    def clean() -> Report:
        cache = timing_data.cache
        reason = disabled() if config.dry_run else hindrance(cache)
        if reason is not None:
            return skipped(reason)
        before = cache.get_size_info()
        cleaned = cache.run_auto_cleanup(dry_run=config.dry_run)
        listed = markdown_table(
            ["entry", "MiB stored"], [(item.key, item.compressed_size / MIB) for item in cleaned.removed]
        )
        stored = before if config.dry_run else cache.get_size_info()
        counts = {
            "to_remove" if config.dry_run else "removed": int(cleaned),
            "to_free_bytes" if config.dry_run else "freed_bytes": cleaned.bytes,
            "entries": stored["total_entries"],
            "stored_mb": round(stored["compressed_mb"], 3),
        }
        return Report(counts, {"entries_list": listed} if cleaned else {})

    return perform(context, config, clean)


# ---- daily: its end


@dg.op(name=OUTCOME, out=op_output())
def outcome(context: dg.OpExecutionContext, config: OpConfig, reports: list[dict]) -> dict[str, Any]:
    """Send an alert where corruption was found, and fail the run for what could not be done."""
    problems = [f"{report['op']}: {report[PROBLEM]}" for report in reports if report[PROBLEM]]
    by_op = {report["op"]: report for report in reports}
    corrupted = by_op.get("verify_integrity", {}).get("corrupted_list", [])
    is_rehearsal = config.dry_run or any(report["dry_run"] for report in reports)
    if corrupted and not is_rehearsal:
        context.log.warning(f"{len(corrupted)} faults were found in the cache")
        alerts.send(_alert(corrupted, by_op, problems), api.get_config())
    counts = {"faults": len(corrupted), "problems": len(problems)}
    if problems:
        raise dg.Failure("; ".join(problems), metadata=counts, allow_retries=False)
    context.add_output_metadata(counts)
    return counts


def _alert(corrupted: list[dict[str, str]], by_op: dict[str, dict], problems: list[str]) -> alerts.Alert:
    named = [f"- {item['key'] or 'database'}: {item['error']}" for item in corrupted[:_NAMED]]
    if len(corrupted) > _NAMED:
        named.append(f"- and {len(corrupted) - _NAMED} more")
    cleared, refetched = by_op.get("clear_corrupted", {}), by_op.get("refetch_corrupted", {})
    done = f"{cleared.get('removed', 0)} entries were removed, {refetched.get('refetched', 0)} fetched again."
    if derived := refetched.get("derived_keys"):
        done += f" The repair sensor has {len(derived)} materialized again: {', '.join(derived[:_NAMED])}."
    if problems:
        done += f" What remains: {'; '.join(problems)}."
    return alerts.Alert(
        "corruption",
        f"tif1_pipeline: {len(corrupted)} faults were found in the cache",
        "\n".join([*named, done, "If this happens again, check the disk and its file system."]),
        "report",
    )


# ---- weekly


@dg.op(out=op_output())
def rebuild_indexes(
    context: dg.OpExecutionContext, config: OpConfig, timing_data: TimingDataResource
) -> dict[str, Any]:
    """Build the database's indexes anew."""
    return perform(context, config, lambda: _upkeep(config, timing_data.cache, "rebuild_indexes"))


@dg.op(ins=AFTER, out=op_output())
def optimize(context: dg.OpExecutionContext, config: OpConfig, timing_data: TimingDataResource) -> dict[str, Any]:
    """Refresh what SQLite knows of the tables for its plans."""
    return perform(context, config, lambda: _upkeep(config, timing_data.cache, "optimize"))


@dg.op(ins=AFTER, out=op_output())
def vacuum(context: dg.OpExecutionContext, config: OpConfig, timing_data: TimingDataResource) -> dict[str, Any]:
    """Give free pages back to the file system; fails if the disk cannot hold the copy that this takes."""
    return perform(context, config, lambda: _upkeep(config, timing_data.cache, "vacuum"))


def _upkeep(config: OpConfig, cache: Cache, call: str) -> Report:
    before = round(cache.get_size_mb() * MIB)
    if config.dry_run:
        return Report({"size_bytes": before}, {"would_do": f"{call} of {cache.get_cache_file()}"})
    if reason := hindrance(cache):
        return skipped(reason)
    if not before:
        return skipped("nothing is stored yet")
    freed = getattr(cache, call)()
    counts = {"size_bytes_before": before, "size_bytes": round(cache.get_size_mb() * MIB)}
    return Report(counts if freed is None else {**counts, "freed_bytes": round(freed * MIB)})


# ---- jobs


@dg.job(tags={"tif1/reason": "daily-maintenance"})
def daily_maintenance_job() -> None:
    """Verify the cache, remove and fetch again what is corrupt, clean, back up, report.

    What one op cannot do does not keep the others from their work: the last one fails the run for it.
    """
    verified = verify_integrity()
    cleared = clear_corrupted(verified)
    refetched = refetch_corrupted(cleared)
    cleaned = cleanup(after=refetched)
    backed_up = backup(after=cleaned)
    reported = statistics_report(after=backed_up)
    outcome([verified, cleared, refetched, cleaned, backed_up, reported])


@dg.job(tags={"tif1/reason": "weekly-maintenance"})
def weekly_maintenance_job() -> None:
    """Rebuild the indexes, refresh SQLite's statistics, vacuum."""
    vacuum(after=optimize(after=rebuild_indexes()))


@dg.job
def cleanup_job() -> None:
    """Clean the cache down to its target size, as the monitoring sensor requests it."""
    cleanup()
