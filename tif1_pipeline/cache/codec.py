"""Values to stored bytes and back: tables as Parquet with zstd inside, JSON values as zstd. No pickle."""

import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tif1_pipeline.cache import parquet, physical, threads
from tif1_pipeline.cache.exact import same
from tif1_pipeline.exceptions import CacheError, CorruptEntryError, InvalidDataError

if TYPE_CHECKING:
    from tif1_pipeline.cache.early import EarlyParts

FORMAT_VERSION = 1
"""Raised when stored bytes of the former version must not be read any more."""

WHOLE = ""
"""Name of the one part of an entry that is not split."""

ROW = "\0row"
"""Physical column with the row numbers, in parts whose rows do not follow each other in the table."""

_LARGE = 1 << 18

_WORTHWHILE = 0.75
"""What a column must shrink to for being compressed."""
_NEARLY = 1.6
"""How many times as large as with zstd a column may be with lz4."""
_ANY_MEMORY = 1 << 44
"""Bytes that no stored value stands for, and no machine has: a damaged length says so."""
_ASKED = re.compile(r"of size (\d+) failed")
"""How Arrow says what it could not get."""
_SMALL = 32 << 10
"""Bytes of a column that are inflated in no time."""
_TRIAL = 1 << 15
"""Rows by which the compression is chosen."""
_GROUP = 1 << 17
"""Rows that are decoded at once; larger parts are decoded on several threads."""

Rows = tuple[int, int] | pa.Array
"""Rows of a table: the first one and their number, or the number of each."""
Codecs = dict[str, str] | str
"""How to compress each physical column, or all of them."""
PartBytes = tuple[bytes, str, bytes]
"""A part's bytes, with their checksum and digest."""


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


def decode_json(blob: Blob, size: int) -> bytes:
    """Return the JSON text of a stored value.

    Args:
        blob: Stored.
        size: Of the text.

    Raises:
        CorruptEntryError: It does not decode.
        CacheError: There is not enough memory.
    """
    import zstandard

    try:
        declared = zstandard.frame_content_size(blob.data)
        if declared != size:  # the memory for it is taken at once
            raise CorruptEntryError(f"the stored JSON value has {declared:,} bytes, stored were {size:,}")
        return zstandard.ZstdDecompressor().decompress(blob.data)
    except zstandard.ZstdError as error:
        raise CorruptEntryError(f"the stored JSON value does not decode: {error}") from error
    except MemoryError as error:
        raise out_of_memory(error) from error


# ---- tables


def encode_table(table: pa.Table, level: int, part_by: str | None = None, early: "EarlyParts | None" = None) -> Encoded:
    """Encode a table.

    Args:
        table: With distinct column names.
        level: Of zstd.
        part_by: Column whose values become parts that can be read alone.
        early: Parts that have been encoded already.

    Raises:
        InvalidDataError: Parquet would return a column changed, or the table cannot be split by that column.
    """
    _check_columns(table)
    try:
        physical.check_texts(table)
    except pa.ArrowInvalid as error:
        raise InvalidDataError(f"the table is none that can be read back: {error}") from error
    table = table.unify_dictionaries()
    lies = {WHOLE: (0, table.num_rows)} if part_by is None else _split(table, part_by)
    plain = physical.to_physical(table)
    if any(isinstance(rows, pa.Array) for rows in lies.values()):
        plain = plain.append_column(ROW, pa.array(range(table.num_rows), pa.int64()))
    parts = {name: physical.with_own_nulls(take(plain, rows)) for name, rows in lies.items()}
    known, done = (None, {}) if early is None else early.of(parts, level)
    codecs = known or choose_codecs(next(iter(parts.values())), level)
    left = [name for name in parts if name not in done]
    done |= zip(left, threads.each(lambda name: write_part(parts[name], level, codecs), left), strict=True)
    written = [done[name] for name in parts]
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
) -> pa.Table:
    """Decode a table or parts of it.

    Args:
        header: Of the entry.
        blobs: Parts.
        choose: As in :func:`open_header`.
        in_order: As in :func:`put_together`.

    Raises:
        CorruptEntryError: They do not decode.
    """
    empty, columns = open_header(header, choose)
    return put_together(threads.each(lambda blob: read_part(blob, columns), blobs), empty, in_order=in_order)


def open_header(
    header: Blob, choose: Callable[[pa.Schema], list[str] | None] = lambda _: None
) -> tuple[pa.Table, list[str] | None]:
    """Return the table without rows, and the columns to read of its parts.

    Args:
        header: Of the entry.
        choose: Says which columns to read, given the schema; all if it returns None. What it raises is passed on.

    Raises:
        CorruptEntryError: It does not decode.
    """
    verify(header)  # always: it is small, and a table of another schema would be read without an error
    with translated():
        empty = physical.read_header(header.data)
        empty.validate(full=True)  # 2 µs; else Arrow reads wherever the offsets in its format lead
    wanted = choose(empty.schema)
    return (empty, None) if wanted is None else (empty.select(wanted), [*wanted, ROW])


