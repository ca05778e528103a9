"""Checks of the source assets: real and untidy data passes, what is wrong is named row by row."""

import json
import sqlite3

import dagster as dg
import pandas as pd
import pytest

from tif1_pipeline.api import get_reader
from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.keys import SessionKey

EVENT = "2025 Australian Grand Prix"
FIRST, PRACTICE, QUALIFYING, RACE = (f"{EVENT} {name}" for name in ("Practice 1", "Practice 3", "Qualifying", "Race"))
RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
BLOCKING = {"rows_present", "no_duplicates", "required_not_null", "entry_sound"}
LARGE = {"laps", "telemetry"}
"""Their checks stand alone; of the other tables all that blocks is one check, "sound"."""
TABLES = [name for name, dataset in DATASETS.items() if dataset.level == "session"]


def evaluations(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, dg.AssetCheckEvaluation]:
    found = result.get_asset_check_evaluations()
    return {one.check_name: one for one in found if one.asset_key == dg.AssetKey(asset)}


def failed(result: dg.ExecuteInProcessResult, asset: str) -> set[str]:
    return {name for name, one in evaluations(result, asset).items() if not one.passed}


def rows_of(evaluation: dg.AssetCheckEvaluation) -> list[dict[str, str]]:
    """The table of the rows at fault."""
    text = evaluation.metadata["rows_at_fault"].value
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], [*line, ""], strict=False)) for line in lines[2:]]


def table_of(asset: str, partition: str) -> pd.DataFrame:
    """A table as the CDN has it."""
    return get_reader().table(SessionKey.parse(partition), asset, "pandas").value


def deliver(sources, asset: str, tables: dict[str, pd.DataFrame]) -> dg.ExecuteInProcessResult:
    """Run an asset that fetches these tables, with its checks."""
    real = next(one for one in sources.assets if one.key == dg.AssetKey(asset))

    @dg.asset(
        name=asset,
        partitions_def=real.partitions_def,
        backfill_policy=real.backfill_policy,
        metadata=real.metadata_by_key[real.key],
    )
    def fetched() -> dict[str, pd.DataFrame]:
        return tables

    return dg.materialize(
        [fetched, *(checks for checks in sources.checks if checks.node_def.name == f"{asset}_checks")],
        instance=sources.instance,
        resources=sources.resources,
        tags={RANGE_START: min(tables), RANGE_END: max(tables)},
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )


def check_alone(sources, asset: str) -> dg.ExecuteInProcessResult:
    """Run an asset's checks without the asset, as the web UI does."""
    job = sources.defs.resolve_implicit_global_asset_job_def()
    keys = {spec.key for checks in sources.checks for spec in checks.check_specs if spec.asset_key.path == [asset]}
    subset = job.get_subset(asset_selection=set(), asset_check_selection=keys)
    return subset.execute_in_process(instance=sources.instance, raise_on_error=False)


def test_every_source_asset_has_the_checks_and_wrong_data_blocks(sources):
    specs = [spec for checks in sources.checks for spec in checks.check_specs]
    for asset in DATASETS:
        mine = {spec.name: spec for spec in specs if spec.asset_key == dg.AssetKey(asset)}
        blocking, other = (BLOCKING, {"plausible", "contiguous"}) if asset in LARGE else ({"sound"}, {"plausible"})
        assert mine.keys() == blocking | other
        assert {name for name, spec in mine.items() if spec.blocking} == blocking
        assert all(spec.description for spec in mine.values())


def test_untidy_data_of_a_whole_event_passes(sources):
    result = sources.run(TABLES, FIRST, RACE)
    assert result.success, sources.said(result)
    for asset in TABLES:
        assert failed(result, asset) <= {"plausible", "contiguous"}
        for one in evaluations(result, asset).values():
            assert one.metadata["partitions_checked"].value == 5
            assert one.metadata["rows_checked"].value >= 5
    result = sources.run(["schedule"], "2025")
    assert result.success
    assert failed(result, "schedule") == set()


