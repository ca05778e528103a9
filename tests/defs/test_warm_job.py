"""The nightly warm-up: real runs, from a simulated CDN whose season is under way now, into a real cache file."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from tif1_pipeline import api
from tif1_pipeline.keys import SessionKey
from tif1_pipeline.simulator import Fault, Season
from tif1_pipeline.warming import DEFAULT_TYPES

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")  # as in definitions.py

YEAR = datetime.now(UTC).year


@pytest.fixture(scope="module")
def season() -> Season:
    """An event long ago, one of these days, and one of which the first session began an hour ago."""
    season = Season(YEAR, seed=7, events=3, size="tiny")
    now = datetime.now(UTC)
    for event, first in zip(list(season.events), (-60, -6, -1 / 24), strict=True):
        for day, session_type in enumerate(event.session_types):
            season.reschedule(event.name, session_type, now + timedelta(days=first + 0.5 * day))
    return season


@pytest.fixture
def keys(season):
    """The sessions of the three events."""
    return [[SessionKey(YEAR, event.name, name) for name in event.session_types] for event in season.events]


class Project:
    """The definitions as they load now, with the job in them."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        for name in [name for name in sys.modules if name.startswith(("tif1_pipeline.defs", "tif1_pipeline.definit"))]:
            del sys.modules[name]
        from tif1_pipeline.defs.jobs import warm
        from tif1_pipeline.defs.resources import TimingDataResource

        self.warm = warm
        self.instance = instance
        self._resources = {"timing_data": TimingDataResource(), "op_io_manager": dg.mem_io_manager}
        self.defs = dg.Definitions(jobs=[warm.nightly_warm_job], resources=self._resources)

    def run(self, **config):
        job = self.defs.resolve_job_def("nightly_warm_job")
        return job.execute_in_process(instance=self.instance, run_config=config, raise_on_error=False)

    def run_op(self, op: dg.OpDefinition, **config):
        """Run one op alone."""

        @dg.job(resource_defs=self._resources)
        def alone():
            op()

        return alone.execute_in_process(
            instance=self.instance,
            run_config={"ops": {op.name: {"config": config}}, "loggers": QUIET},
            raise_on_error=False,
        )

    def materialized(self, asset: str) -> set[str]:
        return self.instance.get_materialized_partitions(dg.AssetKey(asset))

    def version(self, asset: str, partition: str) -> str:
        record = self.instance.get_latest_data_version_record(dg.AssetKey(asset), partition_key=partition)
        return record.event_log_entry.asset_materialization.tags["dagster/data_version"]


QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}


@pytest.fixture
def project(tif1, instance):
    tif1.get_events(YEAR)
    return Project(instance)


@pytest.fixture
def at_once(project, monkeypatch):
    """There is one more try, and no delay before it."""
    monkeypatch.setattr(project.warm, "NETWORK_RETRIES", dg.RetryPolicy(max_retries=1, delay=0))


@pytest.fixture
def unpublished(cdn, keys):
    """Sessions ahead have no files yet, one of them the drivers."""
    for key in keys[2][1:]:
        for file in ("corners.json", *([] if key == keys[2][1] else ["drivers.json"])):
            cdn.hide(f"{key.event}/{key.session_type}/{file}")


def materializations(project: Project, asset: str) -> list[dg.EventLogRecord]:
    """The newest first."""
    return list(project.instance.fetch_materializations(dg.AssetKey(asset), limit=1000).records)


def stored(key: SessionKey, data_type: str) -> bool:
    return api.get_cache().info(key.entry(data_type)) is not None


def counts(result, op: str) -> tuple[int, int, int, int]:
    output = result.output_for_node(op)
    return output["succeeded"], output["skipped"], output["not_published"], output["failed"]


def failure(result):
    """The failure of the run's only failed step."""
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event.step_failure_data.user_failure_data


