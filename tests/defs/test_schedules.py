"""The schedules: when they are due, in which zone, and why they sometimes do nothing."""

import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._utils.schedules import schedule_execution_time_iterator

from tif1_pipeline import api

# As in definitions.py, which these tests do without.
pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

NAMES = ("nightly_warm", "daily_maintenance", "weekly_maintenance", "run_cleanup")
ON = {"nightly_warm", "daily_maintenance"}


@pytest.fixture(scope="module")
def kept_instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp() as instance:
        yield instance


@pytest.fixture
def instance(kept_instance) -> dg.DagsterInstance:
    """An instance that a schedule can open, and that knows of no runs."""
    kept_instance.wipe()
    return kept_instance


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("tif1_pipeline.defs")]:
        del sys.modules[name]


@pytest.fixture(scope="module", autouse=True)
def _loaded_here() -> None:
    forget()


@pytest.fixture
def load(tif1) -> Iterator[Callable[..., dict[str, dg.ScheduleDefinition]]]:
    """Load the schedules; with other settings, as a new process would."""
    changed = False

    def load(**settings):
        nonlocal changed
        if settings:
            changed = True
            api.get_config().update(settings)
            forget()
        from tif1_pipeline.defs.schedules import schedules

        return {schedule.name.removesuffix("_schedule"): schedule for schedule in schedules}

    yield load
    if changed:
        forget()


def times(schedule: dg.ScheduleDefinition, start: datetime, days: int) -> list[datetime]:
    """The times at which Dagster's scheduler finds it due, in its zone."""
    found = schedule_execution_time_iterator(
        start.timestamp(), schedule.cron_schedule, schedule.execution_timezone, ascending=True
    )
    zone, until = ZoneInfo(schedule.execution_timezone), start + timedelta(days=days)
    due = []
    for moment in found:
        if moment.timestamp() >= until.timestamp():
            return due
        due.append(moment.astimezone(zone))
    return due


def tick(schedule: dg.ScheduleDefinition, instance: dg.DagsterInstance, at: datetime | None = None):
    context = dg.build_schedule_context(instance=instance, scheduled_execution_time=at or datetime.now(UTC))
    return schedule.evaluate_tick(context)


def test_there_is_one_for_each_job_and_what_keeps_an_installation_right_is_on(load):
    schedules = load()
    assert tuple(schedules) == NAMES
    for name, schedule in schedules.items():
        assert schedule.job_name == f"{name}_job"
        assert schedule.default_status.value == ("RUNNING" if name in ON else "STOPPED")
        assert schedule.execution_timezone == "UTC"
        assert f"`{name}_cron`" in schedule.description
        assert f"{'On' if name in ON else 'Off'} by default" in schedule.description
    dg.Definitions.validate_loadable(
        dg.Definitions(
            schedules=list(schedules.values()),
            resources={"timing_data": sys.modules["tif1_pipeline.defs.resources"].TimingDataResource()}
            | {"op_io_manager": dg.mem_io_manager},
        )
    )


def test_by_default_they_do_not_start_together(load):
    sunday = datetime(2025, 6, 1, tzinfo=UTC)
    due = {name: times(schedule, sunday, 1) for name, schedule in load().items()}
    assert {name: [f"{time:%H:%M}" for time in of_day] for name, of_day in due.items()} == {
        "nightly_warm": ["02:00"],
        "daily_maintenance": ["02:30"],
        "weekly_maintenance": ["03:00"],
        "run_cleanup": ["04:00"],
    }
    assert times(load()["weekly_maintenance"], sunday + timedelta(days=1), 6) == []


def test_times_and_zone_come_from_the_settings(load):
    schedules = load(operations_timezone="Asia/Tokyo", nightly_warm_cron="15 4 * * 1", run_cleanup_cron="5 5 1 * *")
    (due,) = times(schedules["nightly_warm"], datetime(2025, 6, 1, tzinfo=UTC), 7)
    assert due == datetime(2025, 6, 2, 4, 15, tzinfo=ZoneInfo("Asia/Tokyo"))
    assert schedules["run_cleanup"].cron_schedule == "5 5 1 * *"
    assert "15 4 * * 1` in Asia/Tokyo" in schedules["nightly_warm"].description


@pytest.mark.parametrize(
    ("change", "offsets"),
    [(datetime(2025, 3, 29, 12), {0: 1, 1: 1, 2: 1}), (datetime(2025, 10, 25, 12), {0: 2, 1: 1, 2: 1})],
    ids=["spring, when 02:30 does not exist", "autumn, when it comes twice"],
)
def test_a_change_to_or_from_summer_time_neither_drops_nor_doubles_a_night(load, instance, change, offsets):
    schedule = load(operations_timezone="Europe/Berlin")["daily_maintenance"]
    start = change.replace(tzinfo=ZoneInfo("Europe/Berlin"))
    due = times(schedule, start, 3)
    assert [time.day for time in due] == [(start + timedelta(days=day)).day for day in (1, 2, 3)]
    assert [time.hour for time in due[1:]] == [2, 2]
    for time in due:
        assert len(tick(schedule, instance, time).run_requests) == 1


@pytest.mark.parametrize("name", NAMES)
def test_when_it_is_due_it_requests_a_run_that_gives_way_to_others(load, instance, name):
    (request,) = tick(load()[name], instance).run_requests
    assert request.tags["dagster/priority"] == "-1"


@pytest.mark.parametrize(
    ("setting", "value", "skipping"),
    [
        ("cache_readonly", True, {"nightly_warm", "daily_maintenance", "weekly_maintenance"}),
        ("cache_enabled", False, {"nightly_warm", "daily_maintenance", "weekly_maintenance"}),
        ("offline", True, {"nightly_warm"}),
    ],
)
def test_what_cannot_be_done_is_skipped_with_the_reason(load, instance, setting, value, skipping):
    schedules = load()
    # When its time comes, not when the definitions load.
    setattr(api.get_config(), setting, value)
    for name, schedule in schedules.items():
        found = tick(schedule, instance)
        assert len(found.run_requests) == (name not in skipping)
        assert (setting in (found.skip_message or "")) == (name in skipping)


@pytest.mark.parametrize("status", ["QUEUED", "STARTING", "STARTED", "CANCELING"])
def test_no_second_run_while_one_is_queued_or_running(load, instance, status):
    schedules = load()
    location = RegisteredCodeLocationOrigin("here")
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), "nightly_warm_job")
    run = instance.add_run(
        dg.DagsterRun("nightly_warm_job", status=dg.DagsterRunStatus(status), remote_job_origin=origin)
    )
    found = tick(schedules["nightly_warm"], instance)
    assert not found.run_requests
    assert run.run_id in found.skip_message
    assert status.lower() in found.skip_message
    assert tick(schedules["daily_maintenance"], instance).run_requests
    instance.delete_run(run.run_id)
    assert tick(schedules["nightly_warm"], instance).run_requests


@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "CANCELED"])
def test_a_run_that_is_over_does_not_hold_up_the_next(load, instance, status):
    instance.add_run(dg.DagsterRun("nightly_warm_job", status=dg.DagsterRunStatus(status)))
    assert tick(load()["nightly_warm"], instance).run_requests
