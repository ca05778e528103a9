"""Nothing is derived from rows that fail a blocking check, whoever has stored them and whatever requests the run."""

import dagster as dg
import pandas as pd
import pytest
import test_assets
from test_assets import EVENT, SESSIONS
from test_checks import deliver, table_of

from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.defs.checks import require_sound, required_columns
from tif1_pipeline.exceptions import InvalidDataError
from tif1_pipeline.keys import SessionKey

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
project = test_assets.project
FIRST, BAD, GOOD = SESSIONS[:3]
FROM_LAPS = ["fastest_laps", "stints", "race_pace"]


def doubled(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, table.head(2)], ignore_index=True)


def store(tif1, dataset: str, table: pd.DataFrame, partition: str = BAD) -> None:
    """Store a table as what runs without checks does: warming, expiry, a notebook."""
    declared = DATASETS[dataset]
    written = tif1.get_cache().write(
        SessionKey.parse(partition).entry(dataset),
        table,
        part_by=declared.part_by,
        schema_version=declared.schema_version,
    )
    assert written.stored


def tries(result: dg.ExecuteInProcessResult) -> int:
    return 1 + len([event for event in result.all_events if event.is_step_up_for_retry])


@pytest.mark.parametrize("checked", [True, False], ids=["by a run with checks", "outside of runs"])
def test_a_session_at_fault_fails_alone_with_its_rows_named(project, sources, tif1, checked):
    laps = table_of("laps", BAD)
    if checked:
        assert not deliver(sources, "laps", {BAD: doubled(laps)}).success
    else:
        store(tif1, "laps", doubled(laps))
    result = project.run(FROM_LAPS, FIRST, GOOD)
    assert not result.success
    assert tries(result) == 1
    said = project.failures(result)
    driver, number = laps["Driver"].iloc[0], laps["LapNumber"].iloc[0]
    assert f"nothing is derived from laps of {BAD}, because the check no_duplicates fails: Driver {driver}" in said
    assert f"LapNumber {number:g}: 2 times" in said
    for name in FROM_LAPS:
        assert project.materialized(name) == {FIRST, GOOD}, name


def test_what_was_derived_before_stays_and_a_correction_is_derived(project, tif1):
    laps = table_of("laps", BAD)
    assert project.run(["fastest_laps"], BAD).success
    before = project.metadata("fastest_laps", BAD)
    store(tif1, "laps", laps.assign(LapNumber=laps["LapNumber"].where(laps.index != 3)))
    result = project.run(["fastest_laps"], BAD)
    assert not result.success
    assert "LapNumber is null" in project.failures(result)
    assert project.metadata("fastest_laps", BAD) == before
    loaded = project.defs.load_asset_value("fastest_laps", partition_key=BAD, instance=project.instance)
    assert len(loaded) == before["dagster/partition_row_count"]
    store(tif1, "laps", laps.iloc[1:])
    assert project.run(["fastest_laps"], BAD).success


def test_telemetry_is_looked_at_as_laps_are(project, tif1):
    store(tif1, "telemetry", doubled(table_of("telemetry", BAD)))
    result = project.run(["driver_telemetry_summary"], BAD)
    assert not result.success
    assert f"nothing is derived from telemetry of {BAD}, because the check no_duplicates" in project.failures(result)
    store(tif1, "telemetry", table_of("telemetry", GOOD))
    store(tif1, "laps", table_of("laps", BAD).head(0))
    result = project.run(["driver_telemetry_summary"], BAD)
    assert not result.success
    assert "rows_present fails: the table is empty" in project.failures(result)


def test_an_event_is_summed_up_without_the_session_at_fault_and_says_so(project, tif1):
    store(tif1, "laps", doubled(table_of("laps", BAD)))
    assert project.run(["race_pace"], FIRST).success
    result = project.run(["event_summary"], EVENT)
    assert result.success, project.failures(result)
    table = project.defs.load_asset_value("event_summary", partition_key=EVENT, instance=project.instance)
    assert table["SessionType"].tolist() == ["Practice 1", "Practice 3", "Qualifying", "Race"]
    metadata = project.metadata("event_summary", EVENT)
    assert (metadata["sessions"], metadata["sessions_left_out"]) == (4, 1)
    assert f"laps of {BAD}, because the check no_duplicates fails" in metadata["left_out"]
    store(tif1, "laps", table_of("laps", FIRST))
    assert project.run(["event_summary"], EVENT).success
    metadata = project.metadata("event_summary", EVENT)
    assert (metadata["sessions"], metadata["sessions_left_out"]) == (5, 0)
    assert "left_out" not in metadata


