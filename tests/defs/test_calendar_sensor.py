"""The calendar sensor: a simulated CDN whose schedule changes, a clock that is told, a webserver on loopback."""

import json
import sqlite3
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin

from tif1_pipeline import api
from tif1_pipeline.keys import SessionKey, schedule_entry
from tif1_pipeline.simulator import CdnServer, Fault, Season

pytestmark = [
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
    # Of Dagster's client, which calls its own library in a way that that has given up.
    pytest.mark.filterwarnings("ignore:Using variable_values and operation_name:DeprecationWarning"),
]

YEAR = datetime.now(UTC).year
SCHEDULE = dg.AssetKey("schedule")


@pytest.fixture
def season():
    return Season(YEAR, seed=7, events=3, size="tiny")


@pytest.fixture
def cdn(season):
    """This season and the one before it; the next one is not published."""
    seasons = [season, Season(YEAR - 1, seed=7, events=2, size="tiny"), Season(YEAR + 1, seed=7, events=2, size="tiny")]
    with CdnServer(seasons) as server:
        server.hide(f"schedule_{YEAR + 1}.json")
        yield server


class Webserver:
    """Answers a reload as Dagster's webserver does, and counts."""

    def __init__(self):
        self.asked = []
        self.answer = {
            "__typename": "WorkspaceLocationEntry",
            "locationOrLoadError": {"__typename": "RepositoryLocation"},
        }
        webserver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                webserver.asked.append((self.path, body["variables"]["repositoryLocationName"]))
                data = json.dumps({"data": {"reloadRepositoryLocation": webserver.answer}}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def webserver():
    webserver = Webserver()
    yield webserver
    webserver.close()


class Project:
    """The sensor as a code server that has just loaded it has it, and its cursor."""

    def __init__(self, instance):
        self.instance = instance
        self.cursor = None
        self.now = datetime.now(UTC)
        self.load()

    def load(self):
        """Load the definitions anew, as a reload does."""
        for name in [name for name in sys.modules if name.startswith("tif1_pipeline.defs")]:
            del sys.modules[name]
        from tif1_pipeline.defs.partitions import PARTITIONS
        from tif1_pipeline.defs.resources import TimingDataResource
        from tif1_pipeline.defs.sensors import calendar

        self.module = calendar
        self.partitions = PARTITIONS
        self.timing_data = TimingDataResource()

    def tick(self, after=timedelta(), *, by_daemon=True):
        context = dg.SensorEvaluationContext(
            instance_ref=None,
            last_tick_completion_time=None,
            last_run_key=None,
            cursor=self.cursor,
            log_key=None,
            repository_name=None,
            instance=self.instance,
            code_location_origin=RegisteredCodeLocationOrigin("timing") if by_daemon else None,
        )
        with context:
            result = self.module.tick(context, self.timing_data, self.now + after)
        assert not result.run_requests
        self.cursor = result.cursor
        return result.skip_reason.skip_message

    def materializations(self):
        records = self.instance.fetch_materializations(SCHEDULE, limit=100).records
        return sorted(record.partition_key for record in records)

    def sessions(self):
        return list(self.partitions.sessions.get_partition_keys())


@pytest.fixture
def project(tif1, instance, webserver):
    before = tif1.get_config().webserver_url
    tif1.get_config().webserver_url = webserver.url
    yield Project(instance)
    tif1.get_config().webserver_url = before


@pytest.fixture
def loaded(project):
    """The calendars are stored, told of, and loaded."""
    project.tick()
    project.load()
    return project


# Entries are stored some seconds after the moment that the clock is told.
HOUR = timedelta(minutes=65)


def stored(key: SessionKey, data_type="session_info"):
    return api.get_cache().info(key.entry(data_type)) is not None


def keys(season, number):
    event = season.events[number]
    return [SessionKey(YEAR, event.name, name) for name in event.session_types]


def start_of(season, key):
    (event,) = [event for event in season.events if event.name == key.event]
    return event.start_utc(key.session_type).replace(tzinfo=UTC)


# ---- what is stored


def test_an_empty_instance_gets_its_calendars_and_has_them_loaded(project, cdn, webserver):
    assert project.sessions() == []
    said = project.tick()
    assert f"{YEAR}: stored" in said
    assert f"{YEAR - 1}: stored" in said
    assert f"{YEAR + 1}: no calendar is published" in said
    assert "the code location was reloaded" in said
    assert webserver.asked == [("/graphql", "timing")]
    assert project.materializations() == [str(YEAR - 1), str(YEAR)]
    info = api.get_cache().info(schedule_entry(YEAR))
    record = project.instance.get_latest_data_version_record(SCHEDULE, partition_key=str(YEAR))
    assert record.event_log_entry.asset_materialization.tags["dagster/data_version"] == info.checksum
    project.load()
    assert project.sessions()
    assert project.tick(timedelta(minutes=1)) == "the stored calendars are current, and loaded as partitions"
    assert len(webserver.asked) == 1


def test_the_cdn_is_asked_when_the_interval_has_passed_by_conditional_requests(loaded, cdn):
    cdn.requests.clear()
    for minutes in (1, 30, 59):
        loaded.tick(timedelta(minutes=minutes))
    assert cdn.requests.total == 0
    said = loaded.tick(HOUR)
    assert f"{YEAR}: unchanged" in said
    assert cdn.requests.count(f"schedule_{YEAR}.json", status=304) == 1
    # The next season may be published by now; the former one is final.
    assert cdn.requests.count(f"schedule_{YEAR + 1}.json", status=404) > 0
    assert cdn.requests.count(f"schedule_{YEAR - 1}.json") == 0
    assert loaded.materializations() == [str(YEAR - 1), str(YEAR)]


def test_a_calendar_stored_before_its_season_was_over_is_asked_for_once_more(loaded, cdn):
    with closing(sqlite3.connect(api.get_config().cache_path)) as database, database:
        database.execute(
            "UPDATE entries SET created_at = ? WHERE key = ?",
            (datetime(YEAR - 1, 12, 30, tzinfo=UTC).timestamp(), f"{YEAR - 1}_schedule"),
        )
    cdn.requests.clear()
    loaded.tick(timedelta(minutes=1))
    loaded.tick(timedelta(minutes=2))
    assert cdn.requests.count(f"schedule_{YEAR - 1}.json", status=304) == 1


def test_a_postponed_session_is_a_new_version_and_its_info_is_dropped(loaded, cdn, season, webserver):
    reader = api.get_reader()
    first, second = keys(season, 0), keys(season, 1)
    for key in [*first, *second]:
        reader.table(key, "session_info")
    reader.table(first[0], "drivers")
    moved, *others = first
    season.reschedule(moved.event, moved.session_type, start_of(season, moved) + timedelta(hours=1))
    cdn.republish(f"schedule_{YEAR}.json")
    said = loaded.tick(HOUR)
    assert f"{YEAR}: changed" in said
    assert "dropped the session_info of 1 sessions" in said
    assert not stored(moved)
    assert all(stored(key) for key in [*others, *second])
    assert stored(moved, "drivers")
    assert loaded.materializations() == [str(YEAR - 1), str(YEAR), str(YEAR)]
    # The same sessions at another time: no partition changes.
    assert len(webserver.asked) == 1


def test_a_cancelled_event_leaves_the_partitions_and_its_data_stays(loaded, cdn, season, webserver):
    reader = api.get_reader()
    gone, kept = keys(season, 1), keys(season, 0)
    for key in (gone[-1], kept[-1]):
        reader.table(key, "session_info")
        reader.table(key, "laps")
    season.cancel(gone[0].event)
    cdn.republish(f"schedule_{YEAR}.json")
    said = loaded.tick(HOUR)
    assert f"0 new and {len(gone) + 1} former seasons, events and sessions: the code location was reloaded" in said
    assert (stored(gone[-1]), stored(kept[-1])) == (False, True)
    assert stored(gone[-1], "laps")
    assert gone[-1].partition in loaded.sessions()
    loaded.load()
    assert gone[-1].partition not in loaded.sessions()
    assert kept[-1].partition in loaded.sessions()
    assert "former" not in loaded.tick(HOUR + timedelta(minutes=1))
    assert len(webserver.asked) == 2


def test_what_somebody_else_has_stored_is_noticed_without_asking_the_cdn(loaded, cdn, season, webserver):
    reader = api.get_reader()
    moved = keys(season, 0)[0]
    reader.table(moved, "session_info")
    season.reschedule(moved.event, moved.session_type, start_of(season, moved) + timedelta(hours=1))
    season.cancel(season.events[-1].name)
    cdn.republish(f"schedule_{YEAR}.json")
    api.get_cache().remove(schedule_entry(YEAR))
    reader.schedule(YEAR)  # as a notebook does
    cdn.requests.clear()
    said = loaded.tick(timedelta(minutes=1))
    assert cdn.requests.total == 0
    assert "dropped the session_info of 1 sessions" in said
    assert f"{YEAR}: logged a materialization of schedule" in said
    assert "the code location was reloaded" in said
    assert loaded.materializations() == [str(YEAR - 1), str(YEAR), str(YEAR)]


def test_what_the_asset_has_logged_is_not_logged_again(project, tif1):
    from tif1_pipeline.definitions import defs

    job = defs.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=project.instance, partition_key=str(YEAR), asset_selection=[SCHEDULE], raise_on_error=True
    )
    assert result.success
    project.load()
    said = project.tick()
    assert f"{YEAR - 1}: logged" in said
    assert f"{YEAR}: logged" not in said
    assert project.materializations() == [str(YEAR - 1), str(YEAR)]


