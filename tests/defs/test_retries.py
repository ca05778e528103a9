"""A passing fault of the network is tried again, bad data is not; what is stored already is not fetched again."""

import os
import signal
import subprocess
import sys
import time

import dagster as dg
import pytest

from tif1_pipeline.simulator import Fault

EVENT = "2025 Australian Grand Prix"
FIRST, SECOND, RACE = (f"{EVENT} {name}" for name in ("Practice 1", "Practice 2", "Race"))
WEATHER = "weather.json"


def tries(result: dg.ExecuteInProcessResult) -> int:
    return 1 + sum(event.event_type_value == "STEP_RESTARTED" for event in result.all_events)


@pytest.fixture(autouse=True)
def impatient(tif1):
    """The client gives up at the first fault, so that trying again is left to the step."""
    config = tif1.get_config()
    before, config.max_retries = config.max_retries, 0
    yield
    config.max_retries = before


@pytest.mark.parametrize("kind", ["error", "reset", "rate_limit"])
def test_a_passing_fault_is_outlived(sources, cdn, kind):
    cdn.faults.add(Fault(kind, path=f"Race/{WEATHER}", times=1))
    result = sources.run(["weather"], RACE)
    assert result.success, sources.said(result)
    assert tries(result) == 2


def test_tries_are_few(sources, cdn):
    cdn.faults.add(Fault("error", path=f"Race/{WEATHER}"))
    result = sources.run(["weather"], RACE)
    assert not result.success
    assert tries(result) == 3
    assert sources.instance.get_materialized_partitions(dg.AssetKey("weather")) == set()


@pytest.mark.parametrize("kind", ["bad_json", "garbage", "missing", "forbidden"])
def test_bad_and_missing_data_is_not_tried_again(sources, cdn, kind):
    cdn.faults.add(Fault(kind, path=f"Race/{WEATHER}"))
    result = sources.run(["weather"], RACE)
    assert not result.success
    assert tries(result) == 1
    assert cdn.requests.count(WEATHER) == 1
    assert RACE in sources.said(result)


def test_what_a_former_try_has_stored_is_not_fetched_again(sources, cdn):
    cdn.faults.add(Fault("error", path=f"Practice 2/{WEATHER}", times=1))
    result = sources.run(["weather"], FIRST, RACE)
    assert result.success, sources.said(result)
    assert tries(result) == 2
    asked = {path.split("/")[-2]: count for path, count in cdn.requests.by_path.items() if path.endswith(WEATHER)}
    assert asked == {"Practice 1": 1, "Practice 2": 2, "Practice 3": 1, "Qualifying": 1, "Race": 1}
    for partition in (FIRST, SECOND, RACE):
        metadata = sources.latest("weather", partition).metadata
        assert metadata["dagster/partition_row_count"].value > 0
        assert metadata["etag"].value
    loaded = sources.defs.load_asset_value("weather", partition_key=SECOND, instance=sources.instance)
    assert len(loaded)


def test_another_run_fetches_again(sources, cdn):
    assert sources.run(["weather"], FIRST, RACE).success
    assert sources.run(["weather"], FIRST, RACE).success
    assert cdn.requests.by_path[next(path for path in cdn.requests.by_path if "Race/weather" in path)] == 2


def test_bad_data_beside_a_passing_fault_is_tried_again_with_it(sources, cdn):
    cdn.faults.add(Fault("bad_json", path=f"Practice 1/{WEATHER}"), Fault("error", path=f"Race/{WEATHER}", times=1))
    result = sources.run(["weather"], FIRST, RACE)
    assert not result.success
    assert tries(result) == 2
    assert sources.instance.get_materialized_partitions(dg.AssetKey("weather")) == {
        f"{EVENT} {name}" for name in ("Practice 2", "Practice 3", "Qualifying", "Race")
    }
    assert FIRST in sources.said(result)


TERMINATED = """
import sys
import dagster as dg
from tif1_pipeline.definitions import defs
with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
    dg.materialize(
        list(defs.assets), selection=dg.AssetSelection.assets("weather"), instance=instance, partition_key=sys.argv[2],
        resources=dict(defs.resources), raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}})
"""


def test_what_is_terminated_ends_and_is_not_tried_again(tif1, cdn, tmp_path):
    config = tif1.get_config()
    tif1.get_events(2025)
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text(f"telemetry: {{enabled: false}}\nstorage: {{sqlite: {{base_dir: {home}}}}}\n")
    environment = os.environ | {
        "TIF1_CDN_URLS": ",".join(config.cdn_urls),
        "TIF1_SCHEDULE_URLS": ",".join(config.schedule_urls),
        "TIF1_CACHE_DIR": str(config.cache_dir),
        "TIF1_REQUEST_TIMEOUT": "300",
    }
    cdn.faults.add(Fault("hang", path=f"Race/{WEATHER}"))
    cdn.requests.clear()
    with subprocess.Popen([sys.executable, "-c", TERMINATED, str(home), RACE], env=environment) as process:
        try:
            while not cdn.requests.peak:
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            process.wait(60)  # of the five minutes that it would wait for the server
        finally:
            process.kill()
    with dg.DagsterInstance.from_config(str(home)) as instance:
        (run,) = instance.get_runs()
        events = [
            entry.dagster_event.event_type_value for entry in instance.all_logs(run.run_id) if entry.dagster_event
        ]
    assert run.is_finished
    assert "STEP_FAILURE" in events
    assert "STEP_UP_FOR_RETRY" not in events
