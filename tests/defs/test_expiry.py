"""Expired tables: found, refreshed by real runs from a simulated CDN into a real cache file, or dropped."""

import sqlite3
import sys
from contextlib import closing
from datetime import timedelta

import dagster as dg
import pytest

from tif1_pipeline import api
from tif1_pipeline.keys import SessionKey, schedule_entry
from tif1_pipeline.simulator import Fault

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

YEAR = 2025
QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}
SMALL = ("drivers", "laps", "weather")


class Project:
    """The job and the sensor as they load after the calendar was stored."""

    def __init__(self, instance):
        for name in [name for name in sys.modules if name.startswith("tif1_pipeline.defs")]:
            del sys.modules[name]
        from tif1_pipeline.defs.jobs import expiry
        from tif1_pipeline.defs.resources import TimingDataResource
        from tif1_pipeline.defs.sensors.expiry import ttl_expiry_sensor

        self.expiry, self.sensor, self.instance = expiry, ttl_expiry_sensor, instance
        self.resources = {"timing_data": TimingDataResource(), "op_io_manager": dg.mem_io_manager}
        self.defs = dg.Definitions(
            jobs=[expiry.expiry_job],
            sensors=[self.sensor],
            resources=self.resources,
            executor=dg.in_process_executor,
        )

    def run(self, retries=0, **config):
        @dg.job(resource_defs=self.defs.resources | self.resources)
        def alone():
            self.expiry.refresh_expired.with_retry_policy(dg.RetryPolicy(max_retries=retries))()

        return alone.execute_in_process(
            instance=self.instance,
            run_config={"ops": {"refresh_expired": {"config": config}}, "loggers": QUIET},
            raise_on_error=False,
        )

    def run_job(self):
        job = self.defs.resolve_job_def("expiry_job")
        return job.execute_in_process(instance=self.instance, run_config={"loggers": QUIET}, raise_on_error=False)

    def tick(self):
        timing_data = self.resources["timing_data"]
        context = dg.build_sensor_context(instance=self.instance, resources={"timing_data": timing_data})
        return self.sensor.evaluate_tick(context)

    def materialized(self, asset):
        return self.instance.get_materialized_partitions(dg.AssetKey(asset))


@pytest.fixture
def race(season):
    return SessionKey(YEAR, season.events[0].name, "Race")


@pytest.fixture
def qualifying(season):
    return SessionKey(YEAR, season.events[0].name, "Qualifying")


@pytest.fixture
def project(tif1, instance, race, qualifying):
    """Small tables of two sessions are stored, and older than the TTLs of laps and of weather."""
    config = tif1.get_config()
    tif1.get_events(YEAR)
    for key in (race, qualifying):
        for name in SMALL:
            api.get_reader().table(key, name)
        api.get_reader().table(key, "session_info")
    age(timedelta(days=3))
    config.cache_ttl_laps = config.cache_ttl_weather = timedelta(days=1)
    return Project(instance)


def age(by: timedelta, pattern="*"):
    """Make what is stored so much older."""
    with closing(sqlite3.connect(api.get_config().cache_path)) as database, database:
        database.execute(
            "UPDATE entries SET created_at = created_at - ? WHERE key GLOB ?", (by.total_seconds(), pattern)
        )
    api.get_cache().clear_memory()


def info(key, name):
    return api.get_cache().info(key.entry(name))


def counts(result):
    output = result.output_for_node("refresh_expired")
    return {name: output[name] for name in ("expired", "refreshed", "unchanged", "dropped", "failed")}


def failure(result):
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event.step_failure_data.user_failure_data


def retries(result):
    return sum(event.event_type_value == "STEP_RESTARTED" for event in result.all_events)


# ---- the job


def test_expired_tables_are_asked_for_by_condition_and_those_that_changed_are_told_of(project, cdn, race, qualifying):
    cdn.republish(f"{race.event}/Race/session_laptimes.json")
    before = info(race, "drivers").created_at, info(race, "laps").checksum, info(qualifying, "laps").checksum
    cdn.requests.clear()
    result = project.run_job()
    assert result.success
    assert counts(result) == {"expired": 4, "refreshed": 1, "unchanged": 3, "dropped": 0, "failed": 0}
    assert cdn.requests.count(status=304) == 3
    assert cdn.requests.count(status=200) == 1
    assert project.materialized("laps") == {race.partition}
    assert not project.materialized("weather")
    assert info(race, "laps").checksum != before[1]
    assert info(qualifying, "laps").checksum == before[2]
    record = project.instance.get_latest_data_version_record(dg.AssetKey("laps"), partition_key=race.partition)
    tags = record.event_log_entry.asset_materialization.tags
    assert tags["dagster/data_version"] == info(race, "laps").checksum
    # What no TTL is set for, and what follows from the calendar, is left alone.
    assert info(race, "drivers").created_at == before[0]
    assert counts(project.run()) == dict.fromkeys(counts(result), 0)