def test_the_next_season_is_told_of_when_it_is_a_partition(loaded, cdn, webserver):
    cdn.publish(f"schedule_{YEAR + 1}.json")
    said = loaded.tick(HOUR)
    assert f"{YEAR + 1}: stored" in said
    assert "the code location was reloaded" in said
    assert str(YEAR + 1) not in loaded.materializations()
    loaded.load()
    assert f"{YEAR + 1}: logged" in loaded.tick(HOUR)
    assert str(YEAR + 1) in loaded.materializations()


def test_a_calendar_that_is_withdrawn_is_kept(loaded, cdn, webserver):
    cdn.hide(f"schedule_{YEAR}.json")
    said = loaded.tick(HOUR)
    assert f"{YEAR}: no calendar is published; the stored calendar is kept" in said
    assert api.get_cache().info(schedule_entry(YEAR))
    assert len(webserver.asked) == 1


# ---- the reload


def test_the_reload_is_asked_for_once_a_difference(project, cdn, season, webserver):
    project.tick()
    said = project.tick(timedelta(minutes=2))
    assert "the webserver reloaded its code 120 s ago, and this code server has not yet" in said
    assert len(webserver.asked) == 1
    season.cancel(season.events[-1].name)  # another difference
    cdn.republish(f"schedule_{YEAR}.json")
    project.tick(HOUR)
    assert len(webserver.asked) == 2
    project.tick(2 * HOUR)  # whoever had not heard of it
    assert len(webserver.asked) == 3


