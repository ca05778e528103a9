"""What a cleanup works on: the entries of the files, or for a rehearsal a copy of what the tables say of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import sqlalchemy as sa

from tif1_pipeline.cache import removal
from tif1_pipeline.cache.database import Database
from tif1_pipeline.cache.removal import Removed
from tif1_pipeline.cache.schema import ENTRIES, METADATA, PARTS
from tif1_pipeline.cache.tiered import Tiered

_ROWS = 1000


class Cleaned(int):
    """How many entries a cleanup has removed, or would remove, and which.

    Args:
        removed: The entries.

    Attributes:
        removed: Key and stored size of each, in the order in which they go.
    """

    removed: tuple[Removed, ...]

    def __new__(cls, removed: Iterable[Removed] = ()) -> Self:  # noqa: D102 - see the class
        given = tuple(removed)
        cleaned = super().__new__(cls, len(given))
        cleaned.removed = given
        return cleaned

    @property
    def bytes(self) -> int:
        """The sum of the stored sizes."""
        return sum(item.compressed_size for item in self.removed)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.removed,)


@dataclass(frozen=True)
class Shelf:
    """One file's entries.

    Attributes:
        querying: A read transaction.
        remove: Removes entries by key and generation.
    """

    querying: Callable[[], AbstractContextManager[sa.Connection]]
    remove: Callable[[Sequence[tuple[str, str]]], list[Removed]]


@dataclass(frozen=True)
class Stock:
    """The entries of a cache.

    Attributes:
        shelves: The files that there are now.
        remove_where: Removes the entries that a condition holds for.
    """

    shelves: Callable[[], list[Shelf]]
    remove_where: Callable[[sa.ColumnElement[bool]], list[Removed]]


@contextmanager
def of(tiered: Tiered, *, rehearse: bool) -> Iterator[Stock]:
    """Give the entries themselves, or for a rehearsal a copy of their metadata in memory, as of now."""
    if rehearse:
        copies = []
        try:
            for file in tiered.files():
                if file.database.exists():
                    copies.append(_Copy())
                    copies[-1].fill(file.database)
            shelves = [Shelf(copy.engine.connect, copy.remove) for copy in copies]
            yield Stock(lambda: shelves, lambda where: [item for copy in copies for item in copy.remove_where(where)])
        finally:
            for copy in copies:
                copy.engine.dispose()
    else:
        yield Stock(lambda: _shelves(tiered), lambda condition: removal.remove_where(tiered, condition))


def _shelves(tiered: Tiered) -> list[Shelf]:
    return [
        Shelf(file.database.querying, lambda chosen, file=file: removal.remove_chosen(tiered, file, chosen))
        for file in tiered.files()
        if file.database.exists()
    ]


class _Copy:
    """The tables of one file without the blobs."""

    def __init__(self) -> None:
        self.engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
        METADATA.create_all(self.engine, [ENTRIES, PARTS])

    def fill(self, database: Database) -> None:
        with database.querying() as live, self.engine.begin() as copy:
            for table in (ENTRIES, PARTS):
                names = [column.name for column in table.columns]
                # As they are: what is no value of its column's type is compared as it would be in the file.
                wanted = ", ".join("x''" if name == "data" else name for name in names)
                found = live.exec_driver_sql(f"SELECT {wanted} FROM {table.name}")  # noqa: S608 - constants
                insert = f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(names))})"  # noqa: S608 - constants
                for rows in found.partitions(_ROWS):
                    copy.exec_driver_sql(insert, [tuple(row) for row in rows])

    def remove(self, chosen: Sequence[tuple[str, str]]) -> list[Removed]:
        removed = []
        for key, generation in chosen:
            removed += self.remove_where((ENTRIES.c.key == key) & (ENTRIES.c.generation == generation))
        return removed

    def remove_where(self, condition: sa.ColumnElement[bool]) -> list[Removed]:
        with self.engine.begin() as copy:
            found = copy.execute(sa.select(ENTRIES.c.key, ENTRIES.c.compressed_size).where(condition)).all()
            copy.execute(sa.delete(ENTRIES).where(condition))
        return [Removed(*row) for row in found]
