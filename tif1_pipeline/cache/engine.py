"""SQLAlchemy's engine of a cache file, for writes and for queries over many entries."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.event import listens_for

from tif1_pipeline.cache import connection as sqlite
from tif1_pipeline.cache.connection import Identity, Settings
from tif1_pipeline.cache.turns import begin
from tif1_pipeline.cache.turnstile import Turnstile


def make_engine(settings: Settings, identity: Identity | None, size: int) -> sa.Engine:
    """Return an engine whose transactions begin as the execution options ``begin``, ``lock_seconds`` and ``since`` say.

    Args:
        settings: Of the file.
        identity: Of the file, where it is opened read-only.
        size: Connections at most.
    """
    engine = sa.create_engine(
        sa.URL.create("sqlite"),  # of a text SQLAlchemy compiles a pattern first: 0.4 ms
        creator=lambda: sqlite.connect(settings, identity),
        poolclass=sa.QueuePool,
        pool_size=size,
        max_overflow=0,
        pool_timeout=settings.lock_timeout,
    )

    turnstile = Turnstile(settings.path.parent)

    @listens_for(engine, "begin")
    def _(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        driver: Any = connection.connection.driver_connection
        # Taking the write lock at once: a transaction that starts as a reader can fail when it turns into a writer.
        statement = options.get("begin", "BEGIN IMMEDIATE")
        is_writer = statement == "BEGIN IMMEDIATE"
        begin(driver, statement, options["lock_seconds"], turnstile if is_writer else None, options.get("since"))

    return engine