@pytest.mark.slow
def test_real_data_passes(real_tif1, sources_of):
    sources = sources_of(real_tif1)
    for partition in (FIRST, QUALIFYING, RACE):
        result = sources.run(TABLES, partition)
        assert result.success, sources.said(result)
        assert {asset: failed(result, asset) for asset in TABLES} == {asset: set() for asset in TABLES}
    assert failed(sources.run(["schedule"], "2025"), "schedule") == set()


def test_a_run_checks_its_own_partitions_only(sources):
    laps = table_of("laps", PRACTICE)
    bad = pd.concat([laps, laps.head(1)], ignore_index=True)
    assert failed(deliver(sources, "laps", {PRACTICE: bad}), "laps") == {"no_duplicates"}
    result = sources.run(["laps"], QUALIFYING, RACE)
    assert result.success
    assert evaluations(result, "laps")["no_duplicates"].metadata["partitions_checked"].value == 2


def test_duplicates_are_named(sources):
    tables = {partition: table_of("laps", partition) for partition in (QUALIFYING, RACE)}
    laps = tables[RACE]
    tables[RACE] = pd.concat([laps, laps.head(2)], ignore_index=True)
    result = deliver(sources, "laps", tables)
    assert not result.success
    assert failed(result, "laps") == {"no_duplicates"}
    one = evaluations(result, "laps")["no_duplicates"]
    assert one.severity is dg.AssetCheckSeverity.ERROR
    assert one.metadata["faults"].value == 2
    assert one.metadata["partitions_at_fault"].value == 1
    driver, lap = laps["Driver"].iloc[0], laps["LapNumber"].iloc[0]
    assert rows_of(one)[0] == {"partition": RACE, "Driver": driver, "LapNumber": f"{lap:g}", "fault": "2 times"}
    assert RACE in (one.description or "")


def test_moments_that_coincide_stop_nothing(sources):
    weather = table_of("weather", RACE)
    again = weather.head(1).assign(AirTemp=451.0)
    result = deliver(sources, "weather", {RACE: pd.concat([weather, again], ignore_index=True)})
    assert result.success
    one = evaluations(result, "weather")["plausible"]
    assert {row["fault"] for row in rows_of(one)} == {"2 times", "AirTemp is 451"}
    assert one.metadata["faults"].value == 2
    assert one.metadata["partitions_at_fault"].value == 1


@pytest.mark.parametrize(
    ("asset", "column"), [("laps", "Driver"), ("laps", "LapNumber"), ("weather", "Time"), ("drivers", "Driver")]
)
def test_missing_values_are_named(sources, asset, column):
    table = table_of(asset, RACE)
    table.loc[table.index[3], column] = None
    result = deliver(sources, asset, {RACE: table})
    assert not result.success
    name = "required_not_null" if asset in LARGE else "sound"
    assert failed(result, asset) & {*BLOCKING, "sound"} == {name}
    (row,) = rows_of(evaluations(result, asset)[name])
    assert row["partition"] == RACE
    assert row["fault"] == f"{column} is null"
    if column == "LapNumber":
        assert row["Driver"] == table["Driver"].iloc[3]


@pytest.mark.parametrize(
    ("asset", "column", "value", "fault"),
    [
        ("laps", "LapTime", pd.Timedelta(seconds=7), "LapTime is 7 s"),
        ("telemetry", "Time", pd.Timedelta(seconds=-1), "Time is -1 s"),
        ("weather", "AirTemp", 451.0, "AirTemp is 451"),
        ("messages", "Time", pd.Timestamp("1950-05-13"), "Time is 1950-05-13 00:00:00"),
        ("drivers", "Driver", "M Schumacher", "no code of three letters"),
        ("corners", "Distance", -5.0, "Distance is -5"),
    ],
)
def test_implausible_values_are_named_but_stop_nothing(sources, asset, column, value, fault):
    table = table_of(asset, RACE)
    table.loc[table.index[2], column] = value
    result = deliver(sources, asset, {RACE: table})
    assert result.success
    assert failed(result, asset) == {"plausible"}
    one = evaluations(result, asset)["plausible"]
    assert one.severity is dg.AssetCheckSeverity.WARN
    assert [row["fault"] for row in rows_of(one)] == [fault]


