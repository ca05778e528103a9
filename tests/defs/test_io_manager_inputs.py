"""Inputs load no more than they ask for, say what is missing, and fetch Formula 1 tables again."""

from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tif1_pipeline import CacheError, ConfigError, InvalidDataError

SR = dg.BackfillPolicy.single_run()
LETTERS = dg.StaticPartitionsDefinition(["a", "b", "c"])


def sales(region: str = "north") -> pd.DataFrame:
    return pd.DataFrame(
        {"Driver": ["VER", "NOR", "VER"], "shop": ["x", "y", "y"], "total": [1.0, 2.0, 3.0], "region": region}
    )


@dg.asset
def whole() -> pd.DataFrame:
    return sales()


@dg.asset(metadata={"part_by": "Driver"})
def parted() -> pd.DataFrame:
    return sales()


@dg.asset(metadata={"part_by": dg.MetadataValue.text("shop")})
def by_shop() -> pl.DataFrame:
    return pl.from_pandas(sales()).with_columns(pl.col("shop").cast(pl.Categorical))


# ---- pruning


@pytest.mark.parametrize("as_", [pd.DataFrame, pl.DataFrame, pl.LazyFrame, pa.Table, None])
def test_columns(run, load, as_):
    run(whole)
    table = load(whole, as_, columns=["total", "Driver"])
    table = table.collect() if isinstance(table, pl.LazyFrame) else table
    names = table.column_names if isinstance(table, pa.Table) else list(table.columns)
    assert names == ["total", "Driver"]


@pytest.mark.parametrize("as_", [pd.DataFrame, pl.LazyFrame, pa.Table])
@pytest.mark.parametrize("asset", [whole, parted, by_shop], ids=lambda asset: asset.key.path[0])
@pytest.mark.parametrize("columns", [None, ["total"]], ids=["all", "total"])
def test_drivers_alone_whether_stored_in_parts_or_not(run, load, asset, as_, columns):
    if asset is by_shop:
        metadata, expected = {"parts": ["y"]}, [2.0, 3.0]
    else:
        metadata, expected = {"drivers": ["VER"]}, [1.0, 3.0]
    run(asset)
    table = load(asset, as_, **metadata, **({"columns": columns} if columns else {}))
    table = table.collect() if isinstance(table, pl.LazyFrame) else table
    if isinstance(table, pa.Table):
        table = table.to_pandas()
    assert list(table["total"]) == expected
    assert list(table.columns) == (columns or list(sales().columns))
    if isinstance(table, pd.DataFrame):
        assert table.index.tolist() == ([0, 1] if asset is by_shop else table.index.tolist())


def test_a_part_is_read_alone(run, load, cache):
    run(parted)
    info = cache.info("asset:parted")
    assert info is not None
    assert info.parts == ("VER", "NOR")


def test_a_named_index_survives_the_choice_of_rows_and_columns(run, load):
    @dg.asset
    def indexed() -> pd.DataFrame:
        return sales().set_index("shop")

    run(indexed)
    assert load(indexed, pd.DataFrame, drivers=["VER"]).index.tolist() == ["x", "y"]
    assert load(indexed, pd.DataFrame, drivers=["VER"], columns=["total"]).index.name == "shop"
    assert load(indexed, pd.DataFrame, columns=["total"]).index.tolist() == ["x", "y", "y"]


@pytest.mark.parametrize("asset", [whole, parted], ids=lambda asset: asset.key.path[0])
def test_a_driver_who_was_not_there_has_no_rows_and_is_mentioned(run, load, capsys, asset):
    run(asset)
    assert load(asset, pd.DataFrame, drivers=["HAM"]).empty
    assert list(load(asset, pd.DataFrame, drivers=["HAM"]).columns) == list(sales().columns)
    assert load(asset, pd.DataFrame, drivers=["NOR", "HAM"])["total"].tolist() == [2.0]
    assert f"asset {asset.key.path[0]} has no rows of HAM" in "".join(capsys.readouterr())


def test_columns_and_drivers_of_several_partitions_in_one_frame(run):
    @dg.asset(partitions_def=LETTERS, metadata={"part_by": "Driver"})
    def letters(context: dg.AssetExecutionContext) -> pd.DataFrame:
        table = sales(context.partition_key)
        return table[table["Driver"] != "NOR"] if context.partition_key == "b" else table

    for key in "abc":
        run(letters, key=key)
    taken = []

    @dg.asset(
        ins={
            "letters": dg.AssetIn(
                metadata={"columns": ["region", "total"], "drivers": ["NOR"], "partition_column": "letter"}
            )
        }
    )
    def consumer(letters: pd.DataFrame):
        taken.append(letters)

    run(consumer, known=[letters])
    assert taken[0].to_dict("list") == {"region": ["a", "c"], "total": [2.0, 2.0], "letter": ["a", "c"]}


