"""Derived assets follow their upstreams: when content changes, not when it is fetched again."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pandas as pd
import pytest

from tif1_pipeline.calendar import Event, ScheduledSession, SeasonCalendar
from tif1_pipeline.defs.automation import FOLLOW_UPSTREAM, automation_sensor, season_freshness

SESSIONS = dg.StaticPartitionsDefinition(["one a", "one b", "two a"])
EVENTS = dg.StaticPartitionsDefinition(["one", "two"])
SR = dg.BackfillPolicy.single_run()

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")


class World:
    """A source of sessions with a blocking check, what follows it a session and an event, and a daemon's cursor."""

    def __init__(self, run, instance):
        self._run, self.instance, self.cursor = run, instance, None
        self.values = {"one a": 1, "one b": 2, "two a": 3}
        self.passes = True
        self.broken = False

        @dg.asset(partitions_def=SESSIONS, backfill_policy=SR, code_version="1")
        def source(context: dg.AssetExecutionContext):
            return {key: pd.DataFrame({"n": [self.values[key]]}) for key in context.partition_keys}

        @dg.asset(partitions_def=SESSIONS, backfill_policy=SR, automation_condition=FOLLOW_UPSTREAM, code_version="1")
        def session(source: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
            if self.broken:
                raise ValueError("broken")
            return source

        mapping = dg.StaticPartitionMapping({key: key[:3] for key in SESSIONS.get_partition_keys()})

        @dg.asset(
            partitions_def=EVENTS,
            backfill_policy=SR,
            automation_condition=FOLLOW_UPSTREAM,
            code_version="1",
            ins={"source": dg.AssetIn(partition_mapping=mapping, metadata={"allow_missing_partitions": True})},
        )
        def event(context: dg.AssetExecutionContext, source: dict[str, pd.DataFrame]):
            return {key: sum(len(frame) for frame in source.values()) for key in context.partition_keys}

        @dg.asset_check(asset=source, blocking=True)
        def check() -> dg.AssetCheckResult:
            return dg.AssetCheckResult(passed=self.passes, severity=dg.AssetCheckSeverity.ERROR)

        self.assets = {asset.key.to_user_string(): asset for asset in (source, session, event)}
        self.check = check

    def run(self, *names, key=None, keys=None):
        """Materialize; the check runs with the source."""
        chosen = [self.assets[name] for name in names]
        extra = [self.check] if "source" in names else []
        known = [asset for asset in self.assets.values() if asset not in chosen]
        return self._run(*chosen, *extra, known=known, key=key, keys=keys, raise_on_error=False).success

    def tick(self):
        """Evaluate as the daemon does; returns what is requested, as "asset partition"."""
        defs = dg.Definitions(list(self.assets.values()), asset_checks=[self.check])
        result = dg.evaluate_automation_conditions(defs=defs, instance=self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        return {
            f"{asset} {partition}"
            for asset in self.assets
            for partition in result.get_requested_partitions(dg.AssetKey(asset))
        }


@pytest.fixture
def world(run, instance):
    return World(run, instance)


def test_what_is_missing_is_requested_once_its_upstream_is_there(world):
    assert world.tick() == set()
    world.run("source", key="one a")
    assert world.tick() == {"session one a", "event one"}
    assert world.tick() == set()


def test_what_was_there_before_the_first_tick_is_followed_too(world):
    world.run("source", keys=("one a", "two a"))
    assert world.tick() == {"session one a", "session one b", "session two a", "event one", "event two"}
    world.run("session", keys=("one a", "two a"))
    assert world.tick() == set()


def follow(world):
    world.run("source", keys=("one a", "two a"))
    world.tick()
    world.run("session", keys=("one a", "two a"))
    world.run("event", keys=("one", "two"))
    assert world.tick() == set()


@pytest.mark.parametrize("where", [{"key": "one b"}, {"keys": ("one a", "two a")}], ids=["one", "range"])
def test_a_refetch_without_change_requests_nothing(world, where):
    follow(world)
    world.run("source", **where)
    assert world.tick() == set()


def test_a_correction_requests_what_follows_and_nothing_else(world):
    follow(world)
    world.values["one b"] = 20
    world.run("source", key="one b")
    assert world.tick() == {"session one b", "event one"}
    assert world.tick() == set()


def test_what_runs_together_with_its_upstream_is_not_requested_again(world, io_manager):
    follow(world)
    world.values["two a"] = 20
    defs = dg.Definitions(list(world.assets.values()), resources={"io_manager": io_manager})
    # As the web UI, backfills and sensors launch it: the run says which assets it is about.
    job = defs.resolve_implicit_global_asset_job_def()
    selection = [dg.AssetKey("source"), dg.AssetKey("session")]
    assert job.execute_in_process(asset_selection=selection, partition_key="two a", instance=world.instance).success
    assert world.tick() == {"event two"}


def test_a_correction_between_request_and_next_tick_is_followed(world):
    follow(world)
    world.values["two a"] = 20
    world.run("source", key="two a")
    assert world.tick() == {"session two a", "event two"}
    world.run("session", key="two a")
    world.values["two a"] = 21
    world.run("source", key="two a")
    assert world.tick() == {"session two a", "event two"}


def test_a_correction_right_after_a_manual_run_is_followed(world):
    follow(world)
    world.run("session", key="two a")
    world.values["two a"] = 20
    world.run("source", key="two a")
    assert world.tick() == {"session two a", "event two"}


def test_a_failed_run_is_not_requested_for_ever(world):
    follow(world)
    world.values["two a"], world.broken = 20, True
    world.run("source", key="two a")
    assert world.tick() == {"session two a", "event two"}
    assert not world.run("session", key="two a")
    assert world.tick() == set()


def test_a_failed_check_holds_up_no_other_partition(world):
    """It has one status for all of them; that nothing is derived from the partition at fault is up to who derives."""
    follow(world)
    world.values["one b"] = 20
    assert world.run("source", key="one b")
    world.values["two a"], world.passes = 20, False
    assert not world.run("source", key="two a")
    assert world.tick() >= {"session one b", "event one"}


def test_a_materialization_outside_of_runs_is_followed(world):
    follow(world)
    for version, requested in (("other", {"session two a", "event two"}), ("other", set())):
        world.instance.report_runless_asset_event(
            dg.AssetMaterialization("source", partition="two a", tags={"dagster/data_version": version})
        )
        assert world.tick() == requested


def test_the_sensor_is_on_by_default():
    assert automation_sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert 30 <= automation_sensor.minimum_interval_seconds <= 60


# ---- freshness of the running season


def calendar(*starts, testing=()):
    def event(number, start):
        session = ScheduledSession("Race", None, start)
        form = "testing" if start in testing else "conventional"
        return Event(2025, number, f"Event {number}", None, None, None, form, None, (session,))

    return SeasonCalendar(2025, tuple(event(number, start) for number, start in enumerate(starts, 1)))


FIRST, SECOND, LAST = (datetime(2025, month, day, 15, tzinfo=UTC) for month, day in ((3, 16), (3, 23), (4, 20)))
TEST = datetime(2025, 2, 25, tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "deadline"),
    [
        (TEST + timedelta(days=3), None),
        (FIRST, None),
        (FIRST + timedelta(days=1), "0 15 18 3 *"),
        (SECOND + timedelta(hours=23), "0 15 18 3 *"),
        (SECOND + timedelta(hours=25), "0 15 25 3 *"),
        (LAST - timedelta(days=1), "0 15 25 3 *"),
        (LAST + timedelta(days=13), "0 15 22 4 *"),
        (LAST + timedelta(days=15), None),
    ],
)
def test_freshness_asks_for_the_latest_event_while_the_season_runs(now, deadline):
    policy = season_freshness([calendar(TEST, FIRST, SECOND, LAST, testing=(TEST,))], now)
    if deadline is None:
        assert policy is None
    else:
        assert policy == dg.FreshnessPolicy.cron(deadline_cron=deadline, lower_bound_delta=timedelta(days=2))


def test_freshness_without_calendars_or_dates():
    assert season_freshness([], FIRST) is None
    assert season_freshness([calendar(None)], FIRST) is None


def test_source_assets_have_the_freshness_of_the_season(sources, tif1):
    events = tif1.get_events(2025)
    policy = season_freshness([SeasonCalendar(2025, tuple(events))])
    laps = next(asset for asset in sources.assets if asset.key == dg.AssetKey("laps"))
    assert [spec.freshness_policy for spec in laps.specs] == [policy]