def read_part(blob: Blob, columns: list[str] | None) -> pa.Table:
    """Return the physical table of a part.

    Raises:
        CorruptEntryError: It does not decode.
    """
    with translated():
        return parquet.read(blob.data, columns)


def put_together(parts: Sequence[pa.Table], empty: pa.Table, *, in_order: bool) -> pa.Table:
    """Return the table of physical parts.

    Args:
        parts: From :func:`read_part`.
        empty: From :func:`open_header`.
        in_order: Bring the rows into the order of the table they were split from, else one part follows the other.

    Raises:
        CorruptEntryError: They do not belong together.
    """
    if not parts:
        return empty
    with translated():
        plain = physical.joined(parts)
        if in_order and ROW in plain.column_names:
            plain = plain.take(_order(plain.column(ROW)))
        return physical.to_logical(plain, empty)


@contextmanager
def translated() -> Iterator[None]:
    """Take what Arrow and numpy say of bytes that they cannot read for what it is."""
    try:
        yield
    except MemoryError as error:  # Arrow's own is an ArrowException too
        raise out_of_memory(error) from error
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise CorruptEntryError(f"the stored table does not decode: {error}") from error


def out_of_memory(error: MemoryError) -> CacheError:
    """Return the error that a stored value cannot be decoded for now; never, if it asks for more than any memory."""
    asked = _ASKED.search(str(error))
    if asked and int(asked[1]) > _ANY_MEMORY:
        return CorruptEntryError(f"the stored value does not decode: it asks for {int(asked[1]):,} bytes of memory")
    return CacheError(
        f"there is not enough memory to decode what is stored ({error}): free some, or read fewer parts and columns",
        cause="out of memory",
    )


def known_columns(schema: pa.Schema, columns: Iterable[str]) -> list[str]:
    """Return the names, each once.

    Raises:
        InvalidDataError: The table lacks one of them.
    """
    names = list(dict.fromkeys(columns))
    for name in names:
        if name not in schema.names:
            import difflib

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
    seen: set[str] = set()
    for name in table.column_names:
        if name == ROW:
            raise InvalidDataError(f"a column is called {name!r}, a name of the cache's own: rename it", column=name)
        if name in seen:
            raise InvalidDataError(f"two columns are called {name!r}: rename one before storing the table", column=name)
        seen.add(name)


def write_part(plain: pa.Table, level: int, codecs: Codecs) -> PartBytes:
    """Encode a physical part."""
    data, _ = _to_parquet(plain, level, codecs)
    # Each thread keeps what its last part took: 40 MB of a race's telemetry, beside the frame that is read next.
    pa.default_memory_pool().release_unused()
    return data, crc(data), digest(data)


def _to_parquet(plain: pa.Table, level: int, codecs: Codecs) -> tuple[bytes, dict[str, Any]]:
    """Encode a physical table; returns the bytes, and what became of each physical column.

    Args:
        plain: The table.
        level: Of zstd.
        codecs: How to compress.
    """
    import pyarrow.parquet as pq

    encodings = {field.name: _encoding(field.type) for field in plain.schema}
    levels: Any = level if codecs == "zstd" else None
    if isinstance(codecs, dict):
        levels = {path: level for path, codec in codecs.items() if codec == "zstd"} or None
    sink, footers = pa.BufferOutputStream(), []
    try:
        pq.write_table(
            plain,
            sink,
            row_group_size=_GROUP,
            compression=codecs,  # pyright: ignore[reportArgumentType] - the stubs know no dict
            compression_level=levels,
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
    columns = {}
    if footers[0].num_row_groups:
        group = footers[0].row_group(0)
        columns = {column.path_in_schema: column for column in map(group.column, range(group.num_columns))}
    return sink.getvalue().to_pybytes(), columns


def choose_codecs(first: pa.Table, level: int) -> Codecs:
    """Return how to compress columns, by what becomes of the first rows of the first physical part.

    Small ones with zstd, which makes the smallest. Accelerations and times of a race's telemetry shrink by a fifth, and
    would take longer to inflate than to decode. Most of its other measurements, whose bytes BYTE_STREAM_SPLIT has
    sorted, lz4 makes 5 to 50 % larger than zstd does, and inflates them in less than half of the time: reading all of
    it takes 7 % less time, and 3 % more of the disk, with speed and throttle among them; with heights again 6 and 2.
    """
    trial = first.slice(0, _TRIAL)
    if trial.num_rows * 8 < _SMALL:
        return "zstd"
    small, smaller = _to_parquet(trial, level, "zstd")[1], _to_parquet(trial, level, "lz4")[1]
    codecs = {}
    for path, column in small.items():
        size, zstd = column.total_uncompressed_size, column.total_compressed_size
        lz4 = smaller[path].total_compressed_size
        if size < _SMALL:
            codecs[path] = "zstd"
        elif min(zstd, lz4) > _WORTHWHILE * size:
            codecs[path] = "none"
        else:
            codecs[path] = "lz4" if lz4 < _NEARLY * zstd else "zstd"
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
