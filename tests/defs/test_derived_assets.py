"""Derived assets: real runs on a simulated CDN, and what they load, store, show and lose."""

import base64

import dagster as dg
import pandas as pd
import pytest
import test_assets
from test_assets import BY_SESSION, DERIVED, EVENT, SESSIONS

from tif1_pipeline import analysis
from tif1_pipeline.cache import Cache
from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.exceptions import InvalidDataError
from tif1_pipeline.simulator import Fault

project = test_assets.project
RACE = SESSIONS[-1]
RESULTS = {name: getattr(analysis, name.upper()) for name in DERIVED}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def reads(monkeypatch):
    """What was read from the cache: key and columns asked for, in order."""
    seen = []
    read = Cache.read

    def recording(self, entry, *args, columns=None, **options):
        hit = read(self, entry, *args, columns=columns, **options)
        seen.append((str(entry), columns, None if hit is None else list(hit.value.columns)))
        return hit

    monkeypatch.setattr(Cache, "read", recording)
    return seen


def pictures_of(metadata):
    texts = [value for value in metadata.values() if isinstance(value, str) and "](data:image/png;base64," in value]
    return [base64.b64decode(text.partition("base64,")[2].rstrip(")")) for text in texts]


@pytest.mark.parametrize("name", DERIVED)
def test_each_says_what_it_is(project, name):
    node = project.defs.resolve_asset_graph().get(dg.AssetKey(name))
    assert node.description.endswith(".")
    assert node.group_name == "analysis"
    assert node.owners
    assert node.kinds
    assert node.tags["tif1/source"] == "derived"
    assert node.automation_condition is not None
    assert node.code_version
    result = RESULTS[name]
    schema = node.metadata["dagster/column_schema"]
    assert [column.name for column in schema.columns] == list(result.dtypes)
    for shown, declared in zip(schema.columns, result.columns, strict=True):
        assert shown.type == result.dtypes[shown.name]
        assert shown.constraints.nullable is not declared.required
        assert shown.description.startswith(declared.description)
        assert declared.unit is None or shown.description.endswith(f"({declared.unit})")
    assert {key.to_user_string() for key in node.parent_keys} == set(result.needs)
    for upstream, columns in result.needs.items():
        known = RESULTS[upstream].dtypes if upstream in RESULTS else DATASETS[upstream].schema.names
        assert set(columns) <= set(known)


def test_backfills_of_a_level_share_runs(project):
    graph = project.defs.resolve_asset_graph()
    policy = {name: graph.get(dg.AssetKey(name)).backfill_policy for name in ("laps", "schedule", *DERIVED)}
    assert all(policy[name] == policy["laps"] for name in BY_SESSION)
    assert policy["event_summary"] == policy["season_summary"] == policy["schedule"]


def test_a_weekend_is_analysed_with_its_sources_and_summed_up(project, tif1):
    result = project.run(["drivers", "laps", "telemetry", *BY_SESSION], SESSIONS[3], RACE)
    assert result.success, project.failures(result)
    for name, partition in (("event_summary", EVENT), ("season_summary", "2025")):
        result = project.run([name], partition)
        assert result.success, project.failures(result)

    def load(name, partition):
        return project.defs.load_asset_value(name, partition_key=partition, instance=project.instance)

    paces = {}
    for partition in SESSIONS[3:]:
        name = partition.removeprefix(f"{EVENT} ")
        session = tif1.get_session(2025, "Australia", name)
        fuel = {} if name == "Race" else {"fuel_seconds_per_lap": None}
        paces[partition] = analysis.race_pace_of(session.laps, **fuel)
        expected = {
            "fastest_laps": analysis.fastest_laps_of(session.laps),
            "stints": analysis.stints_of(session.laps),
            "race_pace": paces[partition],
            "driver_telemetry_summary": analysis.driver_telemetry_summary_of(session.telemetry, session.laps),
        }
        for asset in BY_SESSION:
            table = load(asset, partition)
            pd.testing.assert_frame_equal(table, expected[asset])
            assert len(table)
            check_metadata(project.metadata(asset, partition), RESULTS[asset], len(table))
    event = load("event_summary", EVENT)
    assert event["SessionType"].tolist() == ["Practice 1", "Practice 2", "Practice 3", "Qualifying", "Race"]
    check_metadata(project.metadata("event_summary", EVENT), RESULTS["event_summary"], 5)
    season = load("season_summary", "2025")
    # Of the sessions that are there.
    pd.testing.assert_frame_equal(season, analysis.season_summary_of(paces))
    assert season["Races"].max() == 1
    # With the sessions that are stored.
    check_metadata(project.metadata("season_summary", "2025"), RESULTS["season_summary"], len(season), pictures=2)
    assert len(str(project.metadata("season_summary", "2025")["cached_sessions"])) < 50_000
    assert project.metadata("season_summary", "2025")["sessions"] == 2


def check_metadata(metadata, result, rows, pictures=1):
    assert metadata["dagster/partition_row_count"] == rows
    drawn = pictures_of(metadata)
    assert len(drawn) == pictures
    assert all(picture.startswith(PNG) and len(picture) < 50_000 for picture in drawn)
    assert len([value for value in metadata.values() if isinstance(value, int | float)]) >= 3


