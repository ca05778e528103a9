"""Arrow tables as Parquet can keep them exactly, and back.

Parquet cannot say everything that Arrow can: it forgets the order and the unused values of dictionaries, widens seconds
to milliseconds, and knows no durations. So what it is given is the physical table (plain numbers, texts, nested
values), and the exact Arrow schema travels beside with the dictionaries, as an empty Arrow IPC stream.
"""

from collections.abc import Container, Sequence

import pyarrow as pa


def physical_type(type_: pa.DataType) -> pa.DataType:
    """Return as what values of a type are kept in Parquet."""
    if isinstance(type_, pa.BaseExtensionType):
        return physical_type(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return type_.index_type
    if (
        pa.types.is_duration(type_)
        or pa.types.is_timestamp(type_)
        or pa.types.is_time64(type_)
        or pa.types.is_date64(type_)
    ):
        return pa.int64()
    if pa.types.is_time32(type_) or pa.types.is_date32(type_):
        return pa.int32()
    return type_


def _physical_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    type_ = column.type
    if isinstance(type_, pa.BaseExtensionType):
        return _physical_column(_storage(column))
    if pa.types.is_dictionary(type_):
        return pa.chunked_array([chunk.indices for chunk in column.chunks], type_.index_type)
    target = physical_type(type_)
    return column if target == type_ else _view(column, target)


def _storage(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)


def _view(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    # A cast would do the same through the compute engine, at twenty times the cost.
    return pa.chunked_array([chunk.view(type_) for chunk in column.chunks], type_)


def to_physical(table: pa.Table, nullable: Container[str] = ()) -> pa.Table:
    """Return a table of the types that Parquet keeps; its dictionaries must be unified.

    Args:
        table: The exact one.
        nullable: Columns that are to be nullable, beside those that have nulls.
    """
    columns = [_physical_column(column) for column in table.columns]
    fields = [
        # Without nulls nothing needs to be said about them: a fifth less time to read.
        pa.field(name, column.type, nullable=name in nullable or column.null_count > 0 or is_odd(column.type))
        for name, column in zip(table.column_names, columns, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def with_own_nulls(part: pa.Table) -> pa.Table:
    """Return a part of a physical table, with floats nullable only if it has nulls itself.

    Of whole numbers all parts say the same: what they become in pandas depends on it.
    """
    return pa.Table.from_arrays(
        part.columns,
        schema=pa.schema(
            field.with_nullable(column.null_count > 0) if _is_float(field) else field
            for field, column in zip(part.schema, part.columns, strict=True)
        ),
    )


def are_alike(one: pa.Schema, other: pa.Schema) -> bool:
    """Tell whether two stored parts may be of one table: as :func:`with_own_nulls` leaves them."""
    return one.equals(other) or _with_nullable_floats(one).equals(_with_nullable_floats(other))


def joined(parts: Sequence[pa.Table]) -> pa.Table:
    """Return stored parts as one physical table.

    Raises:
        pa.ArrowException: They are not of one table.
    """
    if any(not part.schema.equals(parts[0].schema) for part in parts):
        parts = [pa.Table.from_arrays(part.columns, schema=_with_nullable_floats(part.schema)) for part in parts]
    return pa.concat_tables(parts)


def _with_nullable_floats(schema: pa.Schema) -> pa.Schema:
    return pa.schema(field.with_nullable(True) if _is_float(field) else field for field in schema)


def _is_float(field: pa.Field) -> bool:
    return pa.types.is_float32(field.type) or pa.types.is_float64(field.type)


def write_header(table: pa.Table) -> bytes:
    """Return schema and dictionaries; the parts hold numbers only."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_batch(empty_batch(table))
    return sink.getvalue().to_pybytes()


def read_header(header: bytes) -> pa.Table:
    """Return the empty table with schema and dictionaries.

    Raises:
        pa.ArrowException: It is none.
    """
    empty = pa.ipc.open_stream(header).read_all()
    if empty.num_rows:
        raise pa.ArrowInvalid(f"a header has {empty.num_rows} rows")
    # What has offsets is made anew: Arrow checks those of rows alone, and ends the process where it follows others.
    for position, type_ in enumerate(empty.schema.types):
        if pa.types.is_primitive(type_):
            continue
        column = empty.column(position)
        if not pa.types.is_dictionary(type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_):
            empty = empty.set_column(position, empty.field(position), pa.chunked_array([], type_))
        elif column.num_chunks:
            _check_dictionary(column.chunk(0))
    return empty


def _check_dictionary(array: pa.Array) -> None:
    values = (array.storage if isinstance(array.type, pa.BaseExtensionType) else array).dictionary
    values.validate()  # 1 µs; len() of a length below zero is a SystemError
    if not len(values) or pa.types.is_nested(values.type):
        values.validate(full=True)
        _check_starts(values)


def _check_starts(array: pa.Array) -> None:
    """Check of texts and lists without rows, also within others, that they begin at the first of their values."""
    type_ = array.type
    if isinstance(type_, pa.BaseExtensionType):
        _check_starts(array.storage)
    elif pa.types.is_dictionary(type_):
        _check_starts(array.dictionary)
    elif pa.types.is_struct(type_):
        for number in range(type_.num_fields):
            _check_starts(array.field(number))
    elif pa.types.is_fixed_size_list(type_):
        _check_starts(array.values)
    elif not pa.types.is_primitive(type_) and not pa.types.is_null(type_):
        offsets = array.buffers()[1]
        if not len(array) and offsets is not None and any(offsets.to_pybytes()):
            raise pa.ArrowInvalid(f"no {type_} begins where it has no values")
        if pa.types.is_nested(type_):
            _check_starts(array.values)


def empty_batch(table: pa.Table) -> pa.RecordBatch:
    """Return no rows of a table, but its dictionaries."""
    arrays = [column.chunk(0)[:0] if column.num_chunks else pa.array([], column.type) for column in table.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=table.schema)


def to_logical(physical: pa.Table, empty: pa.Table) -> pa.Table:
    """Return the table that was made physical, given the empty one of its header."""
    if not physical.num_rows:  # it may come without chunks, and then without dictionaries
        return empty
    check_texts(physical)
    columns = [_logical_column(physical.column(name), empty.column(name)) for name in empty.column_names]
    return pa.Table.from_arrays(columns, schema=empty.schema)


def check_texts(table: pa.Table) -> None:
    """Check that texts, also within lists and structures, are UTF-8; some µs, numbers can hold anything.

    Raises:
        pa.ArrowInvalid: They are not: their reader would fail, at the first use of them.
    """
    for column in table.columns:
        if not pa.types.is_primitive(column.type):
            column.validate(full=True)


def _logical_column(column: pa.ChunkedArray, empty: pa.ChunkedArray) -> pa.ChunkedArray:
    type_ = empty.type
    if isinstance(type_, pa.BaseExtensionType):
        storage = _logical_column(column, _storage(empty))
        return pa.chunked_array([pa.ExtensionArray.from_storage(type_, chunk) for chunk in storage.chunks], type_)
    if pa.types.is_dictionary(type_):
        values = empty.chunk(0).dictionary if empty.num_chunks else pa.array([], type_.value_type)
        chunks = [pa.DictionaryArray.from_arrays(chunk, values, ordered=type_.ordered) for chunk in column.chunks]
        return pa.chunked_array(chunks, type_)
    if column.type == type_:
        return column
    return _view(column, type_) if column.type == physical_type(type_) else column.cast(type_)


def is_odd(type_: pa.DataType) -> bool:
    """Tell whether it is not known of all values of a type that Parquet keeps them."""
    physical = physical_type(type_)
    return not (
        pa.types.is_integer(physical)
        or pa.types.is_floating(physical)
        or pa.types.is_boolean(physical)
        or pa.types.is_string(physical)
        or pa.types.is_large_string(physical)
    )
