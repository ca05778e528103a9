"""The sensor that keeps the calendars current, and has new events become partitions without a restart."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from datetime import UTC, datetime

import dagster as dg

from tif1_pipeline import api
from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.defs.assets.source import session_assets
from tif1_pipeline.defs.automation import season_freshness
from tif1_pipeline.defs.calendars import Calendars, Look, State, described, fingerprint, lost_seasons
from tif1_pipeline.defs.io_metadata import CONTENT_VERSION, data_version_of
from tif1_pipeline.defs.io_outputs import DATA_VERSION_TAG
from tif1_pipeline.defs.jobs.common import disabled
from tif1_pipeline.defs.jobs.events import log_materialized
from tif1_pipeline.defs.partitions import PARTITIONS
from tif1_pipeline.defs.reload import reload_location
from tif1_pipeline.defs.resources import TimingDataResource

_TICK_SECONDS = 60
_PATIENCE = 20.0
"""Seconds that a tick waits for the CDN and the cache: with a reload after it, it must end within a minute."""
_AGAIN_SECONDS = 3600.0

_SCHEDULE = dg.AssetKey("schedule")
_FRESHNESS = next(iter(session_assets[0].specs)).freshness_policy
"""As it is loaded; it holds while a season runs, by the dates of its events."""


@dg.sensor(
    name="calendar_sensor",
    minimum_interval_seconds=max(1, min(_TICK_SECONDS, int(api.get_config().calendar_interval.total_seconds()))),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Every minute compares the stored calendars with the loaded partitions, and asks the webserver "
    "(webserver_url) to reload the code location when they differ. Every calendar_interval (1 h by default) asks the "
    "CDN, by conditional requests, for the calendars of the running season, the next one, and any that is not stored; "
    "logs a materialization of schedule for each that changed, and drops the session_info that it contradicts. Each "
    "tick says what it did or why not. Running by default: without it an empty instance gets no sessions.",
)
def calendar_sensor(context: dg.SensorEvaluationContext, timing_data: TimingDataResource) -> dg.SensorResult:
    """Refresh the calendars, and have the location reloaded when they have other events than are loaded."""
    return tick(context, timing_data, datetime.now(UTC))


def tick(context: dg.SensorEvaluationContext, timing_data: TimingDataResource, now: datetime) -> dg.SensorResult:
    """Do what a tick of the sensor does.

    Args:
        context: Of the tick.
        timing_data: The cache and what fills it.
        now: The present (aware).
    """
    state = State.of(context.cursor)
    if reason := disabled():
        return _result(state, [f"{reason}: without a cache no calendar is stored, and the partitions stay as they are"])
    calendars = Calendars(api.get_config(), timing_data.reader, timing_data.cache)
    look = _looks.wait_for(lambda: calendars.look(now, state))
    if look is None:
        return _result(
            state, [f"the CDN or the cache did not answer within {_PATIENCE:g} s; the next tick sees what came of it"]
        )
    said = look.said
    for year, info in look.stored.items():
        if _tell(context, timing_data.cache, year, info, look.state):
            said.append(f"{year}: logged a materialization of schedule")
    if look.partitions is not None:
        said += _reload(context, look, now)
    if not said:
        said = ["the stored calendars are current, and loaded as partitions"] if look.stored else ["none is published"]
    return _result(look.state, said)


def _result(state: State, said: list[str]) -> dg.SensorResult:
    return dg.SensorResult(skip_reason="\n".join(said), cursor=state.cursor)


def _tell(context: dg.SensorEvaluationContext, cache: Cache, year: int, info: EntryInfo, state: State) -> bool:
    """Log what is stored, unless the asset ``schedule`` or an earlier tick has done so."""
    version = data_version_of(info)
    # The next season is a partition only when its calendar is loaded.
    if state.told.get(year) == version or not PARTITIONS.seasons.has_partition_key(str(year)):
        return False
    records = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(_SCHEDULE, asset_partitions=[str(year)]), limit=1
    ).records
    event = records[0].asset_materialization if records else None
    known = [event.metadata.get(CONTENT_VERSION), (event.tags or {}).get(DATA_VERSION_TAG)] if event else []
    is_new = version not in [getattr(value, "value", value) for value in known] and log_materialized(
        context, cache, year, "schedule", info
    )
    state.told[year] = version
    return is_new


def _reload(context: dg.SensorEvaluationContext, look: Look, now: datetime) -> list[str]:
    """Have the location reloaded where it would come out otherwise by the stored calendars; once a difference."""
    stored, state = look.partitions, look.state
    assert stored is not None  # noqa: S101 - the caller's
    if lost := lost_seasons(PARTITIONS, stored):
        return [f"the calendars of {', '.join(lost)} are not stored any more; their partitions stay until they are"]
    now_stored, freshness = fingerprint(stored), season_freshness(look.calendars, now)
    if now_stored != fingerprint(PARTITIONS):
        unlike = fingerprint(PARTITIONS, stored)
        what = f"the stored calendars have {described(PARTITIONS, stored)}"
    elif freshness != _FRESHNESS:
        unlike = str(freshness)
        what = "by the stored calendars another freshness policy holds than is loaded"
    elif state.announced not in ("", now_stored):
        # A daemon with a code server of its own starts that anew each minute; the webserver is not told.
        unlike = now_stored
        what = "this code server has loaded other calendars than the webserver is known to have"
    else:
        state.announced, state.difference, state.reloaded_at = now_stored, "", 0.0
        return []
    since = now.timestamp() - state.reloaded_at
    if unlike == state.difference and since < _AGAIN_SECONDS:
        return [
            f"{what}; the webserver reloaded its code {since:.0f} s ago, and this code server has not yet: where the "
            "daemon has one of its own it does within a minute; one started by dagster api grpc must be restarted"
        ]
    if problem := reload_location(context, api.get_config().webserver_url):
        return [f"{what}, but {problem}"]
    state.announced, state.difference, state.reloaded_at = now_stored, unlike, now.timestamp()
    return [f"{what}: the code location was reloaded"]


class _Looks:
    """One look at a time, in a thread; a tick waits for it only so long, and a later one takes what came of it."""

    _under_way: "Future[Look] | None" = None

    def wait_for(self, work: Callable[[], Look]) -> Look | None:
        """Return what came of the look under way, or of this one if there is none; None if it takes too long."""
        if self._under_way is None:
            self._under_way = Future()
            # As a daemon: a code server that was replaced must not stay for a CDN that hangs.
            threading.Thread(target=_fulfil, args=(self._under_way, work), name="tif1-calendar", daemon=True).start()
        future = self._under_way
        if not wait([future], _PATIENCE).done:
            return None
        self._under_way = None
        return future.result()


def _fulfil(future: "Future[Look]", work: Callable[[], Look]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - it is raised where the result is waited for
        future.set_exception(error)


_looks = _Looks()