def retries(result) -> int:
    return sum(event.event_type_value == "STEP_RESTARTED" for event in result.all_events)


def rows(metadata, name: str) -> list[list[str]]:
    """The cells of a table: session, table, driver, why."""
    lines = metadata[name].md_str.splitlines()[2:]
    return [[cell.replace("\\", "").strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def metadata_of(result, op: str):
    (event,) = [
        event for event in result.all_events if event.event_type_value == "STEP_OUTPUT" and event.node_name == op
    ]
    return event.event_specific_data.metadata


# ---- what is warmed


def test_the_upcoming_event_and_recent_sessions_are_fetched_and_dagster_is_told(project, cdn, keys, unpublished):
    result = project.run()
    assert result.success
    long_ago, recent, (begun, *ahead) = keys
    for key in [begun, *recent]:
        assert all(stored(key, name) for name in DEFAULT_TYPES), key
    assert stored(ahead[0], "drivers")
    assert all(stored(key, "session_info") for key in ahead)
    assert not any(stored(key, name) for key in ahead[1:] for name in ("drivers", "corners", "laps"))
    assert not any(stored(key, "laps") for key in long_ago)
    # Of each session ahead the calendar says something; of one the drivers are published, of none the corners.
    published = len(DEFAULT_TYPES) + len(ahead) + 1
    assert counts(result, "warm_upcoming_event") == (published, 0, 2 * len(ahead) - 1, 0)
    assert counts(result, "warm_recent_sessions") == (len(DEFAULT_TYPES) * len(recent), 0, 0, 0)
    assert counts(result, "warm_frequent_sessions") == (0, 0, 0, 0)

    expected = {key.partition for key in [begun, *recent]}
    assert project.materialized("laps") == project.materialized("weather") == expected
    assert project.materialized("drivers") == expected | {ahead[0].partition}
    assert project.materialized("session_info") == {key.partition for key in ahead}
    info = api.get_cache().info(begun.entry("laps"))
    assert project.version("laps", begun.partition) == info.checksum
    assert cdn.requests.count("*_tel.json") == 0


def test_the_metadata_are_numbers_that_plot(project, cdn, unpublished):
    result = project.run()
    metadata = metadata_of(result, "warm_recent_sessions")
    output = result.output_for_node("warm_recent_sessions")
    numbers = {name: value.value for name, value in metadata.items()}
    assert numbers.items() <= output.items()
    assert {type(value) for value in numbers.values()} == {int, float}
    assert isinstance(metadata["seconds"], dg.FloatMetadataValue)
    assert isinstance(metadata["bytes"], dg.IntMetadataValue)
    assert numbers["requests"] >= numbers["succeeded"]
    ops = ("refresh_calendars", "warm_upcoming_event", "warm_recent_sessions")
    asked = sum(result.output_for_node(op)["requests"] for op in ops)
    assert asked == cdn.requests.total - cdn.requests.count(f"schedule_{YEAR}.json")
    missing = rows(metadata_of(result, "warm_upcoming_event"), "missing_on_the_cdn")
    assert {row[1] for row in missing} == {"drivers", "corners"}


def test_what_is_stored_and_fresh_is_left_alone(project, cdn, keys, unpublished):
    project.run()
    before = {
        asset: project.instance.get_latest_materialization_event(dg.AssetKey(asset)).timestamp
        for asset in DEFAULT_TYPES
    }
    cdn.requests.clear()
    result = project.run()
    assert counts(result, "warm_recent_sessions") == (0, len(DEFAULT_TYPES) * len(keys[1]), 0, 0)
    # What was not published is looked for again, nothing else.
    assert set(cdn.requests.by_status) == {404}
    after = {
        asset: project.instance.get_latest_materialization_event(dg.AssetKey(asset)).timestamp
        for asset in DEFAULT_TYPES
    }
    assert after == before


def test_a_refetch_without_change_is_no_materialization_and_a_correction_is(project, tif1, cdn, keys):
    project.run()
    first = keys[1][0]
    seen = {asset: len(materializations(project, asset)) for asset in DEFAULT_TYPES}
    tif1.get_config().cache_ttl = timedelta(milliseconds=1)
    cdn.republish(f"{first.event}/{first.session_type}/session_laptimes.json")
    cdn.republish("weather.json")  # the same content with another ETag
    cdn.requests.clear()
    result = project.run_op(project.warm.warm_recent_sessions)
    assert counts(result, "warm_recent_sessions") == (len(DEFAULT_TYPES) * len(keys[1]), 0, 0, 0)
    assert cdn.requests.count("weather.json", status=200) == len(keys[1])
    new = {asset: materializations(project, asset)[: -seen[asset]] for asset in DEFAULT_TYPES}
    assert [record.partition_key for record in new.pop("laps")] == [first.partition]
    assert not any(new.values())
    assert project.version("laps", first.partition) == api.get_cache().info(first.entry("laps")).checksum


def test_sessions_that_are_read_often_are_brought_with_the_telemetry_that_was_read(project, tif1, cdn, keys):
    race = keys[0][-1]
    session = tif1.get_session(YEAR, race.event, "Race")
    driver = session.drivers[0]
    for _ in range(5):
        session.laps  # noqa: B018
    session.get_driver_telemetry(driver)
    api.get_cache().flush()
    api.get_cache().clear_memory()
    session.get_driver_telemetry(driver)
    api.get_cache().flush()
    tif1.get_config().cache_ttl = timedelta(milliseconds=1)
    cdn.requests.clear()
    result = project.run_op(project.warm.warm_frequent_sessions, min_access_count=2)
    # drivers, laps and the driver's telemetry have expired, weather and messages were never stored
    assert counts(result, "warm_frequent_sessions") == (5, 0, 0, 0)
    assert project.materialized("weather") == {race.partition}
    assert project.materialized("telemetry") == set()
    assert {entry.path.split("/")[-2] for entry in cdn.requests.entries if "_tel.json" in entry.path} == {driver}
    result = project.run_op(project.warm.warm_frequent_sessions, min_access_count=10**6)
    assert counts(result, "warm_frequent_sessions") == (0, 0, 0, 0)
    # Who asks for other tables does not get telemetry.
    result = project.run_op(project.warm.warm_frequent_sessions, min_access_count=2, data_types=["weather"])
    assert counts(result, "warm_frequent_sessions") == (1, 0, 0, 0)


def test_telemetry_that_is_read_often_is_kept_of_a_recent_session_too(project, tif1, cdn, keys):
    race = keys[1][-1]
    session = tif1.get_session(YEAR, race.event, "Race")
    driver = session.drivers[0]
    session.get_driver_telemetry(driver)
    api.get_cache().clear_memory()
    session.get_driver_telemetry(driver)
    api.get_cache().flush()
    tif1.get_config().cache_ttl_telemetry = timedelta(milliseconds=1)
    result = project.run_op(project.warm.warm_frequent_sessions, min_access_count=2)
    assert counts(result, "warm_frequent_sessions") == (1, 0, 0, 0)


def test_config_chooses_tables_and_the_time_that_is_recent(project, keys):
    result = project.run(data_types=["weather"], recent_days=61, max_workers=2)
    assert result.success
    assert project.materialized("weather") == {key.partition for key in [*keys[0], *keys[1], keys[2][0]]}
    assert project.materialized("laps") == set()
    result = project.run(recent_days=0)
    assert counts(result, "warm_recent_sessions") == (0, 0, 0, 0)


def test_telemetry_brings_drivers_and_laps_and_dagster_is_told_of_them(project, keys):
    result = project.run_op(project.warm.warm_upcoming_event, data_types=["telemetry"])
    assert result.success
    for asset in ("telemetry", "laps", "drivers"):
        assert project.materialized(asset) == {keys[2][0].partition}


def test_a_dry_run_says_what_a_run_fetches_and_asks_for_nothing(project, cdn, keys, unpublished):
    cdn.requests.clear()
    result = project.run(dry_run=True)
    assert result.success
    assert cdn.requests.total == 0
    assert project.materialized("laps") == set()
    planned = {}
    for op in ("warm_upcoming_event", "warm_recent_sessions"):
        would = rows(metadata_of(result, op), "would_fetch")
        assert {row[3] for row in would} == {"not stored"}
        planned[op] = len(would)
        assert result.output_for_node(op)["planned"] == len(would)
    done = project.run()
    for op, number in planned.items():
        succeeded, skipped, missing, failed = counts(done, op)
        assert (succeeded + missing, skipped, failed) == (number, 0, 0)
    again = project.run(dry_run=True)
    assert again.output_for_node("warm_recent_sessions")["planned"] == 0


def test_the_calendars_are_refreshed_and_are_assets(project, tif1, cdn):
    result = project.run_op(project.warm.refresh_calendars)
    # This season's is stored and fresh, the next one's is not published.
    assert counts(result, "refresh_calendars") == (0, 1, 1, 0)
    api.get_cache().clear()
    cdn.requests.clear()
    dry = project.run_op(project.warm.refresh_calendars, dry_run=True)
    assert dry.output_for_node("refresh_calendars")["planned"] == 2
    assert cdn.requests.total == 0
    assert counts(project.run_op(project.warm.refresh_calendars), "refresh_calendars") == (1, 0, 1, 0)
    assert project.materialized("schedule") == {str(YEAR)}


def test_a_dry_run_leaves_an_expired_calendar_as_it_is(project, tif1, cdn):
    tif1.get_config().cache_ttl = timedelta(milliseconds=1)
    before = api.get_cache().info(f"{YEAR}_schedule")
    cdn.requests.clear()
    result = project.run_op(project.warm.warm_recent_sessions, dry_run=True)
    assert result.output_for_node("warm_recent_sessions")["planned"] > 0
    assert api.get_cache().info(f"{YEAR}_schedule") == before
    assert cdn.requests.total == 0
    assert project.materialized("schedule") == set()


def test_partitions_that_are_not_loaded_are_stored_but_not_logged(tif1, instance, keys, capsys):
    project = Project(instance)
    result = project.run()
    assert result.success
    assert stored(keys[1][0], "laps")
    assert project.materialized("laps") == set()
    assert project.materialized("schedule") == {str(YEAR)}
    assert (
        f"laps of {keys[1][0]} is stored, but the loaded definitions have no such partition" in capsys.readouterr().err
    )


# ---- what fails


def test_a_cdn_that_is_down_fails_after_all_were_tried_and_is_tried_again(project, at_once, cdn, keys):
    down, up = keys[1][0], keys[1][1:]
    fault = Fault("error", path=f"{down.event}/{down.session_type}/weather.json")
    cdn.faults.add(fault)
    result = project.run_op(project.warm.warm_recent_sessions)
    assert not result.success
    assert retries(result) == 1
    said = failure(result)
    assert said.metadata["failed"].value == 1
    # The second try found what the first one had stored.
    assert said.metadata["skipped"].value == len(DEFAULT_TYPES) * len(keys[1]) - 1
    ((session, table, _, why),) = rows(said.metadata, "failures")
    assert (session, table) == (down.partition, "weather")
    assert "503" in why
    assert all(stored(key, "weather") for key in up)
    assert project.materialized("weather") == {key.partition for key in up}
    cdn.faults.clear()
    assert project.run_op(project.warm.warm_recent_sessions).success
    assert project.materialized("weather") == {key.partition for key in keys[1]}


def test_a_calendar_that_cannot_be_had_fails_and_what_it_is_needed_for(tif1, instance, cdn, monkeypatch):
    project = Project(instance)
    monkeypatch.setattr(project.warm, "NETWORK_RETRIES", dg.RetryPolicy(max_retries=1, delay=0))
    cdn.faults.add(Fault("error"))
    result = project.run_op(project.warm.warm_upcoming_event)
    assert retries(result) == 1
    assert f"schedule_{YEAR}" in failure(result).description
    result = project.run_op(project.warm.refresh_calendars)
    assert retries(result) == 1
    assert failure(result).metadata["failed"].value == 2


def test_bad_data_fails_and_is_not_tried_again(project, at_once, cdn, keys):
    cdn.faults.add(Fault("garbage", path=f"{keys[1][0].event}/{keys[1][0].session_type}/weather.json"))
    result = project.run_op(project.warm.warm_recent_sessions)
    assert not result.success
    assert retries(result) == 0
    assert failure(result).metadata["succeeded"].value == len(DEFAULT_TYPES) * len(keys[1]) - 1


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("cache_readonly", True, "cache_readonly"),
        ("cache_enabled", False, "cache_enabled"),
        ("offline", True, "offline"),
    ],
)
def test_settings_that_forbid_it_fail_it_at_once(project, at_once, tif1, cdn, setting, value, said):
    setattr(tif1.get_config(), setting, value)
    cdn.requests.clear()
    result = project.run_op(project.warm.warm_recent_sessions)
    assert setting in failure(result).description
    assert retries(result) == 0
    assert cdn.requests.count("*.json") == cdn.requests.count("schedule_*.json")


