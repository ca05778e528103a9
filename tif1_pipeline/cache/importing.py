"""Reading an exported tree, or files that somebody laid out like one.

Nothing in a file is trusted: its metadata is checked, its schema compared, the memory that it grows to is worked out
before it is taken, its rows are read in steps and validated. A file that fails is named at the end, and the others are
stored.
"""

import base64
import binascii
import json
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from tif1_pipeline.cache import bounds, codec, jsonvalue, physical, tree
from tif1_pipeline.cache.base import EntryInfo, Source
from tif1_pipeline.cache.names import Resolve, unresolved
from tif1_pipeline.cache.notes import NOTES, Notes
from tif1_pipeline.cache.store import new_info
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.datasets import DATASETS, Dataset
from tif1_pipeline.exceptions import CacheError, CacheReadOnlyError, InvalidDataError, Tif1Error
from tif1_pipeline.keys import EntryKey, SessionKey, schedule_entry
from tif1_pipeline.progress import progress

MAX_TABLE_BYTES = 4 << 30
"""Memory that one table may take: a small file can hold any number of equal rows."""
MAX_JSON_BYTES = 256 << 20
_MAX_HEADER = 64 << 20


def import_tree(tiered: Tiered, folder: Path, resolve: Resolve) -> int:
    """Store every file of a tree; returns the number of entries.

    Age, pins, source and versions of an entry are those that it was exported with; it counts as not used yet, unless
    it replaces an entry. An entry that is newer than its file stays, and is not counted; so the newest of several files
    of one entry is stored. Files without metadata of an export replace what is stored, whatever its age.

    Raises:
        InvalidDataError: Names the files that could not be read; the others are stored.
        CacheError: The cache cannot be written.
    """
    if tiered.config.cache_readonly:
        raise CacheReadOnlyError(f"{folder} cannot be imported: the setting cache_readonly is on", path=str(folder))
    if not folder.is_dir():
        raise InvalidDataError(f"{folder} is no folder: name one that export has written", path=str(folder))
    # By name, so that a table comes before its parts: it would remove them.
    files = sorted(files_of(folder), key=lambda path: unquote(str(path.with_suffix(""))))
    stored, failed = set(), {}
    if not files:
        return 0
    tiered.open()
    with progress("Importing files", len(files)) as advance, _little_memory(tiered):
        for path in files:
            relative = PurePosixPath(path.relative_to(folder).as_posix())
            try:
                if path.suffix == ".json":
                    key = _import_json(tiered, path)
                else:
                    key = _import_table(tiered, path, relative, resolve)
                if key is not None:
                    stored.add(key)
            except (InvalidDataError, *_UNREADABLE) as error:
                failed[str(relative)] = error.message if isinstance(error, Tif1Error) else f"cannot be read: {error}"
            pa.default_memory_pool().release_unused()  # else it grows with every table that is a little larger
            advance(1)
    if failed:
        listed = "; ".join(f"{name!r}: {reason}" for name, reason in failed.items())
        raise InvalidDataError(
            f"{len(stored)} entries of {folder} are stored, {len(failed)} files are not: {listed}",
            files=failed,
            stored=len(stored),
        )
    return len(stored)


@contextmanager
def _little_memory(tiered: Tiered) -> Iterator[None]:
    """Write without the large page cache: nothing that is written here is read again soon."""
    config = tiered.config

    def set_pragmas(cache_size: int, mmap_size: int) -> None:
        for file in tiered.files():
            # One that cannot be used, or is not there, is nothing to save memory on: another may stand in for it.
            with suppress(CacheError):
                if file.database.exists():
                    # Of the pool's first connection, which the writes of this thread get again.
                    with file.database.querying() as connection:
                        connection.exec_driver_sql(f"PRAGMA cache_size={cache_size}")
                        connection.exec_driver_sql(f"PRAGMA mmap_size={mmap_size}")

    set_pragmas(-8192, 0)
    pool = pa.default_memory_pool()
    # Arrow's own allocator keeps what was freed: 27 MB more at the peak of importing 13 races.
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(pool)
        set_pragmas(config.cache_cache_size, config.cache_mmap_size)


