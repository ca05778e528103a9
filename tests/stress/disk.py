"""Disks, files and clocks that fail under a running process, which must go on and recover without being restarted.

Each case runs in a process of its own, in a mount namespace of its own where this machine allows that: then a full disk
is a small tmpfs, and a read-only one is remounted. Elsewhere a limit on the size of files stands for the full disk.
The clock cannot be set for one process alone: ``time.time`` and ``datetime.now``, by which the package tells the time,
are moved instead; times of files are not.
"""

import importlib
import logging
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa

from tests.stress import nursery
from tests.stress.nursery import Case, User, in_child
from tests.stress.trial import Plan, Row
from tif1_pipeline.cache import Cache, Fresh, Hit, Source, shard
from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import CacheError, Tif1Error
from tif1_pipeline.keys import EntryKey, SessionKey

KEYS = 6
ROWS = 4_000
"""Random numbers, which do not get smaller by compression: 32 KB an entry."""
PLAIN = User(20001, 30001)
LOCK_SECONDS = 2.0
LONGEST = 8.0
"""Seconds that no call may take: four times the lock timeout, as the machine may be busy."""
DISK = 24 << 20


def rows(plan: Plan) -> Iterator[Row]:
    """Try one fault after the other."""
    yield from nursery.rows(__name__, plan, nursery.can_mount())


# ---- what is true


def table(version: int, rows: int = ROWS) -> pa.Table:
    """Return what is stored of a version: any two tell themselves apart, and a mixture of them is none."""
    noise = np.random.default_rng(version).random(rows)
    return pa.table({"version": pa.array([version] * rows, pa.int64()), "noise": noise})


