"""The sensor that finds tables older than their TTL."""

import time

import dagster as dg

from tif1_pipeline import api
from tif1_pipeline.defs.jobs.common import hindrance
from tif1_pipeline.defs.jobs.expiry import ExpiryAction, expiry_job, find_expired, has_ttl
from tif1_pipeline.defs.resources import TimingDataResource
from tif1_pipeline.exceptions import Tif1Error

_OVER = frozenset({dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED})
_LONGEST_WAIT = 6 * 3600.0
_RUNS_LOOKED_AT = 8


@dg.sensor(
    name="ttl_expiry_sensor",
    job=expiry_job,
    minimum_interval_seconds=max(1, int(api.get_config().expiry_interval.total_seconds())),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Every expiry_interval (15 min by default): requests a run of expiry_job when tables are older than "
    "their TTL (cache_ttl, cache_ttl_laps, …), which refreshes or drops them by the setting expiry_action; not while "
    "one is under way, and at growing distances while it fails. Running by default: as long as no TTL is set it looks "
    "at the settings only.",
)
def ttl_expiry_sensor(
    context: dg.SensorEvaluationContext, timing_data: TimingDataResource
) -> dg.RunRequest | dg.SkipReason:
    """Request the refresh of expired tables."""
    if not has_ttl():
        return dg.SkipReason("no table expires: the settings cache_ttl and those of the types are not set")
    try:
        if reason := hindrance(timing_data.cache):
            return dg.SkipReason(f"nothing is refreshed or dropped: {reason}")
        expired = find_expired(timing_data.reader, timing_data.cache)
    except Tif1Error as error:
        return dg.SkipReason(f"the cache cannot be asked for expired tables: {error}")
    refreshes = api.get_config().expiry_action == ExpiryAction.refresh.value
    wanted = [table for table in expired if table.session is not None or not refreshes]
    kept = (
        f"; {len(expired) - len(wanted)} of sessions that no calendar has are kept"
        if len(expired) > len(wanted)
        else ""
    )
    if not wanted:
        return dg.SkipReason(f"no table is expired{kept}")
    if refreshes and api.get_config().offline:
        return dg.SkipReason(f"{len(wanted)} tables are expired, but the setting offline is on")
    if reason := _wait(context.instance):
        return dg.SkipReason(f"{len(wanted)} tables are expired{kept}, but {reason}")
    context.log.info(f"{len(wanted)} tables are expired, the oldest {wanted[0].key} of {wanted[0].created_at}{kept}")
    return dg.RunRequest(tags={"tif1/expired": str(len(wanted))})


def _wait(instance: dg.DagsterInstance) -> str | None:
    """Return why no run is requested now, by the last runs; None if one may be."""
    records = instance.get_run_records(dg.RunsFilter(job_name=expiry_job.name), limit=_RUNS_LOOKED_AT)
    failures = 0
    for record in records:
        status = record.dagster_run.status
        if status not in _OVER:
            return f"run {record.dagster_run.run_id[:8]} of {expiry_job.name} is {status.value.lower()}"
        if status is not dg.DagsterRunStatus.FAILURE:
            break
        failures += 1
    if not failures:
        return None
    interval = api.get_config().expiry_interval.total_seconds()
    wait = min(interval * 2**failures, max(_LONGEST_WAIT, interval))
    since = time.time() - (records[0].end_time or records[0].create_timestamp.timestamp())
    if since >= wait:
        return None
    return f"the last {failures} runs of {expiry_job.name} failed; the next is requested in {wait - since:.0f} s"
