"""The project's assets: real runs on a real instance, from a simulated CDN into a real cache file."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.simulator import Fault

EVENT = "2025 Australian Grand Prix"
SESSIONS = [f"{EVENT} {name}" for name in ("Practice 1", "Practice 2", "Practice 3", "Qualifying", "Race")]
BY_SESSION = ["fastest_laps", "stints", "race_pace", "driver_telemetry_summary"]
DERIVED = [*BY_SESSION, "event_summary", "season_summary"]
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@pytest.fixture
def project(tif1, loaded, instance):
    """The definitions, with an empty cache but for the calendar and an instance that knows of nothing."""
    tif1.get_events(2025)
    return Project(loaded, instance)


class Project:
    def __init__(self, defs, instance):
        self.defs, self.instance = defs, instance

    def run(self, assets, first, last=None):
        tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last or first}
        return dg.materialize(
            list(self.defs.assets),
            selection=dg.AssetSelection.assets(*assets),
            instance=self.instance,
            resources=dict(self.defs.resources),
            tags=tags,
            run_config=QUIET,
            raise_on_error=False,
        )

    def materialized(self, asset):
        return self.instance.get_materialized_partitions(dg.AssetKey(asset))

    def metadata(self, asset, partition):
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[partition]), limit=1
        ).records
        return {name: value.value for name, value in records[0].asset_materialization.metadata.items()}

    def failures(self, result):
        events = [event for event in result.all_events if event.is_step_failure]
        return "\n".join(
            str(event.step_failure_data.user_failure_data or event.step_failure_data.error) for event in events
        )


def test_definitions_load_and_hold_every_asset(project):
    dg.Definitions.validate_loadable(project.defs)
    graph = project.defs.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {*DATASETS, *DERIVED}
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.group_name in {"timing", "calendar", "analysis"}
        assert node.kinds
        assert node.partitions_def is not None


def test_partitions_are_the_calendar_in_its_order(project):
    from tif1_pipeline.defs.partitions import PARTITIONS

    assert PARTITIONS.sessions.get_partition_keys()[:5] == SESSIONS
    assert PARTITIONS.events.get_partition_keys()[0] == EVENT
    assert "2018" in PARTITIONS.seasons.get_partition_keys()


def test_names_that_cannot_be_partition_keys_are_left_out(project, caplog):
    import dataclasses

    from tif1_pipeline import api
    from tif1_pipeline.calendar import SeasonCalendar
    from tif1_pipeline.defs.partitions import Partitions

    good = api.get_reader().calendar(2025).events[0]
    bad = [dataclasses.replace(good, name=name) for name in ("A...B", "A\nB", "A|B")]
    partitions = Partitions.from_calendars([SeasonCalendar(2025, (good, good, *bad))], [2025])
    assert partitions.events.get_partition_keys() == [EVENT]
    assert partitions.sessions.get_partition_keys() == SESSIONS
    assert "cannot be a partition" in caplog.text


def test_without_a_calendar_the_definitions_load_with_seasons_only(tif1, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("tif1_pipeline.defs", "tif1_pipeline.definitions"))]:
        monkeypatch.delitem(sys.modules, name)
    from tif1_pipeline.definitions import defs
    from tif1_pipeline.defs.partitions import PARTITIONS

    dg.Definitions.validate_loadable(defs)
    assert PARTITIONS.sessions.get_partition_keys() == []
    assert "2025" in PARTITIONS.seasons.get_partition_keys()


def test_a_weekend_materializes_and_loads_back(project, tif1):
    assets = [name for name in DATASETS if name != "schedule"]
    result = project.run([*assets, "fastest_laps"], SESSIONS[0], SESSIONS[-1])
    assert result.success, project.failures(result)
    for asset in [*assets, "fastest_laps"]:
        assert project.materialized(asset) == set(SESSIONS), asset
    result = project.run(["event_summary"], EVENT)
    assert result.success, project.failures(result)

    laps = project.defs.load_asset_value("laps", partition_key=SESSIONS[-1], instance=project.instance)
    pd.testing.assert_frame_equal(laps, tif1.get_session(2025, "Australia", "Race").laps)
    fastest = project.defs.load_asset_value("fastest_laps", partition_key=SESSIONS[-1], instance=project.instance)
    valid = laps[~laps["Deleted"].fillna(False)]
    assert fastest["LapTimeSeconds"].iloc[0] == valid["LapTimeSeconds"].min()
    assert fastest["Driver"].is_unique
    assert fastest["Rank"].tolist() == list(range(1, len(fastest) + 1))
    summary = project.defs.load_asset_value("event_summary", partition_key=EVENT, instance=project.instance)
    assert summary["SessionType"].tolist() == ["Practice 1", "Practice 2", "Practice 3", "Qualifying", "Race"]
    assert summary["Laps"].iloc[-1] == len(laps)


def test_a_run_and_a_notebook_share_one_entry(project, tif1, cdn):
    tif1.get_session(2025, "Australia", "Race").laps  # noqa: B018
    assert project.run(["fastest_laps"], SESSIONS[-1]).success
    assert cdn.requests.count("session_laptimes.json") == 1


def test_metadata_says_what_was_fetched_and_stored(project):
    assert project.run(["laps"], SESSIONS[-1]).success
    metadata = project.metadata("laps", SESSIONS[-1])
    laps = project.defs.load_asset_value("laps", partition_key=SESSIONS[-1], instance=project.instance)
    assert metadata["dagster/partition_row_count"] == len(laps)
    assert metadata["requests"] == 1
    assert metadata["raw_mb"] > 0
    assert metadata["stored_mb"] > 0
    assert metadata["ratio"] > 0
    assert metadata["etag"]
    assert metadata["source_url"].endswith("session_laptimes.json")
    assert metadata["cache_key"] == "2025_australian_race_laps_pandas"
    assert metadata["preview"].startswith("| Driver | LapNumber | LapTime |")
    columns = [column.name for column in DATASETS["laps"].columns]
    # The asset has the schema; a materialization repeats it only where the table has columns beyond it.
    declared = project.defs.resolve_asset_graph().get(dg.AssetKey("laps")).metadata["dagster/column_schema"].columns
    assert [column.name for column in declared] == columns
    assert "km/h" in next(column for column in declared if column.name == "SpeedI1").description
    if list(laps.columns) == columns:
        assert "dagster/column_schema" not in metadata
    else:
        assert [column.name for column in metadata["dagster/column_schema"].columns] == list(laps.columns)


def test_source_assets_have_owners_tags_and_columns(project):
    graph = project.defs.resolve_asset_graph()
    for name, dataset in DATASETS.items():
        node = graph.get(dg.AssetKey(name))
        assert node.owners
        assert node.tags["tif1/source"] == "cdn"
        assert node.tags["tif1/level"] == dataset.level
        assert node.pools == {"cdn"}
        columns = node.metadata["dagster/column_schema"].columns
        assert [column.name for column in columns] == dataset.schema.names
        for column, declared in zip(dataset.columns, columns, strict=True):
            assert not column.unit or f"({column.unit})" in declared.description


def test_laps_and_telemetry_show_pictures_unless_switched_off(project, tif1):
    names = {"laps": {"lap_times"}, "telemetry": {"track_map", "speed_trace"}}
    result = project.run(["drivers", *names], SESSIONS[-1])
    assert result.success, project.failures(result)
    for asset, pictures in names.items():
        metadata = project.metadata(asset, SESSIONS[-1])
        for picture in pictures:
            assert metadata[picture].startswith("![")
            assert "data:image/png;base64," in metadata[picture]
            assert len(metadata[picture]) < 100_000
    tif1.get_config().plots = False
    assert project.run(list(names), SESSIONS[-1]).success
    for asset, pictures in names.items():
        assert not pictures & project.metadata(asset, SESSIONS[-1]).keys()


@pytest.mark.parametrize("fault", ["missing", "error", "garbage"])
def test_one_broken_session_is_named_and_does_not_lose_the_others(project, cdn, fault):
    cdn.faults.add(Fault(fault, path="Practice 2/*laptimes.json"))
    result = project.run(["laps"], SESSIONS[0], SESSIONS[2])
    assert not result.success
    assert project.materialized("laps") == {SESSIONS[0], SESSIONS[2]}
    said = project.failures(result)
    assert SESSIONS[1] in said
    assert SESSIONS[0] not in said
    loaded = project.defs.load_asset_value("laps", partition_key=SESSIONS[2], instance=project.instance)
    assert len(loaded)
    cdn.faults.clear()
    assert project.run(["laps"], SESSIONS[1]).success
    assert project.materialized("laps") == set(SESSIONS[:3])


def test_a_source_table_that_was_evicted_is_fetched_again(project, tif1, cdn):
    assert project.run(["laps"], SESSIONS[-1]).success
    tif1.get_cache().clear()
    tif1.get_events(2025)
    assert project.run(["fastest_laps"], SESSIONS[-1]).success
    assert cdn.requests.count("session_laptimes.json") == 2


def test_a_running_event_is_summed_up_by_the_sessions_it_has_had(project, cdn):
    cdn.hide("Race/*")
    cdn.hide("Qualifying/*")
    result = project.run(["event_summary"], EVENT)
    assert result.success, project.failures(result)
    summary = project.defs.load_asset_value("event_summary", partition_key=EVENT, instance=project.instance)
    assert summary["SessionType"].tolist() == ["Practice 1", "Practice 2", "Practice 3"]


def test_the_schedule_is_an_asset(project):
    assert project.run(["schedule"], "2025").success
    assert project.metadata("schedule", "2025")["dagster/partition_row_count"] == 2
    result = project.run(["schedule"], "2019")
    assert not result.success
    assert "2019" in project.failures(result)


KILLED = """
import sys
import dagster as dg
from tif1_pipeline.definitions import defs
with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
    print("ready", flush=True)
    result = dg.materialize(
        list(defs.assets), selection=dg.AssetSelection.assets("laps", "telemetry", "weather"), instance=instance,
        resources=dict(defs.resources), raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        tags={"dagster/asset_partition_range_start": sys.argv[2], "dagster/asset_partition_range_end": sys.argv[3]})
    sys.exit(0 if result.success else 1)
