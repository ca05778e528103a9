"""The completion sensor on a real instance: its requests are launched, and what is stored is looked at.

The sensor knows the real time: sessions are scheduled around this moment.
"""

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

import tif1_pipeline
from tif1_pipeline.config import Config
from tif1_pipeline.keys import SessionKey
from tif1_pipeline.simulator import CdnServer, Fault, Season

# As in definitions.py: backfill policies are beta.
pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
NOW = datetime.now(UTC)
YEAR = NOW.year


class Project:
    """The source assets and the sensor, as they load with the calendar that is stored, and an instance."""

    def __init__(self, season: Season, server: CdnServer, instance: dg.DagsterInstance) -> None:
        self.season, self.server, self.instance = season, server, instance
        self.cursor: str | None = None
        event = season.events[0]
        self.race, self.fp1 = (SessionKey(YEAR, event.name, name) for name in ("Race", "Practice 1"))
        for number, name in enumerate(event.session_types):
            start = NOW - timedelta(days=10 + number) if name != "Race" else NOW - timedelta(hours=2, minutes=40)
            season.reschedule(event.name, name, start)
        self.load()

    def load(self) -> None:
        """Load the definitions anew, as reloading the code location does."""
        tif1_pipeline.get_cache().clear_year(YEAR)
        self.server.publish("*schedule*.json")
        tif1_pipeline.get_events(YEAR)
        forget()
        from tif1_pipeline.defs.assets.source import source_assets
        from tif1_pipeline.defs.io_manager import CacheIOManager
        from tif1_pipeline.defs.resources import TimingDataResource
        from tif1_pipeline.defs.sensors.completion import race_completion_sensor

        self.sensor = race_completion_sensor
        self.assets = source_assets
        self.resources = {"io_manager": CacheIOManager(), "timing_data": TimingDataResource()}
        self.defs = dg.Definitions(assets=source_assets, sensors=[self.sensor], resources=self.resources)

    def tick(self, *, due: bool = True) -> Any:
        """Evaluate the sensor as the daemon does; ``due`` makes as if the time to wait were over."""
        if due and self.cursor:
            state = json.loads(self.cursor)
            for watch in state["sessions"].values():
                watch["next"] = 0
                watch["asked_at"] -= 4000
            self.cursor = json.dumps(state)
        context = dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            repository_def=self.defs.get_repository_def(),
            resources={"timing_data": self.resources["timing_data"]},
            cursor=self.cursor,
            sensor_name=self.sensor.name,
        )
        result = self.sensor.evaluate_tick(context)
        self.cursor = result.cursor
        return result

    def launch(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """Do the run as the daemon would have it done."""
        return dg.materialize(
            list(self.assets),
            selection=dg.AssetSelection.assets(*request.asset_selection),
            instance=self.instance,
            resources=self.resources,
            partition_key=request.partition_key,
            tags={**request.tags, "dagster/run_key": request.run_key},
            run_config=QUIET,
            raise_on_error=False,
        )

    def tick_and_launch(self) -> list[set[str]]:
        requested = []
        for request in self.tick().run_requests:
            requested.append(names(request))
            self.launch(request)
        return requested

    def settle(self) -> list[set[str]]:
        """Tick until nothing is requested any more; returns what was."""
        requested = []
        for _ in range(8):
            if not (now := self.tick_and_launch()):
                return requested
            requested += now
        raise AssertionError("it goes on requesting")

    def file(self, name: str) -> str:
        return f"{self.race.event}/Race/{name}"


def names(request: dg.RunRequest) -> set[str]:
    return {key.to_user_string() for key in request.asset_selection}


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("tif1_pipeline.defs")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def shared_instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


@pytest.fixture
def project(shared_instance, tmp_path) -> Iterator[Project]:
    shared_instance.wipe()
    season = Season(YEAR, seed=7, events=1, size="tiny", untidy=False)
    config = tif1_pipeline.get_config()
    before = config._values()
    with CdnServer(season) as server:
        config.update(
            {
                "cdn_urls": server.cdn_urls,
                "schedule_urls": server.schedule_urls,
                "cache_dir": tmp_path / "cache",
                "max_retries": 0,
                "request_timeout": 20,
            }
        )
        try:
            yield Project(season, server, shared_instance)
        finally:
            tif1_pipeline.close()
            config.update(before)
            assert config.to_dict() == Config(**before).to_dict()
            forget()


TABLES = {"session_info", "drivers", "laps", "telemetry", "weather", "messages", "corners"}


def test_the_sensor_is_on_and_says_when_it_runs(project):
    assert project.sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert project.sensor.minimum_interval_seconds == 120
    assert "completion_interval" in project.sensor.description
    dg.Definitions.validate_loadable(project.defs)


def test_an_ended_session_is_fetched_and_then_left_alone(project):
    requests = project.tick().run_requests
    assert [request.partition_key for request in requests] == [project.race.partition]
    assert names(requests[0]) == TABLES - {"telemetry"}, "which telemetry there is, the laps will tell"
    assert requests[0].run_key.startswith(f"{project.race.partition}:")
    assert project.launch(requests[0]).success
    (second,) = project.tick().run_requests
    assert names(second) == {"telemetry"}
    assert project.launch(second).success
    for asset in TABLES:
        assert project.instance.get_materialized_partitions(dg.AssetKey(asset)) == {project.race.partition}, asset
    project.server.requests.clear()
    result = project.tick()
    assert result.run_requests == []
    assert f"{project.race}: unchanged; looked at again at" in result.skip_message
    assert {request.method for request in project.server.requests.entries} == {"HEAD"}
    assert project.server.requests.count("Race/*", status=200) == 0
    assert "not due until" in project.tick(due=False).skip_message


@pytest.mark.slow
def test_files_that_appear_one_by_one_are_each_fetched_once(project):
    project.server.hide("Race/*")
    assert "nothing is published yet (404)" in project.tick().skip_message
    requested = []
    for file in ("drivers.json", "rcm.json", "weather.json", "session_laptimes.json", "corners.json"):
        project.server.publish(project.file(file))
        requested += project.tick_and_launch()
    assert requested == [{"session_info", "drivers"}, {"messages"}, {"weather"}, {"laps"}, {"corners"}]
    project.server.publish(project.file("*"))
    project.settle()
    session = tif1_pipeline.get_session(YEAR, project.race.event, "Race")
    project.server.faults.add(Fault("error"))
    published = {
        path for path in project.season.session(project.race.event, "Race").paths() if path.endswith("_tel.json")
    }
    telemetry = session.telemetry[["Driver", "LapNumber"]].drop_duplicates()
    assert {f"{row.Driver}/{row.LapNumber}_tel.json" for row in telemetry.itertuples()} == published


def test_a_correction_reaches_a_reader_before_and_after_its_run(project):
    project.settle()
    session = tif1_pipeline.get_session(YEAR, project.race.event, "Race")
    before = session.laps
    project.server.republish(project.file("session_laptimes.json"))
    (request,) = project.tick().run_requests
    assert names(request) == {"laps", "telemetry"}
    assert tif1_pipeline.get_cache().exists(YEAR, project.race.event, "Race", "telemetry"), "that did not change"
    after = tif1_pipeline.get_session(YEAR, project.race.event, "Race").laps
    assert not after["LapTimeSeconds"].equals(before["LapTimeSeconds"])
    assert project.launch(request).success
    again = tif1_pipeline.get_session(YEAR, project.race.event, "Race").laps
    assert again["LapTimeSeconds"].equals(after["LapTimeSeconds"])
    assert project.tick().run_requests == []


def test_what_a_notebook_stores_is_materialized_and_not_fetched_again(project):
    project.settle()
    project.server.republish(project.file("session_laptimes.json"))
    cache, entry = tif1_pipeline.get_cache(), project.race.entry("laps")
    cache.outdate(entry)
    tif1_pipeline.get_session(YEAR, project.race.event, "Race").laps  # noqa: B018 - fetches it
    result = project.tick()
    assert result.run_requests == []
    assert f"{project.race}: stored outside of runs, logged as materialized: laps" in result.skip_message
    (record,) = project.instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey("laps"), asset_partitions=[project.race.partition]), limit=1
    ).records
    assert record.run_id == ""
    assert record.asset_materialization.tags["dagster/data_version"] == cache.info(entry).checksum
    project.cursor = None
    assert "logged" not in project.tick().skip_message


