"""SIGKILL at any moment of whatever changes files: everything is old or new, and what was acknowledged is there.

Victims are forked from a server that has imported everything and opened nothing, so that most of a victim's life is the
work it is killed in. Each notes on a board, a file mapped into memory, when it begins, what it tries and what it was
told is done: that survives SIGKILL. The moment of the kill is drawn from how long the work takes undisturbed.
"""

import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import statistics
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tests.cache import stress_worker as made
from tests.stress.trial import Plan, Row
from tif1_pipeline import CacheIOManager
from tif1_pipeline.api import get_cache
from tif1_pipeline.cache import Cache, Fresh, archive, manage
from tif1_pipeline.cache.connection import LAYOUT_VERSION
from tif1_pipeline.cache.flight import LEASE_SECONDS
from tif1_pipeline.config import Config
from tif1_pipeline.defs.event_storage import BATCH_SIZE, BatchedEventLogStorage

__all__ = ["manage", "rows"]  # the former is imported for the victims, which are forked from this

KEYS = made.PROCESSES * made.THREADS * made.KEYS
OF_PARTS = [number for number in range(KEYS) if made.key_of(number).data_type == "telemetry"][:12]
WHOLE = [number for number in range(KEYS) if number % made.KEYS != OF_PARTS[0] % made.KEYS][:24]
BOTH = WHOLE[:14] + OF_PARTS[:6]
PATIENCE = 60.0
"""Seconds after which a victim that has not ended hangs."""
AT_ONCE = 2
"""Kinds of work: one victim waits for the disk and its death four fifths of its time."""
FORMER_KEY, NEW_KEY = "11" * 32, "22" * 32
warnings.filterwarnings("ignore", category=dg.BetaWarning)
logging.getLogger("tif1_pipeline").addHandler(logging.NullHandler())  # what is moved back is warned of
PARTITIONS = dg.StaticPartitionsDefinition([f"p{number}" for number in range(6)])


