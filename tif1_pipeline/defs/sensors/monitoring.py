"""Alerts when the cache is not well, once when that starts and once when it is over."""

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import dagster as dg

from tif1_pipeline import api
from tif1_pipeline.alerts import Outbox
from tif1_pipeline.defs.resources import TimingDataResource

if TYPE_CHECKING:
    from tif1_pipeline.monitoring import Condition, Memory

CLEANUP_JOB = "cleanup_job"

_VERSION = 1
_CLEANUP_AGAIN_SECONDS = 3600.0
_FINISHED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
_UNDER_WAY = dg.RunsFilter(
    job_name=CLEANUP_JOB, statuses=[status for status in dg.DagsterRunStatus if status not in _FINISHED]
)


@dg.sensor(
    job_name=CLEANUP_JOB,
    minimum_interval_seconds=max(1, round(api.get_config().monitoring_interval.total_seconds())),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        f"Every {api.get_config().monitoring_interval} (setting monitoring_interval): size, hit rate, free disk, a "
        "sample's integrity, usability and errors of the cache. Alerts to the log and to alert_urls, once when "
        "something is wrong and once when it is over; requests a cleanup above cache_cleanup_threshold_mb. "
        "Running by default, for it is silent as long as nothing is wrong; its switch in the UI stops it."
    ),
)
def monitoring_sensor(context: dg.SensorEvaluationContext, timing_data: TimingDataResource) -> dg.SensorResult:
    """Look at the cache, alert about what has changed, and request a cleanup where one is due."""
    # Not at the top: it needs SQLAlchemy, which would be a sixth of the time that the definitions take to load.
    from tif1_pipeline import monitoring

    config = api.get_config()
    cursor = _read(context.cursor)
    memory, outbox = monitoring.Memory.of(cursor.get("memory")), Outbox(cursor.get("outbox"), context.log)
    found = monitoring.conditions(timing_data.cache, config, memory)
    alerts = monitoring.changes(found, memory)
    outbox.post(alerts)
    outbox.deliver(config)
    size = next((condition for condition in found if condition.name == monitoring.STORED_SIZE), None)
    request, requested_at = _cleanup(context.instance, size, memory, cursor.get("cleanup_requested_at"))
    said = [*(f"{alert.kind}: {alert.title}" for alert in alerts), *map(_figures, found)]
    if len(outbox):
        said.append(f"{len(outbox)} alert(s) still to be delivered")
    if request:
        said.append("requested a cleanup")
        context.log.info("; ".join(said))
    return dg.SensorResult(
        run_requests=[request] if request else None,
        skip_reason=None if request else dg.SkipReason("; ".join(said)),
        cursor=json.dumps(
            {
                "version": _VERSION,
                "memory": memory.state,
                "outbox": outbox.state,
                "cleanup_requested_at": requested_at,
            }
        ),
    )


def _read(cursor: str | None) -> dict[str, Any]:
    with suppress(TypeError, ValueError):
        state = json.loads(cursor or "")
        if isinstance(state, dict) and state.get("version") == _VERSION:
            return state
    return {}


def _cleanup(
    instance: dg.DagsterInstance, size: "Condition | None", memory: "Memory", requested_at: Any
) -> tuple[dg.RunRequest | None, float]:
    """Decide on a cleanup by the size of what is stored; returns its request, and when one was requested last."""
    requested_at = float(requested_at) if isinstance(requested_at, int | float) else 0.0
    now = time.time()
    # Below the threshold it would do nothing, whether or not the alert is over.
    if size is None or size.value is None or size.value <= size.threshold:
        return None, requested_at
    # One that was of no use, because what is left is pinned or the job fails, is not repeated at each tick.
    if requested_at >= memory.active.get(size.name, 0.0) and 0 <= now - requested_at < _CLEANUP_AGAIN_SECONDS:
        return None, requested_at
    if api.get_config().cache_readonly or instance.get_runs_count(_UNDER_WAY):
        return None, requested_at
    return dg.RunRequest(run_key=f"cleanup-{now:.3f}", tags={"tif1/reason": "stored-size"}), now


def _figures(condition: "Condition") -> str:
    value = "not measured" if condition.value is None else f"{condition.value:,.1f}"
    unit = f" {condition.unit}" if condition.unit else ""
    return f"{condition.name} {value} of {condition.threshold:,.1f}{unit}{' (active)' if condition.is_active else ''}"