def test_what_a_notebook_stores_is_checked_before_anything_is_derived_from_it(project):
    project.settle()
    cache, entry = tif1_pipeline.get_cache(), project.race.entry("laps")
    hit = cache.read(entry, "arrow")
    twice = pa.concat_tables([hit.value, hit.value.slice(0, 1)])
    cache.write(entry, twice, source=hit.info.source, schema_version=hit.info.schema_version)
    assert f"{project.race}: stored outside of runs, logged as materialized: laps" in project.tick().skip_message
    keys = [dg.AssetCheckKey(dg.AssetKey("laps"), name) for name in ("no_duplicates", "rows_present")]
    records = project.instance.event_log_storage.get_asset_check_summary_records(keys)
    duplicates, rows = (records[key].last_check_execution_record.evaluation for key in keys)
    assert rows.passed
    assert not duplicates.passed
    assert duplicates.severity is dg.AssetCheckSeverity.ERROR
    assert "2 times" in duplicates.metadata["rows_at_fault"].value


def test_all_of_a_session_that_a_notebook_fetched_is_materialized(project):
    session = tif1_pipeline.get_session(YEAR, project.race.event, "Race")
    for table in TABLES - {"session_info"}:
        getattr(session, table)
    assert project.settle() == [{"session_info"}]
    for asset in TABLES:
        assert project.instance.get_materialized_partitions(dg.AssetKey(asset)) == {project.race.partition}, asset