def test_a_code_server_that_was_started_anew_by_somebody_else_tells_the_webserver(loaded, cdn, season, webserver):
    loaded.tick(timedelta(minutes=1))
    season.cancel(season.events[-1].name)
    cdn.republish(f"schedule_{YEAR}.json")
    api.get_cache().remove(schedule_entry(YEAR))
    api.get_reader().schedule(YEAR)
    loaded.load()  # before the sensor could see a difference
    said = loaded.tick(timedelta(minutes=2))
    assert "than the webserver is known to have: the code location was reloaded" in said
    loaded.load()
    assert loaded.tick(timedelta(minutes=3)) == "the stored calendars are current, and loaded as partitions"
    assert len(webserver.asked) == 2


def test_a_freshness_policy_of_other_dates_is_loaded(project, cdn, season, webserver):
    for event, days in zip(season.events, (-300, -290, -280), strict=True):
        for name in event.session_types:
            season.reschedule(event.name, name, project.now + timedelta(days=days))
    project.tick()
    project.load()
    for event, days in zip(season.events, (-14, -7, 7), strict=True):
        for name in event.session_types:
            season.reschedule(event.name, name, project.now + timedelta(days=days))
    cdn.republish(f"schedule_{YEAR}.json")
    said = project.tick(HOUR)
    assert "another freshness policy holds than is loaded: the code location was reloaded" in said
    assert "another freshness policy holds than is loaded; the webserver" in project.tick(HOUR)
    project.load()
    assert "freshness" not in project.tick(HOUR + timedelta(minutes=1))
    assert len(webserver.asked) == 2


