"""What a file that is to be imported would take in memory, worked out before it is taken.

A Parquet file of a kilobyte can stand for gigabytes: a text that is stored once and repeated by its number in a
dictionary, and a compressed buffer in Arrow's IPC format says itself how large it becomes.
"""

import struct
from collections.abc import Set
from typing import Any

import pyarrow as pa

from tif1_pipeline.exceptions import InvalidDataError

BATCH_ROWS = 1 << 15
_FLOOR = 1024
"""Values that an Arrow buffer of any size may stand for: nulls take no room."""
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


def _too_large(limit: int) -> InvalidDataError:
    return InvalidDataError(f"is a table of more than {limit:,} bytes in memory")


# ---- Parquet


def check_rows(schema: pa.Schema, rows: int, limit: int) -> None:
    """Refuse rows that take too much by the width of their types alone: of fixed width, nulls take it too.

    Raises:
        InvalidDataError: They do.
    """
    if rows * sum(_width(field.type) for field in schema) > limit:
        raise _too_large(limit)


def _width(type_: pa.DataType) -> int:
    """Return the bytes that a value of a type takes at least."""
    if isinstance(type_, pa.BaseExtensionType):
        return _width(type_.storage_type)
    if pa.types.is_fixed_size_list(type_):
        return type_.list_size * _width(type_.value_type)
    if pa.types.is_struct(type_):
        return sum(_width(field.type) for field in type_)
    if pa.types.is_dictionary(type_):
        return _width(type_.index_type)
    try:
        return type_.bit_width // 8
    except ValueError:  # it differs from value to value
        return 0


def check_declared(file: Any, limit: int, kept: Set[str]) -> list[str]:
    """Refuse a Parquet file that is too large by what its metadata says.

    Args:
        file: Opened.
        limit: Bytes in memory.
        kept: Columns that are read as dictionaries and stay ones.

    Returns:
        The paths of the texts of the other columns.

    Raises:
        InvalidDataError: It is, or is encoded in a way that leaves open how large its texts are.
    """
    metadata, schema = file.metadata, file.schema
    check_rows(file.schema_arrow, metadata.num_rows, limit)
    columns = [schema.column(number) for number in range(metadata.num_columns)]
    paths = [column.path for column in columns]
    if len(set(paths)) < len(paths):
        raise InvalidDataError("has two columns of one name")
    size = 0
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            # A text of that encoding says how much of the former one it repeats: seen only once it is expanded.
            if "DELTA_BYTE_ARRAY" in chunk.encodings:
                raise InvalidDataError("is encoded by DELTA_BYTE_ARRAY: write it with another encoding")
            column = columns[number]
            width = _WIDTHS.get(column.physical_type, column.length)
            size += max(chunk.total_uncompressed_size, chunk.num_values * width)
    if size > limit:
        raise _too_large(limit)
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY" and column.path not in kept]


_WIDTHS = {"BOOLEAN": 0, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 8, "BYTE_ARRAY": 4}


def check_texts(file: Any, texts: list[str], limit: int) -> None:
    """Refuse a Parquet file whose texts are too large when each stands where it is used.

    Args:
        file: Opened so that these columns are read as dictionaries.
        texts: Their paths.
        limit: Bytes in memory.

    Raises:
        InvalidDataError: They are.
    """
    size = 0
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=texts, use_threads=False):
        size += sum(map(_expanded, batch.columns))
        if size > limit:
            raise _too_large(limit)


def _expanded(array: pa.Array) -> int:
    """Return the bytes that the texts of an array take without dictionaries."""
    import pyarrow.compute as pc

    if isinstance(array, pa.ExtensionArray):
        return _expanded(array.storage)
    if isinstance(array, pa.DictionaryArray):
        lengths = pc.binary_length(array.dictionary).cast(pa.int64())  # pyright: ignore[reportAttributeAccessIssue] - not in the stubs
        return pc.sum(lengths.take(array.indices)).as_py() or 0  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(array, pa.StructArray):
        return sum(_expanded(array.field(number)) for number in range(array.type.num_fields))
    if isinstance(array, pa.MapArray):
        first, last = (array.offsets[place].as_py() for place in (0, -1)) if len(array) else (0, 0)
        return sum(_expanded(each.slice(first, last - first)) for each in (array.keys, array.items))
    if isinstance(array, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        return _expanded(array.flatten())
    return array.nbytes


# ---- Arrow's IPC format


def check_stream(stream: bytes) -> None:
    """Refuse an IPC stream that stands for more than its own bytes: a compressed one, or one that declares too much.

    Raises:
        InvalidDataError: It does.
        pa.ArrowException: It is none.
    """
    for message in pa.ipc.MessageReader.open_stream(stream):  # which has verified the metadata of each
        data = message.metadata.to_pybytes()
        root = _follow(data, 0)
        kind = _field(data, root, 1)
        header = _field(data, root, 2)
        if kind is None or header is None:
            continue
        batch = _follow(data, header)
        if data[kind] == _DICTIONARY_BATCH:
            inner = _field(data, batch, 1)
            if inner is None:
                continue
            batch = _follow(data, inner)
        elif data[kind] != _RECORD_BATCH:
            continue
        if _field(data, batch, 3) is not None:
            raise InvalidDataError("the schema in its metadata is compressed, which export does not do")
        most = 8 * (message.body.size if message.body is not None else 0) + _FLOOR
        lengths = []
        if (length := _field(data, batch, 0)) is not None:
            lengths += struct.unpack_from("<q", data, length)
        if (nodes := _field(data, batch, 1)) is not None:
            start = _follow(data, nodes)
            (number,) = struct.unpack_from("<I", data, start)
            lengths += struct.unpack_from("<" + "q8x" * number, data, start + 4)
        if any(not 0 <= length <= most for length in lengths):
            raise InvalidDataError("the schema in its metadata declares more values than it holds")


# Of a flatbuffer: https://flatbuffers.dev/internals. The tables are Message, DictionaryBatch and RecordBatch of
# https://github.com/apache/arrow/blob/main/format/Message.fbs, whose fields have the numbers above.


def _follow(data: bytes, position: int) -> int:
    return position + struct.unpack_from("<I", data, position)[0]


def _field(data: bytes, table: int, number: int) -> int | None:
    """Return where a field of a table is; None if the table has it not."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", data, vtable)[0]:
        return None
    offset = struct.unpack_from("<H", data, vtable + 4 + 2 * number)[0]
    return table + offset if offset else None