class Board:
    """What a victim notes: when it ``began`` and was ``done``; what it tried and what was acknowledged of each key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.marks = made._mapped(path.with_name(f"{path.name}-marks"), (2,), np.float64)
        self.notes = made._mapped(path, (2, KEYS), np.int64)
        self.state, self.tried = self.notes[0], self.notes[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return Board, (self.path,)  # the victim maps it, too

    @property
    def began(self) -> float:
        return float(self.marks[0])

    @property
    def done(self) -> float:
        return float(self.marks[1])

    def note(self, versions: dict[int, int]) -> None:
        """Note what is stored, as a writer would have."""
        self.notes[:] = 0
        for number, version in versions.items():
            self.state[number] = self.tried[number] = version


class Kind:
    """Something that is killed; each victim works in the same folder, on a copy of what :meth:`prepare` has left."""

    what = ""
    full = 0
    again = True
    """Whether each victim finds the same; else what the one before has left."""
    longest: float | None = None
    """Seconds within which to kill, from when the work itself says that it began; by default what it takes."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder / "work"
        self.original = folder / "original"
        self.board = Board(folder / "board")
        self.chance = chance

    @property
    def config(self) -> Config:
        return Config(cache_dir=self.folder / "cache", cache_lock_timeout=10, memory_cache_max_mb=32)

    @contextmanager
    def cache(self, config: Config | None = None) -> Iterator[Cache]:
        cache = Cache(config or self.config)
        try:
            yield cache
        finally:
            cache.close()

    def prepare(self) -> None:
        """Make what a victim finds."""

    def work(self) -> None:
        """What is killed; and what is done again afterwards."""
        raise NotImplementedError

    def check(self, row: Row) -> None:
        """What must hold after a kill."""
        with self.cache() as cache:
            self.compare(row, cache)

    def check_done(self, row: Row) -> None:
        """What must hold once the work was done, even if the power fails then."""
        self.check(row)

    def complete(self, row: Row) -> None:
        """Do it again, and check that it is done."""
        self.work()
        self.check(row)

    def fill(self, cache: Cache, versions: dict[int, int]) -> None:
        for number, version in versions.items():
            write(cache, number, version)

    def compare(self, row: Row, cache: Cache) -> None:
        """Every entry is whole, of a version that may be there, and what was acknowledged is there."""
        for file in cache._tiered.files():
            if file.database.exists():
                with closing(sqlite3.connect(file.database.path)) as connection:
                    if (said := connection.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
                        row.wrong += 1
                        row.say(f"{file.database.path.name}: {said[:3]}")
        report = cache.verify_integrity()
        if report["integrity_pct"] != 100 or report["corrupted_list"]:
            row.wrong += 1
            row.say(f"verify_integrity: {report}")
        for number in np.flatnonzero(self.board.tried).tolist():
            version, state, tried = stored(cache, number), int(self.board.state[number]), int(self.board.tried[number])
            if version is None:
                row.wrong += 1
                row.say(f"{made.key_of(number)} is torn")
            elif state > 0 and version < state:
                row.lost += 1
                row.say(f"{made.key_of(number)}: version {state} was acknowledged, {version} is there")
            elif version > tried or (state == made.ABSENT and version):
                row.wrong += 1
                row.say(f"{made.key_of(number)}: version {version} is there, {tried} was tried, state {state}")
            elif version:  # it was seen, so it must stay
                self.board.state[number] = version
        if cache.get_degraded():
            row.wrong += 1
            row.say(f"degraded: {cache.get_degraded()}")
        if aside := list(cache.get_cache_dir().glob("*.damaged-*")):
            row.wrong += 1
            row.say(f"set aside: {aside}")

    def no_leftovers(self, row: Row, folder: Path) -> None:
        if left := [path.name for path in folder.rglob("*.partial")]:
            row.leaked += 1
            row.say(f"left in {folder.name}: {left}")


def write(cache: Cache, number: int, version: int) -> None:
    key = made.key_of(number)
    written = cache.write(key, made.content(number, version), part_by="p" if key.data_type == "telemetry" else None)
    assert written.stored, written.reason


def stored(cache: Cache, number: int) -> int | None:
    """Return the version that is stored; 0 if nothing is, None if it is torn."""
    key = made.key_of(number)
    cache.evict_memory(key)
    hit = cache.read(key, "json" if key.data_type == "asset" else "arrow")
    try:
        return made.version_in(number, hit.value) if hit else 0
    except (AssertionError, LookupError):
        return None


class Writes(Kind):
    what = "SIGKILL in writes and removals of tables and values of one part"
    full, again = 70, False
    numbers = WHOLE
    longest = 0.1

    def work(self) -> None:
        chance = random.Random(os.getpid())
        deadline = time.monotonic() + PATIENCE
        with self.cache() as cache:
            while time.monotonic() < deadline:
                number = chance.choice(self.numbers)
                if chance.random() < 0.15:
                    self.board.state[number] = made.UNKNOWN
                    cache.remove(made.key_of(number))
                    self.board.state[number] = made.ABSENT
                    continue
                version = int(self.board.tried[number]) + 1
                self.board.tried[number] = version
                if self.board.state[number] == made.ABSENT:
                    self.board.state[number] = made.UNKNOWN
                write(cache, number, version)
                self.board.state[number] = version
                if not self.board.began:  # the file is open: from now on it does nothing but write
                    self.board.marks[0] = time.monotonic()

    def complete(self, row: Row) -> None:
        """Others write on: the next victim."""


class PartWrites(Writes):
    what = "SIGKILL in writes and removals of tables of several parts"
    full = 60
    numbers = OF_PARTS


class Cleanup(Kind):
    what = "SIGKILL in a cleanup"
    full = 40

    @property
    def config(self) -> Config:
        config = super().config
        config.update({"cache_max_size_mb": 1, "cache_cleanup_threshold_mb": 1, "cache_cleanup_target_mb": 1})
        return config

    def prepare(self) -> None:
        self.board.note(dict.fromkeys(BOTH[:8], 1))
        with self.cache() as cache:
            self.fill(cache, dict.fromkeys(BOTH[:8], 1))  # pinned: they stay
            for number in range(made.FILLERS):
                cache.write(made.filler(number), filler_table(number))

    def work(self) -> None:
        with self.cache() as cache:
            cache.run_auto_cleanup()

    def check(self, row: Row) -> None:
        super().check(row)
        with self.cache() as cache:
            for number in range(made.FILLERS):
                hit = cache.read(made.filler(number))
                if hit is not None and not hit.value.equals(filler_table(number)):
                    row.wrong += 1
                    row.say(f"{made.filler(number)} is torn")

    def complete(self, row: Row) -> None:
        super().complete(row)
        with self.cache() as cache:
            info = cache.get_size_info()
            if info["compressed_mb"] > 1 or info["total_entries"] == 8:
                row.wrong += 1
                row.say(f"after the cleanup: {info}")


def filler_table(number: int) -> pa.Table:
    return pa.table({"n": made._hashes(number, 1, 12_000)})


class Vacuum(Kind):
    what = "SIGKILL in a vacuum, each second one with another page size"
    full = 40
    page_size = 0

    @property
    def config(self) -> Config:
        config = super().config
        if self.page_size:
            config.cache_page_size = self.page_size
        return config

    def prepare(self) -> None:
        self.board.note(dict.fromkeys(BOTH[1::2], 1))
        with self.cache() as cache:
            self.fill(cache, dict.fromkeys(BOTH, 1))
            for number in BOTH[::2]:
                cache.remove(made.key_of(number))
            self.sizes = (config_size := cache._tiered.config.cache_page_size, 4096 if config_size != 4096 else 8192)

    def work(self) -> None:
        with self.cache() as cache:
            cache.vacuum()

    def complete(self, row: Row) -> None:
        super().complete(row)
        with closing(sqlite3.connect(self.config.cache_path)) as connection:
            free, size, mode = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("freelist_count", "page_size", "journal_mode")
            )
        if free or size != self.config.cache_page_size or mode != "wal":
            row.wrong += 1
            row.say(f"after the vacuum: {free} pages are free, of {size} bytes, the journal is {mode}")
        self.page_size = self.sizes[self.page_size in (0, self.sizes[0])]