def test_a_webserver_that_cannot_be_reached_is_asked_at_each_tick(project, webserver, tif1):
    url = tif1.get_config().webserver_url
    tif1.get_config().webserver_url = "http://somebody:secret@127.0.0.1:9/prefix/"
    for minutes in range(2):
        said = project.tick(timedelta(minutes=minutes))
        assert "webserver at http://127.0.0.1:9/prefix/ (setting webserver_url) could not be asked" in said
        assert "Reload in the UI, or restart Dagster" in said
        assert "secret" not in said
    tif1.get_config().webserver_url = f"{url}/prefix/"
    assert "the code location was reloaded" in project.tick(timedelta(minutes=2))
    assert webserver.asked == [("/prefix/graphql", "timing")]


def test_a_webserver_that_refuses_says_why(project, webserver):
    webserver.answer = {"__typename": "RepositoryLocationNotFound", "message": "no such location"}
    assert "RepositoryLocationNotFound: no such location" in project.tick()
    assert "RepositoryLocationNotFound: no such location" in project.tick(timedelta(minutes=1))
    assert len(webserver.asked) == 2


def test_without_a_daemon_there_is_nothing_to_reload(project, webserver):
    assert "there is no code location to reload" in project.tick(by_daemon=False)
    assert not webserver.asked


def test_partitions_of_a_calendar_that_is_lost_stay(loaded, cdn, webserver):
    api.get_cache().clear_year(YEAR)
    cdn.faults.add(Fault("error"))
    said = loaded.tick(timedelta(minutes=1))
    assert f"the calendars of {YEAR} are not stored any more; their partitions stay" in said
    assert len(webserver.asked) == 1
    cdn.faults.clear()
    assert f"{YEAR}: stored" in loaded.tick(HOUR)
    assert len(webserver.asked) == 1


# ---- what can go wrong


def test_a_cdn_that_is_down_is_asked_at_growing_distances_and_what_is_stored_is_kept(loaded, cdn):
    cdn.faults.add(Fault("error"))
    said = loaded.tick(HOUR)
    assert f"{YEAR}: what is stored is kept, because" in said
    assert "the CDN is asked again in 60 s" in said
    cdn.requests.clear()
    assert "again in 30 s, after 1 failures" in loaded.tick(HOUR + timedelta(seconds=30))
    assert cdn.requests.total == 0
    assert "the CDN is asked again in 120 s" in loaded.tick(HOUR + timedelta(seconds=61))
    assert api.get_cache().info(schedule_entry(YEAR))
    at = HOUR
    for _ in range(10):
        at += HOUR
        said = loaded.tick(at)
    assert "the CDN is asked again in 3600 s" in said
    cdn.faults.clear()
    api.get_client().close()  # it leaves a mirror that fails alone for a minute
    assert f"{YEAR}: unchanged" in loaded.tick(at + HOUR)
    assert json.loads(loaded.cursor)["failures"] == 0


def test_a_bad_file_of_one_season_does_not_keep_the_others(project, cdn):
    cdn.faults.add(Fault("garbage", path=f"schedule_{YEAR}.json"))
    said = project.tick()
    assert f"{YEAR}: what is stored is kept, because" in said
    assert f"{YEAR - 1}: stored" in said