class Heard(logging.Handler):
    """What was logged from level WARNING on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


class Watch:
    """A cache that is used while something fails, and what must be true of it.

    Args:
        row: Where to note what is not.
        config: Settings of the cache.
    """

    def __init__(self, row: Row, config: Config) -> None:
        self.row = row
        self.config = config
        self.cache = Cache(config)
        self.entries = [SessionKey(2025, f"Event {number} Grand Prix", "Race").entry("laps") for number in range(KEYS)]
        self.stored: dict[str, int] = {}
        self.tried: defaultdict[str, int] = defaultdict(int)
        self.longest = 0.0
        self.refused = 0
        self.fetched = 0
        self.heard = Heard()
        logging.getLogger("tif1_pipeline").addHandler(self.heard)
        logging.getLogger("tif1_pipeline").propagate = False

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        self.row.tried += 1
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            self.longest = max(self.longest, seconds)
            if seconds > LONGEST:
                self.row.wrong += 1
                self.row.say(f"{what} took {seconds:.1f} s")

    def write(self, key: EntryKey, *, must: bool = False, rows: int = ROWS) -> bool:
        """Store the next version of an entry."""
        version = self.tried[key.text] = self.tried[key.text] + 1
        with self.timed(f"write {key}"):
            try:
                written = self.cache.write(key, table(version, rows))
            except Tif1Error as error:
                self.wrong(f"write {key} raised {error!r}")
                return False
        if written.stored:
            self.stored[key.text] = version
        else:
            self.refused += 1
            if not written.reason:
                self.wrong(f"write {key} was refused without a reason")
            if must:
                self.wrong(f"write {key} was refused though nothing fails any more: {written.reason}")
        return written.stored

    def read(self, key: EntryKey, *, must: bool = False) -> None:
        """Read an entry; ``must`` it be there?"""
        with self.timed(f"read {key}"):
            try:
                hit = self.cache.read(key)
            except Tif1Error as error:
                self.wrong(f"read {key} raised {error!r}")
                return
        if hit is None:
            if must and self.stored.get(key.text):
                self.lost(f"{key} is not there")
            return
        self.judge(key, hit, "read")

    def fetch(self, key: EntryKey) -> Hit | None:
        """Read an entry, or fetch it if it is not there: this must not fail for what the disk does."""
        version = max(1, self.tried[key.text])

        def bring(_: EntryInfo | None) -> Fresh:
            self.fetched += 1
            self.tried[key.text] = max(self.tried[key.text], version)
            return Fresh(table(version), Source("https://a.example/laps"))

        with self.timed(f"fetch {key}"):
            try:
                hit = self.cache.read_through(key, bring)
            except Tif1Error as error:
                self.wrong(f"read-through of {key} raised {error!r}")
                return None
        self.judge(key, hit, "read-through")
        return hit

    def judge(self, key: EntryKey, hit: Hit, doing: str) -> None:
        version = hit.value["version"][0].as_py()
        if not hit.value.equals(table(version, hit.value.num_rows)):
            self.wrong(f"{doing} of {key} from {hit.tier}: no version that ever was")
        elif not self.stored.get(key.text, 0) <= version <= self.tried[key.text]:
            known = f"{self.stored.get(key.text)} is stored, {self.tried[key.text]} was the last tried"
            self.wrong(f"{doing} of {key} from {hit.tier}: version {version}, but {known}")

    def fill(self) -> None:
        """Store every entry, and have half of them in memory alone afterwards looked up on disk."""
        for key in self.entries:
            self.write(key, must=True)
        for key in self.entries[::2]:
            self.cache.evict_memory(key)

    def use(self) -> None:
        """Do everything with every entry while something fails."""
        for key in self.entries:
            self.read(key)
            self.fetch(key)
            self.write(key)
            self.read(key)
        for call in (self.cache.get_stats, self.cache.flush, self.cache.check_health, self.cache.get_degraded):
            with self.timed(call.__name__), suppress(CacheError):
                call()

    def must_be_spoken_of(self, what: str) -> None:
        if not self.heard.said:
            self.wrong(f"{what}: nothing was logged")
        if not self.cache.get_degraded():
            self.wrong(f"{what}: get_degraded() is empty")

    def recover(self, *, lost: bool = False) -> None:
        """Nothing fails any more: everything acknowledged is there, also for others, and everything works."""
        if lost:
            self.stored.clear()
        for key in self.entries:
            self.read(key, must=True)
        self.elsewhere()
        for key in self.entries:
            self.write(key, must=True)
        self.cache.clear_memory()
        for key in self.entries:
            self.read(key, must=True)
        self.elsewhere()
        report = self.cache.verify_integrity()
        if report["corrupted_entries"] or report["missing_entries"]:
            self.wrong(f"verify_integrity: {report}")

    def elsewhere(self) -> None:
        """Look at everything from another process."""
        for key, version in in_child(partial(_versions, self.config, self.entries)).items():
            self.row.tried += 1
            if version is None:
                if self.stored.get(key):
                    self.lost(f"{key} is not there for another process")
            elif not self.stored.get(key, 0) <= version <= self.tried[key]:
                self.wrong(f"{key} is {version} for another process, {self.stored.get(key)} was stored")

    def wrong(self, text: str) -> None:
        self.row.wrong += 1
        self.row.say(text)

    def lost(self, text: str) -> None:
        self.row.lost += 1
        self.row.say(text)

    def sum_up(self, *more: str) -> None:
        known = ", ".join(self.cache.get_degraded())
        parts = [*more, f"longest call {1000 * self.longest:.0f} ms"]
        parts += [f"{self.refused} writes refused"] if self.refused else []
        parts += [f"{self.fetched} fetched"] if self.fetched else []
        parts += [f"told: {known}"] if known else []
        self.row.remark = "; ".join(filter(None, parts))
        self.cache.close()


def _versions(config: Config, keys: list[EntryKey]) -> dict[str, int | None]:
    with closing(Cache(config)) as cache:
        found: dict[str, int | None] = {}
        for key in keys:
            hit = cache.read(key)
            found[key.text] = None if hit is None else hit.value["version"][0].as_py()
            if hit is not None and not hit.value.equals(table(hit.value["version"][0].as_py(), hit.value.num_rows)):
                found[key.text] = -1
        return found


def settings(folder: Path, **more: object) -> Config:
    return Config(cache_dir=folder / "cache", cache_lock_timeout=LOCK_SECONDS, memory_cache_max_mb=64, **more)


# ---- full disks


class Disk:
    """A small disk: a tmpfs where this process may mount one, else a limit on the size of any one file.

    Args:
        folder: Where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        test = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0755", "tmpfs", folder], capture_output=True, timeout=10
        )
        self.is_mounted = os.getpid() != 1 and test.returncode == 0
        self.kind = "a tmpfs" if self.is_mounted else "a limit on the size of files"
        self._ballast = folder / "ballast"

    def fill(self, room: int = 0) -> None:
        """Leave so many bytes."""
        if not self.is_mounted:
            largest = max((path.stat().st_size for path in self.folder.rglob("*") if path.is_file()), default=0)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest + room, resource.RLIM_INFINITY))
            return
        with self._ballast.open("ab", buffering=0) as file, suppress(OSError):
            while (free := shutil.disk_usage(self.folder).free - room) > 0:
                file.write(bytes(min(free, 1 << 16)))

    def free(self) -> None:
        """Make room."""
        if self.is_mounted:
            self._ballast.unlink(missing_ok=True)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def used(self) -> int:
        return shutil.disk_usage(self.folder).used

    @contextmanager
    def filled_by_others(self, after: int) -> Iterator[None]:
        """Fill it as soon as so many bytes were written to it."""
        start, over = self.used(), threading.Event()

        def watch() -> None:
            while not over.wait(0.0002):
                if self.used() >= start + after:
                    self.fill()

        if not self.is_mounted:
            self.fill(after)
        thread = threading.Thread(target=watch, daemon=True)
        if self.is_mounted:
            thread.start()
        try:
            yield
        finally:
            over.set()
            if self.is_mounted:
                thread.join(10)
            self.free()

    def remount(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", self.folder], check=True, capture_output=True, timeout=10)


def full_while_writing(folder: Path, plan: Plan, row: Row) -> None:
    disk = Disk(folder / "disk")
    watch = Watch(row, settings(disk.folder))
    chance = plan.chance("full")
    for _ in range(plan.count(10)):
        watch.fill()
        disk.fill(room=chance.choice((0, 5_000, 60_000, 150_000)))
        watch.use()
        disk.free()
        watch.recover()
    watch.must_be_spoken_of("the disk was full")
    watch.sum_up(f"the disk is {disk.kind}")


def full_while_large_tables_are_written(folder: Path, plan: Plan, row: Row) -> None:
    disk = Disk(folder / "disk")
    watch = Watch(row, settings(disk.folder, memory_cache_enabled=False))
    chance = plan.chance("large")
    watch.fill()
    for number in range(plan.count(10)):
        # More than 4 MiB each: the log is carried over into the file by a thread, which finds the disk full too.
        with disk.filled_by_others(after=chance.randrange(12 << 20)):
            for key in watch.entries[:3]:
                watch.write(key, rows=550_000)
        for key in watch.entries:
            watch.read(key, must=True)
        watch.elsewhere()
        if number % 2:
            watch.cache.clear_pattern("2025_event_[012]*")
            for key in watch.entries[:3]:
                watch.stored.pop(key.text, None)
            watch.cache.vacuum()
    for key in watch.entries[:3]:
        watch.cache.remove(key)
        watch.stored.pop(key.text, None)
    watch.recover()
    watch.sum_up()


def full_while_the_log_is_carried_over(folder: Path, plan: Plan, row: Row) -> None:
    disk = Disk(folder / "disk")
    watch = Watch(row, settings(disk.folder, cache_wal_autocheckpoint=100_000))
    failed = 0
    for _ in range(plan.count(10)):
        for key in watch.entries:
            watch.write(key, must=True, rows=40_000)
        disk.fill()
        with watch.timed("checkpoint"):
            try:
                watch.cache.checkpoint()
            except CacheError:
                failed += 1
        for key in watch.entries:
            watch.read(key, must=True)
        watch.elsewhere()
        disk.free()
        watch.cache.checkpoint()
        watch.recover()
        watch.cache.clear()
        watch.stored.clear()
        watch.cache.vacuum()
    watch.sum_up(f"{failed} checkpoints failed")


def full_while_maintained(folder: Path, plan: Plan, row: Row) -> None:
    disk = Disk(folder / "disk")
    config = settings(folder)
    watch = Watch(row, config)
    failed: defaultdict[str, int] = defaultdict(int)
    chance = plan.chance("maintained")
    for key in watch.entries:
        watch.write(key, must=True, rows=60_000)
    backups, exported = disk.folder / "backups", disk.folder / "export"
    kept = watch.cache.backup(backups, keep=2)
    for _ in range(plan.count(10)):
        for name, call in (
            ("backup", lambda: watch.cache.backup(backups, keep=2)),
            ("export", lambda: watch.cache.export(exported)),
        ):
            with disk.filled_by_others(after=chance.randrange(6 << 20)), watch.timed(name):
                try:
                    call()
                except CacheError:
                    failed[name] += 1
            left = [path.name for path in disk.folder.rglob("*") if path.name.endswith(".partial")]
            if left:
                row.leaked += 1
                row.say(f"a {name} that found the disk full left {left}")
            for path in (kept, *backups.glob("*.tar.zst")):
                row.tried += 1
                if not path.exists():
                    if path == kept and len(list(backups.glob("*.tar.zst"))) >= 2:
                        continue
                    watch.lost(f"the backup {path.name} is gone")
        for key in watch.entries:
            watch.read(key, must=True)
    latest = max(backups.glob("*.tar.zst"))
    watch.cache.clear()
    watch.cache.restore(latest)
    for key in watch.entries:
        watch.read(key, must=True)
    if watch.cache.export(exported) != KEYS:
        watch.lost("an export is not whole")
    watch.cache.clear()
    watch.cache.import_(exported)
    for key in watch.entries:
        watch.read(key, must=True)
    watch.sum_up(*(f"{number} {name}s failed" for name, number in failed.items()))


def full_while_rebuilt(folder: Path, plan: Plan, row: Row) -> None:
    disk = Disk(folder / "disk")
    watch = Watch(row, settings(disk.folder))
    os.environ["SQLITE_TMPDIR"] = str(disk.folder)
    failed: defaultdict[str, int] = defaultdict(int)
    chance = plan.chance("rebuilt")
    kept = folder / "backups"
    for _ in range(plan.count(10)):
        for key in watch.entries:
            watch.write(key, must=True, rows=60_000)
        backup = watch.cache.backup(kept, keep=1)
        watch.cache.remove(gone := watch.entries[0])
        watch.stored.pop(gone.text)
        for name, call in (("vacuum", watch.cache.vacuum), ("restore", partial(watch.cache.restore, backup))):
            with disk.filled_by_others(after=chance.randrange(4 << 20)), watch.timed(name):
                try:
                    call()
                except CacheError as error:
                    failed[name] += 1
                    if error.details.get("cause") == "damaged":
                        watch.wrong(f"{name} on a full disk speaks of damage: {error}")
            for key in watch.entries[1:]:
                watch.read(key, must=True)
            watch.elsewhere()
        watch.cache.vacuum()
        watch.recover()
    watch.sum_up(*(f"{number} {name}s failed" for name, number in failed.items()))


def full_under_the_audit_log(folder: Path, plan: Plan, row: Row) -> None:
    disk = Disk(folder / "disk")
    log = disk.folder / "audit" / "audit.log"
    watch = Watch(row, settings(folder, cache_audit_log=log))
    watch.fill()
    disk.fill()
    watch.use()
    disk.free()
    if not watch.heard.said:
        watch.wrong("an audit log that cannot be written: nothing was logged")
    watch.recover()
    before = log.read_text().count("\n")
    watch.write(watch.entries[0], must=True)
    if log.read_text().count("\n") <= before:
        watch.wrong("the audit log is not written any more though there is room again")
    watch.sum_up()


# ---- read-only and forbidden


def mounted_read_only(folder: Path, plan: Plan, row: Row) -> None:
    disk = Disk(folder / "disk")
    if not disk.is_mounted:
        raise RuntimeError("nothing can be mounted here")
    watch = Watch(row, settings(disk.folder))
    for _ in range(plan.count(5)):
        watch.fill()
        watch.cache.close()  # a disk on which files are open for writing cannot be made read-only
        disk.remount("ro")
        watch.use()
        watch.must_be_spoken_of("the disk is read-only")
        watch.cache.flush()
        disk.remount("rw")
        watch.recover()
    watch.sum_up()


def mounted_read_only_with_a_fallback(folder: Path, plan: Plan, row: Row) -> None:
    disk = Disk(folder / "disk")
    if not disk.is_mounted:
        raise RuntimeError("nothing can be mounted here")
    watch = Watch(row, settings(disk.folder, cache_fallback_dir=folder / "fallback"))
    watch.fill()
    watch.cache.close()
    disk.remount("ro")
    watch.use()
    if watch.refused:
        watch.wrong(f"{watch.refused} writes were refused though a folder stands in")
    if watch.cache.check_health() != "failover":
        watch.wrong("health is not 'failover' while a folder stands in")
    watch.elsewhere()
    if not watch.heard.said:
        watch.wrong("a folder stands in: nothing was logged")
    disk.remount("rw")
    _await_return(watch)
    watch.recover()
    watch.sum_up()


def _await_return(watch: Watch) -> None:
    deadline = time.monotonic() + 3 * shard.RETRY_SECONDS + 10
    while watch.cache.check_health() != "healthy" and time.monotonic() < deadline:
        watch.read(watch.entries[0], must=True)
        time.sleep(0.1)
    if (health := watch.cache.check_health()) != "healthy":
        watch.wrong(f"still in failover: {health.reasons}")


def permission_removed(folder: Path, plan: Plan, row: Row) -> None:
    _as_plain(folder, row, partial(_permission_removed, plan=plan))


def _as_plain(folder: Path, row: Row, work: Callable[[Path, Row], None]) -> None:
    """Do something as a user whom permissions stop."""
    mine = folder / "mine"
    mine.mkdir()

    def do() -> Row:
        work(mine, row)
        return row

    user = None
    if os.geteuid() == 0:
        os.chown(mine, PLAIN.uid, PLAIN.gid)
        user = PLAIN
    done = in_child(do, user=user, seconds=nursery.CASE_SECONDS - 5)
    for name in ("tried", "lost", "wrong", "leaked", "remark", "failures"):
        setattr(row, name, getattr(done, name))


def _permission_removed(folder: Path, row: Row, plan: Plan) -> None:
    watch = Watch(row, settings(folder))
    watch.fill()
    home, file = watch.config.cache_dir, watch.config.cache_path
    for _ in range(plan.count(3)):
        for path, mode in ((home, 0o000), (home, 0o500), (file, 0o000), (file, 0o400)):
            for closed in (False, True):
                if closed:
                    watch.cache.close()
                before = path.stat().st_mode & 0o777
                path.chmod(mode)
                watch.use()
                if mode == 0:
                    watch.must_be_spoken_of(f"{path.name} has mode {mode:03o}")
                path.chmod(before)
                watch.recover()
    watch.sum_up()


def permission_removed_with_a_fallback(folder: Path, plan: Plan, row: Row) -> None:
    def work(folder: Path, row: Row) -> None:
        watch = Watch(row, settings(folder, cache_fallback_dir=folder / "fallback"))
        watch.fill()
        home = watch.config.cache_dir
        home.chmod(0)
        watch.use()
        if watch.refused:
            watch.wrong(f"{watch.refused} writes were refused though a folder stands in")
        if not watch.heard.said:
            watch.wrong("a folder stands in: nothing was logged")
        home.chmod(0o750)
        _await_return(watch)
        watch.recover()
        watch.sum_up()

    _as_plain(folder, row, work)


# ---- files that vanish, or are other ones


def folder_deleted(folder: Path, plan: Plan, row: Row) -> None:
    watch = Watch(row, settings(folder))
    for number in range(plan.count(10)):
        watch.fill()
        shutil.rmtree(watch.config.cache_dir)
        watch.stored.clear()
        if number % 2:
            watch.use()
        watch.recover(lost=True)
    watch.sum_up()


def file_deleted(folder: Path, plan: Plan, row: Row) -> None:
    watch = Watch(row, settings(folder))
    for number in range(plan.count(10)):
        watch.fill()
        for suffix in ("",) if number % 2 else ("", "-wal", "-shm"):
            Path(f"{watch.config.cache_path}{suffix}").unlink(missing_ok=True)
        watch.stored.clear()
        watch.use()
        watch.recover()
    watch.sum_up("also with what its log held")


def file_replaced(folder: Path, plan: Plan, row: Row) -> None:
    """By another cache, with and without the logs of either."""
    watch = Watch(row, settings(folder))
    mixed = 0
    for number in range(plan.count(10)):
        watch.fill()
        other = Cache(Config(cache_dir=folder / "other"))
        for key in watch.entries:
            watch.tried[key.text] += 1
            other.write(key, table(watch.tried[key.text]))
        other.close()
        if number % 2:  # the log of the former file is moved away with it
            watch.cache.close()
        other.get_cache_file().replace(watch.config.cache_path)
        if number % 2:
            watch.stored.update(watch.tried)  # what counts now
            for key in watch.entries:
                watch.read(key, must=True)
        else:
            watch.stored.clear()
        watch.use()
        mixed += "damaged file set aside" in watch.cache.get_degraded()
        watch.recover()
    watch.sum_up()


def file_is_something_else(folder: Path, plan: Plan, row: Row) -> None:
    watch = Watch(row, settings(folder))
    path = watch.config.cache_path
    chance = plan.chance("else")
    for _ in range(plan.count(5)):
        for content in (chance.randbytes(50_000), b"", b"SQLite format 3\0" + chance.randbytes(9_000), None):
            watch.fill()
            watch.heard.said.clear()
            path.unlink()
            if content is None:
                path.mkdir()
            else:
                path.write_bytes(content)
            watch.stored.clear()
            refused_before = watch.refused
            try_use(watch, content)
            if content != b"" and not watch.heard.said:
                watch.wrong("a file that is no cache: nothing was logged")
            if content is None:
                if watch.refused == refused_before:
                    watch.wrong("writes to a folder were acknowledged")
                path.rmdir()
            elif path.exists() and content.startswith(b"SQLite"):
                path.unlink()  # a database of another program stays, and is refused
            for kept in path.parent.glob("*.damaged-*"):
                kept.unlink()
            watch.recover()
    watch.sum_up()


def try_use(watch: Watch, content: bytes | None) -> None:
    if content is not None and content.startswith(b"SQLite"):
        # Another program's: the one thing that is spoken of by an error, not by a warning.
        for key in watch.entries:
            watch.row.tried += 1
            try:
                watch.cache.read(key)
            except CacheError:
                watch.heard.said.append("refused")
            else:
                watch.wrong("a database of another program was read")
        return
    watch.use()


def log_deleted(folder: Path, plan: Plan, row: Row) -> None:
    """Of a file that a process has open: what is in the log alone can be lost, the rest must not."""
    watch = Watch(row, settings(folder))
    path = watch.config.cache_path
    chance = plan.chance("log")
    for number in range(plan.count(20)):
        watch.fill()
        watch.cache.checkpoint()
        checked = dict(watch.stored)
        for key in watch.entries[:3]:
            watch.write(key, must=True)
        for suffix in (("-wal",), ("-shm",), ("-wal", "-shm"))[number % 3]:
            target = Path(f"{path}{suffix}")
            size = target.stat().st_size if target.exists() else 0
            target.unlink(missing_ok=True)
            if number % 2:
                target.write_bytes(chance.randbytes(size))
        watch.stored = checked
        watch.use()
        watch.elsewhere()
        watch.recover()
        if set_aside := list(path.parent.glob("*.damaged-*")):
            watch.lost(f"{len(set_aside)} files were set aside as damaged: the entries in them are gone")
            for kept in set_aside:
                kept.unlink()
    watch.sum_up()


# ---- descriptors


def descriptors_exhausted(folder: Path, plan: Plan, row: Row) -> None:
    watch = Watch(row, settings(folder))
    watch.fill()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(plan.count(10)):
        if number % 2:
            watch.cache.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        held: list[int] = []
        with suppress(OSError):
            while True:
                held.append(os.dup(2))
        for _ in range(number % 4):  # some are left: for the file, but not for its log
            os.close(held.pop())
        watch.use()
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        watch.recover()
    watch.must_be_spoken_of("no descriptors were left")
    before = _descriptors()
    watch.use()
    watch.cache.close()
    if (after := _descriptors()) > before:
        row.leaked += after - before
        row.say(f"{after - before} descriptors more than before")
    watch.sum_up()


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# ---- clocks


class Clock:
    """Moves the time of this process as the package sees it."""

    def __init__(self) -> None:
        self.offset = 0.0
        real_time, real = time.time, datetime
        clock = self

        class Moved(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:
                return real.fromtimestamp(real_time() + clock.offset, tz)

        time.time = lambda: real_time() + clock.offset
        for module in list(sys.modules.values()):
            ours = isinstance(module, ModuleType) and module.__name__.startswith("tif1_pipeline")
            if ours and getattr(module, "datetime", None) is real:
                module.datetime = Moved  # type: ignore[attr-defined]


HOUR, YEAR = 3600.0, 400 * 86400.0
JUMPS = (HOUR, -HOUR, YEAR, -YEAR)


def clock_and_expiry(folder: Path, plan: Plan, row: Row) -> None:
    """An entry that is older than its TTL is fetched again, whatever the clock said when it was stored."""
    clock, watch = Clock(), Watch(row, settings(folder))
    age = timedelta(minutes=10)
    key = watch.entries[0]
    stale = 0

    def read() -> Hit:
        with watch.timed("read"):
            return watch.cache.read_through(key, lambda _: Fresh(table(version)), max_age=age)

    version = 1
    for jump in JUMPS * plan.count(3):
        clock.offset = 0
        watch.cache.remove(key)
        read()
        clock.offset = 1200
        version += 1
        if read().value["version"][0].as_py() != version:
            watch.wrong("an entry past its TTL was served as fresh")
        clock.offset = jump  # stored under a wrong clock …
        watch.cache.remove(key)
        version += 1
        read()
        clock.offset = 0  # … which is then set right
        version += 1
        served = read().value["version"][0].as_py()
        if served not in (version, version - 1):
            watch.wrong("a version before the last was served")
        clock.offset = 1200
        version += 1
        if read().value["version"][0].as_py() != version:
            stale += 1
            watch.wrong(f"stored by a clock that was {jump:+.0f} s wrong, an entry was not fetched again past its TTL")
        listed = {entry["key"] for entry in watch.cache.get_expired_entries()}
        if listed:
            watch.wrong(f"an entry that was fetched just now is listed as expired: {listed}")
    clock.offset = 0
    watch.sum_up()


def clock_and_leases(folder: Path, plan: Plan, row: Row) -> None:
    """A lease that was taken under a wrong clock holds nobody up, and two processes do not fetch for long."""
    clock, watch = Clock(), Watch(row, settings(folder))
    key = watch.entries[0]
    worst = 0.0
    for jump in JUMPS * plan.count(3):
        watch.cache.remove(key)
        watch.stored.clear()
        clock.offset = jump
        release = watch.cache._tiered.shard_of(key.text).lease(key.text, lambda: False)
        with closing(sqlite3.connect(watch.config.cache_path)) as connection:  # its owner died
            ((expires,),) = connection.execute("SELECT expires_at FROM leases").fetchall()
        release()
        with closing(sqlite3.connect(watch.config.cache_path)) as connection, connection:
            connection.execute("INSERT OR REPLACE INTO leases VALUES (?, 'dead', ?)", (key.text, expires))
        clock.offset = 0
        started = time.monotonic()
        row.tried += 1
        watch.cache.read_through(key, lambda _: Fresh(table(1)))
        worst = max(worst, time.monotonic() - started)
        if time.monotonic() - started > 2:
            watch.wrong(f"a dead lease of a clock {jump:+.0f} s wrong held a read up")
    watch.sum_up(f"longest wait {worst:.2f} s")


def clock_and_upkeep(folder: Path, plan: Plan, row: Row) -> None:
    """Access counts, cleanup, cleanup times and names of backups under a clock that jumps."""
    clock, watch = Clock(), Watch(row, settings(folder))
    chance = plan.chance("upkeep")
    watch.fill()
    pinned = EntryKey("asset/one", "asset", pinned=True)
    watch.cache.write(pinned, {"a": 1})
    backups = folder / "backups"
    made: list[Path] = []
    reads = 0
    for _ in range(plan.count(10)):
        clock.offset = chance.choice((0.0, *JUMPS))
        for key in watch.entries:
            watch.read(key, must=True)
        reads += 1
        watch.cache.flush()
        path = watch.cache.backup(backups, keep=3)
        row.tried += 1
        made.append(path)
        if not path.exists() or len(set(made)) < len(made):
            watch.lost("a backup replaced another, or was removed as soon as it was made")
        if len(list(backups.iterdir())) > 3:
            watch.wrong("more backups are kept than asked for")
        watch.cache.run_auto_cleanup()  # far below the threshold: it must remove nothing
        if watch.cache.smart_cleanup(max_age_days=1000, min_access_count=10_000):
            watch.lost("smart_cleanup removed entries that are younger than asked for")
            watch.fill()
        if watch.cache.read(pinned, "json") is None:
            watch.lost("a pinned entry was cleaned away")
    clock.offset = 0
    counts = [entry["access_count"] for entry in watch.cache.get_by_type("laps")]
    row.tried += 1
    if counts != [reads] * KEYS:
        watch.wrong(f"{reads} reads of each entry were counted as {counts}")
    latest = made[-1]
    watch.cache.clear()
    watch.cache.restore(latest)
    for key in watch.entries:
        watch.read(key, must=True)
    watch.sum_up(f"{len(made)} backups")


def cases(plan: Plan) -> list[Case]:
    """Return what is tried."""
    lazy = "manage backup cleanup export health importing integrity stats transfer upkeep"
    for name in lazy.split():
        importlib.import_module(f"tif1_pipeline.cache.{name}")  # so that each forked child has it
    table(0)  # numpy's generators too: another user may not be able to read the library
    found: list[Case] = [
        ("the disk is full while entries are read and written", full_while_writing),
        ("the disk fills up in the middle of large writes", full_while_large_tables_are_written),
        ("the disk is full when the log is carried over into the file", full_while_the_log_is_carried_over),
        ("the disk fills up during backups and exports", full_while_maintained),
        ("the disk fills up during vacuum and restore", full_while_rebuilt),
        ("the disk of the audit log is full", full_under_the_audit_log),
        ("the disk is remounted read-only, and back", mounted_read_only),
        ("the same, with a folder that stands in", mounted_read_only_with_a_fallback),
        ("permissions of folder and file are removed, and given back", permission_removed),
        ("the same, with a folder that stands in", permission_removed_with_a_fallback),
        ("the folder is deleted under a running process", folder_deleted),
        ("the file is deleted, with and without its log", file_deleted),
        ("the file is replaced by another cache", file_replaced),
        ("the file is replaced by garbage, nothing, another database, a folder", file_is_something_else),
        ("log and its index are deleted, or replaced by garbage, while in use", log_deleted),
        ("file descriptors are exhausted", descriptors_exhausted),
        ("the clock jumps an hour and 400 days: expiry", clock_and_expiry),
        ("the clock jumps: leases", clock_and_leases),
        ("the clock jumps: counts, cleanup, names of backups", clock_and_upkeep),
    ]
    if not nursery.can_mount():
        found = [case for case in found if case[1] not in (mounted_read_only, mounted_read_only_with_a_fallback)]
    return found
