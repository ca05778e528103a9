"""Cache files and calls made to harm: errors of the package's own, and nothing else."""

import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.cache.damages import asking_for_memory
from tif1_pipeline.cache import Cache, Fresh, codec
from tif1_pipeline.cache.codec import Blob, crc
from tif1_pipeline.config import Config
from tif1_pipeline.doctor import diagnose
from tif1_pipeline.exceptions import CacheError, CacheVersionError, CorruptEntryError, InvalidDataError
from tif1_pipeline.keys import EntryKey

VALUE = {"a": 1}


def put(cache: Cache, ordinal: int, data: bytes) -> None:
    """Replace a stored header or part, as whoever knows how would."""
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
        connection.execute("UPDATE parts SET data = ?, checksum = ? WHERE ordinal = ?", (data, crc(data), ordinal))
        connection.execute("UPDATE entries SET generation = substr(generation, 1, 32)")  # without seals
    cache.clear_memory()


def test_a_header_whose_offsets_lead_out_of_it_is_not_followed() -> None:
    encoded = codec.encode_table(pa.table({"p": pa.array(["aaaa", "bb", "c"]).dictionary_encode()}), 3)
    assert encoded.header is not None
    offsets = struct.pack("<4i", 0, 4, 6, 7)
    assert encoded.header.data.count(offsets) == 1
    header = encoded.header.data.replace(offsets, struct.pack("<4i", 0, 1 << 30, (1 << 30) + 4, (1 << 30) + 8))
    with pytest.raises(CorruptEntryError):
        codec.open_header(Blob("header", header, crc(header)))


