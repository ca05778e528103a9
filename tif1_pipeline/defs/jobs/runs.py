"""Keeping Dagster's own storage small: old runs go, unless what Dagster says of a partition or check rests on them."""

import contextlib
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from tif1_pipeline import api
from tif1_pipeline.config import MIB
from tif1_pipeline.defs.jobs.common import OpConfig, Report, op_output, perform

_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_PAGE = 5000
_RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_Record = tuple[str, str | None]
"""Run and data version of a materialization or observation."""


class RunCleanupConfig(OpConfig):
    """Which runs are deleted, and how many at most."""

    older_than_days: float | None = Field(
        None, ge=0, description="Age since a run ended, in days; by default the setting run_retention."
    )
    max_runs: int = Field(1000, ge=1, description="Runs deleted at most; the next run of the job goes on.")
    batch: int = Field(100, ge=1, description="Runs between two words in the log.")


@dg.op(
    description="Deletes runs that ended long ago with their events, logs and files, but none on which the status, "
    "data version or staleness of an asset partition or the latest result of a check rests, nor the last one of a job.",
    out=op_output(),
)
def delete_old_runs(context: dg.OpExecutionContext, config: RunCleanupConfig) -> dict[str, Any]:  # noqa: D103
    def clean() -> Report:
        days = config.older_than_days
        age = api.get_config().run_retention if days is None else timedelta(days=days)
        before = datetime.now(UTC) - age
        instance = context.instance
        context.log.info(f"looking for runs that ended before {before:%Y-%m-%d %H:%M} UTC")
        needed = runs_in_use(instance) | _roots(instance)
        examined, deletable = _old_runs(instance, before, needed, config.max_runs)
        freed = 0
        for number, run_id in enumerate(deletable, 1):
            freed += delete_run(instance, run_id, dry_run=config.dry_run)
            if number % config.batch == 0 or number == len(deletable):
                verb = "would be deleted" if config.dry_run else "are deleted"
                context.log.info(f"{number} of {len(deletable)} runs {verb}: {freed / MIB:.1f} MiB")
        leftovers = list(_leftovers(instance, before))
        for path in leftovers:
            freed += _size(path)
            if not config.dry_run:
                _remove(path)
        counts = {
            "examined": examined,
            "kept": examined - len(deletable),
            "would_delete" if config.dry_run else "deleted": len(deletable),
            "leftovers": len(leftovers),
            "freed_bytes": freed,
        }
        return Report(counts)

    return perform(context, config, clean)


@dg.job(
    description="Keeps Dagster's run and event storage small without losing the status of any partition. What it frees "
    "inside the databases is used again by them; the bytes it reports are those of files.",
    tags={"tif1/reason": "run-cleanup"},
)
def run_cleanup_job() -> None:  # noqa: D103
    delete_old_runs()


# ---- which runs


def _old_runs(instance: dg.DagsterInstance, before: datetime, needed: set[str], limit: int) -> tuple[int, list[str]]:
    """Return how many runs that ended before a moment were examined, and which of them can be deleted, oldest first."""
    examined, deletable = 0, []
    open_backfills: dict[str, bool] = {}
    last_of_job: dict[str, str] = {}
    cursor: str | None = None
    while len(deletable) < limit:
        filters = dg.RunsFilter(statuses=_FINISHED, updated_before=before)
        records = instance.get_run_records(filters, limit=_PAGE, ascending=True, cursor=cursor)
        for record in records:
            run = record.dagster_run
            examined += 1
            if run.job_name not in last_of_job:
                latest = instance.get_run_records(dg.RunsFilter(job_name=run.job_name), limit=1)
                last_of_job[run.job_name] = latest[0].dagster_run.run_id
            backfill = run.tags.get("dagster/backfill")
            if backfill and backfill not in open_backfills:
                open_backfills[backfill] = _is_open(instance, backfill)
            if run.run_id in needed or run.run_id == last_of_job[run.job_name] or open_backfills.get(backfill or ""):
                continue
            deletable.append(run.run_id)
            if len(deletable) == limit:
                break
        if len(records) < _PAGE:
            break
        cursor = records[-1].dagster_run.run_id
    return examined, deletable


def _roots(instance: dg.DagsterInstance) -> set[str]:
    """Return the runs that others are re-executions of: the UI shows none of these without its root."""
    tag = "dagster/root_run_id"
    return {root for _, roots in instance.get_run_tags([tag]) for root in roots}


def _is_open(instance: dg.DagsterInstance, backfill: str) -> bool:
    from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES

    found = instance.get_backfill(backfill)
    return found is not None and found.status not in BULK_ACTION_TERMINAL_STATUSES


