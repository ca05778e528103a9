"""The sensor of failed runs: a real instance, runs that really failed and succeeded, a real endpoint."""

import json
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from alert_endpoint import PASSWORD, SECRET, Endpoint

from tif1_pipeline import api
from tif1_pipeline.config import Config
from tif1_pipeline.defs.io_manager import CacheIOManager, PartitionOutput
from tif1_pipeline.defs.sensors import failures
from tif1_pipeline.defs.sensors.failures import run_failure_sensor
from tif1_pipeline.exceptions import DataNotFoundError

# What Apprise imports when it is first asked whether a URL is one.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
KEYS = ["2025 Monaco Grand Prix Race", "2025 São Paulo Grand Prix Race", "c", "d"]
SESSIONS = dg.StaticPartitionsDefinition(KEYS)
BROKEN: set[str] = set()
"""What fails in the runs of a test: partitions of ``laps``, and names of other assets, checks and jobs."""

with warnings.catch_warnings():
    warnings.simplefilter("ignore", dg.BetaWarning)

    @dg.asset(partitions_def=SESSIONS, backfill_policy=dg.BackfillPolicy.single_run())
    def laps(context: dg.AssetExecutionContext) -> dict[str, Any]:
        return {
            key: PartitionOutput(
                DataNotFoundError(f"no file for {key}") if key in BROKEN else pd.DataFrame({"n": [len(key)]})
            )
            for key in context.partition_keys
        }

    @dg.asset(partitions_def=SESSIONS, backfill_policy=dg.BackfillPolicy.single_run())
    def weather() -> None:
        if "weather" in BROKEN:
            raise ValueError("first line\nsecond line\nthird line\nfourth line")


@dg.asset
def report() -> None:
    if "report" in BROKEN:
        raise dg.Failure("the report cannot be written")


@dg.asset_check(asset=report, blocking=True)
def report_is_short() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed="report_is_short" not in BROKEN)


@dg.op
def work() -> None:
    if "maintenance" in BROKEN:
        raise OSError("no space left")


@dg.job
def maintenance() -> None:
    work()


@pytest.fixture(autouse=True)
def nothing_is_broken() -> Iterator[None]:
    BROKEN.clear()
    yield
    BROKEN.clear()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def config(endpoint: Endpoint) -> Iterator[Config]:
    config = api.get_config()
    before = config.to_dict()
    config.update({"alert_urls": (endpoint.url,), "webserver_url": "http://127.0.0.1:4321/"})
    yield config
    config.update(before)


class Project:
    """Runs, and ticks of the sensor, each with the cursor that the one before left."""

    def __init__(self, instance: dg.DagsterInstance, io_manager: CacheIOManager) -> None:
        self.instance, self.io_manager = instance, io_manager
        self.cursor: str | None = None

    def tick(self) -> str:
        with dg.build_sensor_context(instance=self.instance, cursor=self.cursor) as context:
            data = run_failure_sensor.evaluate_tick(context)
        self.cursor = data.cursor
        assert data.run_requests == []
        return data.skip_message or ""

    def run(self, *assets: Any, key: str | None = None, last: str | None = None, **tags: str) -> str:
        if last:
            tags |= {"dagster/asset_partition_range_start": key or "", "dagster/asset_partition_range_end": last}
        return dg.materialize(
            list(assets),
            instance=self.instance,
            resources={"io_manager": self.io_manager},
            partition_key=None if last else key,
            tags=tags,
            run_config=QUIET,
            raise_on_error=False,
        ).run_id

    def run_job(self) -> str:
        return maintenance.execute_in_process(instance=self.instance, run_config=QUIET, raise_on_error=False).run_id


@pytest.fixture
def project(
    config: Config, instance: dg.DagsterInstance, io_manager: CacheIOManager, monkeypatch: pytest.MonkeyPatch
) -> Project:
    # No pause between two messages, except where a test is about it.
    monkeypatch.setattr(failures, "_PAUSE", timedelta())
    project = Project(instance, io_manager)
    assert "the first look" in project.tick()
    return project