NO_ROWS = """
import struct, sys
import pyarrow as pa
from tif1_pipeline.cache import codec
from tif1_pipeline.exceptions import CorruptEntryError
far = pa.py_buffer(struct.pack("<2i", 3, 3))
lists = pa.Array.from_buffers(pa.list_(pa.int64()), 0, [None, far], children=[pa.array([], pa.int64())])
within = pa.StructArray.from_arrays([lists], ["within"])
words = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), {"lists": lists, "within": within}[sys.argv[3]])
column = {"column": {"lists": lists, "within": within}[sys.argv[3]], "dictionary": words}[sys.argv[2]]
sink = pa.BufferOutputStream()
batch = pa.RecordBatch.from_arrays([column], ["x"])
with pa.ipc.new_stream(sink, batch.schema) as writer:
    writer.write_batch(batch)
header = sink.getvalue().to_pybytes()
try:
    print(len(codec.decode_table(codec.Blob("header", header, codec.crc(header)), []).to_pandas()))
except CorruptEntryError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("within", ["lists", "within"])
@pytest.mark.parametrize("where", ["column", "dictionary"])
def test_lists_without_rows_that_begin_far_off_do_not_end_the_process(
    run: Callable[..., str], where: str, within: str
) -> None:
    # Arrow checks the offsets of rows alone, and aborts where it follows that of an array without any.
    said = run(NO_ROWS, where, within).strip()
    assert said == "0" if where == "column" else said.startswith("refused: the stored table does not decode: no list")


@pytest.mark.parametrize("length", [-1, -77, -(1 << 62), 1 << 62])
def test_a_dictionary_of_a_length_that_none_has_is_no_header(cache: Cache, key: EntryKey, length: int) -> None:
    words = [f"word {number}" for number in range(77)]
    cache.write(key, pa.table({"text": pa.array(words).dictionary_encode()}))
    with closing(sqlite3.connect(cache.get_cache_file())) as connection:
        header = connection.execute("SELECT data FROM parts WHERE ordinal = 0").fetchone()[0]
    there = struct.pack("<2q", 77, 0)
    assert header.count(there) == 1
    put(cache, 0, header.replace(there, struct.pack("<2q", length, 0)))
    assert cache.read(key) is None
    assert cache.info(key) is None


def bad_texts() -> pa.Table:
    texts = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(struct.pack("<3i", 0, 1, 2)), pa.py_buffer(b"a\xff")]
    )
    return pa.table({"text": texts})


def test_texts_that_are_none_are_neither_stored_nor_read(cache: Cache, key: EntryKey) -> None:
    with pytest.raises(InvalidDataError, match="UTF8"):
        cache.write(key, bad_texts())
    cache.write(key, pa.table({"text": ["a", "b"]}))
    sink = pa.BufferOutputStream()
    pq.write_table(bad_texts(), sink, store_schema=False)
    put(cache, 1, sink.getvalue().to_pybytes())
    assert cache.read(key) is None
    assert cache.read(key, "pandas") is None


def test_codes_of_no_category_are_not_looked_up(config: Config, cache: Cache, key: EntryKey) -> None:
    """In a table so large that it is put together on threads."""
    rows = 1 << 20
    few, many = (
        pd.DataFrame({"n": range(rows), "p": pd.Categorical.from_codes([size - 1] * rows, list("abcdefgh")[:size])})
        for size in (2, 8)
    )
    cache.write(key, few)
    put(cache, 1, codec.encode_table(pa.Table.from_pandas(many), 3).blobs[0].data)
    for as_ in ("pandas", "arrow"):
        assert cache.read(key, as_) is None


def test_a_json_value_that_declares_more_than_it_was_takes_no_memory(cache: Cache, key: EntryKey) -> None:
    cache.write(key, VALUE)
    put(cache, 1, zstandard.ZstdCompressor().compress(b" " * (1 << 28) + b'{"a":2}'))
    assert cache.read(key, "json") is None
    assert cache.read_through(key, lambda _: Fresh(VALUE), "json").value == VALUE


def test_too_little_memory_is_no_damage(
    cache: Cache, key: EntryKey, monkeypatch: pytest.MonkeyPatch, config: Config
) -> None:
    cache.write(key, pa.table({"n": [1]}))
    cache.clear_memory()

    def fail(*_: object) -> None:
        raise MemoryError("no")

    with monkeypatch.context() as patch:
        patch.setattr("tif1_pipeline.cache.parquet.read", fail)
        assert cache.read(key) is None
    assert cache.get_degraded() == {"read: out of memory": 1}
    assert cache.read(key).value == pa.table({"n": [1]})


def varint(number: int) -> bytes:
    """As Thrift writes whole numbers."""
    rest, found = 2 * number, bytearray()
    while rest > 127:
        found.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*found, rest])


def test_a_part_that_asks_for_more_memory_than_any_machine_has_is_damage() -> None:
    encoded = codec.encode_table(pa.table({"n": pa.array(range(7_777), pa.int64())}), 3)
    (blob,) = encoded.blobs
    length = struct.unpack("<I", blob.data[-8:-4])[0]
    footer = blob.data[-8 - length : -8]
    assert varint(7_777) in footer
    footer = footer.replace(varint(7_777), varint(1 << 45))
    data = blob.data[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1"
    with pytest.raises(CorruptEntryError, match=r"asks for [0-9,]+ bytes of memory"):
        codec.decode_table(encoded.header, [Blob(blob.name, data, crc(data))])


@pytest.mark.parametrize("metadata", [b"{", b"[]", b"{}", b"\x80\x04"])
def test_a_schema_that_pandas_does_not_understand_is_said_in_words(
    cache: Cache, key: EntryKey, metadata: bytes
) -> None:
    table = pa.table({"n": [1]}).replace_schema_metadata({"pandas": metadata})
    cache.write(key, table)
    cache.clear_memory()
    if metadata != b"{}":
        with pytest.raises(InvalidDataError, match="read it as 'arrow'"):
            cache.read(key, "pandas")
    assert cache.read(key).value == table


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER evil AFTER INSERT ON entries BEGIN DELETE FROM entries WHERE key <> NEW.key; END",
        "DROP TABLE parts; CREATE VIEW parts AS SELECT 1 AS id, zeroblob(1000000000) AS data",
    ],
)
def test_a_file_with_triggers_or_views_is_refused(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey, statement: str
) -> None:
    cache = open_cache()
    cache.write(key, VALUE)
    cache.close()
    with closing(sqlite3.connect(config.cache_path, isolation_level=None)) as connection:
        connection.executescript(statement)
    cache = open_cache()
    for call in (lambda: cache.read(key, "json"), lambda: cache.write(EntryKey("x", "x"), VALUE), cache.get_entries):
        with pytest.raises(CacheVersionError, match=r"(trigger|view).*no cache does"):
            call()


def test_a_schema_in_which_a_name_has_changed_is_healed(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey
) -> None:
    cache = open_cache()
    cache.write(key, VALUE)
    cache.close()
    with closing(sqlite3.connect(config.cache_path, isolation_level=None)) as connection:
        connection.execute("ALTER TABLE entries RENAME COLUMN checksum TO checksul")
    cache = open_cache()
    assert cache.read_through(key, lambda _: Fresh(VALUE), "json").value == VALUE
    cache.clear_memory()
    assert cache.read(key, "json").value == VALUE
    assert len(list(config.cache_dir.glob("*.damaged-*Z"))) == 1


def test_a_schema_that_asks_for_more_memory_than_there_is_is_damage(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey, tmp_path: Path
) -> None:
    config.cache_page_size = 4096
    cache = open_cache()
    cache.write(key, VALUE)
    backup = cache.backup(tmp_path / "backups")
    cache.close()
    content = asking_for_memory(config.cache_path.read_bytes(), tmp_path)
    config.cache_path.unlink()
    config.cache_path.write_bytes(content)
    assert any("malformed" in check.finding for check in diagnose(config, cdn=False) if check.status == "problem")
    cache = open_cache()
    assert cache.read_through(key, lambda _: Fresh(VALUE), "json").value == VALUE
    cache.clear_memory()
    assert cache.read(key, "json").value == VALUE
    assert len(list(config.cache_dir.glob("*.damaged-*Z"))) == 1
    cache.restore(backup)
    assert cache.read(key, "json").value == VALUE


@pytest.mark.parametrize("table", ["entries", "parts"])
@pytest.mark.parametrize("check", [True, False])
def test_rows_that_lost_their_numbers_are_damage_of_the_file(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey, table: str, check: bool
) -> None:
    config.cache_verify_checksum = check
    cache = open_cache()
    cache.write(key, VALUE)
    cache.close()
    content = config.cache_path.read_bytes()
    start = content.index(f"CREATE TABLE {table} (".encode())
    at = content.index(b"INTEGER", start)  # of its column id, the first one
    config.cache_path.unlink()
    config.cache_path.write_bytes(content[:at] + b"iNTEGES" + content[at + 7 :])
    config.cache_encryption_key = "ab" * 32
    cache = open_cache()
    with pytest.raises(CacheError, match="malformed"):
        cache.rotate_key()
    assert cache.read_through(key, lambda _: Fresh(VALUE), "json").value == VALUE
    cache.clear_memory()
    assert cache.read(key, "json").value == VALUE
    assert len(list(config.cache_dir.glob("*.damaged-*Z"))) == 1


def test_a_head_of_an_unknown_format_is_healed(config: Config, open_cache: Callable[..., Cache], key: EntryKey) -> None:
    cache = open_cache()
    cache.write(key, VALUE)
    cache.close()
    content = bytearray(config.cache_path.read_bytes())
    content[47] ^= 8
    config.cache_path.unlink()
    config.cache_path.write_bytes(content)
    cache = open_cache()
    assert cache.read_through(key, lambda _: Fresh(VALUE), "json").value == VALUE
    cache.clear_memory()
    assert cache.read(key, "json").value == VALUE


def test_texts_and_numbers_that_sqlite_cannot_hold(cache: Cache, key: EntryKey) -> None:
    cache.write(key, VALUE)
    for call in (
        lambda: cache.read("\ud800"),
        lambda: cache.write(EntryKey("x", "\ud800"), VALUE),
        lambda: cache.clear_type("\ud800"),
        lambda: cache.clear_session(1 << 70, "Monaco", "Race"),
    ):
        with pytest.raises(InvalidDataError, match="can be stored"):
            call()
    assert cache.read(key, "json").value == VALUE


def test_the_key_of_an_export_may_be_long(cache: Cache, open_cache: Callable[..., Cache], tmp_path) -> None:
    cache.write(EntryKey("x" * 10_000, "x"), VALUE)
    cache.export(tmp_path / "export")
    cache.clear()
    assert cache.import_(tmp_path / "export") == 1
    assert cache.read("x" * 10_000, "json").value == VALUE


def test_errors_of_memory_name_what_to_do() -> None:
    with pytest.raises(CacheError, match="fewer parts"), codec.translated():
        raise MemoryError