def runs_in_use(instance: dg.DagsterInstance) -> set[str]:
    """Return the runs whose events say what is known of asset partitions and checks now.

    That is, for each partition of each asset and each check: the run of the latest materialization and observation,
    of the attempt after it (failed, canceled or under way), and of the latest evaluation. A downstream partition is
    fresh if the version that its run saw is the latest: so of several runs that brought the latest version, the first.

    Raises:
        Failure: The event log is not in an SQLite database; the queries are tried with no other.
    """
    # Not at the top: these modules are Dagster's own, and if they move, this job must fail rather than all of them. Its
    # public calls read one partition at a time.
    import sqlalchemy as sa
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Checks
    from dagster._core.storage.event_log.schema import AssetEventTagsTable as Tags
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage) or _dialect(storage) != "sqlite":
        raise dg.Failure(
            f"runs are deleted from SQLite alone, and the events are in a {type(storage).__name__}", allow_retries=False
        )

    def pages(query: Any, id_column: Any) -> Iterator[Any]:
        last = 0
        while True:
            with storage.index_connection() as connection:
                page = connection.execute(query.where(id_column > last).order_by(id_column).limit(_PAGE)).fetchall()
            yield from page
            if len(page) < _PAGE:
                return
            last = page[-1].id

    types = dg.DagsterEventType
    planned_type = types.ASSET_MATERIALIZATION_PLANNED.value
    recorded = (types.ASSET_MATERIALIZATION.value, types.ASSET_OBSERVATION.value)
    records: defaultdict[tuple[Any, ...], list[_Record]] = defaultdict(list)
    attempts: dict[tuple[Any, ...], str] = {}
    asset_events = sa.select(
        Events.c.id, Events.c.run_id, Events.c.asset_key, Events.c.partition, Events.c.dagster_event_type, Tags.c.value
    ).outerjoin(Tags, (Tags.c.event_id == Events.c.id) & (Tags.c.key == "dagster/data_version"))
    for row in pages(asset_events.where(Events.c.dagster_event_type.in_((*recorded, planned_type))), Events.c.id):
        about = (row.asset_key, row.partition)
        if row.dagster_event_type == planned_type:
            attempts[about] = row.run_id
        else:
            records[(row.dagster_event_type, *about)].append((row.run_id, row.value))
            if row.dagster_event_type == recorded[0]:
                attempts.pop(about, None)
    evaluations: dict[tuple[Any, ...], str] = {}
    executions = sa.select(
        Checks.c.id,
        Checks.c.run_id,
        Checks.c.asset_key,
        Checks.c.check_name,
        Checks.c.partition,
        Checks.c.evaluation_event_storage_id,
    )
    for row in pages(executions, Checks.c.id):
        about = (row.asset_key, row.check_name, row.partition)
        evaluations[(*about, row.evaluation_event_storage_id is None)] = row.run_id
    return {
        *(run for history in records.values() for run in _needed(history)),
        *attempts.values(),
        *evaluations.values(),
        *(record.asset_entry.last_run_id or "" for record in instance.get_asset_records()),
    }


def _dialect(storage: Any) -> str:
    with storage.index_connection() as connection:
        return connection.dialect.name


def _needed(history: Sequence[_Record]) -> Iterable[str]:
    """Return the runs that matter of one partition's records, the oldest of which comes first."""
    latest = history[-1][1]
    first = len(history) - 1
    while first and history[first - 1][1] == latest:
        first -= 1
    if latest is None or any(version == latest for _, version in history[:first]):
        # It went back to a former version, or nobody knows: what lies between tells who has seen something else.
        return [run for run, _ in history]
    return history[first][0], history[-1][0]


# ---- deleting


def delete_run(instance: dg.DagsterInstance, run_id: str, *, dry_run: bool = False) -> int:
    """Delete a run, its events, check results and logs, and the files that Dagster leaves behind of a deleted run.

    Returns:
        The bytes of the files.
    """
    import sqlalchemy as sa
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Checks

    paths = [*_event_files(instance, run_id), _artifacts(instance) / run_id]
    size = sum(map(_size, paths))
    if dry_run:
        return size
    instance.delete_run(run_id)
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined] - checked before
        connection.execute(sa.delete(Checks).where(Checks.c.run_id == run_id))
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    for path in paths:
        _remove(path)
    return size


def _leftovers(instance: dg.DagsterInstance, before: datetime) -> Iterator[Path]:
    """Give the old files of runs that do not exist any more, such as those deleted in the UI."""
    events, existing = _event_folder(instance), set(instance.get_run_ids())
    for folder in [*([events] if events else []), _artifacts(instance)]:
        for path in folder.iterdir() if folder.is_dir() else ():
            name = path.name.partition(".db")[0] if folder == events else path.name
            if not _RUN_ID.fullmatch(name) or name in existing:
                continue
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before.timestamp():
                    yield path


def _event_folder(instance: dg.DagsterInstance) -> Path | None:
    """Return where SQLite's event log has a file for each run; other storages have none."""
    from dagster._core.storage.event_log import SqliteEventLogStorage

    storage = instance.event_log_storage
    return Path(storage.path_for_shard("x")).parent if isinstance(storage, SqliteEventLogStorage) else None


def _event_files(instance: dg.DagsterInstance, run_id: str) -> list[Path]:
    folder = _event_folder(instance)
    return [folder / f"{run_id}.db{suffix}" for suffix in ("", "-wal", "-shm")] if folder else []


def _artifacts(instance: dg.DagsterInstance) -> Path:
    """Return where each run has a folder: its compute logs, and what ops stored in files."""
    return Path(instance.storage_directory())


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
