"""Entries as files that every tool can read: Parquet with its logical types, or JSON; and the way back.

A duration is an integer to Parquet: pandas, polars and Arrow restore it from the Arrow schema beside the data, DuckDB
shows the count of nanoseconds. What is encrypted in the cache is written in clear.
"""

import base64
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pyarrow as pa
import sqlalchemy as sa

from tif1_pipeline.cache import archive, codec, importing, tree
from tif1_pipeline.cache.archive import make_folder
from tif1_pipeline.cache.backup import out_of_reach
from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.cache.connection import FILE_MODE, sync_folder
from tif1_pipeline.cache.files import File
from tif1_pipeline.cache.names import Resolve
from tif1_pipeline.cache.notes import NOTES, notes_of
from tif1_pipeline.cache.schema import ENTRIES
from tif1_pipeline.cache.store import Loaded
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.exceptions import CacheError, CacheVersionError, CorruptEntryError, Tif1Error
from tif1_pipeline.progress import progress

_TRIES = 5
"""How often an entry is begun anew that is replaced while it is read."""
_PARTIAL = re.compile(r"\.tif1_export-[0-9a-f]{32}\.partial")
_LISTED = 20
"""Entries that an error names in words; its details name all."""


def import_(tiered: Tiered, dir: str | Path, resolve: Resolve) -> int:
    """Read an exported tree; returns the number of entries stored.

    An entry that is newer than its file stays, and is not counted; of several files of one entry the newest is stored.
    Files that no export has written always replace what is stored.

    Raises:
        InvalidDataError: Names the files that could not be read; the others are stored.
        CacheError: The cache cannot be written.
    """
    return importing.import_tree(tiered, Path(dir).expanduser(), resolve)


def export(tiered: Tiered, dir: str | Path) -> int:
    """Write every entry to a file of its own; returns their number.

    Files that a former export has written to the folder are removed if their entries are not there any more, once all
    entries are written; files of others stay.

    Raises:
        CorruptEntryError: Names the entries that cannot be read; the others are written.
        CacheError: Names the entries that cannot be written, too; or the cache cannot be read, or the folder not
            written.
    """
    folder = Path(dir).expanduser()
    started = time.time()
    is_whole = out_of_reach(tiered) is None
    found, size = _keys(tiered)
    paths = tree.Paths()
    written: list[PurePosixPath] = []
    failed: dict[str, Exception] = {}
    try:
        make_folder(folder)
        _remove_abandoned(folder)
        # Roughly: files that are replaced make room.
        replaced = sum(path.lstat().st_size for path in importing.files_of(folder))
        archive.require_room(folder, max(0, size - replaced), "the export")
        with progress("Exporting entries", sum(map(len, found.values()))) as advance:
            for file, keys in found.items():
                with _little_memory(tiered, file):
                    for key in keys:
                        try:
                            if (place := _export(tiered, file, key, folder, paths)) is not None:
                                written.append(place)
                        except CacheVersionError:
                            raise
                        except (Tif1Error, *_UNWRITABLE) as error:
                            failed[key] = error
                        advance(1)
        for parent in {folder / parent for place in written for parent in place.parents}:
            sync_folder(parent)
        if is_whole and not failed:
            _remove_stale(folder, written, started)
    except OSError as error:
        raise CacheError(
            f"the export to {folder} failed: {error}. If it is full, free some space there or name another folder",
            path=str(folder),
        ) from error
    if failed:
        raise _failure(len(written), failed)
    return len(written)


_UNWRITABLE = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, pa.ArrowKeyError, pa.ArrowIndexError)
"""What Arrow raises for a table that it cannot write; its other errors are of the disk or of the memory."""


def _failure(written: int, failed: dict[str, Exception]) -> CacheError:
    reasons = {key: error.message if isinstance(error, Tif1Error) else str(error) for key, error in failed.items()}
    listed = "; ".join(f"{key}: {reason}" for key, reason in list(reasons.items())[:_LISTED])
    if len(reasons) > _LISTED:
        listed += f"; and {len(reasons) - _LISTED} more"
    if all(map(_is_damage, failed.values())):
        return CorruptEntryError(
            f"{written} entries are exported, {len(failed)} cannot be read: {listed}", keys=reasons
        )
    return CacheError(f"{written} entries are exported, {len(failed)} could not be: {listed}", keys=reasons)