"""


@pytest.mark.slow
def test_sigkill_during_a_materialization_leaves_a_cache_that_a_second_run_completes(tif1, cdn, tmp_path):
    config = tif1.get_config()
    tif1.get_events(2025)
    tif1.close()
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text(f"telemetry: {{enabled: false}}\nstorage: {{sqlite: {{base_dir: {home}}}}}\n")
    environment = os.environ | {
        "TIF1_CDN_URLS": ",".join(config.cdn_urls),
        "TIF1_SCHEDULE_URLS": ",".join(config.schedule_urls),
        "TIF1_CACHE_DIR": str(config.cache_dir),
    }
    command = [sys.executable, "-c", KILLED, str(home), SESSIONS[0], SESSIONS[-1]]
    killed = 0
    for delay in (0.3, 0.8, 1.3, 1.8):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += process.returncode == -signal.SIGKILL
        check_cache(Path(config.cache_path))
    assert killed >= 2, "the run was over before it was killed"
    assert subprocess.run(command, env=environment, check=False, timeout=100).returncode == 0
    check_cache(Path(config.cache_path))
    cdn.faults.add(Fault("error"))
    for partition in SESSIONS:
        session = tif1.get_session(2025, "Australia", partition.removeprefix(f"{EVENT} "))
        assert len(session.laps) or "Practice" in partition
        assert len(session.telemetry)
        assert len(session.weather)


def check_cache(path: Path) -> None:
    """The file opens and is sound, and every entry has all its parts."""
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
