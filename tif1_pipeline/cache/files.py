"""One SQLite file of a cache, and everything that works on it."""

from tif1_pipeline.cache.database import Database
from tif1_pipeline.cache.flight import Leases
from tif1_pipeline.cache.store import Store
from tif1_pipeline.cache.usage import Usage


class File:
    """One SQLite file.

    Args:
        database: Its connections.

    Attributes:
        database: The same.
        store: Entries, one at a time.
        usage: Counters and access times.
        leases: Who fetches what.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.store = Store(database)
        self.usage = Usage(database)
        self.leases = Leases(database)

    def close(self) -> None:
        """Write down what is pending and close the connections; the next use opens them again."""
        self.usage.close()
        self.database.close()

    def forget_inherited(self) -> None:
        """Start anew after a fork."""
        self.database.forget_inherited()
        self.usage.forget_inherited()
