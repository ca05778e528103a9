"""The sensor that watches the cache: real caches made sick, a real endpoint, a real instance with real runs."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest
from alert_endpoint import PASSWORD, SECRET, Endpoint

from tif1_pipeline import api
from tif1_pipeline.cache import Cache
from tif1_pipeline.config import MIB, Config
from tif1_pipeline.defs.resources import TimingDataResource
from tif1_pipeline.defs.sensors.monitoring import CLEANUP_JOB, monitoring_sensor
from tif1_pipeline.keys import EntryKey

# What Apprise imports when it is first asked whether a URL is one.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dg.op
def clean() -> None:
    """Does nothing: what is left is pinned."""


@dg.job(name=CLEANUP_JOB)
def cleanup_job() -> None:
    clean()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def config(endpoint: Endpoint) -> Iterator[Config]:
    config = api.get_config()
    before = config.to_dict()
    config.update({"alert_urls": (endpoint.url,), "alert_free_disk": 0, "cache_lock_timeout": 1})
    yield config
    config.update(before)


class Ticks:
    """Ticks of the sensor, each with the cursor that the one before left."""

    def __init__(self, instance: dg.DagsterInstance, cache_file: Path) -> None:
        self.instance = instance
        resource = TimingDataResource(cache_path=str(cache_file))
        self.defs = dg.Definitions(sensors=[monitoring_sensor], jobs=[cleanup_job], resources={"timing_data": resource})
        self.cursor: str | None = None

    def __call__(self) -> Any:
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            repository_def=self.defs.get_repository_def(),
            resources=self.defs.resources,
        )
        with context:
            data = monitoring_sensor.evaluate_tick(context)
        assert data.cursor is not None
        self.cursor = data.cursor
        return data


@pytest.fixture
def tick(config: Config, instance: dg.DagsterInstance, cache_file: Path) -> Ticks:
    return Ticks(instance, cache_file)


def fill(cache: Cache, number: int) -> None:
    for index in range(number):
        assert cache.write(EntryKey(f"e{index}", "x"), {"n": list(range(100))}).stored


def corrupt(cache: Cache) -> None:
    cache.close()
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
        connection.execute("UPDATE parts SET data = zeroblob(length(data))")


def test_it_loads_runs_by_default_and_says_what_it_does(tick: Ticks) -> None:
    dg.Definitions.validate_loadable(tick.defs)
    assert monitoring_sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert monitoring_sensor.minimum_interval_seconds == 300
    assert "alert_urls" in (monitoring_sensor.description or "")


def test_a_sound_cache_is_silent_and_each_tick_gives_the_figures(tick: Ticks, cache: Cache, endpoint: Endpoint) -> None:
    fill(cache, 3)
    for _ in range(2):
        data = tick()
        assert data.run_requests == []
        assert data.skip_message is not None
        for figure in ("stored_size 0.0 of 4,500.0 MiB", "integrity 100.0 of 95.0 %", "hit_rate not measured"):
            assert figure in data.skip_message
    assert endpoint.received == []


def test_sick_and_well_again_are_an_alert_each_over_restarts(
    tick: Ticks, cache: Cache, endpoint: Endpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(cache, 3)
    corrupt(cache)
    data = tick()
    assert "started: Entries of the cache are corrupt" in (data.skip_message or "")
    for _ in range(3):
        assert "integrity 0.0 of 95.0 % (active)" in (tick().skip_message or "")
    (message,) = endpoint.received
    assert message["title"] == "Entries of the cache are corrupt"
    assert "e0, e1, e2" in message["message"]
    cache.clear_corrupted()
    assert "over: Over: entries of the cache are corrupt" in (tick().skip_message or "")
    tick()
    assert len(endpoint.received) == 2
    assert endpoint.received[1]["type"] == "success"
    said = "".join(capfd.readouterr()) + (tick.cursor or "")
    assert "Entries of the cache are corrupt" in said  # the log of the tick
    assert SECRET not in said
    assert PASSWORD not in said


def test_an_alert_is_not_lost_while_the_endpoint_is_down(tick: Ticks, cache: Cache, endpoint: Endpoint) -> None:
    fill(cache, 3)
    corrupt(cache)
    endpoint.status = 500
    assert "1 alert(s) still to be delivered" in (tick().skip_message or "")
    endpoint.status = 200
    assert "to be delivered" not in (tick().skip_message or "")
    tick()
    assert len(endpoint.received) == 1


@pytest.mark.parametrize("cursor", ["rubbish", "{}", "[]", '{"version": 1}', '{"version": 99, "memory": 3}'])
def test_a_cursor_that_is_none_is_a_first_tick(tick: Ticks, cache: Cache, cursor: str) -> None:
    fill(cache, 1)
    tick.cursor = cursor
    assert "integrity 100.0" in (tick().skip_message or "")
    assert json.loads(tick.cursor or "")["version"] == 1


def test_processes_that_load_the_definitions_count_no_misses(config: Config, tmp_path: Path) -> None:
    from tif1_pipeline.cache.usage import _flush_all
    from tif1_pipeline.defs.partitions import stored_calendars

    config.cache_dir = tmp_path / "empty"
    cache = api.get_cache()
    cache.write(EntryKey("e", "x"), {"n": [1]})
    assert stored_calendars() == []
    _flush_all()
    assert cache.get_stats()["total_misses"] == 0
    cache.close()


# ---- cleanup


@pytest.fixture
def too_large(config: Config, cache: Cache) -> Callable[[], int]:
    """A cache of three MiB, and a function that makes it small."""
    table = pa.table({"n": np.random.default_rng(3).integers(-(1 << 63), (1 << 63) - 1, 3 * MIB // 8)})
    assert cache.write(EntryKey("large", "x"), table).stored
    config.update({"cache_cleanup_threshold_mb": 2, "cache_cleanup_target_mb": 1})
    return lambda: cache.remove("large")


def aged(cursor: str | None, seconds: float) -> str:
    """As if everything had happened so much earlier."""
    state = json.loads(cursor or "")
    state["cleanup_requested_at"] -= seconds
    state["memory"]["active"] = {name: at - seconds for name, at in state["memory"]["active"].items()}
    return json.dumps(state)


def test_too_large_a_cache_requests_one_cleanup(tick: Ticks, too_large: Callable[[], int], endpoint: Endpoint) -> None:
    data = tick()
    (request,) = data.run_requests
    assert request.run_key
    assert len(endpoint.received) == 1
    assert tick().run_requests == []
    too_large()
    assert "over: Over: the cache is larger than its threshold" in (tick().skip_message or "")
    assert tick().run_requests == []
    assert len(endpoint.received) == 2


def test_a_cleanup_that_did_not_help_is_repeated_later_and_never_beside_another(
    tick: Ticks, too_large: Callable[[], int], instance: dg.DagsterInstance, endpoint: Endpoint
) -> None:
    (first,) = tick().run_requests
    assert cleanup_job.execute_in_process(instance=instance, run_config=QUIET).success
    assert tick().run_requests == []
    tick.cursor = aged(tick.cursor, 7200)
    (second,) = tick().run_requests
    assert second.run_key != first.run_key
    running = instance.create_run_for_job(cleanup_job, status=dg.DagsterRunStatus.STARTED)
    tick.cursor = aged(tick.cursor, 7200)
    assert tick().run_requests == []
    instance.report_run_failed(running)
    assert len(tick().run_requests) == 1
    assert len(endpoint.received) == 1


def test_each_time_over_the_threshold_is_a_cleanup_of_its_own(
    tick: Ticks, too_large: Callable[[], int], cache: Cache
) -> None:
    assert len(tick().run_requests) == 1
    too_large()
    assert tick().run_requests == []
    table = pa.table({"n": np.random.default_rng(4).integers(-(1 << 63), (1 << 63) - 1, 3 * MIB // 8)})
    assert cache.write(EntryKey("large", "x"), table).stored
    assert len(tick().run_requests) == 1


def test_a_request_by_a_clock_that_was_ahead_does_not_hold_up_the_next(
    tick: Ticks, too_large: Callable[[], int]
) -> None:
    assert len(tick().run_requests) == 1
    tick.cursor = aged(tick.cursor, -86400)
    assert len(tick().run_requests) == 1


def test_a_read_only_cache_is_not_cleaned(tick: Ticks, too_large: Callable[[], int], config: Config) -> None:
    config.cache_readonly = True
    assert tick().run_requests == []
