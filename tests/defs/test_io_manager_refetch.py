"""Assets that are Formula 1 tables share their entries with sessions, and are fetched again when they are gone."""

from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pytest

from tif1_pipeline import CacheIOManager, DataNotFoundError, NetworkError
from tif1_pipeline.keys import SessionKey, schedule_entry

RACE = SessionKey(2025, "Australian Grand Prix", "Race")
SESSIONS = dg.StaticPartitionsDefinition([RACE.partition, "2025 Australian Grand Prix Practice 1", "2024 Other Race"])


@dg.asset(partitions_def=SESSIONS, metadata={"tif1/dataset": "laps"})
def laps() -> pd.DataFrame:
    return pd.DataFrame({"Driver": ["VER"], "LapNumber": [1.0]})


@dg.asset(partitions_def=SESSIONS, metadata={"tif1/dataset": "telemetry"})
def telemetry(): ...


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["2025"]), metadata={"tif1/dataset": "schedule"})
def schedule(): ...


@pytest.fixture
def io_manager(tif1) -> CacheIOManager:
    """Replaces the one of a file: the settings' cache, and the simulated CDN behind it."""
    return CacheIOManager()


def test_a_session_reads_what_the_asset_stored(run, load, tif1):
    run(laps, key=RACE.partition)
    info = tif1.get_cache().info(RACE.entry("laps"))
    assert info is not None
    assert not info.pinned
    assert (info.data_type, info.event, info.schema_version) == ("laps", "australian", 1)
    assert tif1.get_session(2025, "Melbourne", "R").laps["Driver"].tolist() == ["VER"]


def test_the_asset_loads_what_a_session_fetched(load, tif1, cdn):
    fetched = tif1.get_session(2025, "Australia", "Race").laps
    cdn.requests.clear()
    assert load(laps, pd.DataFrame, key=RACE.partition).equals(fetched)
    assert cdn.requests.total == 0


def test_what_is_gone_is_fetched_again_and_stored(run, tif1, cdn):
    taken: list[Any] = []

    @dg.asset(
        partitions_def=SESSIONS, ins={"laps": dg.AssetIn(metadata={"columns": ["LapNumber"], "drivers": ["VER"]})}
    )
    def consumer(laps: pl.DataFrame):
        taken.append(laps)

    for _ in range(2):
        run(consumer, known=[laps], key=RACE.partition)
    assert taken[0].columns == ["LapNumber"]
    assert taken[0].equals(taken[1])
    assert 0 < taken[0].height < tif1.get_session(2025, "Australia", "Race").laps.shape[0]
    assert sum(count for path, count in cdn.requests.by_path.items() if "laptimes" in path) == 1


def test_telemetry_is_fetched_again_in_parts(load, tif1):
    first = load(telemetry, key=RACE.partition, drivers=["VER"])
    info = tif1.get_cache().info(RACE.entry("telemetry"))
    assert info is not None
    assert "VER" in info.parts
    second = load(telemetry, key=RACE.partition, drivers=["VER"])
    assert first.equals(second)
    assert set(first["Driver"]) == {"VER"}
    assert load(telemetry, pd.DataFrame, key=RACE.partition)["Driver"].nunique() == len(info.parts)


def test_a_season_is_a_number(load, tif1):
    table = load(schedule, pd.DataFrame, key="2025", columns=["EventName"])
    assert table["EventName"].tolist() == ["Australian Grand Prix", "Chinese Grand Prix"]
    assert tif1.get_cache().info(schedule_entry(2025)) is not None


def test_what_cannot_be_fetched_says_why(load, run, tif1):
    with pytest.raises(DataNotFoundError):
        load(laps, pd.DataFrame, key="2024 Other Race")
    taken = []

    @dg.asset(partitions_def=SESSIONS)
    def consumer(laps: pd.DataFrame | None):
        taken.append(laps)

    run(consumer, known=[laps], key="2024 Other Race")
    assert taken == [None]
    tif1.get_config().offline = True
    with pytest.raises(NetworkError):
        load(laps, pd.DataFrame, key=RACE.partition)


@pytest.mark.parametrize(
    ("name", "partitions", "words"),
    [("lapz", SESSIONS, "the datasets are session_info"), ("laps", None, "needs one partition a session")],
)
def test_wrong_datasets_are_refused(run, instance, name, partitions, words):
    @dg.asset(partitions_def=partitions, metadata={"tif1/dataset": name})
    def wrong():
        return pd.DataFrame({"x": [1]})

    result = run(wrong, key=RACE.partition if partitions else None, raise_on_error=False)
    assert words in str(result.failure_data_for_node("wrong"))


@pytest.mark.filterwarnings("ignore:Parameter `backfill_policy`:dagster.BetaWarning")
def test_a_key_that_is_no_session_fails_alone(run, instance):
    parts = dg.StaticPartitionsDefinition([RACE.partition, "nonsense"])

    @dg.asset(partitions_def=parts, metadata={"tif1/dataset": "laps"}, backfill_policy=dg.BackfillPolicy.single_run())
    def two(context: dg.AssetExecutionContext):
        return {key: pd.DataFrame({"Driver": ["VER"]}) for key in context.partition_keys}

    result = run(two, keys=(RACE.partition, "nonsense"), raise_on_error=False)
    assert "'nonsense' is no session partition" in str(result.failure_data_for_node("two"))
    assert instance.get_materialized_partitions(two.key) == {RACE.partition}
