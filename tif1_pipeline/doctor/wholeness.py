"""Whether a database file and the entries in it are whole."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tif1_pipeline.cache.codec import Blob, verify
from tif1_pipeline.cache.failures import is_damaged
from tif1_pipeline.config import Config
from tif1_pipeline.doctor.base import Check, beside, files_of, in_mib, ok, problem, size_of, warning
from tif1_pipeline.doctor.process import holders
from tif1_pipeline.exceptions import CacheVersionError, CorruptEntryError

QUICK_SECONDS = 1.0
"""How long a quick look reads pages, and then parts."""
_MESSAGES = 20
_REMOVE = "tif1_pipeline.get_cache().clear_corrupted() removes them, and they are fetched again"
_RESTORE = (
    "End the programs that use it, then restore a backup (tif1-pipeline restore) or move the file away: what is asked "
    "for is fetched again"
)


def damage(path: Path, error: sqlite3.DatabaseError) -> Check:
    """Say what an error of SQLite means."""
    if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_NOTADB:
        return problem(
            "version",
            f"{path} is no SQLite database",
            "Move it away, or set cache_dir or cache_filename to another place; else the next use renames it",
        )
    if is_damaged(error):
        return problem("integrity", f"{path} is damaged: {error}", _RESTORE)
    return problem(
        "cache file",
        f"{path} cannot be opened: {getattr(error, 'sqlite_errorname', type(error).__name__)}: {error}",
        "Look at its permissions and at the processes named here; end them and run doctor again",
    )


def keys_where(connection: sqlite3.Connection, condition: Any) -> list[str]:
    """Return the keys for which a condition of SQLAlchemy holds, on a connection of our own."""
    import sqlalchemy as sa
    from sqlalchemy.dialects import sqlite as dialect

    from tif1_pipeline.cache.schema import ENTRIES

    query = sa.select(ENTRIES.c.key).where(condition)
    text = str(query.compile(dialect=dialect.dialect(paramstyle="named"), compile_kwargs={"literal_binds": True}))
    return [row[0] for row in connection.execute(text)]


def check_pages(path: Path, connection: sqlite3.Connection, full: bool, note: str) -> Iterator[Check]:
    """Have SQLite check the file; a quick look may end before the last page."""
    check = f"integrity_check({_MESSAGES})" if full else f"quick_check({_MESSAGES})"
    timer = threading.Timer(QUICK_SECONDS, connection.interrupt)
    if not full:
        timer.start()
    try:
        messages = [row[0] for row in connection.execute(f"PRAGMA {check}")]
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_INTERRUPT:
            raise
        yield ok("integrity", f"{path} is too large to check all its pages now: doctor --full does")
        return
    finally:
        timer.cancel()
        timer.join() if timer.ident else None  # it must not interrupt what comes next
    if messages == ["ok"]:
        yield ok("integrity", f"SQLite finds {path} whole{note}")
    else:
        lines = [line for message in messages for line in str(message).splitlines() if not line.startswith("***")]
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        yield problem(
            "integrity", f"{path} is damaged{note}: {'; '.join(lines[:3])}{more}", f"{_RESTORE}. Check the disk too"
        )


def check_parts(path: Path, connection: sqlite3.Connection, full: bool, note: str) -> Iterator[Check]:
    """Whether entries and parts belong together, and the parts are what was stored: some of them, or all."""
    from tif1_pipeline.cache.integrity import is_incomplete  # SQLAlchemy

    if incomplete := keys_where(connection, is_incomplete()):
        yield problem(
            "integrity",
            f"{len(incomplete):,} entries of {path} lack parts{note}: {_some(incomplete)}",
            f"They are misses. {_REMOVE}",
        )
    orphans = connection.execute("SELECT count(*) FROM parts WHERE entry_id NOT IN (SELECT id FROM entries)")
    if number := orphans.fetchone()[0]:
        yield problem(
            "integrity",
            f"{number:,} parts in {path} belong to no entry{note}: they take room, and nothing reads them",
            "tif1_pipeline.get_cache().clear_corrupted() removes them",
        )
    yield from _checksums(path, connection, full)


def _checksums(path: Path, connection: sqlite3.Connection, full: bool) -> Iterator[Check]:
    query = "SELECT parts.id, key, name, parts.checksum FROM parts JOIN entries ON entries.id = entry_id"
    rows = connection.execute(query + ("" if full else " ORDER BY random()")).fetchall()
    deadline = None if full else time.monotonic() + QUICK_SECONDS
    bad: dict[str, str] = {}
    size = checked = 0
    for part, key, name, checksum in rows:
        if deadline is not None and time.monotonic() > deadline:
            break
        try:
            with connection.blobopen("parts", "data", part, readonly=True) as blob:
                data = blob.read()
            verify(Blob(name, data, checksum))
            size += len(data)
        except (CorruptEntryError, sqlite3.DatabaseError) as error:
            bad[key] = str(error)
        checked += 1
    extent = "all" if checked == len(rows) else f"{checked:,} of"
    found = f"{extent} {len(rows):,} parts in {path} were read"
    if bad:
        key, error = next(iter(bad.items()))
        yield problem(
            "integrity",
            f"{len(bad):,} entries of {path} are corrupt ({found}): {_some(list(bad))}. Of {key}: {error}",
            f"{_REMOVE}. Keep cache_verify_checksum on, so that each read checks; look at the disk and the memory",
        )
    else:
        yield ok("integrity", f"{found}, {in_mib(size)}, and are what was stored")


def _some(keys: list[str]) -> str:
    return ", ".join(islice(map(str, keys), 3)) + (" …" if len(keys) > 3 else "")


def verify_all(config: Config) -> Iterator[Check]:
    """Decode every entry, as the cache's own verification does, where that changes no file."""
    paths = [path for path in files_of(config) if path.is_file()]
    if not paths:
        return
    for path in paths:
        # Opened by the cache, read-only or not, a log that was left behind gets a new index.
        if size_of(beside(path, "-wal")) and not holders(path):
            yield warning(
                "integrity",
                f"the entries of {path} were not decoded: its log was left behind, and would be changed",
                "Mend the log as said above, then run tif1-pipeline doctor --full again",
            )
            return
    from tif1_pipeline.cache import integrity
    from tif1_pipeline.cache.tiered import Tiered

    values = {name: getattr(config, name) for name in config.to_dict()}
    quiet = {"cache_readonly": True, "cache_audit_log": None, "cache_enable_metrics": False, "cache_fallback_dir": None}
    tiered = Tiered(Config(**(values | quiet)))
    try:
        found = integrity.verify(tiered)
    except CacheVersionError:  # said already
        return
    finally:
        tiered.close()
    if faults := found["corrupted_list"]:
        listed = "; ".join(f"{fault['key'] or 'the database'}: {fault['error']}" for fault in faults[:3])
        yield problem(
            "integrity",
            f"{len(faults):,} faults in {found['total_entries']:,} entries when all are decoded: {listed}",
            f"{_REMOVE}; tif1-pipeline verify lists them",
        )
    else:
        yield ok("integrity", f"all {found['total_entries']:,} entries decode")