class Backup(Kind):
    what = "SIGKILL in a backup"
    full = 40

    def prepare(self) -> None:
        self.board.note(dict.fromkeys(BOTH, 2))
        with self.cache() as cache:
            self.fill(cache, dict.fromkeys(BOTH, 1))
            cache.backup(self.folder / "backups", keep=2)
            self.fill(cache, dict.fromkeys(BOTH, 2))
            cache.backup(self.folder / "backups", keep=2)
        self.former = set(self.backups())

    def work(self) -> None:
        with self.cache() as cache:
            cache.backup(self.folder / "backups", keep=2)

    def check(self, row: Row) -> None:
        super().check(row)
        backups = self.backups()
        if not 2 <= len(backups) <= 3:
            row.lost += len(backups) < 2
            row.say(f"{len(backups)} backups are there, 2 were to be kept")
        for path in backups:
            try:
                with archive.reading(path) as reader:
                    reader.read_members(None, lambda _: None)
            except Exception as error:
                row.wrong += 1
                row.say(f"{path.name}: {error}")

    def check_done(self, row: Row) -> None:
        self.check(row)
        if not set(self.backups()) - self.former:
            row.lost += 1
            row.say("the new backup is not there")

    def backups(self) -> list[Path]:
        return sorted(path for path in (self.folder / "backups").iterdir() if path.name.endswith(".tar.zst"))

    def complete(self, row: Row) -> None:
        super().complete(row)
        self.no_leftovers(row, self.folder / "backups")
        if len(backups := self.backups()) != 2:
            row.wrong += 1
            row.say(f"{len(backups)} backups are kept instead of 2")
        with self.cache(Config(cache_dir=self.folder / "restored")) as cache:
            cache.restore(backups[-1])
            self.compare(row, cache)
        shutil.rmtree(self.folder / "restored")


