"""The tables of a cache file, in SQLAlchemy Core; imported by the first write, never by a read."""

import time

import sqlalchemy as sa

from tif1_pipeline.cache.connection import APPLICATION_ID, LAYOUT_VERSION

METADATA = sa.MetaData()

ENTRIES = sa.Table(
    "entries",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("year", sa.Integer),
    sa.Column("event", sa.Text),
    sa.Column("session_type", sa.Text),
    sa.Column("data_type", sa.Text, nullable=False),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("accessed_at", sa.Float, nullable=False),
    sa.Column("access_count", sa.Integer, nullable=False),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("compressed_size", sa.Integer, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("parts", sa.Text, nullable=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("library_version", sa.Text, nullable=False),
    sa.Column("format_version", sa.Integer, nullable=False),
    sa.Column("source_url", sa.Text),
    sa.Column("etag", sa.Text),
    sa.Column("last_modified", sa.Text),
    sa.Column("checksum", sa.Text, nullable=False),
    sa.Column("pinned", sa.Boolean, nullable=False),
    sa.Column("generation", sa.Text, nullable=False),
    sa.Column("encryption", sa.Text),
    sa.Index("entries_accessed_at", "accessed_at"),
    sa.Index("entries_created_at", "created_at"),
    sa.Index("entries_data_type", "data_type"),
    sa.Index("entries_size", "compressed_size"),
    sa.Index("entries_session", "year", "event", "session_type"),
)

PARTS = sa.Table(
    "parts",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("entry_id", sa.ForeignKey("entries.id", ondelete="CASCADE"), nullable=False),
    sa.Column("ordinal", sa.Integer, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("checksum", sa.Text, nullable=False),
    # Last, so that reading the columns before it never touches the pages of the blob.
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Index("parts_entry", "entry_id", "ordinal", unique=True),
)

LEASES = sa.Table(
    "leases",
    METADATA,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
)

CACHE_METADATA = sa.Table(
    "cache_metadata",
    METADATA,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)


MIGRATIONS: dict[int, tuple[str, ...]] = {
    # Blobs can be encrypted; those of former files are not.
    1: ("ALTER TABLE entries ADD COLUMN encryption TEXT",),
}
"""What makes a file of one layout one of the next."""


def create_tables(connection: sa.Connection) -> None:
    """Create the tables and mark the file as ours, or bring it from a former layout to this one.

    Within the caller's transaction, which holds the write lock: whoever comes second finds it done.
    """
    layout = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if layout:
        _migrate(connection, layout)
        return
    METADATA.create_all(connection, checkfirst=False)
    connection.execute(
        CACHE_METADATA.insert(),
        [{"key": "version", "value": str(LAYOUT_VERSION)}, {"key": "created_at", "value": repr(time.time())}],
    )
    connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
    connection.exec_driver_sql(f"PRAGMA user_version={LAYOUT_VERSION}")


def _migrate(connection: sa.Connection, layout: int) -> None:
    for former in range(layout, LAYOUT_VERSION):
        for statement in MIGRATIONS[former]:
            connection.exec_driver_sql(statement)
    if layout < LAYOUT_VERSION:
        connection.execute(sa.update(CACHE_METADATA).filter_by(key="version").values(value=str(LAYOUT_VERSION)))
        connection.exec_driver_sql(f"PRAGMA user_version={LAYOUT_VERSION}")
