"""What is not an asset of its own, keys that must not meet, replacing, sharing, streaming."""

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tif1_pipeline import CacheError, CacheIOManager

# 2026-11: dagster 1.13 prints this for every asset with a backfill policy, which has been the same since 1.5.
pytestmark = pytest.mark.filterwarnings("ignore:Parameter `backfill_policy`:dagster.BetaWarning")

SR = dg.BackfillPolicy.single_run()


def frame(*values: int) -> pd.DataFrame:
    return pd.DataFrame({"n": list(values), "text": [f"é{value}" for value in values]})


# ---- outside of assets of one run


def test_op_outputs_pass_through_too(run, io_manager, instance, cache):
    @dg.op(out=dg.DynamicOut())
    def numbers():
        for number in (1, 2):
            yield dg.DynamicOutput(frame(number), mapping_key=f"n{number}")

    @dg.op
    def double(table: pd.DataFrame) -> pl.DataFrame:
        return pl.DataFrame({"n": table["n"] * 2})

    @dg.op
    def total(tables: list[pa.Table]) -> int:
        return sum(sum(table["n"].to_pylist()) for table in tables)

    @dg.job(resource_defs={"io_manager": io_manager})
    def doubling():
        total(numbers().map(double).collect())

    result = doubling.execute_in_process(instance=instance)
    assert result.output_for_node("total") == 6
    info = cache.info(f"op:{result.run_id}.numbers.result.n1")
    assert info is not None
    assert not info.pinned


def test_graph_assets_and_assets_of_several_outputs(run, load):
    @dg.op
    def start() -> pd.DataFrame:
        return frame(1)

    @dg.op
    def finish(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(done=True)

    @dg.graph_asset
    def nested():
        return finish(start())

    @dg.multi_asset(outs={"left": dg.AssetOut(), "right": dg.AssetOut()})
    def both():
        return frame(1), {"x": 1}

    run(nested, both)
    assert load(nested, pd.DataFrame)["done"].tolist() == [True]


def test_keys_of_similar_assets_never_meet(run, load, cache):
    parts = dg.StaticPartitionsDefinition(["b", "@b", "b%"])

    def make(key: list[str], partitions: dg.PartitionsDefinition | None = None) -> dg.AssetsDefinition:
        # An @asset allows letters and digits in its key, outputs of a @multi_asset anything.
        @dg.multi_asset(outs={"value": dg.AssetOut(key=key)}, partitions_def=partitions)
        def value(context: dg.AssetExecutionContext):
            return f"{key} {context.partition_key if partitions else ''}"

        return value

    plain = [make(["a", "b"]), make(["a.b"]), make(["a/b"]), make(["a@b"]), make(["a", "@b"]), make(["a"])]
    parted = make(["a", "p"], parts)
    for asset in (*plain, plain[0]):
        run(asset)
    for key in parts.get_partition_keys():
        run(parted, key=key)
    assert [load(asset) for asset in plain] == [f"{list(asset.key.path)} " for asset in plain]
    assert [load(parted, key=key) for key in ("b", "@b", "b%")] == [f"['a', 'p'] {key}" for key in ("b", "@b", "b%")]


def test_values_are_replaced_whole_and_pinned_as_configured(run, load, cache, cache_file, instance):
    values = iter([frame(1, 2, 3), {"x": 1}])

    @dg.asset(key=["shop", "sales"])
    def sales():
        return next(values)

    run(sales)
    first = cache.info("asset:shop.sales")
    assert first is not None
    assert first.pinned
    assert first.data_type == "sales"
    dg.materialize(
        [sales], resources={"io_manager": CacheIOManager(path=str(cache_file), pinned=False)}, instance=instance
    )
    second = cache.info("asset:shop.sales")
    assert second is not None
    assert not second.pinned
    assert second.generation != first.generation
    assert load(sales) == {"x": 1}


def test_a_consumer_cannot_change_what_is_cached(run, load):
    @dg.asset
    def table() -> pd.DataFrame:
        return pd.DataFrame({"n": [1, 2], "nested": [[1], [2]]})

    @dg.asset
    def vandal(table: pd.DataFrame):
        table.loc[0, "n"] = 99
        with contextlib.suppress(ValueError):  # read-only
            table.loc[0, "nested"][0] = 99
        table["new"] = 1

    run(table, vandal)
    again = load(table, pd.DataFrame)
    assert again["n"].tolist() == [1, 2]
    assert [list(value) for value in again["nested"]] == [[1], [2]]
    assert list(again) == ["n", "nested"]


def test_a_producer_that_changes_its_frame_afterwards_does_not_change_the_cache(run, load):
    mine = frame(1, 2)

    @dg.asset
    def table() -> pd.DataFrame:
        return mine

    run(table)
    mine.loc[0, "n"] = 99
    assert load(table, pd.DataFrame)["n"].tolist() == [1, 2]


# ---- streams


class Stream:
    """Pairs made one at a time, counting how many of their values are alive."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys
        self.alive = self.most = 0

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for key in self.keys:
            table = frame(1)
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(table, self._gone)
            yield key, table
            del table

    def _gone(self) -> None:
        self.alive -= 1


def test_a_stream_keeps_one_value_in_memory(run, load):
    keys = [f"p{number}" for number in range(30)]
    streams = []

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(keys), backfill_policy=SR)
    def streamed(context: dg.AssetExecutionContext):
        streams.append(Stream(list(context.partition_keys)))
        return streams[-1]

    run(streamed, keys=("p0", "p29"))
    assert streams[0].most == 1
    assert len(load(streamed, pd.DataFrame, key="p29")) == 1
    run(streamed, key="p3")
    assert streams[1].keys == ["p3"]


# ---- assets that load by hand, or themselves


def test_an_asset_loads_another_by_hand(run):
    parts = dg.StaticPartitionsDefinition(["a", "b"])

    @dg.asset(partitions_def=parts)
    def upstream(context: dg.AssetExecutionContext) -> pd.DataFrame:
        return frame(ord(context.partition_key))

    taken = []

    @dg.asset(deps=[upstream], partitions_def=parts)
    def downstream(context: dg.AssetExecutionContext):
        taken.append(context.load_asset_value(upstream.key, python_type=pl.DataFrame, partition_key="b"))

    run(upstream, key="b")
    run(downstream, known=[upstream], key="a")
    assert taken[0]["n"].to_list() == [98]


@pytest.mark.parametrize("annotation", [int | None, Any])
def test_the_first_partition_of_a_self_dependent_asset_has_no_former(run, load, annotation):
    days = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-01-05")

    def count(context, total):
        return (total or 0) + 1

    count.__annotations__ = {"context": dg.AssetExecutionContext, "total": annotation}
    former = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)
    total = dg.asset(partitions_def=days, ins={"total": dg.AssetIn(partition_mapping=former)}, name="total")(count)
    for day in ("2024-01-01", "2024-01-02", "2024-01-03"):
        run(total, key=day)
    assert load(total, key="2024-01-03") == 3


def test_no_partition_is_no_number(run):
    days = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-01-05")
    former = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)

    @dg.asset(partitions_def=days, ins={"total": dg.AssetIn(partition_mapping=former)})
    def total(total: int):
        return total

    with pytest.raises(CacheError, match=r"no partition to load: annotate the input as Optional"):
        run(total, key="2024-01-01")