class Restore(Kind):
    what = "SIGKILL in a restore"
    full = 40

    def prepare(self) -> None:
        with self.cache() as cache:
            self.fill(cache, dict.fromkeys(BOTH, 1))
            cache.backup(self.folder / "backups")
            self.fill(cache, dict.fromkeys(BOTH[2:] + WHOLE[14:16], 2))

    def work(self) -> None:
        with self.cache() as cache:
            cache.restore(next((self.folder / "backups").iterdir()))

    def check(self, row: Row) -> None:
        with self.cache() as cache:
            # All of one or all of the other.
            is_restored = stored(cache, WHOLE[15]) == 0
            former = {**dict.fromkeys(BOTH[:2], 1), **dict.fromkeys(BOTH[2:] + WHOLE[14:16], 2)}
            self.board.note(dict.fromkeys(BOTH, 1) if is_restored else former)
            self.board.tried[WHOLE[14:16]] = 2
            self.compare(row, cache)
            for number, state in enumerate(self.board.state.tolist()):
                if state and stored(cache, number) != state:
                    row.wrong += 1
                    row.say(f"a mixture: {made.key_of(number)} is not of version {state}")

    def complete(self, row: Row) -> None:
        super().complete(row)
        with self.cache() as cache:
            if len(cache.get_entries()) != len(BOTH):
                row.wrong += 1
                row.say("restored again, it does not hold what was backed up")
        self.no_leftovers(row, self.folder / "cache")


class Migration(Kind):
    what = "SIGKILL in the migration of a file of the former layout"
    full = 40

    def prepare(self) -> None:
        self.board.note(dict.fromkeys(BOTH, 1))
        with self.cache() as cache:
            self.fill(cache, dict.fromkeys(BOTH, 1))
        with closing(sqlite3.connect(self.config.cache_path, isolation_level=None)) as connection:
            for statement in (
                "ALTER TABLE entries DROP COLUMN encryption",
                "UPDATE cache_metadata SET value = '1' WHERE key = 'version'",
                "PRAGMA user_version=1",
            ):
                connection.execute(statement)

    def work(self) -> None:
        with self.cache() as cache:
            cache.open()

    def check(self, row: Row) -> None:
        with closing(sqlite3.connect(self.config.cache_path)) as connection:
            layout = connection.execute("PRAGMA user_version").fetchone()[0]
            columns = [column[1] for column in connection.execute("PRAGMA table_info(entries)")]
            noted = connection.execute("SELECT value FROM cache_metadata WHERE key = 'version'").fetchone()[0]
        if str(layout) != noted or ("encryption" in columns) != (layout == LAYOUT_VERSION):
            row.wrong += 1
            row.say(f"half migrated: layout {layout}, noted {noted}, columns {columns}")
        super().check(row)  # which migrates it


class Rotation(Kind):
    what = "SIGKILL in the rotation of the encryption key"
    full = 40
    keys = (NEW_KEY, FORMER_KEY)

    @property
    def config(self) -> Config:
        config = super().config
        config.cache_encryption_key = self.keys
        return config

    def prepare(self) -> None:
        self.board.note(dict.fromkeys(BOTH, 1))
        self.keys = (FORMER_KEY,)
        with self.cache() as cache:
            self.fill(cache, dict.fromkeys(BOTH, 1))
        self.keys = (NEW_KEY, FORMER_KEY)

    def work(self) -> None:
        with self.cache() as cache:
            cache.rotate_key()

    def complete(self, row: Row) -> None:
        self.work()
        self.keys = (NEW_KEY,)  # the former one is not needed any more
        self.check(row)
        self.keys = (NEW_KEY, FORMER_KEY)


class Return(Kind):
    what = "SIGKILL in moving entries back from the fallback folder"
    full = 25

    @property
    def config(self) -> Config:
        config = super().config
        config.cache_fallback_dir = self.folder / "fallback"
        return config

    def prepare(self) -> None:
        with self.cache() as cache:
            self.fill(cache, dict.fromkeys(BOTH[:10], 1))
        folder = self.config.cache_dir
        folder.rename(folder.with_name("away"))
        folder.write_text("no folder")
        with self.cache() as cache:
            self.fill(cache, dict.fromkeys(BOTH[5:], 2))
        folder.unlink()
        folder.with_name("away").rename(folder)
        self.board.note({**dict.fromkeys(BOTH[:5], 1), **dict.fromkeys(BOTH[5:], 2)})

    def work(self) -> None:
        with self.cache() as cache:
            cache.open()

    def check(self, row: Row) -> None:
        paths = [self.config.cache_path, *(self.folder / "fallback").glob("*.db")]
        for path in paths:
            with closing(sqlite3.connect(path)) as connection:
                if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                    row.wrong += 1
                    row.say(f"{path.name} is damaged")
        super().check(row)

    def complete(self, row: Row) -> None:
        super().complete(row)
        for path in (self.folder / "fallback").glob("*.db"):
            with closing(sqlite3.connect(path)) as connection:
                if left := connection.execute("SELECT count(*) FROM entries").fetchone()[0]:
                    row.wrong += 1
                    row.say(f"{left} entries are still in the fallback folder")


