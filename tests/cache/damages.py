"""Damages that several tests do to cache files."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest


def asking_for_memory(content: bytes, folder: Path) -> bytes:
    """Return a file of 4 KiB pages with such a length in its schema that SQLite speaks of a lack of memory."""
    damaged, path = bytearray(content), folder / "asking"
    at = damaged.index(b"indexsqlite_autoindex_")
    damaged[at - 8 : at + 11] = b"\xff" * 19
    path.write_bytes(damaged)
    with closing(sqlite3.connect(path)) as connection, pytest.raises(MemoryError):
        connection.execute("PRAGMA synchronous=NORMAL")
    return bytes(damaged)
