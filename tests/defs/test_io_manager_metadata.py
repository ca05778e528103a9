"""What a materialization says about what was stored."""

from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tif1_pipeline import PartitionOutput
from tif1_pipeline.cache.base import Fresh, Source
from tif1_pipeline.config import MIB
from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.defs.io_manager import CacheIOManager

# 2026-11: dagster 1.13 prints this for every asset with a backfill policy, which has been the same since 1.5.
pytestmark = pytest.mark.filterwarnings("ignore:Parameter `backfill_policy`:dagster.BetaWarning")

SR = dg.BackfillPolicy.single_run()
LETTERS = dg.StaticPartitionsDefinition(["a", "b", "c"])


def metadata_of(instance: dg.DagsterInstance, asset: dg.AssetsDefinition, key: str | None = None) -> dict[str, Any]:
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=asset.key, asset_partitions=[key] if key else None), limit=1
    ).records
    assert records[0].asset_materialization is not None
    return dict(records[0].asset_materialization.metadata)


def test_a_table_is_described(run, instance, cache):
    @dg.asset
    def table() -> pd.DataFrame:
        return pd.DataFrame({"n": range(1000), "text": "x"})

    run(table)
    metadata = metadata_of(instance, table)
    info = cache.info("asset:table")
    assert info is not None
    assert metadata["dagster/row_count"] == dg.IntMetadataValue(1000)
    assert metadata["column_count"] == dg.IntMetadataValue(2)
    assert metadata["size_mb"] == dg.FloatMetadataValue(round(info.size_bytes / MIB, 4))
    assert metadata["stored_mb"] == dg.FloatMetadataValue(round(info.compressed_size / MIB, 4))
    assert metadata["ratio"] == dg.FloatMetadataValue(round(info.size_bytes / info.compressed_size, 2))
    assert metadata["seconds"].value > 0
    assert metadata["tier"].value == "disk"
    assert metadata["cache_key"].value == "asset:table"
    assert [(column.name, column.type) for column in metadata["dagster/column_schema"].schema.columns] == [
        ("n", "int64"),
        ("text", "str"),
    ]
    assert metadata["preview"].value.splitlines() == [
        "| n | text |",
        "| --- | --- |",
        *(f"| {number} | x |" for number in range(5)),
    ]
    assert not {"etag", "source_url"} & metadata.keys()


def test_units_and_descriptions_of_arrow_fields(run, instance):
    schema = DATASETS["weather"].schema

    @dg.asset
    def weather() -> pa.Table:
        return schema.empty_table()

    run(weather)
    metadata = metadata_of(instance, weather)
    columns = {column.name: column for column in metadata["dagster/column_schema"].schema.columns}
    assert columns["AirTemp"].description == "Air temperature (°C)"
    assert columns["AirTemp"].tags == {"unit": "°C"}
    assert columns["Rainfall"].description == "Whether it rains"
    assert columns["Rainfall"].type == "bool"
    assert metadata["preview"].value.count("\n") == 1


def test_a_schema_that_the_asset_declares_is_not_repeated(run, instance):
    declared = dg.TableSchema([dg.TableColumn("n", "int64", "how many"), dg.TableColumn("text", "str")])
    values = {
        "as declared": {"n": [1], "text": ["x"]},
        "type": {"n": [1.5], "text": ["x"]},
        "more": {"n": [1], "m": [2]},
    }
    for name, columns in values.items():

        @dg.asset(metadata={"dagster/column_schema": declared})
        def table() -> pd.DataFrame:
            return pd.DataFrame(columns)  # noqa: B023 - run at once

        run(table)
        assert ("dagster/column_schema" in metadata_of(instance, table)) == (name != "as declared"), name


def test_previews_are_small_and_cannot_break_out(run, instance):
    evil = "<i>|`[x](js:y)\n" * 3

    @dg.asset
    def wide() -> pl.DataFrame:
        return pl.DataFrame({f"column {number}": [evil] * 9 for number in range(30)})

    run(wide)
    preview = metadata_of(instance, wide)["preview"].value
    lines = preview.splitlines()
    assert len(lines) == 7
    assert lines[0].endswith("| … 22 more |")
    assert len(preview) < 3000
    assert "<" not in preview
    assert "&lt;i>\\|\\`\\[x](js:y)" in preview