_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError)
"""What Arrow and the decoders raise for files that are not what they seem."""


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files of a tree that may hold an entry."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if name.endswith((".parquet", ".json")) and name[0] != ".")


def exported_key(path: Path) -> EntryKey | None:
    """Return what entry a file holds by its metadata; None if no export has written it."""
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".json":
            _check_file(path, MAX_JSON_BYTES)
            with path.open("rb") as file:
                if not file.read(len(NOTES) + 4).startswith(b'{"%s":' % NOTES.encode()):
                    return None
            return Notes(json.loads(path.read_bytes())[NOTES]).key
        _check_file(path, MAX_TABLE_BYTES)
        with pq.ParquetFile(path, **_PARQUET_LIMITS) as file:
            text = (file.metadata.metadata or {}).get(NOTES.encode())
        return None if text is None else Notes(text).key
    except (InvalidDataError, *_UNREADABLE):
        return None


_PARQUET_LIMITS: dict[str, Any] = {
    "thrift_string_size_limit": 2 * _MAX_HEADER,
    "thrift_container_size_limit": 1_000_000,
    "pre_buffer": False,
}


def _check_file(path: Path, limit: int) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise InvalidDataError("is no regular file")
    if status.st_size > limit:
        raise InvalidDataError(f"has {status.st_size:,} bytes, more than the {limit:,} that are read")


def _is_newer(tiered: Tiered, notes: Notes) -> bool:
    """Tell whether what is stored under the key is newer than a file."""
    stored = tiered.shard_of(notes.key.text).info(notes.key.text)
    return stored is not None and stored.created_at > notes.created_at


def _save(tiered: Tiered, notes: Notes, encoded: codec.Encoded) -> str:
    info = new_info(notes.key, encoded, notes.backend, notes.source, notes.schema_version)
    return _store(tiered, replace(info, created_at=notes.created_at, library_version=notes.library_version), encoded)


def _store(tiered: Tiered, info: EntryInfo, encoded: codec.Encoded) -> str:
    # Not by way of the memory tier: what is in use there would give way to what is imported.
    tiered.shard_of(info.key).save(info, encoded)
    tiered.memory.evict(info.key)
    tiered.memory.evict_parts(info.key)
    return info.key


# ---- JSON values


def _import_json(tiered: Tiered, path: Path) -> str | None:
    """Store a JSON value; returns its key, None if a newer one is stored."""
    _check_file(path, MAX_JSON_BYTES)
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict) or set(content) != {NOTES, "value"} or not isinstance(content[NOTES], dict):
        raise InvalidDataError("is no JSON file that export has written")
    notes = Notes(content[NOTES])
    if notes.backend != "json":
        raise InvalidDataError("its metadata says that it is a table")
    if _is_newer(tiered, notes):
        return None
    encoded = codec.encode_json(jsonvalue.dump(content["value"]), tiered.config.cache_compression_level)
    return _save(tiered, notes, encoded)


# ---- tables


def _import_table(tiered: Tiered, path: Path, relative: PurePosixPath, resolve: Resolve) -> str | None:
    """Store a table; returns its key, None if a newer one is stored."""
    import pyarrow.parquet as pq

    _check_file(path, MAX_TABLE_BYTES)
    level = tiered.config.cache_compression_level
    with pq.ParquetFile(path, **_PARQUET_LIMITS) as file:
        metadata = file.metadata.metadata or {}
        if NOTES.encode() in metadata:
            notes = Notes(metadata[NOTES.encode()])
            if notes.backend == "json":
                raise InvalidDataError("its metadata says that it is no table")
            if _is_newer(tiered, notes):
                return None
            empty = _header(metadata.get(f"{NOTES}_schema".encode()))
            bounds.check_rows(empty.schema, file.metadata.num_rows, MAX_TABLE_BYTES)
            dictionaries = {field.name for field in empty.schema if pa.types.is_dictionary(field.type)}
            table = _exact(_read(path, file, dictionaries), empty)
            part_by = notes.part_by(table.schema)
            encoded = codec.encode_table(table, level, part_by)
            if tuple(encoded.lies) != notes.parts:
                raise InvalidDataError("its rows are not split into the parts that its metadata names")
            del table
            return _save(tiered, notes, encoded)
        key, dataset = _target(relative, resolve)
        _check_names(file.schema_arrow, dataset)  # before its rows are read
        table = _as_dataset(_read(path, file, set()), dataset)
    part_by = dataset.part_by if key.part is None else None
    encoded = codec.encode_table(table, level, part_by)
    return _store(tiered, new_info(key, encoded, "arrow", Source(), dataset.schema_version), encoded)


