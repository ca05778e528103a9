"""Parts that are encoded before their table is whole: the same bytes, and not encoded twice."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache, EntryInfo, Fresh, codec, physical
from tif1_pipeline.cache.early import EarlyParts
from tif1_pipeline.cache.frames import to_pandas
from tif1_pipeline.config import Config
from tif1_pipeline.keys import SessionKey

LEVEL = 3
NAMES = ["VER", "HAM", "ALB"]
KEY = SessionKey(2025, "Dutch Grand Prix", "Race").entry("telemetry")


def rows_of(code: int, words: list[str], *, missing: str = "", rows: int = 40_000) -> pa.Table:
    """Return a part, with codes as they are in the whole table; ``missing`` names columns that have nulls."""
    chance = np.random.default_rng(code)
    holes = chance.random(rows) < 0.1
    return pa.table(
        {
            "Driver": pa.DictionaryArray.from_arrays(np.full(rows, code, np.int32), NAMES[: code + 1]),
            "Ahead": pa.DictionaryArray.from_arrays(chance.integers(0, len(words), rows, np.int32), words),
            "Time": pa.array(np.cumsum(chance.integers(0, 10**8, rows)), pa.duration("ns")),
            "Speed": pa.array(
                chance.normal(200, 50, rows).astype(np.float32), mask=holes if "Speed" in missing else None
            ),
            "DRS": pa.array(chance.integers(0, 14, rows, np.int16), mask=holes if "DRS" in missing else None),
            "Brake": pa.array(chance.random(rows) < 0.3),
        }
    )


def whole(parts: list[pa.Table]) -> pa.Table:
    """Return the table of some parts, with the dictionaries of the last in all of them."""
    for name in ("Driver", "Ahead"):
        words = parts[-1][name].chunk(0).dictionary
        for number, part in enumerate(parts):
            column = pa.DictionaryArray.from_arrays(part[name].chunk(0).indices, words)
            parts[number] = part.set_column(part.schema.get_field_index(name), name, column)
    return pa.concat_tables(parts)


def physical_parts(table: pa.Table) -> dict[str, pa.Table]:
    plain = physical.to_physical(table.unify_dictionaries())
    lies = codec.encode_table(table, LEVEL, "Driver").lies
    return {name: physical.with_own_nulls(codec.take(plain, rows)) for name, rows in lies.items()}


WORDS = [["1", "44"], ["1", "44", "23"], ["1", "44", "23", "4"]]
PARTS = [rows_of(code, WORDS[code]) for code in range(3)]
CASES = {
    "as foreseen": (PARTS, NAMES),
    "floats missing in the last": ([*PARTS[:2], rows_of(2, WORDS[2], missing="Speed")], NAMES),
    "floats missing in the first": ([rows_of(0, WORDS[0], missing="Speed"), *PARTS[1:]], NAMES),
    "others missing from the first on": ([rows_of(0, WORDS[0], missing="DRS Speed"), *PARTS[1:]], NAMES),
    "others missing in the last": ([*PARTS[:2], rows_of(2, WORDS[2], missing="DRS")], []),
    "small": ([rows_of(code, WORDS[code], rows=50) for code in range(3)], NAMES),
}


@pytest.mark.parametrize("case", CASES)
def test_the_bytes_are_the_same(case: str):
    parts, usable = CASES[case]
    early = EarlyParts(LEVEL)
    for name, part in zip(NAMES, parts, strict=True):
        early.add(name, part)
    table = whole(list(parts))
    assert codec.encode_table(table, LEVEL, "Driver", early) == codec.encode_table(table, LEVEL, "Driver")
    codecs, done = early.of(physical_parts(table), LEVEL)
    assert (list(done), codecs is not None) == (usable, bool(usable)), "parts of the table were encoded for nothing"


def test_what_is_not_of_the_table_is_not_stored():
    table = whole(list(PARTS))
    expected = codec.encode_table(table, LEVEL, "Driver")

    def given(parts: list[tuple[str, pa.Table]], level: int = LEVEL) -> tuple[EarlyParts, list[str]]:
        early = EarlyParts(level)
        for name, part in parts:
            early.add(name, part)
        return early, list(early.of(physical_parts(table), LEVEL)[1])

    named = list(zip(NAMES, PARTS, strict=True))
    copies = [(name, pa.concat_tables([part.slice(0, 9), part.slice(9)]).combine_chunks()) for name, part in named]
    for early, usable in (
        given([]),
        given(named[1:]),  # by the first of them compression would have been chosen
        given(named, level=LEVEL + 1),
        given(copies),  # equal, but it is the memory that is compared
        given([("VER", PARTS[1]), ("HAM", PARTS[0])]),
        given([("VER", PARTS[0].slice(0, 100)), *named[1:]]),
        given([("VER", PARTS[0].slice(0, 0))]),
    ):
        assert usable == []
        assert codec.encode_table(table, LEVEL, "Driver", early) == expected
    early, usable = given([named[0], ("HAM", PARTS[2]), ("SAI", PARTS[1]), named[2]])
    assert usable == ["VER", "ALB"]
    assert codec.encode_table(table, LEVEL, "Driver", early) == expected
    assert codec.encode_table(table, LEVEL, None, early).blobs == codec.encode_table(table, LEVEL).blobs


def test_a_column_that_cannot_be_stored_is_refused_as_without():
    odd = pa.array([pa.MonthDayNano([1, 2, 3])] * 3, pa.month_day_nano_interval())
    part = pa.table({"Driver": pa.DictionaryArray.from_arrays(np.zeros(3, np.int32), ["VER"]), "Odd": odd})
    early = EarlyParts(LEVEL)
    early.add("VER", part)
    for given in (None, early):
        with pytest.raises(Exception, match="cannot be stored as Parquet"):
            codec.encode_table(part, LEVEL, "Driver", given)


@pytest.mark.parametrize("rows", [40, 40_000])
@pytest.mark.parametrize("missing", [["", "", ""], ["", "Speed", ""], ["Speed", "", "DRS"]])
def test_a_fetch_may_give_parts_to_be_encoded(cache: Cache, config: Config, missing: list[str], rows: int):
    parts = [rows_of(code, WORDS[code], missing=missing[code], rows=rows) for code in range(3)]

    def fetch(_: object) -> Fresh:
        early = EarlyParts(config.cache_compression_level)
        for name, part in zip(NAMES, parts, strict=True):
            early.add(name, part)
        return Fresh(whole(list(parts)), early=early)

    table = whole(list(parts))
    assert cache.read_through(KEY, fetch, "arrow", part_by="Driver").value.equals(table)
    checksum = stored(cache).checksum
    for as_, names in itertools.product(("arrow", "pandas"), (None, NAMES, ["HAM"], ["ALB", "VER"])):
        expected = table
        if names is not None:
            expected = pa.concat_tables(table.slice(rows * NAMES.index(name), rows) for name in names)
        for _ in range(2):  # a frame is made in another way when it is known what it is like
            cache.clear_memory()
            hit = cache.read(KEY, as_, parts=names)
            assert hit is not None
            assert hit.tier == "disk"
            found = hit.value
            if as_ == "arrow":
                assert found.equals(expected)
            else:
                same = to_pandas(expected)
                assert found.equals(same)
                assert (found.dtypes == same.dtypes).all()
    cache.write(KEY, table, part_by="Driver")
    assert stored(cache).checksum == checksum


def stored(cache: Cache) -> EntryInfo:
    info = cache.info(KEY)
    assert info is not None
    return info