def _is_damage(error: Exception) -> bool:
    return isinstance(error, CorruptEntryError) or (
        isinstance(error, CacheError) and "damaged" in str(error.details.get("cause", ""))
    )


def _remove_abandoned(folder: Path) -> None:
    """Remove the unfinished files of exports that were killed."""
    import fcntl

    with archive.locked(folder):  # nobody may take a new one for an abandoned one before it is locked
        for parent, _, names in os.walk(folder):
            for name in filter(_PARTIAL.fullmatch, names):
                with suppress(OSError):  # it is locked: its maker is at work; or it is gone
                    descriptor = os.open(Path(parent, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        Path(parent, name).unlink()
                    finally:
                        os.close(descriptor)


def _remove_stale(folder: Path, written: Sequence[PurePosixPath], started: float) -> None:
    """Remove what former exports have written and this one has not."""
    # Not by name: it may be the same file in upper and in lower case.
    kept = {(status.st_dev, status.st_ino) for status in (folder.joinpath(place).lstat() for place in written)}
    for path in list(importing.files_of(folder)):
        with suppress(FileNotFoundError):
            status = path.lstat()
            # One that is newer than the start is of another export at work.
            if (status.st_dev, status.st_ino) in kept or status.st_mtime >= started or not stat.S_ISREG(status.st_mode):
                continue
            key = importing.exported_key(path)
            if key is None or not tree.is_place_of(PurePosixPath(path.relative_to(folder).as_posix()), key):
                continue
            path.unlink()
            with suppress(OSError):  # not empty
                for parent in path.relative_to(folder).parents[:-1]:
                    folder.joinpath(parent).rmdir()


def _keys(tiered: Tiered) -> tuple[dict[File, list[str]], int]:
    """Return the keys by file, and what is stored in all; where two files have a key, the first counts."""
    found: dict[File, list[str]] = {}
    seen: set[str] = set()
    size = 0
    for file in tiered.files():
        if file.database.exists():
            with file.database.querying() as connection:
                columns = (ENTRIES.c.key, ENTRIES.c.compressed_size)
                rows = connection.execute(sa.select(*columns).order_by(ENTRIES.c.key)).all()
            rows = [row for row in rows if row.key not in seen]
            found[file] = [row.key for row in rows]
            seen.update(found[file])
            size += sum(row.compressed_size for row in rows)
    return found, size


@contextmanager
def _little_memory(tiered: Tiered, file: File) -> Iterator[None]:
    """Read without the large page cache and mapping, which would grow to the size of what is read once only."""
    config = tiered.config
    _set_pragmas(file, cache_size=-8192, mmap_size=0)
    try:
        yield
    finally:
        with suppress(CacheError):
            _set_pragmas(file, cache_size=config.cache_cache_size, mmap_size=config.cache_mmap_size)


def _set_pragmas(file: File, **pragmas: int) -> None:
    with file.database.reading() as handle:
        for name, value in pragmas.items():
            if handle is not None:
                handle.connection.execute(f"PRAGMA {name}={value}")


def _export(tiered: Tiered, file: File, key: str, folder: Path, paths: tree.Paths) -> PurePosixPath | None:
    """Write an entry; returns its path in the folder, None if it is removed meanwhile."""
    for _ in range(_TRIES):
        first = file.store.load(key, lambda info: info.parts[:1])
        if first is None:  # removed meanwhile
            return None
        info = first.info
        suffix = ".json" if first.header is None else ".parquet"
        place = paths.of(tree.names_of(info), suffix, key)
        path = folder / place
        make_folder(path.parent)
        with _replacing(path, folder) as target:
            if first.header is None:
                _write_json(target, info, codec.decode_json(first.blobs[0], info.size_bytes))
                return place
            if _write_table(tiered, file, first, target):
                return place
            target.discard()
        paths.free(place)
    raise CacheError(f"{key} was replaced {_TRIES} times while it was exported: try again", key=key)


class _Target:
    """A file that takes its name once it is complete."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.kept = True

    def discard(self) -> None:
        self.kept = False


@contextmanager
def _replacing(path: Path, folder: Path) -> Iterator[_Target]:
    import fcntl

    partial = path.with_name(f".tif1_export-{uuid.uuid4().hex}.partial")
    with archive.locked(folder):
        descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            target = _Target(file)
            yield target
            file.flush()
            if target.kept:
                os.fsync(file.fileno())  # else a power cut could leave the name and nothing under it
                partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_json(target: _Target, info: EntryInfo, text: bytes) -> None:
    target.file.write(b'{"%s":%s,"value":%s}\n' % (NOTES.encode(), notes_of(info).encode(), text))


def _write_table(tiered: Tiered, file: File, first: Loaded, target: _Target) -> bool:
    """Write a table part by part, each a row group; False if the entry is replaced meanwhile."""
    import pyarrow.parquet as pq

    assert first.header is not None  # noqa: S101 - it is a table
    info = first.info
    splitters: list[str] | None = None
    writer: pq.ParquetWriter | None = None
    try:
        for loaded in _pieces(file, first):
            if loaded is None:
                return False
            table = codec.decode_table(loaded.header or first.header, loaded.blobs)
            if len(loaded.blobs) == 1:
                splitters = _splitters(table, loaded.blobs[0].name, splitters)
            else:
                for blob in loaded.blobs:
                    part = codec.decode_table(first.header, [blob], in_order=False)
                    splitters = _splitters(part, blob.name, splitters)
            table = _plain(table)
            if writer is None:
                writer = pq.ParquetWriter(
                    target.file,
                    table.schema,
                    compression="zstd",
                    compression_level=tiered.config.cache_compression_level,
                    # Measurements seldom repeat: looking for repetitions is half the time.
                    use_dictionary=[field.name for field in table.schema if not pa.types.is_floating(field.type)],  # pyright: ignore[reportArgumentType]
                )
            if table.num_rows:
                writer.write_table(table, row_group_size=table.num_rows)
        if writer is not None:
            header = base64.b64encode(first.header.data).decode()
            part_by = splitters[0] if splitters and info.parts != (codec.WHOLE,) else None
            writer.add_key_value_metadata(
                {NOTES: notes_of(info, parts=list(info.parts), part_by=part_by), f"{NOTES}_schema": header}
            )
    finally:
        if writer is not None:
            writer.close()
    return True


def _pieces(file: File, first: Loaded) -> Iterator[Loaded | None]:
    """Yield the parts one by one, or all at once if their rows are interleaved; None if the entry is replaced."""
    import pyarrow.parquet as pq

    names = first.info.parts
    try:
        interleaved = codec.ROW in pq.read_schema(pa.BufferReader(first.blobs[0].data)).names
    except (pa.ArrowException, OSError) as error:
        raise CorruptEntryError(f"the stored table does not decode: {error}", key=first.info.key) from error
    if interleaved and len(names) > 1:
        yield _again(file, first, names)
        return
    yield first
    for name in names[1:]:
        yield _again(file, first, (name,))


def _again(file: File, first: Loaded, names: Sequence[str]) -> Loaded | None:
    generation = first.info.generation
    loaded = file.store.load(first.info.key, lambda info: names if info.generation == generation else ())
    return loaded if loaded is not None and loaded.info.generation == generation else None


def _splitters(part: pa.Table, name: str, candidates: list[str] | None) -> list[str]:
    """Return the columns, of those that are left, that hold nothing but the part's name."""
    import pyarrow.compute as pc

    left = part.column_names if candidates is None else candidates
    if part.num_rows == 0:
        return list(left)
    kept = []
    for column in left:
        with suppress(pa.ArrowException):
            values = part.column(column)
            if pa.types.is_dictionary(values.type):
                values = values.cast(values.type.value_type)
            if [str(value) for value in values.slice(0, 1).to_pylist()] == [name] and (
                pc.count_distinct(values, mode="all").as_py() == 1  # pyright: ignore[reportAttributeAccessIssue] - not in the stubs
            ):
                kept.append(column)
    return kept


def _plain(table: pa.Table) -> pa.Table:
    """Return the table as Parquet files of others are: categories of anything but texts are plain values.

    So are those with a null among the categories, which Parquet cannot say.
    """
    for position, field in enumerate(table.schema):
        type_ = field.type
        if pa.types.is_dictionary(type_) and not (
            (pa.types.is_string(type_.value_type) or pa.types.is_large_string(type_.value_type))
            and not any(chunk.dictionary.null_count for chunk in table.column(position).chunks)
        ):
            plain = field.with_type(type_.value_type)
            table = table.set_column(position, plain, table.column(position).cast(type_.value_type))
    metadata = {name: value for name, value in (table.schema.metadata or {}).items() if name != NOTES.encode()}
    return table.replace_schema_metadata(metadata or None)