def _read(path: Path, file: Any, dictionaries: set[str]) -> pa.Table:
    """Read a file, once it is known what it grows to; the columns that are named stay dictionaries if they are ones."""
    import pyarrow.parquet as pq

    schema = file.schema_arrow
    kept = {field.name for field in schema if field.name in dictionaries and pa.types.is_dictionary(field.type)}
    texts = bounds.check_declared(file, MAX_TABLE_BYTES, kept)
    if texts:
        with pq.ParquetFile(path, read_dictionary=texts, **_PARQUET_LIMITS) as again:
            bounds.check_texts(again, texts, MAX_TABLE_BYTES)
    batches, size = [], 0
    for batch in file.iter_batches(batch_size=bounds.BATCH_ROWS, use_threads=False):
        size += batch.nbytes
        if size > MAX_TABLE_BYTES:
            raise InvalidDataError(f"is a table of more than {MAX_TABLE_BYTES:,} bytes in memory")
        batches.append(batch)
    pa.default_memory_pool().release_unused()
    return pa.Table.from_batches(batches, schema)


def _header(text: bytes | None) -> pa.Table:
    """Return the empty table with the exact schema and categories."""
    if text is None or len(text) > _MAX_HEADER:
        raise InvalidDataError("its metadata lacks the schema that export writes")
    try:
        stream = base64.b64decode(text, validate=True)
        bounds.check_stream(stream)
        empty = physical.read_header(stream)
    except (binascii.Error, struct.error) as error:
        raise InvalidDataError(f"the schema in its metadata cannot be read: {error}") from error
    empty.validate(full=True)
    if empty.num_rows:
        raise InvalidDataError("the schema in its metadata has rows")
    return empty


def _exact(table: pa.Table, empty: pa.Table) -> pa.Table:
    """Return the table with the schema and the categories that it had in the cache."""
    if table.column_names != empty.column_names:
        raise InvalidDataError("its columns are not those of the schema in its metadata")
    table.validate(full=True)
    if not table.num_rows:
        return empty
    columns = []
    for position, field in enumerate(empty.schema):
        column = table.column(0)
        table = table.remove_column(0)  # each column is copied, and its former memory given back at once
        try:
            columns.append(_contiguous(_exact_column(column, empty.column(position)), field.type))
        except (pa.ArrowException, ValueError) as error:
            raise InvalidDataError(f"its column {field.name!r} is not of type {field.type}: {error}") from error
        pa.default_memory_pool().release_unused()
    return pa.Table.from_arrays(columns, schema=empty.schema)