def test_an_event_without_a_sound_session_fails(project, tif1):
    for partition in SESSIONS:
        store(tif1, "laps", doubled(table_of("laps", partition)), partition)
    result = project.run(["event_summary"], EVENT)
    assert not result.success
    assert tries(result) == 1
    assert "the check no_duplicates fails" in project.failures(result)


def check_another(project, sources):
    assert deliver(sources, "laps", {GOOD: table_of("laps", GOOD)}).success


def materialize_another(project, sources):
    assert project.run(["laps"], GOOD).success


def log_another(project, sources):
    event = dg.AssetMaterialization("laps", partition=GOOD, tags={"dagster/data_version": "other"})
    project.instance.report_runless_asset_event(event)


@pytest.mark.parametrize("another", [check_another, materialize_another, log_another])
def test_automation_derives_nothing_from_it_whatever_another_session_does(project, sources, another):
    """A check has one status for all partitions, which the next session turns green."""
    assert not deliver(sources, "laps", {BAD: doubled(table_of("laps", BAD))}).success
    cursor, requested = None, set()
    for happen in (lambda *_: None, another):
        happen(project, sources)
        result = dg.evaluate_automation_conditions(
            defs=dg.Definitions(project.defs.assets, asset_checks=sources.checks, resources=project.defs.resources),
            instance=project.instance,
            cursor=cursor,
        )
        cursor = result.cursor
        for name in (*FROM_LAPS, "event_summary"):
            for partition in result.get_requested_partitions(dg.AssetKey(name)):
                requested.add(name)
                project.run([name], partition)
    assert requested == {*FROM_LAPS, "event_summary"}
    for name in FROM_LAPS:
        assert project.materialized(name) == {GOOD}, name
    assert project.metadata("event_summary", EVENT)["sessions_left_out"] == 1


def test_repair_derives_nothing_from_it(project, tif1):
    from tif1_pipeline.defs.sensors.repair import repair_sensor

    assert project.run(["fastest_laps"], BAD).success
    key = f"asset:fastest_laps@{BAD}"
    assert tif1.get_cache().remove(key) == 1
    store(tif1, "laps", doubled(table_of("laps", BAD)))
    context = dg.build_sensor_context(
        instance=project.instance,
        repository_def=project.defs.get_repository_def(),
        resources={"timing_data": project.defs.resources["timing_data"]},
    )
    (request,) = repair_sensor.evaluate_tick(context).run_requests
    assert request.partition_key == BAD
    assert not project.run([name.to_user_string() for name in request.asset_selection], request.partition_key).success
    assert tif1.get_cache().info(key) is None


@pytest.mark.parametrize("dataset", DATASETS)
def test_sound_tables_are_handed_on(tif1, dataset):
    if dataset == "schedule":
        partition, table = "2025", tif1.api.get_reader().schedule(2025, "pandas").value
    else:
        partition, table = BAD, table_of(dataset, BAD)
    needed = table[list(required_columns(dataset))]
    assert require_sound(needed, dataset, partition) is needed
    with pytest.raises(InvalidDataError, match="the table is empty"):
        require_sound(needed.head(0), dataset, partition)
    first = required_columns(dataset)[0]
    with pytest.raises(InvalidDataError, match=f"{dataset} of {partition} cannot be checked without {first}"):
        require_sound(needed.drop(columns=first), dataset, partition)


def test_many_faults_are_few_words(tif1):
    laps = table_of("laps", BAD)
    with pytest.raises(InvalidDataError) as caught:
        require_sound(pd.concat([laps, laps]), "laps", BAD)
    assert caught.value.message.count("2 times") == 3
    assert f"and {len(laps) - 3} more" in caught.value.message
    assert caught.value.details == {"partition": BAD, "check": "no_duplicates", "faults": len(laps)}