def test_a_calendar_that_cannot_be_read_is_said(project):
    with closing(sqlite3.connect(tif1_pipeline.get_cache().get_cache_file())) as connection, connection:
        connection.execute("UPDATE parts SET data = zeroblob(length(data))")
    tif1_pipeline.close()
    assert "which sessions there are cannot be told" in project.tick().skip_message


def test_a_run_that_failed_is_requested_again_under_another_key(project):
    project.settle()
    project.server.republish(project.file("weather.json"))
    (first,) = project.tick().run_requests
    project.server.faults.add(Fault("bad_json", path="weather.json"))
    assert not project.launch(first).success
    assert "a run was requested at" in project_waits(project)
    (second,) = project.tick().run_requests
    assert names(second) == {"weather"}
    assert second.run_key == f"{first.run_key}:2"
    project.server.faults.clear()
    assert project.launch(second).success
    assert project.tick().run_requests == []


def project_waits(project: Project) -> str:
    state = json.loads(project.cursor)
    for watch in state["sessions"].values():
        watch["next"] = 0
    project.cursor = json.dumps(state)
    return project.tick(due=False).skip_message


@pytest.mark.parametrize("ranged", [False, True])
def test_a_run_under_way_is_waited_for(project, ranged):
    (request,) = project.tick().run_requests
    tags = {"dagster/partition": request.partition_key}
    if ranged:
        tags = {
            "dagster/asset_partition_range_start": project.fp1.partition,
            "dagster/asset_partition_range_end": project.race.partition,
        }
    run = project.instance.create_run_for_job(
        project.defs.resolve_implicit_global_asset_job_def(),
        asset_selection=frozenset(request.asset_selection),
        tags=tags,
        status=dg.DagsterRunStatus.STARTED,
    )
    assert f"{project.race}: run {run.run_id[:8]} (started) is under way: waiting for it" in project.tick().skip_message
    project.instance.report_run_canceled(run)
    assert project.tick().run_requests


def test_a_lost_cursor_leads_to_no_second_run(project):
    project.settle()
    for cursor in (None, "rubbish"):
        project.cursor = cursor
        assert project.tick(due=False).run_requests == []


def test_a_session_whose_partition_is_not_loaded_waits_for_the_reload(project):
    from tif1_pipeline.api import get_reader
    from tif1_pipeline.cache.base import Source
    from tif1_pipeline.keys import schedule_entry

    forget()
    tif1_pipeline.get_cache().clear_year(YEAR)
    from tif1_pipeline.defs.sensors.completion import race_completion_sensor

    assert "no calendar of this season is stored" in evaluate(project, race_completion_sensor).skip_message
    fetched = get_reader().fetch_schedule(YEAR)
    tif1_pipeline.get_cache().write(schedule_entry(YEAR), fetched.table, source=Source(fetched.url), schema_version=1)
    assert "its partition is not loaded yet" in evaluate(project, race_completion_sensor).skip_message
    project.load()
    assert project.tick().run_requests


def evaluate(project: Project, sensor: dg.SensorDefinition) -> Any:
    from tif1_pipeline.defs.resources import TimingDataResource

    context = dg.build_sensor_context(
        instance=project.instance, cursor=None, resources={"timing_data": TimingDataResource()}, sensor_name=sensor.name
    )
    return sensor.evaluate_tick(context)


def test_a_cdn_that_is_down_is_said(project):
    project.server.faults.add(Fault("error"))
    assert "the CDN could not be asked" in project.tick().skip_message
    project.server.faults.clear()
    tif1_pipeline.close()  # as a restart does: the mirror is no longer set aside
    assert project.tick().run_requests


def test_reads_of_the_sensor_are_not_counted_with_every_tick(project):
    project.settle()
    cache = tif1_pipeline.get_cache()
    before = cache.get_stats()
    for _ in range(3):
        project.tick()
    after = cache.get_stats()
    assert after["total_hits"] == before["total_hits"]
    assert after["total_misses"] == before["total_misses"]