def test_it_loads_runs_by_default_and_says_what_it_does() -> None:
    dg.Definitions.validate_loadable(dg.Definitions(sensors=[run_failure_sensor]))
    assert run_failure_sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert "alert_urls" in (run_failure_sensor.description or "")


def test_a_failure_alerts_once_and_its_end_once(project: Project, endpoint: Endpoint) -> None:
    BROKEN.add("weather")
    run_id = project.run(weather, key=KEYS[0])
    assert "1 run(s) have finished, 1 failed; 1 partition(s) or job(s) are failing: weather" in project.tick()
    for _ in range(2):
        project.run(weather, key=KEYS[0])
        project.tick()
    project.tick()
    (message,) = endpoint.received
    assert message["title"] == f"weather failed: {KEYS[0]}"
    assert "Step: weather" in message["message"]
    assert "ValueError: first line second line third line\n" in message["message"]
    assert f"http://127.0.0.1:4321/runs/{run_id}" in message["message"]
    assert message["type"] == "warning"
    BROKEN.clear()
    project.run(weather, key=KEYS[1])
    project.tick()
    assert len(endpoint.received) == 1  # another partition's success is no end
    project.run(weather, key=KEYS[0])
    assert "0 partition(s)" in project.tick()
    project.run(weather, key=KEYS[0])
    project.tick()
    assert len(endpoint.received) == 2
    assert endpoint.received[1]["title"] == f"weather succeeded again: {KEYS[0]}"
    assert endpoint.received[1]["type"] == "success"


def test_what_was_before_the_first_tick_is_history(
    config: Config, instance: dg.DagsterInstance, io_manager: CacheIOManager, endpoint: Endpoint
) -> None:
    project = Project(instance, io_manager)
    BROKEN.add("maintenance")
    project.run_job()
    project.tick()
    assert "0 run(s) have finished" in project.tick()
    assert endpoint.received == []
    project.run_job()
    project.tick()
    assert len(endpoint.received) == 1


def test_many_failures_of_a_tick_are_one_message(project: Project, endpoint: Endpoint) -> None:
    BROKEN.update({"weather", "maintenance", "report"})
    runs = [project.run(weather, key=key) for key in KEYS] + [project.run(report), project.run_job()]
    project.tick()
    (message,) = endpoint.received
    assert message["title"] == "6 runs failed"
    assert sum(run in message["message"] for run in runs) == 5
    assert "… and 1 more, see http://127.0.0.1:4321/runs" in message["message"]
    assert "the report cannot be written" in message["message"]
    BROKEN.clear()
    for key in KEYS:
        project.run(weather, key=key)
    project.run_job()
    project.tick()
    assert endpoint.received[1]["title"] == "2 assets or jobs succeeded again"
    assert "maintenance succeeded again" in endpoint.received[1]["message"]
    assert f"weather succeeded again: {', '.join(KEYS)}" in endpoint.received[1]["message"]


def test_a_run_that_stored_some_partitions_names_those_it_did_not(project: Project, endpoint: Endpoint) -> None:
    BROKEN.update({KEYS[1], "c"})
    project.run(laps, weather, key=KEYS[0], last="d", **{"dagster/backfill": "abcdefgh"})
    assert "2 partition(s)" in project.tick()
    (message,) = endpoint.received
    assert message["title"] == f"laps failed: {KEYS[1]}, c"
    assert f"{KEYS[1]}: no file for {KEYS[1]}" in message["message"]
    assert KEYS[0] not in message["message"]
    BROKEN.discard("c")  # of a failed run, too, what was stored is good
    project.run(laps, key=KEYS[1], last="c")
    assert "1 partition(s)" in project.tick()
    assert endpoint.received[1]["title"] == "laps succeeded again: c"
    BROKEN.clear()
    project.run(laps, key=KEYS[1])  # another selection and another range than those of the failed run
    assert "0 partition(s)" in project.tick()
    assert endpoint.received[2]["title"] == f"laps succeeded again: {KEYS[1]}"