def _exact_column(column: pa.ChunkedArray, empty: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    type_ = empty.type
    if not pa.types.is_dictionary(type_):
        return column if column.type == type_ else column.cast(type_)
    values = empty.chunk(0).dictionary if empty.num_chunks else pa.array([], type_.value_type)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    chunks = []
    for chunk in column.chunks:
        numbers = pc.index_in(chunk.dictionary.cast(type_.value_type), value_set=values)  # pyright: ignore[reportAttributeAccessIssue] - not in the stubs
        indices = numbers.take(chunk.indices).cast(type_.index_type)
        if indices.null_count != chunk.null_count:
            raise ValueError("it holds a value that is none of its categories")
        chunks.append(pa.DictionaryArray.from_arrays(indices, values, ordered=type_.ordered))
    return pa.chunked_array(chunks, type_)


def _contiguous(column: pa.ChunkedArray, type_: pa.DataType) -> pa.Array:
    """Return a column in one piece, without the masks that Parquet adds where nothing is null."""
    # With an empty piece, so that a single one is copied too: into memory of just its size.
    empty = column.chunk(0)[:0] if column.num_chunks else pa.array([], type_)
    return pa.concat_arrays([*column.chunks, empty])


# ---- files without metadata


def _target(path: PurePosixPath, resolve: Resolve) -> tuple[EntryKey, Dataset]:
    """Return the key and the dataset of a file by its path."""
    place = tree.place_of(path)
    dataset = DATASETS.get(place.data_type) if place else None
    if place is None or dataset is None or (dataset.level == "season") != (place.event is None):
        raise InvalidDataError(
            "has no metadata of tif1_pipeline, and its path is none of {year}/schedule.parquet, "
            f"{{year}}/{{event}}/{{session}}/{{type}}.parquet with a type of {', '.join(DATASETS)}"
        )
    if place.event is None:
        return schedule_entry(place.year), dataset
    entry = _session(place, resolve).entry(dataset.name)
    return (entry if place.part is None else entry.of_part(place.part)), dataset


def _session(place: tree.Place, resolve: Resolve) -> SessionKey:
    try:
        year, event, session_type = tree.spoken(place)
        try:
            return resolve(year, event, session_type)
        except Tif1Error:  # a session that the calendar does not know can be stored all the same
            return unresolved(year, event, session_type)
    except Tif1Error as error:
        raise InvalidDataError(error.message) from error


def _check_names(schema: pa.Schema, dataset: Dataset) -> None:
    names = dataset.schema.names
    if missing := [name for name in names if name not in schema.names]:
        raise InvalidDataError(f"lacks the columns {', '.join(missing)} of {dataset.name}")
    if strange := [name for name in schema.names if name not in names]:
        raise InvalidDataError(f"has the columns {', '.join(map(repr, strange))[:500]}, which {dataset.name} has not")


def _as_dataset(table: pa.Table, dataset: Dataset) -> pa.Table:
    """Return a table with the dataset's columns, in its order and of its types.

    Raises:
        InvalidDataError: A column is of another type, or lacks values that a row cannot do without.
    """
    table.validate(full=True)
    columns, fields = [], []
    for field in dataset.schema:
        column = table.column(field.name)
        type_ = field.type
        if pa.types.is_floating(type_) and pa.types.is_floating(column.type):
            type_ = column.type  # the setting telemetry_dtype chooses
        elif column.type != type_ and _kind(column.type) != _kind(type_):
            raise InvalidDataError(f"its column {field.name!r} is of type {column.type}, not {type_}")
        if field.name in dataset.required and column.null_count:
            raise InvalidDataError(f"its column {field.name!r} lacks {column.null_count} values")
        try:
            columns.append(_contiguous(_cast(column, type_), type_))
        except (pa.ArrowException, ValueError) as error:
            raise InvalidDataError(f"its column {field.name!r} cannot be of type {type_}: {error}") from error
        fields.append(field.with_type(type_))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields, dataset.schema.metadata))


def _cast(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(type_):
        plain = column.cast(type_.value_type)
        return pa.chunked_array([plain.combine_chunks().dictionary_encode()]).cast(type_)
    return column if column.type == type_ else column.cast(type_)


def _kind(type_: pa.DataType) -> str:
    """Tell what values of a type are; those of one kind are converted to each other if none is changed."""
    if pa.types.is_dictionary(type_):
        return _kind(type_.value_type)
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return "text"
    if pa.types.is_integer(type_):
        return "integer"
    if pa.types.is_duration(type_):
        return "duration"
    if pa.types.is_timestamp(type_):
        return "moment" if type_.tz else "local moment"
    return str(type_)
