"""The schedules: when the jobs that take care of the cache and of Dagster's storage run."""

from collections.abc import Callable

import dagster as dg

from tif1_pipeline import api
from tif1_pipeline.config import Config
from tif1_pipeline.defs.jobs.maintenance import daily_maintenance_job, weekly_maintenance_job
from tif1_pipeline.defs.jobs.runs import run_cleanup_job
from tif1_pipeline.defs.jobs.warm import nightly_warm_job

_UNDER_WAY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

_Obstacle = Callable[[Config], str | None]


def _no_obstacle(_: Config) -> None:
    return None


def _unwritable(config: Config) -> str | None:
    """Return why nothing can be changed in the cache."""
    if not config.cache_enabled:
        return "the setting cache_enabled is off: there is no cache to take care of"
    return "the setting cache_readonly is on: nothing can be stored or removed" if config.cache_readonly else None


def _unreachable(config: Config) -> str | None:
    """Return why nothing can be fetched into the cache."""
    if config.offline:
        return "the setting offline is on: nothing can be fetched"
    return _unwritable(config)


def _schedule(
    job: dg.JobDefinition, setting: str, description: str, obstacle: _Obstacle, *, on: bool
) -> dg.ScheduleDefinition:
    """Make the schedule of a job, named after it.

    Args:
        job: The job.
        setting: Name of the setting that holds the cron line; it is read now, when the definitions load.
        description: What the job does.
        obstacle: Gives the reason not to run it at all, if there is one when its time comes.
        on: Whether it runs in a fresh installation.
    """
    config = api.get_config()
    cron: str = getattr(config, setting)
    switch = "On" if on else "Off"

    @dg.schedule(
        name=f"{job.name.removesuffix('_job')}_schedule",
        job=job,
        cron_schedule=cron,
        execution_timezone=config.operations_timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING if on else dg.DefaultScheduleStatus.STOPPED,
        description=f"{description} At `{cron}` in {config.operations_timezone} (settings `{setting}` and "
        f"`operations_timezone`, read when the definitions load). {switch} by default; the switch is on this page.",
        tags=job.tags,
    )
    def request(context: dg.ScheduleEvaluationContext):
        if reason := obstacle(api.get_config()) or _running(context.instance, job.name):
            return dg.SkipReason(reason)
        # What somebody asked for goes first when runs queue.
        return dg.RunRequest(tags={"dagster/priority": "-1"})

    return request


def _running(instance: dg.DagsterInstance, job_name: str) -> str | None:
    """Return the word that a run of the job is queued or running, if one is."""
    runs = instance.get_runs(dg.RunsFilter(job_name=job_name, statuses=_UNDER_WAY), limit=1)
    return f"the run {runs[0].run_id} of {job_name} is {runs[0].status.value.lower()}" if runs else None


nightly_warm_schedule = _schedule(
    nightly_warm_job,
    "nightly_warm_cron",
    "Warms the upcoming event, recent sessions and those that are read often.",
    _unreachable,
    on=True,
)
daily_maintenance_schedule = _schedule(
    daily_maintenance_job,
    "daily_maintenance_cron",
    "Verifies, repairs, cleans and backs up the cache, and reports on it.",
    _unwritable,
    on=True,
)
# Off, because a fresh installation does without for months: the file is sound and quick without being compacted, and
# the history of runs is somebody's until they say that it may be deleted.
weekly_maintenance_schedule = _schedule(
    weekly_maintenance_job,
    "weekly_maintenance_cron",
    "Rebuilds indexes, optimizes and vacuums the cache file.",
    _unwritable,
    on=False,
)
run_cleanup_schedule = _schedule(
    run_cleanup_job,
    "run_cleanup_cron",
    "Deletes runs older than the setting `run_retention` on which no partition's status rests.",
    _no_obstacle,
    on=False,
)

schedules = [nightly_warm_schedule, daily_maintenance_schedule, weekly_maintenance_schedule, run_cleanup_schedule]
