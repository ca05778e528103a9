"""Stored parts are read by pyarrow's reader class alone: the same tables as its public functions give, sooner."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tif1_pipeline.cache import codec, parquet

TABLE = pa.table(
    {
        "a": [{"b": 1, "c": [1, 2]}, {"b": 2, "c": []}],
        "a.b": [1.5, 2.5],
        "plain": ["x", None],
        "list": [[1], None],
    }
)


def written(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, store_schema=False)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("columns", [None, ["a"], ["a.b"], ["list", "plain"], ["plain", "not there"], []])
def test_columns_are_those_that_the_public_reader_gives(columns):
    """A column of structs has several physical ones, and a dot in a name is no nesting."""
    data = written(TABLE)
    table, public = parquet.read(data, columns), parquet._read_publicly(data, columns)
    wanted = [name for name in TABLE.column_names if columns is None or name in columns]
    assert table.select(wanted).equals(public.select(wanted))
    assert table.column_names == wanted


def test_a_pyarrow_without_that_class_is_read_by_the_public_one(monkeypatch):
    data = written(TABLE)
    monkeypatch.delattr("pyarrow._parquet.ParquetReader")
    assert parquet.read(data, ["plain"]).equals(TABLE.select(["plain"]))


def test_a_pyarrow_whose_class_takes_other_arguments_is_read_by_the_public_one(monkeypatch):
    class Reader:
        def open(self, source):
            raise AssertionError

        def close(self):
            pass

    data = written(TABLE)
    monkeypatch.setattr("pyarrow._parquet.ParquetReader", Reader)
    assert parquet.read(data).equals(TABLE)


@pytest.mark.parametrize("data", [b"", b"PAR1", written(TABLE)[:-20], written(TABLE)[:40] + bytes(40)])
def test_what_is_no_parquet_is_an_error_of_arrow(data):
    with pytest.raises((pa.ArrowException, OSError)):
        parquet.read(data)


def compressions(encoded: codec.Encoded) -> list[dict[str, str]]:
    """Return how each part's columns are compressed."""
    ways = []
    for blob in encoded.blobs:
        group = pq.ParquetFile(pa.BufferReader(blob.data)).metadata.row_group(0)
        columns = [group.column(number) for number in range(group.num_columns)]
        ways.append({column.path_in_schema: column.compression for column in columns})
    return ways


def test_columns_are_compressed_by_what_pays():
    """Not at all what hardly shrinks; by lz4 where it makes nearly as little as zstd; the rest by zstd."""
    random = np.random.default_rng(1)
    names = pa.array(np.repeat(["A", "B", "C"], 20_000)).dictionary_encode()
    speeds = random.integers(0, 13_000, 30_000)
    table = pa.table(
        {
            "part": names,
            "noise": random.random(60_000).astype("float32"),
            "between": np.interp(np.arange(60_000), np.arange(0, 60_000, 2), speeds).astype("float32"),
            "steps": (random.integers(0, 20, 60_000) / 4).astype("float32"),
            "words": random.choice(["soft", "medium", "hard"], 60_000),
        }
    )
    encoded = codec.encode_table(table, 3, "part")
    ways = compressions(encoded)
    assert ways == [{"part": "ZSTD", "noise": "UNCOMPRESSED", "between": "LZ4", "steps": "ZSTD", "words": "ZSTD"}] * 3
    assert codec.decode_table(encoded.header, encoded.blobs).equals(table)
    assert compressions(codec.encode_table(table, 3)) == ways[:1]
    assert set(compressions(codec.encode_table(table.slice(0, 100), 3))[0].values()) == {"ZSTD"}


def test_a_categorical_column_splits_as_its_texts_do():
    """With values that no row has, in another order than they come, and in more than one run."""
    texts = ["B", "A", "A", "B", "D"]
    categories = pa.DictionaryArray.from_arrays(pa.array([2, 1, 1, 2, 3], pa.int8()), ["C", "A", "B", "D"])
    numbers = pa.array(range(5))
    plain = codec.encode_table(pa.table({"part": texts, "n": numbers}), 3, "part")
    packed = codec.encode_table(pa.table({"part": categories, "n": numbers}), 3, "part")
    assert [blob.name for blob in packed.blobs] == [blob.name for blob in plain.blobs] == ["B", "A", "D"]
    table = codec.decode_table(packed.header, packed.blobs)
    assert table["part"].to_pylist() == texts
    assert table["n"].to_pylist() == numbers.to_pylist()


def test_a_warm_read_imports_nothing_that_it_can_do_without(config, cache, key):
    assert cache.write(key, TABLE).stored
    cache.close()
    code = (
        "import sys; from tif1_pipeline.cache import Cache; from tif1_pipeline.config import Config; "
        f"hit = Cache(Config(cache_dir={str(config.cache_dir)!r})).read({key.text!r}); assert len(hit.value) == 2; "
        "print({'pyarrow.parquet', 'pyarrow.dataset', 'sqlalchemy', 'httpx', 'pandas', 'dagster'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