def test_a_failed_step_blames_its_own_asset(project: Project, endpoint: Endpoint) -> None:
    BROKEN.add("weather")
    project.run(laps, weather, key="d")
    assert "1 partition(s)" in project.tick()
    assert endpoint.received[0]["title"] == "weather failed: d"


def test_a_check_that_fails_is_over_when_the_check_passes(project: Project, endpoint: Endpoint) -> None:
    BROKEN.add("report_is_short")
    project.run(report, report_is_short)
    project.tick()
    assert endpoint.received[0]["title"] == "report:report_is_short failed"
    project.run(report)
    assert "1 partition(s)" in project.tick()
    BROKEN.clear()
    project.run(report, report_is_short)
    project.tick()
    assert endpoint.received[1]["title"] == "report:report_is_short succeeded again"


def test_a_run_that_never_started_says_why(project: Project, endpoint: Endpoint) -> None:
    run = project.instance.create_run_for_job(maintenance)
    project.instance.report_run_failed(run, "the machine was switched off")
    project.tick()
    assert endpoint.received[0]["title"] == "maintenance failed"
    assert "the machine was switched off" in endpoint.received[0]["message"]


def test_canceled_runs_and_those_about_to_be_retried_are_silent(project: Project, endpoint: Endpoint) -> None:
    BROKEN.add("maintenance")
    run = project.instance.create_run_for_job(maintenance)
    project.instance.report_run_canceled(run)
    retried = project.run_job()
    project.instance.add_run_tags(retried, {"dagster/will_retry": "true"})
    assert "0 failed" in project.tick()
    project.run_job()  # the retry
    assert "1 failed" in project.tick()
    assert len(endpoint.received) == 1
    run = project.instance.create_run_for_job(maintenance)
    project.instance.report_run_canceled(run)
    assert "1 partition(s) or job(s) are failing" in project.tick()
    assert len(endpoint.received) == 1


def test_failure_success_and_failure_within_a_tick(project: Project, endpoint: Endpoint) -> None:
    BROKEN.add("maintenance")
    project.run_job()
    BROKEN.clear()
    project.run_job()
    assert "0 partition(s)" in project.tick()
    (message,) = endpoint.received  # a failure is told even if it is over already
    assert message["title"] == "tif1_pipeline: 2 alerts (1 started, 1 over)"
    BROKEN.add("maintenance")
    project.run_job()
    project.tick()
    BROKEN.clear()
    project.run_job()
    BROKEN.add("maintenance")
    project.run_job()
    assert "1 partition(s)" in project.tick()
    assert len(endpoint.received) == 2  # it fails as it did before


def end_at(instance: dg.DagsterInstance, run_id: str, at: datetime, changed: datetime | None = None) -> None:
    """As if the run had ended then."""
    from dagster._core.storage.runs.schema import RunsTable

    with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
        connection.execute(
            RunsTable.update()
            .where(RunsTable.c.run_id == run_id)
            .values(end_time=at.timestamp(), update_timestamp=(changed or at).replace(tzinfo=None))
        )


def test_runs_written_down_late_and_out_of_order_are_not_missed(project: Project, endpoint: Endpoint) -> None:
    now = datetime.now(UTC)
    BROKEN.update({"maintenance", "weather", "report"})
    end_at(project.instance, project.run_job(), now)
    project.tick()
    end_at(project.instance, project.run(weather, key="c"), now - timedelta(minutes=2))
    assert "1 failed" in project.tick()
    ahead = project.run(report)
    end_at(project.instance, ahead, now + timedelta(hours=5))  # a clock that is wrong
    assert "1 failed" in project.tick()
    project.run(weather, key="d")
    assert "1 failed" in project.tick()
    assert "0 run(s)" in project.tick()
    assert len(endpoint.received) == 4