def test_the_calendars_are_left_to_their_sensor(project, tif1, cdn):
    tif1.get_config().cache_ttl = timedelta(hours=1)
    cdn.requests.clear()
    for action in ("refresh", "drop"):
        assert project.run(action=action).success
    assert cdn.requests.count("schedule_*") == 0
    assert api.get_cache().info(schedule_entry(YEAR))
    assert len(api.get_cache().get_entries(data_type="session_info")) == 2


def test_the_counts_are_numbers_that_plot(project):
    result = project.run()
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    metadata = event.event_specific_data.metadata
    output = result.output_for_node("refresh_expired")
    assert {metadata[name].value for name in ("unchanged", "requests")} == {output["unchanged"], output["requests"]}
    assert isinstance(metadata["requests"], dg.IntMetadataValue)
    assert isinstance(metadata["seconds"], dg.FloatMetadataValue)
    assert output["requests"] == 4


def test_a_dry_run_names_them_and_changes_nothing(project, cdn, race):
    before = info(race, "laps")
    cdn.requests.clear()
    result = project.run(dry_run=True, action="drop")
    assert counts(result) == {"expired": 4, "refreshed": 0, "unchanged": 0, "dropped": 0, "failed": 0}
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    assert "race\\_laps\\_pandas" in event.event_specific_data.metadata["entries"].value
    assert cdn.requests.total == 0
    assert info(race, "laps") == before


def test_a_limit_takes_the_oldest(project, race, qualifying):
    age(timedelta(days=1), "*qualifying_laps*")
    result = project.run(limit=1)
    assert counts(result)["unchanged"] == 1
    assert result.output_for_node("refresh_expired")["left"] == 3
    assert info(qualifying, "laps").created_at > info(race, "laps").created_at


def test_dropping_is_a_setting_or_an_option(project, tif1, race, qualifying):
    tif1.get_config().expiry_action = "drop"
    cache = api.get_cache()
    pinned = race.entry("notes")
    cache.write(pinned, {"a": 1})
    result = project.run()
    assert counts(result)["dropped"] == 4
    assert info(race, "laps") is None
    assert info(race, "drivers")
    assert cache.info(pinned)
    api.get_reader().table(race, "laps")
    age(timedelta(days=3))
    assert counts(project.run(action="refresh"))["unchanged"] == 1


def test_a_table_that_is_not_on_the_cdn_any_more_is_dropped_and_named(project, cdn, race, qualifying):
    cdn.hide(f"{race.event}/Race/weather.json")
    result = project.run()
    assert result.success
    assert counts(result) == {"expired": 4, "refreshed": 0, "unchanged": 3, "dropped": 1, "failed": 0}
    assert info(race, "weather") is None
    assert info(qualifying, "weather")
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    assert "weather" in event.event_specific_data.metadata["dropped_entries"].value


def test_what_cannot_be_reached_is_kept_tried_again_and_named(project, cdn, race):
    cdn.faults.add(Fault("error"))
    result = project.run(retries=2)
    assert not result.success
    assert retries(result) == 2
    assert "4 of 4 expired tables could not be refreshed and are kept" in failure(result).description
    assert race.entry("laps").text in failure(result).description
    assert failure(result).metadata["failed"].value == 4
    assert info(race, "laps")
    cdn.faults.clear()
    api.get_client().close()  # it leaves a mirror that fails alone for a minute
    assert counts(project.run())["unchanged"] == 4


def test_a_failure_that_passes_is_made_good_by_a_retry(project, cdn, race):
    api.get_config().max_retries = 0
    cdn.faults.add(Fault("error", path=f"{race.event}/Race/weather.json", times=1))
    result = project.run(retries=2)
    assert result.success
    assert retries(result) == 1
    assert counts(result)["unchanged"] == 1  # the others are not asked for twice


def test_bad_data_is_not_tried_again(project, cdn, race):
    cdn.faults.add(Fault("garbage", path=f"{race.event}/Race/weather.json"))
    cdn.republish(f"{race.event}/Race/weather.json")
    result = project.run(retries=2)
    assert not result.success
    assert retries(result) == 0
    assert failure(result).metadata["failed"].value == 1
    assert failure(result).metadata["unchanged"].value == 3
    assert info(race, "weather")