def test_gaps_are_named_where_all_laps_are_published(sources):
    tables = {partition: table_of("laps", partition) for partition in (QUALIFYING, RACE)}
    driver = tables[RACE]["Driver"].iloc[0]
    for partition, laps in tables.items():
        tables[partition] = (
            laps[laps["LapNumber"] != 2]
            if partition == QUALIFYING
            else laps[(laps["Driver"] != driver) | (laps["LapNumber"] != 2)]
        )
    result = deliver(sources, "laps", tables)
    assert result.success
    (row,) = rows_of(evaluations(result, "laps")["contiguous"])
    assert row == {"partition": RACE, "Driver": driver, "LapNumber": "3", "fault": "1 is followed by 3"}


def test_an_empty_table_fails(sources):
    result = deliver(sources, "weather", {RACE: table_of("weather", RACE).head(0)})
    assert not result.success
    assert failed(result, "weather") == {"sound"}
    (row,) = rows_of(evaluations(result, "weather")["sound"])
    assert (row["partition"], row["fault"]) == (RACE, "the table is empty")


def test_checks_alone_look_at_the_latest_partition_only(sources, tif1):
    assert sources.run(["weather"], QUALIFYING, RACE).success
    assert sources.run(["weather"], QUALIFYING).success
    result = check_alone(sources, "weather")
    assert result.success
    assert evaluations(result, "weather")["sound"].metadata["partitions_checked"].value == 1
    tif1.get_cache().remove(SessionKey.parse(QUALIFYING).entry("weather").text)
    result = check_alone(sources, "weather")
    assert not result.success
    assert failed(result, "weather") == {"sound"}
    (row,) = rows_of(evaluations(result, "weather")["sound"])
    assert (row["partition"], row["fault"]) == (QUALIFYING, "nothing is stored, or not any more: materialize it")


def test_damaged_bytes_fail_their_checksum(sources, tif1):
    assert sources.run(["telemetry"], RACE).success
    key = SessionKey.parse(RACE).entry("telemetry").text
    with sqlite3.connect(tif1.get_config().cache_path) as connection:
        part, data = connection.execute(
            "SELECT id, data FROM parts WHERE entry_id = (SELECT id FROM entries WHERE key = ?) AND ordinal = 2", (key,)
        ).fetchone()
        middle = len(data) // 2
        damaged = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
        connection.execute("UPDATE parts SET data = ? WHERE id = ?", (damaged, part))
    connection.close()
    result = check_alone(sources, "telemetry")
    assert not result.success
    assert failed(result, "telemetry") == {"entry_sound"}


def test_what_fails_blocks_what_is_derived_in_the_run(sources):
    laps = next(asset for asset in sources.assets if asset.key == dg.AssetKey("laps"))
    whole = table_of("laps", RACE)
    tables = {RACE: whole.head(0)}
    ran = []

    @dg.asset(name="laps", partitions_def=laps.partitions_def, metadata=laps.metadata_by_key[laps.key])
    def fetched() -> dict[str, pd.DataFrame]:
        return tables

    @dg.asset(partitions_def=laps.partitions_def, deps=["laps"])
    def follower():
        ran.append(1)

    sources.assets = [fetched, follower]
    sources.checks = [checks for checks in sources.checks if checks.node_def.name == "laps_checks"]
    assert not sources.run(["laps", "follower"], RACE).success
    assert not ran
    tables[RACE] = whole
    result = sources.run(["laps", "follower"], RACE)
    assert result.success, sources.said(result)
    assert ran


def test_a_report_stays_small(sources):
    table = table_of("telemetry", RACE)
    result = deliver(sources, "telemetry", {RACE: pd.concat([table, table], ignore_index=True)})
    one = evaluations(result, "telemetry")["no_duplicates"]
    assert one.metadata["faults"].value == len(table)
    assert len(rows_of(one)) == 20
    assert f"and {len(table) - 20} more" in one.metadata["rows_at_fault"].value
    passed = evaluations(result, "telemetry")["rows_present"]
    assert len(json.dumps({name: value.value for name, value in passed.metadata.items()})) < 100
