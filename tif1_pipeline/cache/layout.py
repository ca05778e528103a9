"""How a cache file is laid out: the statements that make its tables, and those that bring a former file up to date.

As text, as what changes it: to have SQLAlchemy make it of the tables in :mod:`~tif1_pipeline.cache.schema` takes 3 ms
instead of 0.6. Queries alone need those; a test compares both.
"""

import itertools
import sqlite3
import time

from tif1_pipeline.cache.connection import APPLICATION_ID, LAYOUT_VERSION

TABLES = (
    """CREATE TABLE entries (
        id INTEGER NOT NULL,
        "key" TEXT NOT NULL,
        year INTEGER,
        event TEXT,
        session_type TEXT,
        data_type TEXT NOT NULL,
        backend TEXT NOT NULL,
        created_at FLOAT NOT NULL,
        accessed_at FLOAT NOT NULL,
        access_count INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL,
        compressed_size INTEGER NOT NULL,
        rows INTEGER NOT NULL,
        parts TEXT NOT NULL,
        schema_version INTEGER NOT NULL,
        library_version TEXT NOT NULL,
        format_version INTEGER NOT NULL,
        source_url TEXT,
        etag TEXT,
        last_modified TEXT,
        checksum TEXT NOT NULL,
        pinned BOOLEAN NOT NULL,
        generation TEXT NOT NULL,
        encryption TEXT,
        PRIMARY KEY (id),
        UNIQUE ("key")
    )""",
    "CREATE INDEX entries_accessed_at ON entries (accessed_at)",
    "CREATE INDEX entries_created_at ON entries (created_at)",
    "CREATE INDEX entries_data_type ON entries (data_type)",
    "CREATE INDEX entries_session ON entries (year, event, session_type)",
    "CREATE INDEX entries_size ON entries (compressed_size)",
    # The bytes come last, so that reading the columns before them never touches their pages.
    """CREATE TABLE parts (
        id INTEGER NOT NULL,
        entry_id INTEGER NOT NULL,
        ordinal INTEGER NOT NULL,
        name TEXT NOT NULL,
        size INTEGER NOT NULL,
        checksum TEXT NOT NULL,
        data BLOB NOT NULL,
        PRIMARY KEY (id),
        FOREIGN KEY(entry_id) REFERENCES entries (id) ON DELETE CASCADE
    )""",
    "CREATE UNIQUE INDEX parts_entry ON parts (entry_id, ordinal)",
    'CREATE TABLE leases ("key" TEXT NOT NULL, owner TEXT NOT NULL, expires_at FLOAT NOT NULL, PRIMARY KEY ("key"))',
    'CREATE TABLE cache_metadata ("key" TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY ("key"))',
)

MIGRATIONS: dict[int, tuple[str, ...]] = {
    # Blobs can be encrypted; those of former files are not.
    1: ("ALTER TABLE entries ADD COLUMN encryption TEXT",),
}
"""What makes a file of one layout one of the next."""

_NOTE = 'INSERT OR REPLACE INTO cache_metadata ("key", value) VALUES (?, ?)'


def create_tables(connection: sqlite3.Connection) -> None:
    """Create the tables and mark the file as ours, or bring it from a former layout to this one.

    Within the caller's transaction, which holds the write lock: whoever comes second finds it done.
    """
    layout = connection.execute("PRAGMA user_version").fetchone()[0]
    if layout == LAYOUT_VERSION:
        return
    steps = [MIGRATIONS[former] for former in range(layout, LAYOUT_VERSION)] if layout else [TABLES]
    for statement in itertools.chain(*steps):
        connection.execute(statement)
    connection.execute(_NOTE, ("version", str(LAYOUT_VERSION)))
    if not layout:
        connection.execute(_NOTE, ("created_at", repr(time.time())))
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={LAYOUT_VERSION}")