def test_a_cdn_that_hangs_is_not_waited_for_longer_than_a_tick_may_take(project, cdn, monkeypatch):
    monkeypatch.setattr(project.module, "_PATIENCE", 0.3)
    cdn.faults.add(Fault("latency", path=f"schedule_{YEAR}.json", seconds=1.5))
    assert "did not answer within 0.3 s" in project.tick()
    monkeypatch.setattr(project.module, "_PATIENCE", 60.0)
    said = project.tick(timedelta(minutes=1))
    assert f"{YEAR}: stored" in said  # by the look that was under way
    assert cdn.requests.count(f"schedule_{YEAR}.json") == 1


def test_offline_only_what_is_stored_is_looked_at(loaded, cdn, tif1):
    tif1.get_config().offline = True
    cdn.requests.clear()
    assert "the setting offline is on" in loaded.tick(HOUR)
    assert cdn.requests.total == 0


def test_without_a_cache_nothing_is_done(loaded, tif1, webserver):
    tif1.get_config().cache_enabled = False
    assert "the setting cache_enabled is off" in loaded.tick(HOUR)
    assert len(webserver.asked) == 1


def test_a_read_only_cache_is_compared_but_not_refreshed(loaded, cdn, season, tif1, webserver):
    api.get_reader().table(keys(season, 0)[0], "session_info")
    season.cancel(season.events[0].name)
    cdn.republish(f"schedule_{YEAR}.json")
    api.get_cache().remove(schedule_entry(YEAR))
    api.get_reader().schedule(YEAR)
    tif1.close()
    tif1.get_config().cache_readonly = True
    cdn.requests.clear()
    said = loaded.tick(HOUR)
    assert "the setting cache_readonly is on" in said
    assert "the code location was reloaded" in said
    assert cdn.requests.total == 0
    assert len(api.get_cache().get_entries(data_type="session_info")) == 1
    tif1.close()
    tif1.get_config().cache_readonly = False
    assert "dropped the session_info of 1 sessions" in loaded.tick(HOUR)


def test_a_cache_that_is_locked_is_a_reason_and_no_failure(loaded, cdn, tif1):
    tif1.get_config().cache_lock_timeout = 0.2
    with closing(sqlite3.connect(tif1.get_config().cache_path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        said = loaded.tick(HOUR)
        other.execute("ROLLBACK")
    assert f"{YEAR}: what is stored is kept, because the cache could not store" in said
    assert "locked" in said
    assert f"{YEAR}: unchanged" in loaded.tick(HOUR + timedelta(minutes=2))


def test_a_file_that_is_no_cache_is_a_reason_and_no_failure(loaded, tif1, webserver):
    tif1.close()
    for file in tif1.get_config().cache_dir.iterdir():
        file.unlink()
    with closing(sqlite3.connect(tif1.get_config().cache_path)) as database, database:
        database.execute("CREATE TABLE other(id)")
    assert "the cache could not be used, so nothing changes" in loaded.tick(HOUR)
    assert len(webserver.asked) == 1


@pytest.mark.parametrize(
    "cursor", ["", "rubbish", "[]", '{"version": 1}', '{"version": 2, "told": 3}', '{"version": null}']
)
def test_any_cursor_will_do(loaded, cursor):
    loaded.cursor = cursor
    loaded.tick(timedelta(minutes=1))
    assert json.loads(loaded.cursor)["version"] == 1
    assert loaded.materializations() == [str(YEAR - 1), str(YEAR)]


def test_the_sensor_is_on_by_default_and_runs_in_the_definitions(project):
    from tif1_pipeline.defs.resources import TimingDataResource

    sensor = project.module.calendar_sensor
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds == 60
    resources = {"timing_data": TimingDataResource()}
    dg.Definitions.validate_loadable(dg.Definitions(sensors=[sensor], resources=resources))
    context = dg.build_sensor_context(instance=project.instance, resources=resources)
    data = sensor.evaluate_tick(context)
    assert f"{YEAR}: stored" in data.skip_message
