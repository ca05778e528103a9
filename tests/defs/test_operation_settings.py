"""Each setting of the operations has an effect on what it is said to be of: a case for each, and none is left out."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest
from alert_endpoint import PASSWORD, SECRET, Endpoint
from dagster._core.remote_origin import RegisteredCodeLocationOrigin
from every_call import OF_OPERATIONS

from tif1_pipeline import alerts, api, monitoring, plots
from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey, SessionKey

pytestmark = [
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),  # as in definitions.py
    # What Apprise imports when it is first asked whether a URL is one.
    pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning"),
    # Of Dagster's client, which calls its own library as that does not like any more.
    pytest.mark.filterwarnings("ignore:Using variable_values and operation_name:DeprecationWarning"),
]

RACE = SessionKey(2025, "Australian Grand Prix", "Race")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

AT_LOADING = {
    "operations_timezone": "Asia/Tokyo",
    "nightly_warm_cron": "1 5 * * *",
    "daily_maintenance_cron": "2 5 * * *",
    "weekly_maintenance_cron": "3 5 * * 1",
    "run_cleanup_cron": "4 5 1 * *",
    "calendar_interval": "31s",
    "completion_interval": "7m",
    "expiry_interval": "8m",
    "repair_interval": "11m",
    "monitoring_interval": "9m",
}
"""Settings that are read when the definitions load, with other values than by default."""

_PROGRAM = """
import json
from tif1_pipeline.definitions import defs
repository = defs.get_repository_def()
print(json.dumps({
    "crons": {schedule.name: schedule.cron_schedule for schedule in repository.schedule_defs},
    "zones": sorted({schedule.execution_timezone for schedule in repository.schedule_defs}),
    "seconds": {sensor.name: sensor.minimum_interval_seconds for sensor in repository.sensor_defs},
}))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The schedules and sensors of a process in which all of these settings are others than by default."""
    folder = tmp_path_factory.mktemp("loaded")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TIF1_", "DAGSTER_"))}
    environment |= {f"TIF1_{name.upper()}": value for name, value in AT_LOADING.items()}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        cwd=folder,
        env=environment | {"TIF1_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass
class World:
    """What the settings have effects on."""

    config: Config
    folder: Path
    instance: dg.DagsterInstance
    fixture: Callable[[str], Any]

    @property
    def cache(self) -> Cache:
        return api.get_cache()

    @property
    def endpoint(self) -> Endpoint:
        return self.fixture("endpoint")

    @property
    def loaded(self) -> Mapping[str, Any]:
        return self.fixture("loaded")

    def run(self, op: dg.OpDefinition, **config: Any) -> dict[str, Any]:
        """Run one op, and return its counts."""
        from tif1_pipeline.defs.resources import TimingDataResource

        @dg.job(resource_defs={"timing_data": TimingDataResource(), "op_io_manager": dg.mem_io_manager})
        def alone() -> None:
            op()

        options = {"ops": {op.name: {"config": config}}} | QUIET
        return alone.execute_in_process(instance=self.instance, run_config=options).output_for_node(op.name)

    def put(self, *names: str) -> None:
        for name in names:
            assert self.cache.write(EntryKey(name, "asset"), pa.table({"n": range(100)})).stored

    def condition(self, name: str, memory: monitoring.Memory | None = None) -> bool:
        """Look, as the monitoring sensor does, and return whether this condition is active."""
        found = monitoring.conditions(self.cache, self.config, memory)
        return {condition.name: condition.is_active for condition in found}[name]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def world(tif1, instance: dg.DagsterInstance, tmp_path: Path, request: pytest.FixtureRequest) -> World:
    return World(tif1.get_config(), tmp_path, instance, request.getfixturevalue)


Case = Callable[[World], None]
CASES: dict[str, Case] = {}


def of(name: str) -> Callable[[Case], Case]:
    def keep(case: Case) -> Case:
        assert name not in CASES
        CASES[name] = case
        return case

    return keep


@pytest.mark.parametrize("name", OF_OPERATIONS)
def test_a_setting_has_an_effect(world: World, name: str) -> None:
    assert name in CASES, f"the setting {name} has no case in {__file__}"
    CASES[name](world)


def test_no_case_is_of_a_setting_that_is_gone() -> None:
    assert set(CASES) == set(OF_OPERATIONS)


def test_the_values_that_are_loaded_are_not_the_defaults() -> None:
    changed, default = Config(), Config()
    changed.update(AT_LOADING)
    assert all(getattr(changed, name) != getattr(default, name) for name in AT_LOADING)


# ---- read when the definitions load


@of("operations_timezone")
def _(world: World) -> None:
    assert world.loaded["zones"] == ["Asia/Tokyo"]


def _cron(setting: str) -> None:
    @of(setting)
    def _(world: World) -> None:
        schedule = f"{setting.removesuffix('_cron')}_schedule"
        assert world.loaded["crons"][schedule] == AT_LOADING[setting]


def _interval(setting: str, sensor: str, seconds: int) -> None:
    @of(setting)
    def _(world: World) -> None:
        assert world.loaded["seconds"][sensor] == seconds


_cron("nightly_warm_cron")
_cron("daily_maintenance_cron")
_cron("weekly_maintenance_cron")
_cron("run_cleanup_cron")
_interval("calendar_interval", "calendar_sensor", 31)
_interval("completion_interval", "race_completion_sensor", 7 * 60)
_interval("expiry_interval", "ttl_expiry_sensor", 8 * 60)
_interval("repair_interval", "repair_sensor", 11 * 60)
_interval("monitoring_interval", "monitoring_sensor", 9 * 60)


# ---- read when something runs


@of("run_retention")
def _(world: World) -> None:
    from tif1_pipeline.defs.jobs.runs import delete_old_runs

    @dg.job
    def nothing() -> None: ...

    for _ in range(2):
        nothing.execute_in_process(instance=world.instance, run_config=QUIET)
    examined = {}
    for retention in ("1d", 1e-6):
        world.config.run_retention = retention
        examined[retention] = world.run(delete_old_runs, dry_run=True)["examined"]
    assert examined["1d"] == 0
    assert examined[1e-6] >= 2


@of("warm_recent")
def _(world: World) -> None:
    from tif1_pipeline.defs.jobs.warm import warm_recent_sessions

    api.get_events(RACE.year)  # a dry run asks the CDN for nothing
    planned = {}
    for recent in ("1h", "3650d"):
        world.config.warm_recent = recent
        planned[recent] = world.run(warm_recent_sessions, dry_run=True)["planned"]
    # The simulated season is that of 2025.
    assert planned["1h"] == 0
    assert planned["3650d"] > 10


@of("backup_dir")
def _(world: World) -> None:
    from tif1_pipeline.defs.jobs.backups import backup

    world.put("a")
    world.config.backup_dir = world.folder / "elsewhere"
    assert world.run(backup, restore=False)["kept"] == 1
    assert len(list((world.folder / "elsewhere").glob("*.tar.zst"))) == 1
    assert not (world.cache.get_cache_dir() / "backups").exists()


@of("backup_keep")
def _(world: World) -> None:
    from tif1_pipeline.defs.jobs.backups import backup

    world.put("a")
    world.config.backup_keep = 2
    assert [world.run(backup, restore=False)["kept"] for _ in range(3)] == [1, 2, 2]


@of("completion_window")
def _(world: World) -> None:
    from tif1_pipeline.defs.resources import TimingDataResource
    from tif1_pipeline.defs.sensors.completion import race_completion_sensor

    api.get_events(RACE.year)
    world.config.offline = True  # each session that is looked after says that it cannot be looked at
    said = {}
    for window in ("1d", "3650d"):  # the simulated season is that of 2025
        world.config.completion_window = window
        context = dg.build_sensor_context(world.instance, resources={"timing_data": TimingDataResource()})
        with context:
            said[window] = race_completion_sensor.evaluate_tick(context).skip_message
    assert RACE.event not in said["1d"]
    assert RACE.event in said["3650d"]


@of("expiry_action")
def _(world: World) -> None:
    from tif1_pipeline.defs.jobs.expiry import refresh_expired

    api.get_events(RACE.year)
    api.get_session(RACE.year, RACE.event, RACE.session_type).laps  # noqa: B018 - stores it
    world.config.cache_ttl_laps = 0.001
    counts = world.run(refresh_expired)
    assert (counts["unchanged"], counts["dropped"]) == (1, 0)
    assert world.cache.info(RACE.entry("laps")) is not None
    world.config.expiry_action = "drop"
    assert world.run(refresh_expired)["dropped"] == 1
    assert world.cache.info(RACE.entry("laps")) is None


@of("alert_urls")
def _(world: World) -> None:
    alert = alerts.Alert("trial", "A trial", "Nothing is wrong.")
    assert alerts.send(alert, world.config)
    assert world.endpoint.received == []
    world.config.alert_urls = [world.endpoint.url]
    assert alerts.send(alert, world.config)
    assert [message["title"] for message in world.endpoint.received] == ["A trial"]
    shown = f"{world.config!r} {world.config.to_dict()}"
    assert SECRET not in shown
    assert PASSWORD not in shown


@of("alert_hit_rate")
def _(world: World) -> None:
    world.put("there")
    for key in ("there", "not there") * monitoring.LOOKUPS:
        world.cache.read(key)

    def is_active() -> bool:
        return world.condition(monitoring.HIT_RATE, monitoring.Memory(hits=0, misses=0))

    assert is_active()
    world.config.alert_hit_rate = 0.4
    assert not is_active()


@of("alert_free_disk")
def _(world: World) -> None:
    world.put("a")
    world.config.alert_free_disk = 1
    assert world.condition(monitoring.FREE_DISK)
    world.config.alert_free_disk = 0
    assert not world.condition(monitoring.FREE_DISK)


@of("alert_integrity")
def _(world: World) -> None:
    world.put(*(f"e{number}" for number in range(10)))
    world.cache.close()
    with closing(sqlite3.connect(world.cache.get_cache_file(), isolation_level=None)) as connection:
        connection.execute(
            "UPDATE parts SET data = zeroblob(length(data)) WHERE entry_id = (SELECT id FROM entries WHERE key = 'e0')"
        )
    assert world.condition(monitoring.INTEGRITY)
    world.config.alert_integrity = 0.8
    assert not world.condition(monitoring.INTEGRITY)


@of("plots")
def _(world: World) -> None:
    from tif1_pipeline.defs.pictures import pictures

    table = pd.DataFrame({"Race": [1.5]}, index=[RACE.event])
    draw = {"cached": lambda: plots.cached_sessions(table)}
    assert "data:image/png" in str(pictures(draw)["cached"].value)
    world.config.plots = False
    assert pictures(draw) == {}


@of("webserver_url")
def _(world: World) -> None:
    assert world.cache.get_entries() == []
    for name in [name for name in sys.modules if name.startswith("tif1_pipeline.defs")]:
        del sys.modules[name]
    from tif1_pipeline.defs.resources import TimingDataResource
    from tif1_pipeline.defs.sensors.calendar import calendar_sensor

    address = world.endpoint.url.rpartition("@")[2].partition("/")[0]
    world.config.webserver_url = f"http://{address}"
    context = dg.SensorEvaluationContext(
        instance_ref=None,
        last_tick_completion_time=None,
        last_run_key=None,
        cursor=None,
        log_key=None,
        repository_name=None,
        instance=world.instance,
        code_location_origin=RegisteredCodeLocationOrigin("timing"),
        resources={"timing_data": TimingDataResource()},
    )
    with context:
        # There are no partitions but seasons yet, and a calendar is published.
        said = calendar_sensor.evaluate_tick(context).skip_message
    assert [body["variables"] for body in world.endpoint.received] == [{"repositoryLocationName": "timing"}]
    assert world.config.webserver_url in said  # it is no webserver, which is said
