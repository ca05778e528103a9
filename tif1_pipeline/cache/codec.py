"""Values to stored bytes and back: tables as Parquet with zstd inside, JSON values as zstd. No pickle."""

import difflib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tif1_pipeline.cache import parquet, physical
from tif1_pipeline.cache.exact import same
from tif1_pipeline.exceptions import CorruptEntryError, InvalidDataError

FORMAT_VERSION = 1
"""Raised when stored bytes of the former version must not be read any more."""

WHOLE = ""
"""Name of the one part of an entry that is not split."""

ROW = "\0row"
"""Physical column with the row numbers, in parts whose rows do not follow each other in the table."""

_LARGE = 1 << 18

_WORTHWHILE = 0.75
"""What a column must shrink to for zstd to stay."""
_SMALL = 32 << 10
"""Bytes of a column that are inflated in no time."""

Rows = tuple[int, int] | pa.Array
"""Rows of a table: the first one and their number, or the number of each."""


@dataclass(frozen=True, slots=True)
class Blob:
    """The stored bytes of one part, or of a table's header."""

    name: str
    data: bytes
    checksum: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """A value ready to be stored.

    Attributes:
        header: Schema and dictionaries of a table; None for a JSON value.
        blobs: In the order of the parts.
        rows: Of the table; 1 for a JSON value.
        size_bytes: Uncompressed, in memory.
        checksum: Over all stored bytes.
        lies: Where each part lies in the table.
    """

    header: Blob | None
    blobs: tuple[Blob, ...]
    rows: int
    size_bytes: int
    checksum: str
    lies: dict[str, Rows]


def verify(blob: Blob) -> None:
    """Check stored bytes against their checksum.

    Raises:
        CorruptEntryError: They differ.
    """
    found = crc(blob.data)
    if found != blob.checksum:
        raise CorruptEntryError(f"part {blob.name!r} has checksum {found}, stored was {blob.checksum}", part=blob.name)


def crc(data: bytes) -> str:
    """Return the checksum of stored bytes: against accidents, and quick enough to be checked whenever they are read."""
    if len(data) < _LARGE:
        return f"{zlib.crc32(data):08x}"
    from isal import isal_zlib  # 19 GB/s instead of 3; not at the top: its import is worth it for large data alone

    return f"{isal_zlib.crc32(data):08x}"


def digest(data: bytes) -> bytes:
    """Return a strong digest of stored bytes."""
    # SHA-256 has instructions of the processor: 1.3 GB/s, blake2b 0.75.
    return hashlib.sha256(data).digest()


def entry_checksum(digests: Iterable[bytes]) -> str:
    """Return the checksum of an entry, which tells one version of its data from another.

    Args:
        digests: Of the header, where there is one, and of the parts in their order.
    """
    return hashlib.sha256(b"".join(digests)).hexdigest()


# ---- JSON values


def encode_json(text: bytes, level: int) -> Encoded:
    """Compress a JSON text."""
    import zstandard

    data = zstandard.ZstdCompressor(level=level, write_checksum=True).compress(text)
    blob = Blob(WHOLE, data, crc(data))
    return Encoded(None, (blob,), 1, len(text), entry_checksum([digest(data)]), {WHOLE: (0, 1)})


def decode_json(blob: Blob) -> bytes:
    """Return the JSON text of a stored value.

    Raises:
        CorruptEntryError: It does not decode.
    """
    import zstandard

    try:
        return zstandard.ZstdDecompressor().decompress(blob.data)
    except zstandard.ZstdError as error:
        raise CorruptEntryError(f"the stored JSON value does not decode: {error}") from error


# ---- tables


def encode_table(table: pa.Table, level: int, part_by: str | None = None) -> Encoded:
    """Encode a table.

    Args:
        table: With distinct column names.
        level: Of zstd.
        part_by: Column whose values become parts that can be read alone.

    Raises:
        InvalidDataError: Parquet would return a column changed, or the table cannot be split by that column.
    """
    _check_columns(table)
    table = table.unify_dictionaries()
    lies = {WHOLE: (0, table.num_rows)} if part_by is None else _split(table, part_by)
    plain = physical.to_physical(table)
    if any(isinstance(rows, pa.Array) for rows in lies.values()):
        plain = plain.append_column(ROW, pa.array(range(table.num_rows), pa.int64()))
    places = list(lies.values())
    first, codecs = _write(take(plain, places[0]), level)
    # What pays in the first part pays in the others, which are of the same kind.
    written = [first, *_on_threads(lambda rows: _write(take(plain, rows), level, codecs)[0], places[1:])]
    header = physical.write_header(table)
    encoded = Encoded(
        Blob("header", header, crc(header)),
        tuple(Blob(name, data, checksum) for name, (data, checksum, _) in zip(lies, written, strict=True)),
        table.num_rows,
        table.nbytes,
        entry_checksum([digest(header), *(part_digest for _, _, part_digest in written)]),
        lies,
    )
    odd = [field.name for field in table.schema if physical.is_odd(field.type)]
    if odd:
        _prove(table.select(odd), encoded)
    return encoded