def test_only_the_columns_needed_are_loaded(project, reads):
    assert project.run(["drivers", "laps", "telemetry"], RACE).success
    for name in BY_SESSION:
        reads.clear()
        result = project.run([name], RACE)
        assert result.success, project.failures(result)
        loaded = {key.split("_race_")[1].removesuffix("_pandas"): (asked, got) for key, asked, got in reads}
        assert loaded.keys() == RESULTS[name].needs.keys(), name
        for upstream, columns in RESULTS[name].needs.items():
            asked, got = loaded[upstream]
            assert asked == list(columns)
            assert sorted(got) == sorted(columns)


def test_an_event_and_a_season_load_exactly_their_sessions(project, reads):
    from tif1_pipeline.defs.partitions import PARTITIONS

    sessions = PARTITIONS.sessions.get_partition_keys()
    other = [partition for partition in sessions if not partition.startswith(EVENT)]
    assert other
    assert project.run(["laps", "race_pace"], sessions[0], sessions[-1]).success
    reads.clear()
    assert project.run(["event_summary"], EVENT).success
    assert sorted(key for key, _, _ in reads) == [
        f"2025_australian_{name}_laps_pandas"
        for name in ("practice_1", "practice_2", "practice_3", "qualifying", "race")
    ]
    reads.clear()
    assert project.run(["season_summary"], "2025").success
    assert reads.pop()[0] == "2025_schedule"  # for the picture of what is stored
    assert sorted(key for key, _, _ in reads) == sorted(f"asset:race_pace@{partition}" for partition in sessions)
    assert {tuple(asked) for _, asked, _ in reads} == {RESULTS["season_summary"].needs["race_pace"]}
    assert project.metadata("season_summary", "2025")["sessions"] == len(sessions)


def test_a_session_without_laps_fails_alone_and_is_not_tried_again(project, cdn):
    cdn.hide("Practice 2/*laptimes.json")
    result = project.run(["fastest_laps", "stints", "race_pace"], SESSIONS[0], SESSIONS[2])
    assert not result.success
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    said = project.failures(result)
    assert f"there are no laps of {SESSIONS[1]} yet" in said
    for name in ("fastest_laps", "stints", "race_pace"):
        assert project.materialized(name) == {SESSIONS[0], SESSIONS[2]}, name
        assert pictures_of(project.metadata(name, SESSIONS[0]))


def test_a_session_without_telemetry_fails_alone(project, cdn):
    cdn.hide("Practice 1/*_tel.json")
    result = project.run(["driver_telemetry_summary"], SESSIONS[0], SESSIONS[1])
    assert not result.success
    assert SESSIONS[0] in project.failures(result)
    assert project.materialized("driver_telemetry_summary") == {SESSIONS[1]}


@pytest.mark.parametrize("fault", ["garbage", "error"])
def test_a_session_that_cannot_be_read_fails_alone(project, tif1, cdn, fault):
    tif1.get_config().max_retries = 0
    cdn.faults.add(Fault(fault, path="Practice 2/*laptimes.json"))
    result = project.run(["race_pace"], SESSIONS[0], SESSIONS[2])
    assert not result.success
    said = project.failures(result)
    assert SESSIONS[1] in said
    assert SESSIONS[0] not in said
    assert project.materialized("race_pace") == {SESSIONS[0], SESSIONS[2]}
    # What the network hinders is tried again, what is wrong is not.
    tries = 1 + len([event for event in result.all_events if event.is_step_up_for_retry])
    assert tries == (3 if fault == "error" else 1)
    result = project.run(["event_summary"], EVENT)
    assert not result.success
    assert EVENT in project.failures(result)


def test_an_event_and_a_season_of_which_nothing_is_known_yet_fail_with_the_reason(project, cdn):
    cdn.hide("*laptimes.json")
    result = project.run(["event_summary"], EVENT)
    assert not result.success
    assert f"there are no laps of any session of {EVENT} yet" in project.failures(result)
    for season in ("2024", "2025"):
        result = project.run(["season_summary"], season)
        assert not result.success
        assert f"there are no race_pace of any session of {season} yet" in project.failures(result)
    assert not project.materialized("season_summary")


def test_pictures_can_be_switched_off(project, tif1):
    tif1.get_config().plots = False
    assert project.run(["fastest_laps"], RACE).success
    metadata = project.metadata("fastest_laps", RACE)
    assert not pictures_of(metadata)
    assert metadata["fastest_lap_seconds"] > 60


def test_what_is_wrong_with_one_partition_is_said_of_it_alone(project):
    from tif1_pipeline.defs.assets.derived import AnalysedPartitions
    from tif1_pipeline.defs.io_manager import PartitionOutput

    outputs = {"first": PartitionOutput(1), "last": PartitionOutput(3)}
    delivered = dict(AnalysedPartitions(["first", "second", "last"], outputs.__getitem__))
    assert delivered.keys() == {"first", "second", "last"}
    assert (delivered["first"], delivered["last"]) == (outputs["first"], outputs["last"])
    # An error that the IO manager does not let Dagster try again.
    assert isinstance(delivered["second"], InvalidDataError)
    assert "second cannot be analysed: KeyError" in str(delivered["second"])