class Spread(Kind):
    what = "SIGKILL in spreading the entries over three files"
    full = 25
    shards = 3

    @property
    def config(self) -> Config:
        config = super().config
        config.cache_shards = self.shards
        return config

    def prepare(self) -> None:
        self.board.note(dict.fromkeys(BOTH, 1))
        self.shards = 1
        with self.cache() as cache:
            self.fill(cache, dict.fromkeys(BOTH, 1))
        self.shards = 3

    def work(self) -> None:
        with self.cache() as cache:
            cache.open()

    def check(self, row: Row) -> None:
        # The lease of the killed runs out; whoever comes next must not wait for longer. Only the first does wait.
        if row.tried > 1:
            with closing(sqlite3.connect(self.config.cache_path, isolation_level=None)) as connection:
                connection.execute("UPDATE leases SET expires_at = 0")
        started = time.monotonic()
        super().check(row)
        if (seconds := time.monotonic() - started) > LEASE_SECONDS + 10:
            row.wrong += 1
            row.say(f"the lease of the killed kept the next one waiting for {seconds:.1f} s")


class Export(Kind):
    what = "SIGKILL in an export"
    full = 25

    def prepare(self) -> None:
        self.board.note(dict.fromkeys(BOTH, 2))
        with self.cache() as cache:
            self.fill(cache, dict.fromkeys(BOTH, 1))
            cache.export(self.folder / "tree")
            self.fill(cache, dict.fromkeys(BOTH, 2))

    def work(self) -> None:
        with self.cache() as cache:
            cache.export(self.folder / "tree")

    def check(self, row: Row, least: int = 1) -> None:
        super().check(row)
        numbers = {made.key_of(number).text: number for number in BOTH}
        found = set()
        for path in (self.folder / "tree").rglob("[!.]*.*"):
            try:
                if path.suffix == ".json":
                    content = json.loads(path.read_bytes())
                    number, value = numbers[next(iter(content.values()))["key"]], content["value"]
                else:
                    value = pq.read_table(path)
                    number = value["k"][0].as_py()
                if not least <= made.version_in(number, value) <= 2:
                    raise AssertionError("a version that was not stored")
                found.add(number)
            except Exception as error:
                row.wrong += 1
                row.say(f"{path.name}: {error!r}")
        if len(found) != len(BOTH):
            row.lost += len(BOTH) - len(found)
            row.say(f"{len(found)} exported files of {len(BOTH)} are left")

    def check_done(self, row: Row) -> None:
        self.check(row, least=2)

    def complete(self, row: Row) -> None:
        self.work()
        self.check_done(row)
        self.no_leftovers(row, self.folder / "tree")


class Import(Kind):
    what = "SIGKILL in an import"
    full = 25

    def prepare(self) -> None:
        with self.cache(Config(cache_dir=self.folder / "other")) as cache:
            self.fill(cache, dict.fromkeys(BOTH[:10], 1))
        shutil.copytree(self.folder / "other", self.folder / "cache")
        with self.cache(Config(cache_dir=self.folder / "other")) as cache:
            self.fill(cache, dict.fromkeys(BOTH, 2))
            cache.export(self.folder / "tree")
        self.board.note(dict.fromkeys(BOTH[:10], 1))
        self.board.tried[BOTH] = 2
        self.board.state[BOTH[10:]] = made.UNKNOWN

    def work(self) -> None:
        with self.cache() as cache:
            cache.import_(self.folder / "tree")

    def complete(self, row: Row) -> None:
        self.work()
        self.board.state[BOTH] = 2
        self.check(row)