def decode_table(
    header: Blob,
    blobs: Sequence[Blob],
    choose: Callable[[pa.Schema], list[str] | None] = lambda _: None,
    *,
    in_order: bool = True,
    check: bool = False,
) -> pa.Table:
    """Decode a table or parts of it.

    Args:
        header: Of the entry.
        blobs: Parts.
        choose: Says which columns to read, given the schema; all if it returns None. What it raises is passed on.
        in_order: Bring the rows into the order of the table they were split from, else one part follows the other.
        check: Compare checksums first.

    Raises:
        CorruptEntryError: They do not decode.
    """
    verify(header)  # always: it is small, and a table of another schema would be read without an error
    try:
        empty = physical.read_header(header.data)
        wanted = choose(empty.schema)
        if wanted is not None:
            empty = empty.select(wanted)
        tables = _on_threads(lambda blob: _read(blob, wanted, check), blobs)
        plain = pa.concat_tables(tables)
        if in_order and ROW in plain.column_names:
            plain = plain.take(_order(plain.column(ROW)))
        return physical.to_logical(plain, empty)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise CorruptEntryError(f"the stored table does not decode: {error}") from error


def known_columns(schema: pa.Schema, columns: Iterable[str]) -> list[str]:
    """Return the names, each once.

    Raises:
        InvalidDataError: The table lacks one of them.
    """
    names = list(dict.fromkeys(columns))
    for name in names:
        if name not in schema.names:
            close = difflib.get_close_matches(name, schema.names, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"it has {', '.join(schema.names)}"
            raise InvalidDataError(f"the table has no column {name!r}: {hint}", column=name)
    return names


def own(table: pa.Table) -> pa.Table:
    """Copy a table into memory that nobody else can write to: Arrow shares numpy's memory where it can."""
    sink = pa.BufferOutputStream()
    empty = physical.empty_batch(table)
    table = table.unify_dictionaries().combine_chunks()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        if table.num_rows:
            writer.write_table(table)
        else:  # it would write nothing, and so lose the dictionaries
            writer.write_batch(empty)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def take(table: pa.Table, rows: Rows) -> pa.Table:
    """Return some rows of a table."""
    return table.take(rows) if isinstance(rows, pa.Array) else table.slice(*rows)


def _check_columns(table: pa.Table) -> None:
    if table.num_rows and not table.num_columns:
        raise InvalidDataError(
            f"a table of {table.num_rows} rows without columns would lose its rows: give it a column"
        )
    seen = {ROW}
    for name in table.column_names:
        if name in seen:
            raise InvalidDataError(f"two columns are called {name!r}: rename one before storing the table", column=name)
        seen.add(name)


def _write(
    plain: pa.Table, level: int, codecs: dict[str, str] | None = None
) -> tuple[tuple[bytes, str, bytes], dict[str, str]]:
    """Encode a part.

    Args:
        plain: The physical table.
        level: Of zstd.
        codecs: How to compress each physical column; all with zstd by default.

    Returns:
        The bytes with their checksum and digest; and how to compress the columns of further parts.
    """
    import pyarrow.parquet as pq

    encodings = {field.name: _encoding(field.type) for field in plain.schema}
    sink, footers = pa.BufferOutputStream(), []
    try:
        pq.write_table(
            plain,
            sink,
            compression=codecs or "zstd",  # pyright: ignore[reportArgumentType] - the stubs know no dict
            compression_level={path: level for path, codec in codecs.items() if codec == "zstd"} if codecs else level,
            use_dictionary=[name for name, encoding in encodings.items() if encoding is None],  # pyright: ignore[reportArgumentType]
            column_encoding={name: encoding for name, encoding in encodings.items() if encoding} or None,
            write_statistics=False,  # nothing filters by them: parts and columns are chosen by name
            store_schema=False,
            metadata_collector=footers,
        )
    except (pa.ArrowException, OSError) as error:
        raise InvalidDataError(
            f"the table cannot be stored as Parquet: {error}. Convert the column to a plain type first"
        ) from error
    data = sink.getvalue().to_pybytes()
    return (data, crc(data), digest(data)), _codecs_after(footers[0])


def _codecs_after(footer: Any) -> dict[str, str]:
    """Return how to compress columns, by how far they were compressed.

    Accelerations and times of a race's telemetry shrink by a fifth, and take longer to inflate than to decode.
    """
    codecs = {}
    for number in range(footer.num_columns if footer.num_row_groups else 0):
        column = footer.row_group(0).column(number)
        size = column.total_uncompressed_size
        pays = size < _SMALL or column.total_compressed_size < _WORTHWHILE * size
        codecs[column.path_in_schema] = "zstd" if pays else "none"
    return codecs


def _encoding(type_: pa.DataType) -> str | None:
    """Return the encoding of a physical type; None for a dictionary.

    Measured on a race's telemetry, zstd-3: float32 2.0 MB a channel by BYTE_STREAM_SPLIT against 2.7 plain and 4.1 by
    dictionary; times 3.0 MB and 2.5 ms to read by DELTA_BINARY_PACKED alone against 2.6 MB and 8.1 ms by
    BYTE_STREAM_SPLIT and zstd. Small integers and the indices of categories are smallest and fastest by dictionary.
    """
    if pa.types.is_float32(type_) or pa.types.is_float64(type_):
        return "BYTE_STREAM_SPLIT"
    if pa.types.is_int64(type_):
        return "DELTA_BINARY_PACKED"
    return None


def _read(blob: Blob, columns: list[str] | None, check: bool) -> pa.Table:
    if check:
        verify(blob)
    return parquet.read(blob.data, None if columns is None else [*columns, ROW])


def _on_threads(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(len(items), os.cpu_count() or 1)) as pool:
        return list(pool.map(work, items))


# ---- parts


def _split(table: pa.Table, part_by: str) -> dict[str, Rows]:
    import numpy as np

    known_columns(table.schema, [part_by])
    column = table.column(part_by).combine_chunks()
    if pa.types.is_dictionary(column.type) and not _is_plain(column.dictionary):
        column = column.cast(column.type.value_type)
    if column.null_count:
        raise InvalidDataError(
            f"column {part_by!r} holds {column.null_count} nulls, so it cannot split the table into parts: "
            "fill them, drop those rows, or store the table whole",
            column=part_by,
        )
    if not table.num_rows:
        return {WHOLE: (0, 0)}
    codes = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    numbers = codes.indices.to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1])))
    lengths = np.diff(np.append(starts, len(numbers)))
    names = [str(value) for value in codes.dictionary.to_pylist()]
    if len(set(names)) < len(names):
        raise InvalidDataError(f"two values of column {part_by!r} have the same text: part by another", column=part_by)
    lies: dict[str, Rows] = {}
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        name = names[numbers[start]]
        if name not in lies:
            lies[name] = (start, length)
        elif isinstance(lies[name], tuple):  # a second run of the value: note each of its rows
            lies[name] = pa.array(np.flatnonzero(numbers == numbers[start]))
    return lies


def _is_plain(dictionary: pa.Array) -> bool:
    """Tell whether a dictionary holds each value once, and no null."""
    return not dictionary.null_count and len(dictionary.unique()) == len(dictionary)


def _order(rows: pa.ChunkedArray) -> pa.Array:
    import numpy as np

    return pa.array(np.argsort(rows.to_numpy(), kind="stable"))


def _prove(table: pa.Table, encoded: Encoded) -> None:
    """Decode columns of which it is not known that Parquet keeps all their values."""
    assert encoded.header is not None  # noqa: S101 - a table has one
    try:
        decoded = decode_table(encoded.header, encoded.blobs, lambda _: table.column_names)
    except CorruptEntryError as error:
        raise InvalidDataError(
            f"one of the columns {table.column_names} cannot be stored as Parquet: {error}. Convert it to a plain type"
        ) from error
    for name in table.column_names:
        before, after = table.column(name), decoded.column(name)
        # Arrow's own comparison is quick, but to it a nan is not a nan.
        if not after.equals(before) and not same(before.to_pylist(), after.to_pylist()):
            raise InvalidDataError(
                f"column {name!r} of type {before.type} would come back changed: convert it to a plain type first",
                column=name,
            )