def test_an_unknown_table_is_refused_with_the_choices(project, cdn):
    cdn.requests.clear()
    result = project.run_op(project.warm.warm_recent_sessions, data_types=["lap"])
    assert "no data type lap; choose from" in failure(result).description
    assert cdn.requests.total == 0


# ---- termination


TERMINATED = """
import sys
import dagster as dg
from tif1_pipeline.defs.jobs.warm import nightly_warm_job
from tif1_pipeline.defs.resources import TimingDataResource

def repository():
    resources = {"timing_data": TimingDataResource(), "op_io_manager": dg.mem_io_manager}
    defs = dg.Definitions(jobs=[nightly_warm_job], resources=resources)
    return defs.resolve_job_def("nightly_warm_job")

if __name__ == "__main__":
    with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
        result = repository().execute_in_process(instance=instance, raise_on_error=False)
"""


@pytest.mark.slow
def test_a_terminated_run_ends_at_once_and_keeps_what_was_stored(tif1, cdn, keys, tmp_path):
    config = tif1.get_config()
    tif1.get_events(YEAR)
    tif1.close()
    (tmp_path / "dagster.yaml").write_text(
        f"telemetry: {{enabled: false}}\nstorage: {{sqlite: {{base_dir: {tmp_path}}}}}\n"
    )
    environment = os.environ | {
        "TIF1_CDN_URLS": ",".join(config.cdn_urls),
        "TIF1_SCHEDULE_URLS": ",".join(config.schedule_urls),
        "TIF1_CACHE_DIR": str(config.cache_dir),
        "TIF1_REQUEST_TIMEOUT": "600",
    }
    cdn.faults.add(Fault("hang", path="weather.json", seconds=600))
    with subprocess.Popen([sys.executable, "-c", TERMINATED, str(tmp_path)], env=environment) as run:
        until = time.monotonic() + 60
        # Three sessions and more wait for their weather; laps come before it.
        while cdn.requests.count("drivers.json") < 4 and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        try:
            run.wait(60)
        finally:
            run.kill()
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        (run,) = instance.get_runs()
        assert run.status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
        laps = instance.get_materialized_partitions(dg.AssetKey("laps"))
        assert laps == {key.partition for event in keys for key in event if stored(key, "laps")}
        assert laps
        assert instance.get_materialized_partitions(dg.AssetKey("weather")) == set()
