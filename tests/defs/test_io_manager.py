"""What goes in comes out, in every kind of partitioning and as every kind of value."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

# 2026-11: dagster 1.13 prints this for every asset with a backfill policy, which has been the same since 1.5.
pytestmark = pytest.mark.filterwarnings("ignore:Parameter `backfill_policy`:dagster.BetaWarning")

SR = dg.BackfillPolicy.single_run()
LETTERS = dg.StaticPartitionsDefinition(["a", "b", "c", "d"])


def frame(*values: int) -> pd.DataFrame:
    return pd.DataFrame({"n": list(values), "text": [f"é{value}" for value in values]})


# ---- kinds of values


@pytest.mark.parametrize(
    "value",
    [{"x": [1, 2.5, None, True, "é"]}, [1, "b"], "text", 3, 2.5, True, {}, [], ""],
    ids=repr,
)
def test_json_values_come_back_as_they_were(run, load, value):
    @dg.asset
    def stored():
        return value

    taken = []

    @dg.asset
    def consumer(stored):
        taken.append(stored)

    run(stored, consumer)
    assert taken == [value]
    assert type(taken[0]) is type(value)
    assert load(stored) == value


def test_none_of_an_unannotated_asset_is_null_and_of_an_annotated_one_nothing(run, load, cache):
    @dg.asset
    def null():
        return None

    @dg.asset
    def nothing() -> None:
        return None

    run(null, nothing)
    assert load(null) is None
    assert cache.info("asset:null") is not None
    assert cache.info("asset:nothing") is None


@pytest.mark.parametrize("stored_as", ["pandas", "polars", "lazy", "arrow"])
def test_tables_load_as_annotated(run, load, stored_as):
    plain = pl.DataFrame({"n": [1, 2], "text": ["é", None]})
    value = {"pandas": plain.to_pandas(), "polars": plain, "lazy": plain.lazy(), "arrow": plain.to_arrow()}[stored_as]

    @dg.asset
    def table():
        return value

    seen: dict[str, Any] = {}

    @dg.asset
    def as_pandas(table: pd.DataFrame):
        seen["pandas"] = table

    @dg.asset
    def as_polars(table: pl.DataFrame):
        seen["polars"] = table

    @dg.asset
    def as_lazy(table: pl.LazyFrame):
        seen["lazy"] = table

    @dg.asset
    def as_arrow(table: pa.Table):
        seen["arrow"] = table

    @dg.asset
    def as_stored(table):
        seen["stored"] = table

    run(table, as_pandas, as_polars, as_lazy, as_arrow, as_stored)
    assert isinstance(seen["pandas"], pd.DataFrame)
    assert isinstance(seen["lazy"], pl.LazyFrame)
    assert isinstance(seen["arrow"], pa.Table)
    assert seen["polars"].equals(plain)
    assert seen["lazy"].collect().equals(plain)
    assert seen["pandas"]["n"].tolist() == [1, 2]
    expected = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "lazy": pl.DataFrame, "arrow": pa.Table}[stored_as]
    assert type(seen["stored"]) is expected
    assert type(load(table, pl.DataFrame)) is pl.DataFrame


def test_optional_is_none_where_nothing_is_stored(run):
    @dg.asset
    def absent():
        return frame(1)

    @dg.asset
    def by_letter() -> pd.DataFrame:
        return frame(1)

    taken = []

    @dg.asset
    def consumer(absent: pd.DataFrame | None, by_letter: pd.DataFrame | None):
        taken.extend([absent, by_letter])

    run(by_letter)
    run(consumer, known=[absent, by_letter])
    assert taken[0] is None
    assert len(taken[1]) == 1


# ---- kinds of partitions


KINDS = {
    "static": (LETTERS, "b", ("a", "c"), ["a", "b", "c"]),
    "odd names": (
        dg.StaticPartitionsDefinition(["2025 São Paulo Race", "a/b x|y", "x:y & 'q' @ % .."]),
        "a/b x|y",
        ("2025 São Paulo Race", "x:y & 'q' @ % .."),
        ["2025 São Paulo Race", "a/b x|y", "x:y & 'q' @ % .."],
    ),
    "daily": (
        dg.DailyPartitionsDefinition(datetime(2024, 1, 1), end_date=datetime(2024, 1, 10)),
        "2024-01-02",
        ("2024-01-02", "2024-01-04"),
        ["2024-01-02", "2024-01-03", "2024-01-04"],
    ),
    "dynamic": (dg.DynamicPartitionsDefinition(name="letters"), "y", ("z", "x"), ["z", "y", "x"]),
    "multi": (
        dg.MultiPartitionsDefinition(
            {"day": dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-01-05"), "letter": LETTERS}
        ),
        dg.MultiPartitionKey({"day": "2024-01-02", "letter": "b"}),
        ("2024-01-01|a", "2024-01-02|b"),
        ["2024-01-01|a", "2024-01-01|b", "2024-01-02|a", "2024-01-02|b"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_partition_goes_in_and_comes_out_alone(run, load, instance, kind):
    definition, key, _, _ = KINDS[kind]
    instance.add_dynamic_partitions("letters", ["z", "y", "x"])

    @dg.asset(partitions_def=definition)
    def upstream(context: dg.AssetExecutionContext):
        return pd.DataFrame({"key": [str(context.partition_key)]})

    taken = []

    @dg.asset(partitions_def=definition)
    def downstream(upstream: pd.DataFrame):
        taken.append(upstream)

    run(upstream, downstream, key=key)
    assert taken[0]["key"].tolist() == [str(key)]
    assert load(upstream, pd.DataFrame, key=str(key))["key"].tolist() == [str(key)]
    assert instance.get_materialized_partitions(upstream.key) == {str(key)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_partition_goes_in_and_comes_out_as_a_range(run, instance, kind):
    definition, _, (first, last), expected = KINDS[kind]
    instance.add_dynamic_partitions("letters", ["z", "y", "x"])

    @dg.asset(partitions_def=definition, backfill_policy=SR)
    def upstream(context: dg.AssetExecutionContext) -> dict[str, pd.DataFrame]:
        return {key: pd.DataFrame({"key": [key]}) for key in reversed(context.partition_keys)}

    taken: list[Any] = []

    @dg.asset(partitions_def=definition, backfill_policy=SR)
    def by_key(upstream: dict[str, pd.DataFrame]):
        taken.append(upstream)
        return {key: len(table) for key, table in upstream.items()}

    @dg.asset(
        partitions_def=definition,
        backfill_policy=SR,
        ins={"upstream": dg.AssetIn(metadata={"partition_column": "from"})},
    )
    def in_one(upstream: pl.DataFrame) -> Mapping[str, pl.DataFrame]:
        taken.append(upstream)
        return dict.fromkeys(upstream["key"], upstream)

    run(upstream, by_key, in_one, keys=(first, last))
    assert {key: table["key"].tolist() for key, table in taken[0].items()} == {key: [key] for key in expected}
    assert sorted(taken[1]["key"]) == sorted(expected)
    assert taken[1]["from"].to_list() == taken[1]["key"].to_list()
    for asset in (upstream, by_key, in_one):
        assert instance.get_materialized_partitions(asset.key) == set(expected)


def test_unpartitioned_consumers_get_all_partitions(run, load):
    @dg.asset(partitions_def=LETTERS)
    def letters(context: dg.AssetExecutionContext) -> pd.DataFrame:
        return frame(ord(context.partition_key))

    for key in "abcd":
        run(letters, key=key)
    taken: dict[str, Any] = {}

    @dg.asset
    def unannotated(letters):
        taken["unannotated"] = letters

    @dg.asset
    def bare(letters: dict):
        taken["bare"] = letters

    @dg.asset
    def one_frame(letters: pd.DataFrame):
        taken["one"] = letters

    @dg.asset
    def lazy(letters: dict[str, pl.LazyFrame]):
        taken["lazy"] = letters

    run(unannotated, bare, one_frame, lazy, known=[letters])
    for name in ("unannotated", "bare"):
        assert list(taken[name]) == ["a", "b", "c", "d"]
        assert isinstance(taken[name]["a"], pd.DataFrame)
    assert taken["one"]["n"].tolist() == [97, 98, 99, 100]
    assert taken["one"].index.tolist() == [0, 1, 2, 3]
    assert taken["lazy"]["d"].collect()["n"].to_list() == [100]


def test_one_frame_of_several_unites_columns_and_categories(run):
    @dg.asset(partitions_def=LETTERS)
    def letters(context: dg.AssetExecutionContext) -> pd.DataFrame:
        table = pd.DataFrame({"kind": pd.Categorical([context.partition_key])})
        return table.assign(extra=1) if context.partition_key == "b" else table

    run(letters, key="a")
    run(letters, key="b")
    taken = []

    @dg.asset(ins={"letters": dg.AssetIn(metadata={"allow_missing_partitions": True})})
    def consumer(letters: pd.DataFrame):
        taken.append(letters)

    run(consumer, known=[letters])
    assert taken[0]["kind"].dtype == "category"
    assert taken[0]["kind"].tolist() == ["a", "b"]
    assert taken[0]["extra"].isna().tolist() == [True, False]


# ---- dicts: a value, or a value a partition


def test_a_json_dict_that_looks_like_its_partition_is_the_value_without_a_policy(run, load):
    @dg.asset(partitions_def=LETTERS)
    def counts(context: dg.AssetExecutionContext):
        return {context.partition_key: 3}

    run(counts, key="a")
    assert load(counts, key="a") == {"a": 3}


def test_a_json_dict_by_partition_is_one_with_a_policy(run, load):
    @dg.asset(partitions_def=LETTERS, backfill_policy=SR)
    def counts(context: dg.AssetExecutionContext):
        return dict.fromkeys(context.partition_keys, 3)

    taken = []

    @dg.asset(partitions_def=LETTERS, backfill_policy=SR)
    def consumer(counts: dict[str, int]):
        taken.append(counts)
        return counts

    run(counts, consumer, key="a")
    run(counts, consumer, keys=("b", "c"))
    assert taken == [{"a": 3}, {"b": 3, "c": 3}]
    assert load(counts, key="a") == 3


def test_a_policy_of_one_partition_a_run_is_none_for_several(run, load):
    @dg.asset(partitions_def=LETTERS, backfill_policy=dg.BackfillPolicy.multi_run(1))
    def counts(context: dg.AssetExecutionContext):
        return {context.partition_key: 3}

    run(counts, key="a")
    assert load(counts, key="a") == {"a": 3}


def test_a_json_dict_with_other_keys_is_the_value_also_with_a_policy(run, load):
    @dg.asset(partitions_def=LETTERS, backfill_policy=SR)
    def counts():
        return {"laps": 3}

    run(counts, key="a")
    assert load(counts, key="a") == {"laps": 3}


def test_a_dict_of_frames_is_by_partition_whatever_the_policy(run, load):
    @dg.asset(partitions_def=LETTERS)
    def tables(context: dg.AssetExecutionContext):
        return {context.partition_key: frame(1)}

    run(tables, key="a")
    assert len(load(tables, pd.DataFrame, key="a")) == 1


def test_dicts_of_one_partition_of_another_level_are_dicts_by_partition(run):
    @dg.asset(partitions_def=LETTERS)
    def state(context: dg.AssetExecutionContext):
        return {"count": 1}

    taken: dict[str, Any] = {}

    def only_a():
        return {"state": dg.AssetIn(partition_mapping=dg.SpecificPartitionsPartitionMapping(["a"]))}

    @dg.asset(ins=only_a())
    def by_partition(state: dict[str, dict]):
        taken["by partition"] = state

    @dg.asset(ins=only_a())
    def alone(state: dict):
        taken["alone"] = state

    @dg.asset(partitions_def=LETTERS)
    def same_level(state: dict[str, int]):
        taken["same level"] = state

    run(state, same_level, key="a")
    run(by_partition, alone, known=[state])
    assert taken == {"by partition": {"a": {"count": 1}}, "alone": {"count": 1}, "same level": {"count": 1}}


# ---- through a project of somebody else


def test_the_example_of_the_docstring_runs(tmp_path: Path, instance, monkeypatch):
    from textwrap import dedent

    from tif1_pipeline import CacheIOManager

    monkeypatch.chdir(tmp_path)
    text = CacheIOManager.__doc__ or ""
    example = text.split("project::\n", 1)[1].split("**Outputs**")[0]
    names: dict[str, Any] = {"__name__": "example"}
    exec(dedent(example), names)
    defs = names["defs"]
    for key in ("north", "south"):
        assert dg.materialize([names["sales"]], resources=defs.resources, partition_key=key, instance=instance).success
    assert dg.materialize(
        [names["sales"], names["report"]], selection=["report"], resources=defs.resources, instance=instance
    ).success
    assert defs.load_asset_value("report", instance=instance) == {"north": 6.5, "south": 6.5}
    assert (tmp_path / "shop.db").exists()
