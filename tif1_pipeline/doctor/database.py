"""The database files: who has them open, whether they are caches of this version, whole and plausible."""

import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from tif1_pipeline.cache import connection as sqlite
from tif1_pipeline.cache.connection import JOURNAL_LIMIT, LAYOUT_VERSION
from tif1_pipeline.cache.flight import LEASE_SECONDS
from tif1_pipeline.cache.shards import shard_of
from tif1_pipeline.config import Config
from tif1_pipeline.doctor.base import Check, beside, files_of, in_mib, ok, problem, size_of, warning
from tif1_pipeline.doctor.opening import has_unread_log, open_readonly, steadily
from tif1_pipeline.doctor.process import Process, holders, writers
from tif1_pipeline.doctor.settings import keyring_or_none
from tif1_pipeline.doctor.wholeness import check_pages, check_parts, damage, keys_where
from tif1_pipeline.exceptions import CacheVersionError

CLOCK_SECONDS = 300.0
"""So far may the clocks of two machines differ."""
_DAY = 86400.0
_FRAME_HEADER = 24


def examine(config: Config, path: Path, full: bool, sources: list[tuple[int, str]]) -> Iterator[Check]:
    """Look at one file of the cache.

    Args:
        config: Settings.
        path: The file.
        full: Read everything rather than for a second or two.
        sources: Gets season and address of files of the CDN that were stored, to be asked for again.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        if path == config.cache_path and not config.cache_readonly:
            yield ok("cache file", f"there is none at {path} yet: the first write makes it")
        return
    except OSError:  # the folder cannot be looked into, or is none: that has its own check
        return
    if not stat.S_ISREG(status.st_mode):
        yield problem(
            "cache file", f"{path} is no file", "Move it away, or set cache_dir or cache_filename to another place"
        )
        return
    users = holders(path)
    yield from _users(path, users)
    yield from _lock(path)
    yield from _log(config, path, users)
    if not os.access(path, os.R_OK):  # said by the check of the folder
        return
    try:
        yield from steadily(path, lambda connection: list(_content(config, path, connection, full, sources)))
    except sqlite3.DatabaseError as error:
        yield damage(path, error)


# ---- who has it open


def _users(path: Path, users: list[Process] | None) -> Iterator[Check]:
    if users is None:
        yield ok("open files", f"who has {path} open cannot be told on this system")
    else:
        listed = ", ".join(str(user) for user in users[:5]) + (" …" if len(users) > 5 else "")
        yield ok("open files", f"{path} is open in {len(users)} processes" + (f": {listed}" if users else ""))


def _lock(path: Path) -> Iterator[Check]:
    holding = writers(path)
    if holding:
        yield problem(
            "lock",
            f"{path} is locked: {', '.join(map(str, holding))} holds the write lock for more than a second. Nobody "
            "else can write, and gives up after cache_lock_timeout",
            "If it is at work (a vacuum, a restore, a long transaction), let it end; if it hangs, end it: "
            + " ".join(f"kill {holder.pid}" for holder in holding),
        )
    elif holding is not None:
        yield ok("lock", f"nobody keeps the write lock of {path}")


def _log(config: Config, path: Path, users: list[Process] | None) -> Iterator[Check]:
    wal, journal = size_of(beside(path, "-wal")) or 0, size_of(beside(path, "-journal")) or 0
    if journal and users == []:
        yield warning(
            "log",
            f"{beside(path, '-journal')} holds {in_mib(journal)} of a write that a crash interrupted",
            "Open the cache once, which takes that write back: tif1-pipeline stats. Do not delete the journal: the "
            "file would stay half written",
        )
    pages = wal // (config.cache_page_size + _FRAME_HEADER)
    found = f"{beside(path, '-wal')} holds {in_mib(wal)}, about {pages:,} pages"
    if wal and users == []:
        yield warning(
            "log",
            f"{found}, and no process has the file open: the last one crashed or was killed",
            "Nothing is lost. Open the cache once, which writes the log back: tif1-pipeline optimize --checkpoint. "
            "Do not delete the log, and copy it with the file if you copy that",
        )
    elif wal > JOURNAL_LIMIT + (1 << 20):
        who = ", ".join(map(str, users or [])) or "a process"
        yield warning(
            "log",
            f"{found}, more than the {in_mib(JOURNAL_LIMIT)} it is cut to: a reader may keep it from being "
            "written back",
            f"tif1-pipeline optimize --checkpoint; if that fails, look for a long read in {who}",
        )
    else:
        yield ok("log", found if wal else f"the log of {path} is empty")


# ---- is it a cache of this version


def _version_fault(error: CacheVersionError) -> Check:
    finding, _, remedy = error.message.partition("; nothing in it was changed")
    return problem("version", finding, remedy.lstrip(". ") or "Set cache_dir or cache_filename to another place")


def _content(
    config: Config, path: Path, connection: sqlite3.Connection, full: bool, sources: list[tuple[int, str]]
) -> Iterator[Check]:
    try:
        layout = sqlite.layout_of(connection, path)
    except CacheVersionError as error:
        yield _version_fault(error)
        return
    if not layout:
        yield ok("cache file", f"{path} has no tables yet")
        return
    note = ", as it was before its log, which the next opening writes back" if has_unread_log(path) else ""
    if layout < LAYOUT_VERSION and config.cache_readonly:
        yield problem(
            "version",
            f"{path} has the former cache layout {layout} and is not migrated while cache_readonly is on",
            "Open it once without cache_readonly",
        )
    damaged = False
    for check in check_pages(path, connection, full, note):
        damaged |= check.status == "problem"
        yield check
    try:
        yield from _entries(config, path, connection, layout, sources)
        yield from check_parts(path, connection, full, note)
    except sqlite3.DatabaseError as error:
        if not damaged:  # else it was said, in more detail
            yield damage(path, error)


def _entries(
    config: Config, path: Path, connection: sqlite3.Connection, layout: int, sources: list[tuple[int, str]]
) -> Iterator[Check]:
    number, size = connection.execute("SELECT count(*), coalesce(sum(compressed_size), 0) FROM entries").fetchone()
    yield ok("cache file", f"{path}: {number:,} entries of {in_mib(size)}, layout {layout}")
    yield from _versions(path, connection)
    if layout > 1:
        yield from _keys(config, path, connection)
    yield from _clock(path, connection)
    sources += connection.execute(
        "SELECT year, source_url FROM entries WHERE source_url LIKE '%/drivers.json' AND year IS NOT NULL "
        "ORDER BY created_at DESC LIMIT 5"
    ).fetchall()


def _versions(path: Path, connection: sqlite3.Connection) -> Iterator[Check]:
    from tif1_pipeline.cache import versions  # SQLAlchemy

    unreadable = len(keys_where(connection, ~versions._READABLE))
    newer = len(keys_where(connection, ~versions._READABLE & versions._NEWER))
    if newer:
        yield warning(
            "version",
            f"{newer:,} entries of {path} were written by a newer version of tif1_pipeline, and are misses to this one",
            "Update tif1_pipeline: pip install -U tif1_pipeline",
        )
    if unreadable > newer:
        yield warning(
            "version",
            f"{unreadable - newer:,} entries of {path} are of a format or schema that this version of tif1_pipeline "
            "does not read any more: they take room and are misses",
            "tif1_pipeline.get_cache().upgrade_version() removes them; they are fetched again when they are asked for",
        )
    if not unreadable:
        yield ok("version", f"this version reads every entry of {path}")


def _keys(config: Config, path: Path, connection: sqlite3.Connection) -> Iterator[Check]:
    keyring = keyring_or_none(config)
    query = "SELECT encryption, count(*) FROM entries WHERE encryption IS NOT NULL GROUP BY encryption"
    for key, number in connection.execute(query).fetchall():
        if keyring is None or key not in keyring:
            yield problem(
                "encryption",
                f"{number:,} entries of {path} are encrypted with the key {key}, which is not given",
                "Add that key to cache_encryption_key or cache_encryption_key_file (the first encrypts, the others "
                "decrypt); if it is lost, remove the entries, which are then fetched again",
            )


def _clock(path: Path, connection: sqlite3.Connection) -> Iterator[Check]:
    now = time.time()
    number, latest = connection.execute(
        "SELECT count(*), max(created_at) FROM entries WHERE created_at > ?", (now + CLOCK_SECONDS,)
    ).fetchone()
    if number:
        yield warning(
            "clock",
            f"{number:,} entries of {path} were stored in the future, up to {_moment(latest)}; it is {_moment(now)} "
            "here. How old they are is not known: where an age is set after which entries expire, they have",
            "Set the clock of this machine, or of the one that stored them (timedatectl); invalidate them to have "
            "them fetched again",
        )
    ahead, old = connection.execute(
        "SELECT coalesce(sum(expires_at > ?), 0), coalesce(sum(expires_at < ?), 0) FROM leases",
        (now + 2 * LEASE_SECONDS + CLOCK_SECONDS, now - _DAY),
    ).fetchone()
    if ahead:
        yield warning(
            "leases",
            f"{ahead:,} leases of {path} end far in the future, though none lasts more than {LEASE_SECONDS:g} s: a "
            "clock was wrong when they were taken",
            "Set the clock of the machines that use this cache; the leases are ignored, and replaced when needed",
        )
    if old:
        yield warning(
            "leases",
            f"{old:,} leases of {path} ended more than a day ago: processes died while they fetched",
            "Nothing has to be done: they hold up nobody, and are replaced when the same is fetched again. Find out "
            "what ends the processes (memory?)",
        )
    if not (number or ahead or old):
        yield ok("clock", f"nothing in {path} is of the future or left behind")


def _moment(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError, TypeError):
        return f"{seconds}"


# ---- shards


def shards(config: Config) -> Iterator[Check]:
    """Whether each entry is in the file that it belongs to by the settings."""
    paths = list(files_of(config))
    there = [index for index, path in enumerate(paths) if path.is_file()]
    wanted = config.cache_shards
    if not there:
        return
    fault = False
    if gaps := [path for path in paths[: there[-1]] if not path.is_file()]:
        fault = True
        yield warning(
            "shards",
            f"{', '.join(map(str, gaps))} is not there, though later files of the cache are: what was stored in it is "
            "gone",
            "Restore a backup (tif1-pipeline restore), or nothing: what is asked for is fetched again",
        )
    strays = 0
    if wanted > 1 or there[-1]:
        strays = sum(shard_of(key, wanted) != index for index in there for key in _stored_keys(paths[index]))
    if strays:
        fault = True
        yield warning(
            "shards",
            f"the cache has {len(there)} files, and cache_shards is {wanted}: {strays:,} entries lie in another file "
            "than they belong to",
            f"Set cache_shards to one number for all who use {config.cache_dir}; the next opening without "
            "cache_readonly spreads the entries over so many files",
        )
    if not fault:
        yield ok("shards", f"{len(there)} file(s), cache_shards is {wanted}")


def _stored_keys(path: Path) -> list[str]:
    try:
        with closing(open_readonly(path)) as connection:
            return [row[0] for row in connection.execute("SELECT key FROM entries")]
    except sqlite3.Error:  # a file that is damaged or no cache has checks of its own
        return []