@pytest.mark.parametrize(
    ("metadata", "error", "words"),
    [
        ({"columns": ["totl"]}, InvalidDataError, "did you mean 'total'"),
        ({"columns": "total"}, ConfigError, "a list of names, not 'total'"),
        ({"drivers": [44]}, ConfigError, "a list of names"),
        ({"drivers": ["VER"], "parts": ["VER"]}, ConfigError, "not both"),
        ({"parts": ["x"]}, ConfigError, "give the asset the metadata {'part_by': <column>}"),
    ],
    ids=str,
)
def test_wishes_that_cannot_be_met_say_what_to_write(run, load, metadata, error, words):
    run(whole)
    with pytest.raises(error, match="asset whole") as caught:
        load(whole, pd.DataFrame, **metadata)
    assert words in str(caught.value)


def test_drivers_of_a_table_without_drivers(run, load):
    @dg.asset
    def shops() -> pd.DataFrame:
        return pd.DataFrame({"shop": ["x"]})

    run(shops)
    with pytest.raises(InvalidDataError, match="no column 'Driver'"):
        load(shops, pd.DataFrame, drivers=["VER"])


def test_a_table_for_a_json_annotation_and_the_reverse(run, load):
    @dg.asset
    def number():
        return 3

    run(whole, number)
    with pytest.raises(InvalidDataError, match="asset number does not load as this input asks"):
        load(number, pd.DataFrame)
    with pytest.raises(InvalidDataError, match="Change the input's annotation"):
        load(whole, dict)


def test_several_partitions_in_a_number_are_refused(run):
    @dg.asset(partitions_def=LETTERS)
    def letters():
        return 1

    @dg.asset
    def consumer(letters: int): ...

    run(letters, key="a")
    with pytest.raises(ConfigError, match=r"3 partitions.*annotate it as dict"):
        run(consumer, known=[letters])


def test_tables_that_do_not_fit_together_are_refused(run):
    @dg.asset(partitions_def=LETTERS)
    def letters(context: dg.AssetExecutionContext) -> pd.DataFrame:
        return pd.DataFrame({"x": ["text"] if context.partition_key == "b" else [[1]]})

    @dg.asset(ins={"letters": dg.AssetIn(metadata={"allow_missing_partitions": True})})
    def consumer(letters: pd.DataFrame): ...

    run(letters, key="a")
    run(letters, key="b")
    with pytest.raises(ConfigError, match="do not fit into one"):
        run(consumer, known=[letters])


def test_a_partition_column_that_is_there_already_is_refused(run):
    @dg.asset(partitions_def=LETTERS)
    def letters() -> pd.DataFrame:
        return sales()

    @dg.asset(ins={"letters": dg.AssetIn(metadata={"partition_column": "total", "allow_missing_partitions": True})})
    def consumer(letters: pd.DataFrame): ...

    run(letters, key="a")
    with pytest.raises(ConfigError, match="has a column 'total' already"):
        run(consumer, known=[letters])


# ---- what is missing


def test_a_missing_value_says_how_to_make_it(run, load, cache, cache_file):
    @dg.asset(key=["shop", "letters"], partitions_def=LETTERS)
    def letters() -> pd.DataFrame:
        return sales()

    with pytest.raises(CacheError) as caught:
        load(letters, pd.DataFrame, key="b")
    text = str(caught.value)
    assert "asset shop/letters, partition 'b' is not in the cache" in text
    assert str(cache_file) in text
    assert "--select shop/letters --partition b`" in text

    run(letters, key="b")
    cache.remove("asset:shop.letters@b")
    with pytest.raises(CacheError, match="was removed"):
        load(letters, pd.DataFrame, key="b")


def test_an_entry_of_another_version_is_not_called_missing(run, load, cache, cache_file):
    import sqlite3

    run(whole)
    cache.close()
    with sqlite3.connect(cache_file) as connection:
        connection.execute("UPDATE entries SET format_version = 999, generation = 'other'")
    connection.close()
    with pytest.raises(CacheError, match=r"stored.*but cannot be read.*another version"):
        load(whole, pd.DataFrame)


def test_missing_partitions_where_they_are_tolerated(run):
    @dg.asset(partitions_def=LETTERS)
    def letters(context: dg.AssetExecutionContext) -> pd.DataFrame:
        return sales(context.partition_key)

    run(letters, key="b")
    taken: dict[str, Any] = {}
    tolerant = {"letters": dg.AssetIn(metadata={"allow_missing_partitions": True})}

    @dg.asset(ins=tolerant)
    def by_key(letters: dict[str, pd.DataFrame]):
        taken["dict"] = list(letters)

    @dg.asset(ins=tolerant)
    def one(letters: pd.DataFrame):
        taken["one"] = letters["region"].unique().tolist()

    @dg.asset
    def optional(letters: pd.DataFrame | None):
        taken["optional"] = len(letters)

    @dg.asset
    def optional_items(letters: dict[str, pd.DataFrame | None]):
        taken["items"] = {key: table is None for key, table in letters.items()}

    @dg.asset
    def strict(letters: dict[str, pd.DataFrame]): ...

    run(by_key, one, optional, optional_items, known=[letters])
    assert taken == {"dict": ["b"], "one": ["b"], "optional": 3, "items": {"a": True, "b": False, "c": True}}
    with pytest.raises(CacheError, match="partition 'a' is not in the cache"):
        run(strict, known=[letters])