@pytest.mark.parametrize(
    "make", [lambda table: table, pl.from_arrow, lambda table: table.to_pandas().assign(list=[[1, 2]])]
)
def test_previews_of_every_kind_of_cell(run, instance, make):
    table = pa.table(
        {
            "missing": pa.array([None], pa.float64()),
            "float": [1.23456789],
            "time": pa.array([83_456_000_000], pa.duration("ns")),
            "when": pa.array([0], pa.timestamp("ns", "UTC")),
            "category": pa.array(["SOFT"]).dictionary_encode(),
            "list": [[1, 2, 3]],
            "struct": [{"x": 1}],
        }
    )

    @dg.asset
    def cells():
        return make(table)

    run(cells)
    header, _, row = metadata_of(instance, cells)["preview"].value.splitlines()
    assert header == "| missing | float | time | when | category | list | struct |"
    assert row.startswith("|  | 1.23457 | 0")
    assert "SOFT" in row


def test_a_date_beyond_the_calendar_is_stored_without_preview(run, instance):
    @dg.asset
    def far() -> pa.Table:
        return pa.table({"when": pa.array([10**12], pa.timestamp("s"))})

    run(far)
    metadata = metadata_of(instance, far)
    assert "preview" not in metadata
    assert metadata["column_count"].value == 1


def test_json_values_show_their_beginning(run, instance):
    @dg.asset
    def value():
        return {"text": "`" + "x" * 10_000, "list": list(range(1000))}

    run(value)
    metadata = metadata_of(instance, value)
    assert metadata["dagster/row_count"].value == 1
    assert len(metadata["preview"].value) < 500
    assert metadata["preview"].value.count("`") == 2
    assert "dagster/column_schema" not in metadata


@pytest.mark.parametrize("keys", [("a", "a"), ("a", "c")], ids=["one", "several"])
def test_each_partition_has_its_own_metadata(run, instance, keys):
    @dg.asset(partitions_def=LETTERS, backfill_policy=SR)
    def letters(context: dg.AssetExecutionContext):
        return {
            key: PartitionOutput(
                pd.DataFrame({"n": range(ord(key))}),
                Source("https://example.org/" + key, f"etag {key}"),
                {"requests": np.int64(7), "share": np.float32(0.5), "seconds": 99.0},
            )
            for key in context.partition_keys
        }

    run(letters, keys=keys)
    for key in ("a", "b", "c") if keys[1] == "c" else ("a",):
        metadata = metadata_of(instance, letters, key)
        assert metadata["dagster/partition_row_count"] == dg.IntMetadataValue(ord(key))
        assert metadata["etag"].value == f"etag {key}"
        assert metadata["source_url"] == dg.UrlMetadataValue(f"https://example.org/{key}")
        assert metadata["cache_key"].value == f"asset:letters@{key}"
        assert metadata["requests"] == dg.IntMetadataValue(7)
        assert metadata["share"] == dg.FloatMetadataValue(0.5)
        assert metadata["seconds"].value == 99.0
    assert len(instance.fetch_materializations(letters.key, limit=10).records) == (3 if keys[1] == "c" else 1)


def test_sources_of_single_values(run, instance, cache):
    @dg.asset
    def fetched():
        return Fresh(pd.DataFrame({"n": [1]}), Source("https://example.org/x", "tag", "Mon, 01 Jan 2024 00:00:00 GMT"))

    run(fetched)
    assert metadata_of(instance, fetched)["etag"].value == "tag"
    info = cache.info("asset:fetched")
    assert info is not None
    assert info.source.last_modified == "Mon, 01 Jan 2024 00:00:00 GMT"


def test_metadata_of_the_asset_itself_stays(run, instance):
    @dg.asset
    def table(context: dg.AssetExecutionContext) -> pd.DataFrame:
        context.add_output_metadata({"mine": 1})
        return pd.DataFrame({"n": [1]})

    run(table)
    metadata = metadata_of(instance, table)
    assert metadata["mine"].value == 1
    assert metadata["column_count"].value == 1


def test_contexts_built_by_hand_work(io_manager: CacheIOManager):
    table = pd.DataFrame({"n": [1]})
    only = {"asset_partition_key_range": dg.PartitionKeyRange("a", "b"), "asset_partitions_def": LETTERS}
    with dg.build_output_context(asset_key="plain") as context:
        io_manager.handle_output(context, table)
        assert context.get_logged_metadata()["dagster/row_count"].value == 1
    with dg.build_output_context(asset_key="several", dagster_type=dg.PythonObjectDagsterType(dict), **only) as context:
        io_manager.handle_output(context, {"a": table, "b": table})
    with dg.build_input_context(asset_key="plain") as context:
        assert io_manager.load_input(context).equals(table)
    with dg.build_input_context(asset_key="several", **only) as context:
        assert io_manager.load_input(context).keys() == {"a", "b"}