def test_a_clock_that_was_ahead_hides_nothing(project: Project, endpoint: Endpoint) -> None:
    project.cursor = json.dumps(json.loads(project.cursor or "") | {"until": datetime.now(UTC).timestamp() + 86400})
    BROKEN.add("maintenance")
    project.run_job()
    project.tick()
    assert len(endpoint.received) == 1


def test_a_change_to_an_old_run_is_no_new_failure(project: Project, endpoint: Endpoint) -> None:
    BROKEN.add("maintenance")
    run_id = project.run_job()
    end_at(project.instance, run_id, datetime.now(UTC) - timedelta(days=2), changed=datetime.now(UTC))
    assert "0 run(s)" in project.tick()
    assert endpoint.received == []


def test_more_runs_than_a_tick_looks_at_are_left_to_the_next(
    project: Project, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "_RUNS_A_TICK", 5)
    monkeypatch.setattr(failures, "_PAGE", 3)
    BROKEN.update({"maintenance", "c"})
    for _ in range(12):
        project.run_job()
    project.run(laps, key="c")
    said = [project.tick().partition(" run(s)")[0] for _ in range(4)]
    assert said == ["5", "5", "3", "0"]
    assert [message["title"] for message in endpoint.received] == ["maintenance failed", "laps failed: c"]


def test_an_alert_is_not_lost_while_the_endpoint_is_down(
    project: Project, endpoint: Endpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    BROKEN.add("maintenance")
    endpoint.status = 500
    project.run_job()
    assert "1 alert(s) still to be delivered" in project.tick()
    endpoint.status = 200
    assert "to be delivered" not in project.tick()
    assert len(endpoint.received) == 1
    said = "".join(capfd.readouterr()) + (project.cursor or "")
    assert "maintenance failed" in said
    assert "OSError: no space left" in said
    assert SECRET not in said
    assert PASSWORD not in said


def test_what_fails_soon_after_a_message_waits_for_the_next(
    project: Project, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "_PAUSE", timedelta(minutes=10))
    BROKEN.update({"maintenance", "weather"})
    project.run_job()
    project.tick()
    for key in KEYS:
        project.run(weather, key=key)
        assert "still to be delivered" in project.tick()
    assert len(endpoint.received) == 1
    state = json.loads(project.cursor or "")
    for each in state["outbox"]["endpoints"].values():
        each[1] -= 600
    project.cursor = json.dumps(state)
    assert "to be delivered" not in project.tick()
    assert len(endpoint.received) == 2
    assert all(key in endpoint.received[1]["message"] for key in KEYS)


def test_the_cursor_is_bounded_and_rubbish_in_it_is_a_first_tick(
    project: Project, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "_OPEN", 3)
    BROKEN.update({"weather", "maintenance"})
    project.run_job()
    project.run(weather, key=KEYS[0], last="d")
    assert "are failing" in project.tick()
    assert sum(map(len, json.loads(project.cursor or "")["open"].values())) == 3
    for rubbish in ("rubbish", "{}", "[]", '{"version": 1}', '{"version": 7}', None):
        project.cursor = rubbish
        assert "the first look" in project.tick()
    assert len(endpoint.received) == 1


def test_on_files_as_the_daemon_has_them(config: Config, io_manager: CacheIOManager, endpoint: Endpoint) -> None:
    with dg.DagsterInstance.local_temp() as instance:
        project = Project(instance, io_manager)
        project.tick()
        BROKEN.add("c")
        project.run(laps, key=KEYS[0], last="d")
        assert "1 run(s) have finished, 1 failed; 1 partition(s)" in project.tick()
        BROKEN.clear()
        project.run(laps, key="c", last="d")
        assert "0 partition(s)" in project.tick()
    assert endpoint.received[0]["title"] == "laps failed: c"