class Dagster(Kind):
    what = "SIGKILL in a Dagster run that materializes partitions through CacheIOManager"
    full = 20
    version = 1

    def definition(self, version: int) -> dg.AssetsDefinition:
        @dg.asset(partitions_def=PARTITIONS, backfill_policy=dg.BackfillPolicy.single_run())
        def measured(context: dg.AssetExecutionContext) -> dict[str, pd.DataFrame]:
            return {key: made.content(20_000 + int(key[1:]), version).to_pandas() for key in context.partition_keys}

        return measured

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        """With Dagster's storage of events, or with ours: they have the same files."""
        folder = self.folder / "dagster"
        name = {"module": BatchedEventLogStorage.__module__, "class": BatchedEventLogStorage.__name__}
        ours = {"event_log_storage": name | {"config": {"base_dir": str(folder / "history" / "runs")}}}
        os.environ.pop(BATCH_SIZE, None)
        with dg.DagsterInstance.local_temp(str(folder), ours if self.chance.random() < 0.5 else None) as instance:
            yield instance

    def run(self, version: int) -> bool:
        keys = PARTITIONS.get_partition_keys()
        with self.instance() as instance:
            result = dg.materialize(
                [self.definition(version)],
                resources={"io_manager": CacheIOManager(path=str(self.config.cache_path))},
                instance=instance,
                tags={"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]},
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
        return result.success

    def prepare(self) -> None:
        (self.folder / "dagster").mkdir(parents=True)
        self.run(1)
        get_cache(self.config.cache_path).close()

    def work(self) -> None:
        assert self.run(2)

    def check(self, row: Row, least: int = 1) -> None:
        self.board.note({})
        with self.cache() as cache:
            self.compare(row, cache)
        manager = CacheIOManager(path=str(self.config.cache_path))
        with self.instance() as instance:
            for number, key in enumerate(PARTITIONS.get_partition_keys()):
                of_partition = dg.AssetRecordsFilter(asset_key=dg.AssetKey("measured"), asset_partitions=[key])
                records = instance.fetch_materializations(of_partition, limit=10).records
                with dg.build_input_context(
                    asset_key=dg.AssetKey("measured"),
                    partition_key=key,
                    asset_partitions_def=PARTITIONS,
                    instance=instance,
                ) as context:
                    try:
                        version = made.version_in(20_000 + number, manager.load_input(context))
                    except Exception as error:
                        row.wrong += 1
                        row.say(f"partition {key}: {error!r}")
                        continue
                if len(records) > 1 and version < 2:
                    row.lost += 1
                    row.say(f"partition {key} is marked as materialized anew, and the former one is there")
                if not least <= version <= 2:
                    row.wrong += 1
                    row.say(f"partition {key} is of version {version}")
        get_cache(self.config.cache_path).close()

    def complete(self, row: Row) -> None:
        self.work()
        self.check(row, least=2)


KINDS = (
    Writes, PartWrites, Cleanup, Vacuum, Backup, Restore, Migration, Rotation, Return, Spread, Export, Import, Dagster,
)  # fmt: skip


def victim(kind: Kind) -> None:
    """Work, in a process of its own."""
    if kind.longest is None:
        kind.board.marks[0] = time.monotonic()
    kind.work()
    kind.board.marks[1] = time.monotonic()


# ---- the trial


def rows(plan: Plan) -> Iterator[Row]:
    """Kill each kind of work."""
    # In processes, not threads: of those, one may take the exit status of another's victim.
    with ProcessPoolExecutor(AT_ONCE, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(partial(try_kind, plan), KINDS)
    yield try_leases(plan)


def _server() -> ForkServerContext:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    return server


def try_kind(plan: Plan, make: type[Kind]) -> Row:
    """Kill one kind of work, in a process of its own."""
    folder = plan.scratch / make.__name__
    folder.mkdir()
    kind, count, server = make(folder, plan.chance(f"crash {make.__name__}")), plan.count(make.full), _server()
    row = Row("crash", kind.what)
    kind.prepare()
    if kind.again:
        kind.folder.rename(kind.original)
    noted = kind.board.notes.copy()
    longest = kind.longest or statistics.median(_measure(kind, server) for _ in range(3))
    landed = 0
    for _ in range(count):
        if kind.again:
            kind.board.notes[:] = noted
        process = _begin(kind, server)
        time.sleep(max(0.0, kind.board.began + kind.chance.random() * longest - time.monotonic()))
        process.kill()
        landed += not kind.board.done
        _end(process)
        row.tried += 1
        try:
            kind.check(row)
            kind.complete(row)
        except Exception:
            row.wrong += 1
            row.say(traceback.format_exc())
        if len(row.failures) > 20:
            break
    row.remark = f"{landed} of them in the middle of the work, which takes {1000 * longest:.0f} ms"
    if isinstance(kind, Writes):
        row.remark = f"{landed} of them in the middle of {kind.board.tried.sum():,} writes"
    if 4 * landed < count - 4:  # a few may miss it by chance
        row.say(f"only {landed} of {count} victims were killed in the middle of their work")
    shutil.rmtree(folder)
    return row


def _begin(kind: Kind, server: ForkServerContext) -> BaseProcess:
    if kind.again:
        shutil.rmtree(kind.folder, ignore_errors=True)
        shutil.copytree(kind.original, kind.folder)
    kind.board.marks[:] = 0
    process = server.Process(target=victim, args=(kind,), daemon=True)
    process.start()
    deadline = time.monotonic() + PATIENCE
    while not kind.board.began:
        if not process.is_alive() or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError("the victim did not begin")
        time.sleep(0.0002)
    return process


def _end(process: BaseProcess) -> None:
    process.join(PATIENCE)
    if process.exitcode not in (0, -signal.SIGKILL):
        code = process.exitcode
        process.kill()
        raise RuntimeError(f"the victim ended with {code}")
    process.close()


def _measure(kind: Kind, server: ForkServerContext) -> float:
    _end(_begin(kind, server))
    return kind.board.done - kind.board.began


def try_leases(plan: Plan) -> Row:
    """Kill processes that fetch: those that want the same wait until the lease has run out, and no longer."""
    row = Row("crash", "SIGKILL while fetching under a lease that others wait for")
    folder = plan.scratch / "leases"
    folder.mkdir()
    board = Board(folder / "board")
    config = Config(cache_dir=folder / "cache")
    cache = Cache(config)
    cache.open()
    numbers = range(plan.count(20))
    server = _server()
    processes = [server.Process(target=fetch_for_ever, args=(folder, number), daemon=True) for number in numbers]
    for process in processes:
        process.start()
    deadline = time.monotonic() + PATIENCE
    while not board.state[numbers.stop - 1 :: -1].all() and time.monotonic() < deadline:
        time.sleep(0.005)
    for process in processes:
        process.kill()
        _end(process)
    waits: list[float] = []

    def want(number: int) -> None:
        started = time.monotonic()
        hit = cache.read_through(made.filler(number), lambda _: Fresh(filler_table(number)))
        if hit.value.equals(filler_table(number)):
            waits.append(time.monotonic() - started)

    threads = [threading.Thread(target=want, args=(number,), daemon=True) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    row.tried = len(numbers)
    row.remark = f"the next one waited for {max(waits, default=0):.1f} s at most"
    if len(waits) < len(numbers) or max(waits) > LEASE_SECONDS + 5:
        row.wrong += 1
        row.say(f"{len(waits)} of {len(numbers)} got it, after {sorted(waits)} s")
    elif max(waits) < LEASE_SECONDS / 2:
        row.say("nobody waited: the killed held no lease")
    cache.close()
    return row


def fetch_for_ever(folder: Path, number: int) -> None:
    """Take the lease on a key and keep it, in a process of its own."""
    board = Board(folder / "board")

    def fetch(_: object) -> Fresh:
        board.state[number] = 1
        time.sleep(PATIENCE)
        return Fresh({})

    Cache(Config(cache_dir=folder / "cache")).read_through(made.filler(number), fetch)
