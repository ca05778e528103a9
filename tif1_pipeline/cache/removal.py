"""Removing many entries: in bounded batches, so that other processes get their turn to write."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import sqlalchemy as sa

from tif1_pipeline.cache import audit
from tif1_pipeline.cache.files import File
from tif1_pipeline.cache.schema import ENTRIES
from tif1_pipeline.cache.tiered import Tiered

BATCH_BYTES = 64 << 20
"""Stored bytes that one transaction removes at most, one entry aside."""
BATCH_ENTRIES = 500


class Removed(NamedTuple):
    """What was removed."""

    key: str
    compressed_size: int


def remove_where(tiered: Tiered, condition: sa.ColumnElement[bool]) -> list[Removed]:
    """Remove the entries of all files that a condition on :data:`ENTRIES` holds for.

    Raises:
        CacheError: A file cannot be used, or could not be reached while another stands in for it.
    """
    removed: list[Removed] = []
    files = tiered.files()
    for file in files:
        if file.database.exists():
            with file.database.querying() as connection:
                found = connection.execute(
                    sa.select(ENTRIES.c.id, ENTRIES.c.key, ENTRIES.c.generation, ENTRIES.c.compressed_size).where(
                        condition
                    )
                ).all()
            removed += _remove(tiered, file, [tuple(row) for row in found])
    for shard in tiered.shards():
        shard.check_complete(files, len(removed))
    return removed


def remove_chosen(
    tiered: Tiered, file: File, chosen: Iterable[tuple[str, str]], on_done: Callable[[int], None] = lambda _: None
) -> list[Removed]:
    """Remove entries of one file, each only if it is still of the generation that was looked at.

    Args:
        tiered: The cache.
        file: The file they are in.
        chosen: Key and generation of each.
        on_done: Told how many were removed after each batch.
    """
    wanted = dict(chosen)
    if not wanted or not file.database.exists():
        return []
    columns = (ENTRIES.c.id, ENTRIES.c.key, ENTRIES.c.generation, ENTRIES.c.compressed_size)
    keys = list(wanted)
    rows = []
    with file.database.querying() as connection:
        for start in range(0, len(keys), BATCH_ENTRIES):
            query = sa.select(*columns).where(ENTRIES.c.key.in_(keys[start : start + BATCH_ENTRIES]))
            rows += [tuple(row) for row in connection.execute(query) if wanted[row.key] == row.generation]
    order = {key: number for number, key in enumerate(keys)}
    rows.sort(key=lambda row: order[row[1]])
    return _remove(tiered, file, rows, on_done)


def _remove(
    tiered: Tiered,
    file: File,
    rows: list[tuple[int, str, str, int]],
    on_done: Callable[[int], None] = lambda _: None,
) -> list[Removed]:
    removed: list[Removed] = []
    batch: list[tuple[int, str, str, int]] = []
    size = 0
    for number, row in enumerate(rows, 1):
        batch.append(row)
        size += row[3]
        if size < BATCH_BYTES and len(batch) < BATCH_ENTRIES and number < len(rows):
            continue
        done = _remove_batch(file, batch)
        for item in done:
            tiered.memory.evict(item.key)
            audit.record(tiered.config, "remove", item.key, bytes=item.compressed_size)
        removed += done
        on_done(len(done))
        batch, size = [], 0
    return removed


def _remove_batch(file: File, batch: list[tuple[int, str, str, int]]) -> list[Removed]:
    removed = []
    # An entry that was replaced since it was looked at has another id and generation: it stays.
    statement = sa.delete(ENTRIES).where(
        ENTRIES.c.id == sa.bindparam("of_id"), ENTRIES.c.generation == sa.bindparam("of_gen")
    )
    with file.database.writing() as connection:
        for id_, key, generation, size in batch:
            if connection.execute(statement, {"of_id": id_, "of_gen": generation}).rowcount:
                removed.append(Removed(key, size))
    return removed