def test_a_frame_of_no_partition_at_all(run):
    @dg.asset(partitions_def=LETTERS)
    def letters() -> pd.DataFrame:
        return sales()

    @dg.asset(ins={"letters": dg.AssetIn(metadata={"allow_missing_partitions": True})})
    def one(letters: pd.DataFrame): ...

    taken = []

    @dg.asset
    def optional(letters: pd.DataFrame | None):
        taken.append(letters)

    with pytest.raises(CacheError, match="annotate the input as Optional"):
        run(one, known=[letters])
    run(optional, known=[letters])
    assert taken == [None]


def test_the_output_of_an_op_that_is_gone_names_the_op(io_manager, instance, cache):
    @dg.op
    def first() -> int:
        return 1

    @dg.op(ins={"nothing": dg.In(dg.Nothing)})
    def clear():
        cache.clear()

    @dg.op(ins={"after": dg.In(dg.Nothing), "number": dg.In(int)})
    def third(number):
        return number

    @dg.job(resource_defs={"io_manager": io_manager})
    def job():
        number = first()
        third(after=clear(number), number=number)

    with pytest.raises(CacheError, match=r"op output first/result is not in the cache.*run the job again"):
        job.execute_in_process(instance=instance)


@pytest.mark.filterwarnings("ignore:Parameter `backfill_policy`:dagster.BetaWarning")
def test_the_error_of_one_partition_stands_in_place_of_its_value(run):
    @dg.asset(partitions_def=LETTERS, backfill_policy=SR)
    def letters(context: dg.AssetExecutionContext):
        return {key: pd.DataFrame({"n" if key != "b" else "other": [1]}) for key in context.partition_keys}

    seen = {}
    metadata = {"columns": ["n"], "errors_by_partition": True}

    @dg.asset(partitions_def=LETTERS, backfill_policy=SR, ins={"letters": dg.AssetIn(metadata=metadata)})
    def follower(context: dg.AssetExecutionContext, letters: dict[str, Any]):
        seen.update(letters)
        return dict.fromkeys(context.partition_keys, 1)

    assert run(letters, follower, keys=("a", "c")).success
    assert seen.keys() == {"a", "b", "c"}
    assert isinstance(seen["b"], InvalidDataError)
    assert seen["a"]["n"].tolist() == seen["c"]["n"].tolist() == [1]


NAMES = [f"{(7 * number) % 24:02}" for number in range(24)]
DAYS = dg.DailyPartitionsDefinition("01.01.25", end_date="01.03.25", fmt="%d.%m.%y")
IN_ORDER = {
    "static": (dg.StaticPartitionsDefinition(NAMES), NAMES),
    "dynamic": (dg.DynamicPartitionsDefinition(name="regions"), NAMES),
    "days": (DAYS, [f"{day:02}.01.25" for day in range(20, 32)] + [f"{day:02}.02.25" for day in range(1, 12)]),
    "multi": (
        dg.MultiPartitionsDefinition({"day": DAYS, "shop": dg.StaticPartitionsDefinition(["y", "x"])}),
        [f"{day}|{shop}" for day in ("30.01.25", "31.01.25", "01.02.25") for shop in "yx"],
    ),
}


@pytest.mark.filterwarnings("ignore:Parameter `backfill_policy`:dagster.BetaWarning")
@pytest.mark.parametrize("as_", [dict[str, pd.DataFrame], pd.DataFrame], ids=["dict", "frame"])
@pytest.mark.parametrize("kind", IN_ORDER)
def test_partitions_come_in_the_order_of_their_definition_and_each_is_told_of(run, instance, capsys, kind, as_):
    partitions, keys = IN_ORDER[kind]
    if kind == "dynamic":
        instance.add_dynamic_partitions("regions", keys)

    @dg.asset(partitions_def=partitions, backfill_policy=SR, metadata={"part_by": "Driver"})
    def by_region(context: dg.AssetExecutionContext):
        return {key: sales(key) for key in context.partition_keys}

    seen = []
    wish = {"drivers": ["NOR", "HAM"]}

    @dg.asset(partitions_def=partitions, backfill_policy=SR, ins={"by_region": dg.AssetIn(metadata=wish)})
    def follower(context: dg.AssetExecutionContext, by_region: as_):
        frame = by_region
        if isinstance(by_region, dict):
            assert list(by_region) == keys
            frame = pd.concat(by_region.values())
        seen.extend(frame["region"])
        return dict.fromkeys(context.partition_keys, 1)

    assert run(by_region, follower, keys=(keys[0], keys[-1])).success
    assert seen == keys
    told = "".join(capsys.readouterr())
    assert [key for key in keys if f"by_region, partition {key!r} has no rows of HAM" not in told] == []