def test_telemetry_and_parts_of_it_are_fetched_anew(project, tif1, cdn, race, qualifying):
    reader = api.get_reader()
    driver = tif1.get_session(YEAR, race.event, "Race").drivers[0]
    reader.driver_telemetry(race, driver)
    reader.driver_telemetry(qualifying, driver, 1)
    tif1.get_config().cache_ttl_telemetry = timedelta(days=1)
    age(timedelta(days=3), "*telemetry*")
    parts = [race.entry("telemetry").of_part(driver), qualifying.entry("telemetry").of_part(f"{driver}/1")]
    before = [api.get_cache().info(part).generation for part in parts]
    result = project.run()
    assert result.success
    assert counts(result)["unchanged"] == counts(result)["expired"]
    after = [api.get_cache().info(part).generation for part in parts]
    assert all(new != old for new, old in zip(after, before, strict=True))
    assert not project.materialized("telemetry")
    reader.table(race, "telemetry")
    age(timedelta(days=3), "*race_telemetry*")
    assert counts(project.run())["unchanged"] == 1
    assert len(api.get_cache().info(race.entry("telemetry")).parts) > 1


def test_a_session_that_the_calendar_does_not_know_is_kept(project, race):
    with closing(sqlite3.connect(api.get_config().cache_path)) as database, database:
        database.execute("UPDATE entries SET event = 'elsewhere' WHERE session_type = 'race'")
    result = project.run()
    assert result.success
    assert counts(result) == {"expired": 4, "refreshed": 0, "unchanged": 2, "dropped": 0, "failed": 0}
    assert result.output_for_node("refresh_expired")["unknown"] == 2
    said = project.tick().skip_message
    assert "2 of sessions that no calendar has are kept" in said


@pytest.mark.parametrize(("setting", "value"), [("cache_enabled", False), ("cache_readonly", True)])
def test_a_cache_that_must_not_be_changed_is_left_alone(project, tif1, cdn, setting, value):
    tif1.close()
    setattr(tif1.get_config(), setting, value)
    cdn.requests.clear()
    result = project.run()
    assert result.success
    assert result.output_for_node("refresh_expired")["skipped"] == 1
    assert setting in project.tick().skip_message
    assert cdn.requests.total == 0


# ---- the sensor


def test_the_sensor_requests_a_run_when_something_is_expired_and_only_then(project):
    (request,) = project.tick().run_requests
    assert request.run_key is None
    assert request.tags["tif1/expired"] == "4"
    project.run_job()
    assert project.tick().skip_message == "no table is expired"
    age(timedelta(days=3))
    assert len(project.tick().run_requests) == 1


def test_no_run_is_requested_while_one_is_under_way(project):
    run = project.instance.create_run_for_job(project.defs.resolve_job_def("expiry_job"))
    assert f"run {run.run_id[:8]} of expiry_job is not_started" in project.tick().skip_message
    project.instance.report_run_canceled(run)
    assert project.tick().run_requests


def test_runs_that_fail_are_requested_at_growing_distances(project, tif1, cdn):
    cdn.faults.add(Fault("error"))
    job = project.defs.resolve_job_def("expiry_job")
    for number in (1, 2):
        run = project.instance.create_run_for_job(job)
        project.instance.report_run_failed(run)
        assert f"the last {number} runs of expiry_job failed; the next is requested in" in project.tick().skip_message
    tif1.get_config().expiry_interval = timedelta(milliseconds=1)
    assert project.tick().run_requests


def test_without_a_ttl_the_cache_is_not_even_asked(project, tif1):
    config = tif1.get_config()
    config.cache_ttl_laps = config.cache_ttl_weather = None
    tif1.close()
    assert "no table expires" in project.tick().skip_message
    config.cache_ttl = timedelta(days=1)
    assert project.tick().run_requests


def test_offline_nothing_is_refreshed_but_may_be_dropped(project, tif1):
    config = tif1.get_config()
    config.offline = True
    assert "the setting offline is on" in project.tick().skip_message
    config.expiry_action = "drop"
    assert project.tick().run_requests


def test_a_file_that_is_no_cache_is_a_reason_and_no_failure(project, tif1):
    tif1.close()
    for file in tif1.get_config().cache_dir.iterdir():
        file.unlink()
    with closing(sqlite3.connect(tif1.get_config().cache_path)) as database, database:
        database.execute("CREATE TABLE other(id)")
    assert "cannot be asked for expired tables" in project.tick().skip_message


def test_the_sensor_is_on_and_its_interval_is_a_setting(project):
    dg.Definitions.validate_loadable(project.defs)
    assert project.sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert project.sensor.minimum_interval_seconds == 900
