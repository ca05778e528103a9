"""One of many processes that work on one cache at once; run by ``test_cache_stress.py`` and the stress trials.

Each key belongs to one thread of one process, which alone writes and removes it, with versions that only increase. What
was done is noted on a board, a file mapped into memory, which survives SIGKILL as a journal would and which all
processes read: so each read can tell at once whether what it got is older than what was acknowledged before it began,
whether an entry that must be there is lost, and whether one that was removed is still served.
"""

import faulthandler
import logging
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tif1_pipeline.cache import Cache, Fresh
from tif1_pipeline.cache.database import Database
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey, SessionKey

PROCESSES, THREADS = 8, 8
TYPES = (("Race", "laps"), ("Race", "telemetry"), ("Race", "weather"), ("Race", "messages"), ("Qualifying", "laps"))
KEYS = len(TYPES) + 1  # and a JSON value
FILLERS = 48
PARTS = ("a", "b", "c")
KINDS = (
    "read", "read part", "write", "read filler", "write filler", "read through", "remove", "invalidate data",
    "clear session", "clear event", "clear year", "clear pattern", "clear type (fillers)", "clear lru (fillers)",
    "auto cleanup", "list sessions", "stats", "search", "entries", "verify entry", "verify integrity",
    "clear corrupted", "checkpoint", "clear memory", "backup",
)  # fmt: skip
WEIGHTS = (40, 8, 22, 4, 5, 7, 3, 1, 0.7, 0.3, 0.3, 0.5, 0.1, 0.4, 1, 1, 1, 2, 0.7, 4, 0.08, 0.03, 0.4, 0.2, 0)
BACKUP_SECONDS = 10.0
REST_SECONDS = 4.0
"""Between two calls of a thread at most, once the crowd takes its time."""

# State of a key on the board: a version above zero was stored, and that or a later one is there; ABSENT: nothing is
# stored; UNKNOWN: a write or removal is, or was when its process was killed, under way.
ABSENT, UNKNOWN = 0, -1


def settings(folder: Path, memory_mb: int = 32) -> Config:
    return Config(
        cache_dir=folder / "cache",
        memory_cache_size=60,
        memory_cache_max_mb=memory_mb,
        cache_verify_checksum=True,
        # What is not pinned (the fillers) goes at the first occasion.
        cache_max_size_mb=4,
        cache_cleanup_threshold_mb=4,
        cache_cleanup_target_mb=2,
    )


class Board:
    """What is known of each key, by all processes: ``state`` and the last version that was ``tried``."""

    def __init__(self, folder: Path, processes: int = PROCESSES, threads: int = THREADS) -> None:
        self.processes, self.threads = processes, threads
        size = processes * threads * KEYS
        notes = _mapped(folder / "board", (2, size), np.int64)
        self.state, self.tried = notes[0], notes[1]
        # Number, total seconds and longest, by process, thread and kind of operation.
        self.timings = _mapped(folder / "timings", (processes, threads, len(KINDS), 3), np.float64)
        # The same of the waits for the write lock, by process.
        self.waits = _mapped(folder / "waits", (processes, 3), np.float64)


def _mapped(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    if not path.exists():  # the parent comes first
        np.zeros(shape, dtype).tofile(path)
    return np.memmap(path, dtype, "r+", shape=shape)


def key_of(number: int) -> EntryKey:
    owner, which = divmod(number, KEYS)
    if which == len(TYPES):
        return EntryKey(f"asset-{owner:02}", "asset", pinned=True)
    session_type, data_type = TYPES[which]
    return replace(SessionKey(3000 + owner, f"Owner {owner:02} Grand Prix", session_type).entry(data_type), pinned=True)


def filler(number: int) -> EntryKey:
    return EntryKey(f"filler-{number:02}", "filler")


def content(number: int, version: int) -> pa.Table | dict:
    """What a version of a key holds: every row tells of which it is, and how many there are follows from it."""
    mixed = (number * 7919 + version * 104_729) % 1_000_003
    rows = 40_000 if mixed % 23 == 0 else 20 + mixed % 2500
    if number % KEYS == len(TYPES) and number < 10_000:
        return {"k": number, "v": version, "x": _hashes(number, version, 20 + mixed % 500).tolist()}
    columns = {
        "k": np.full(rows, number),
        "v": np.full(rows, version),
        "x": _hashes(number, version, rows),
        "p": pa.array([PARTS[row * 3 // rows] for row in range(rows)]),
    }
    return pa.table(columns)


def _hashes(number: int, version: int, rows: int) -> np.ndarray:
    row = np.arange(rows, dtype=np.uint64)
    mixed = (row + np.uint64(number * 1_000_003 + version * 7_368_787)) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed ^ (mixed >> np.uint64(29))) >> np.uint64(8)).astype(np.int64)


def version_in(number: int, value: object, part: str | None = None) -> int:
    """Return which version a value is; every row of it must be as it was written."""
    if isinstance(value, pd.DataFrame):
        value = pa.Table.from_pandas(value, preserve_index=False)
    version = value["v"] if isinstance(value, dict) else value["v"][0].as_py()
    expected = content(number, version)
    if part is not None:
        expected = expected.filter(pc.equal(expected["p"], part))
    if isinstance(value, dict):
        assert value == expected, f"torn: key {number}"
        return version
    assert value.num_rows == expected.num_rows, f"torn: key {number} has {value.num_rows} rows of {expected.num_rows}"
    for name in ("k", "v", "x"):
        same = value[name].to_numpy() == expected[name].to_numpy()
        assert same.all(), f"torn: key {number} version {version}, {(~same).sum()} other values in {name}"
    assert value["p"].cast(pa.string()).equals(expected["p"].cast(pa.string())), f"torn: key {number}"
    return version


class Worker(threading.Thread):
    """One thread's mixed work."""

    def __init__(
        self, cache: Cache, board: Board, process: int, number: int, times: tuple[float, float], folder: Path
    ) -> None:
        super().__init__(name=f"worker-{process}-{number}")
        self.cache, self.board, self.folder = cache, board, folder
        self.hurried_until, self.until = times
        self.timings = board.timings[process, number]
        self.owner = process * board.threads + number
        self.own = range(self.owner * KEYS, (self.owner + 1) * KEYS)
        self.random = random.Random((process, number, os.getpid()).__repr__())
        self.seen: dict[int, int] = {}
        self.backs_up = self.owner == 0
        self.next_backup = time.time() + 1
        self.calls: dict[str, Callable[[], None]] = {kind: getattr(self, _method(kind)) for kind in KINDS}

    def run(self) -> None:
        while (now := time.time()) < self.until:
            if now > self.hurried_until:
                time.sleep(self.random.uniform(0, REST_SECONDS))
            kind = self.random.choices(KINDS, WEIGHTS)[0]
            if self.backs_up and time.time() > self.next_backup:
                kind, self.next_backup = "backup", time.time() + BACKUP_SECONDS
            try:
                self.calls[kind]()
            except BaseException:
                complain(self.folder, f"{self.name}, {kind}\n{traceback.format_exc()}")
                return

    @contextmanager
    def timed(self, kind: str):
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        row = self.timings[KINDS.index(kind)]
        row[0] += 1
        row[1] += seconds
        row[2] = max(row[2], seconds)

    # ---- reading

    def any_key(self) -> int:
        if self.random.random() < 0.3:
            return self.random.choice(self.own)
        return self.random.randrange(len(self.board.state))

    def read(self, part: str | None = None) -> None:
        number = self.any_key()
        key = key_of(number)
        if part and key.data_type != "telemetry":
            number = self.own[1]
            key = key_of(number)
        as_ = "json" if key.data_type == "asset" else self.random.choice(("arrow", "pandas"))
        tried, state = int(self.board.tried[number]), int(self.board.state[number])
        with self.timed("read part" if part else "read"):
            hit = self.cache.read(key, as_, parts=None if part is None else [part])
        state_after, tried_after = int(self.board.state[number]), int(self.board.tried[number])
        if hit is None:
            assert state <= 0 or state != state_after, f"lost: {key} had version {state} all the while"
            return
        version = version_in(number, hit.value, part)
        was_absent = state == state_after == ABSENT and tried == tried_after
        assert not was_absent, f"ghost: {key} was removed and version {version} of it is served from {hit.tier}"
        assert version >= state, f"stale: version {version} of {key} from {hit.tier}, {state} was acknowledged before"
        assert version >= self.seen.get(number, 0), f"back: version {version} of {key} after {self.seen[number]}"
        assert version <= tried_after, f"unheard of: version {version} of {key}, {tried_after} was the last"
        self.seen[number] = version

    def read_part(self) -> None:
        self.read(self.random.choice(PARTS))

    def read_filler(self) -> None:
        number = self.random.randrange(FILLERS)
        with self.timed("read filler"):
            hit = self.cache.read(filler(number), self.random.choice(("arrow", "pandas")))
        if hit is not None:
            version_in(10_000 + number, hit.value)

    def read_through(self) -> None:
        number = self.random.randrange(FILLERS)
        version = self.random.randrange(1_000_000)
        with self.timed("read through"):
            hit = self.cache.read_through(filler(number), lambda _: Fresh(content(10_000 + number, version)))
        version_in(10_000 + number, hit.value)

    # ---- writing and removing

    def write(self) -> None:
        number = self.random.choice(self.own)
        version = int(self.board.tried[number]) + 1
        key, value = key_of(number), content(number, version)
        self.board.tried[number] = version
        if self.board.state[number] == ABSENT:
            self.board.state[number] = UNKNOWN
        with self.timed("write"):
            written = self.cache.write(key, value, part_by="p" if key.data_type == "telemetry" else None)
        assert written.stored, f"not stored: {key}: {written.reason}"
        self.board.state[number] = version

    def write_filler(self) -> None:
        number = self.random.randrange(FILLERS)
        with self.timed("write filler"):
            written = self.cache.write(filler(number), content(10_000 + number, self.random.randrange(1_000_000)))
        assert written.stored, f"not stored: filler {number}: {written.reason}"

    def removing(self, kind: str, numbers: list[int], call: Callable[..., int], *arguments: object) -> None:
        sure = sum(self.board.state[number] > 0 for number in numbers)
        possible = sum(self.board.state[number] != ABSENT for number in numbers)
        for number in numbers:
            self.board.state[number] = UNKNOWN
        with self.timed(kind):
            removed = call(*arguments)
        assert sure <= removed <= possible, f"{kind} removed {removed}, there were {sure} to {possible}"
        for number in numbers:
            self.board.state[number] = ABSENT

    def of_session(self) -> tuple[int, str, str]:
        return 3000 + self.owner, f"Owner {self.owner:02} Grand Prix", "Race"

    def tables(self) -> list[int]:
        return list(self.own[: len(TYPES)])

    def remove(self) -> None:
        number = self.random.choice(self.own)
        self.removing("remove", [number], self.cache.remove, key_of(number))

    def invalidate_data(self) -> None:
        call = self.cache.invalidate_session_data
        self.removing("invalidate data", [self.own[0]], call, *self.of_session(), "laps")

    def clear_session(self) -> None:
        self.removing("clear session", list(self.own[:4]), self.cache.clear_session, *self.of_session())

    def clear_event(self) -> None:
        self.removing("clear event", self.tables(), self.cache.clear_event, *self.of_session()[:2])

    def clear_year(self) -> None:
        self.removing("clear year", self.tables(), self.cache.clear_year, 3000 + self.owner)

    def clear_pattern(self) -> None:
        self.removing("clear pattern", self.tables(), self.cache.clear_pattern, f"{3000 + self.owner}_*_pandas")

    def clear_type(self) -> None:
        with self.timed("clear type (fillers)"):
            self.cache.clear_type("filler")

    def clear_lru(self) -> None:
        with self.timed("clear lru (fillers)"):
            removed = self.cache.clear_lru(2)
        assert removed <= 2

    def auto_cleanup(self) -> None:
        with self.timed("auto cleanup"):
            removed = self.cache.run_auto_cleanup()
        assert removed <= FILLERS * 4

    # ---- looking

    def expected(self) -> set[str]:
        """The thread's own keys that must be there: nobody else changes them meanwhile."""
        return {key_of(number).text for number in self.own if self.board.state[number] > 0}

    def list_sessions(self) -> None:
        with self.timed("list sessions"):
            sessions = self.cache.list_sessions()
        mine = {f"{s['session_type']} {t}" for s in sessions if s["year"] == 3000 + self.owner for t in s["data_types"]}
        expected = {
            f"{key_of(number).session_type} {key_of(number).data_type}"
            for number in self.tables()
            if self.board.state[number] > 0
        }
        assert mine >= expected, f"lost in list_sessions: {expected - mine}"

    def stats(self) -> None:
        with self.timed("stats"):
            stats = self.cache.get_stats()
        assert len(self.expected()) <= stats["total_entries"] <= len(self.board.state) + FILLERS

    def search(self) -> None:
        with self.timed("search"):
            found = {entry["key"] for entry in self.cache.search(f"{3000 + self.owner}_*")}
        found |= {entry["key"] for entry in self.cache.search(f"asset-{self.owner:02}")}
        assert found >= self.expected(), f"lost in search: {self.expected() - found}"

    def entries(self) -> None:
        with self.timed("entries"):
            found = {entry["key"] for entry in self.cache.get_entries()}
        assert found >= self.expected(), f"lost in get_entries: {self.expected() - found}"

    def verify_entry(self) -> None:
        number = self.any_key()
        state = int(self.board.state[number])
        with self.timed("verify entry"):
            sound = self.cache.verify_entry(key_of(number))
        assert sound or state <= 0 or state != self.board.state[number], f"{key_of(number)} is not sound"

    def verify_integrity(self) -> None:
        with self.timed("verify integrity"):
            report = self.cache.verify_integrity()
        assert report["integrity_pct"] == 100.0, report

    def clear_corrupted(self) -> None:
        with self.timed("clear corrupted"):
            removed = self.cache.clear_corrupted()
        assert removed == 0

    def checkpoint(self) -> None:
        with self.timed("checkpoint"):
            self.cache.checkpoint()

    def clear_memory(self) -> None:
        with self.timed("clear memory"):
            self.cache.clear_memory()

    def backup(self) -> None:
        with self.timed("backup"):
            path = self.cache.backup(self.folder / "backups", keep=2)
        assert path.stat().st_size > 0


def _method(kind: str) -> str:
    return kind.removesuffix(" (fillers)").replace(" ", "_")


def complain(folder: Path, text: str) -> None:
    with (folder / f"errors-{os.getpid()}.txt").open("a") as file:
        file.write(f"{time.time():.3f} process {os.getpid()}: {text}\n")


class Complaints(logging.Handler):
    """What the package warns of is an error here."""

    def __init__(self, folder: Path) -> None:
        super().__init__(logging.WARNING)
        self.folder = folder

    def emit(self, record: logging.LogRecord) -> None:
        complain(self.folder, f"{record.levelname} {record.name}: {record.getMessage()}")


class Crowd:
    """The processes at work on a board, without a pause unless they are to be hurried for a time only."""

    def __init__(
        self, folder: Path, board: Board, until: float, memory_mb: int = 32, hurried_until: float | None = None
    ) -> None:
        self.folder, self.board, self.until, self.memory_mb = folder, board, until, memory_mb
        self.hurried_until = until if hurried_until is None else hurried_until
        self.killed = 0
        self.largest_log = 0
        self.processes = [self.start(number) for number in range(board.processes)]

    def start(self, number: int) -> subprocess.Popen[str]:
        size = (self.board.processes, self.board.threads, self.memory_mb)
        arguments = map(str, (self.folder, number, self.hurried_until, self.until, *size))
        command = [sys.executable, "-W", "error", __file__, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def kill_one(self, chance: random.Random) -> None:
        number = chance.randrange(len(self.processes))
        self.processes[number].kill()
        self.processes[number].communicate()
        self.killed += 1
        self.processes[number] = self.start(number)

    def look(self) -> None:
        with suppress(FileNotFoundError):
            self.largest_log = max(self.largest_log, (self.folder / "cache" / "tif1_cache.db-wal").stat().st_size)

    def end(self, timeout: float = 150) -> list[str]:
        """Wait for all; returns what those said that had something to say."""
        said = []
        for process in self.processes:
            output, errors = process.communicate(timeout=timeout)
            if process.returncode or output or errors:
                said.append(f"exit code {process.returncode}\n{output}{errors}")
        return said

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def complaints(self) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.glob("errors-*.txt"))]


def losses_and_ghosts(board: Board, cache: Cache) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """Read every key: which do not have what was acknowledged, and which were removed and are there."""
    lost, ghosts = [], []
    for number, (state, tried) in enumerate(zip(board.state.tolist(), board.tried.tolist(), strict=True)):
        key = key_of(number)
        hit = cache.read(key, "json" if key.data_type == "asset" else "arrow")
        version = version_in(number, hit.value) if hit else 0
        if state > 0 and not state <= version <= tried:
            lost.append((key.text, version, state, tried))
        if state == ABSENT and version:
            ghosts.append((key.text, version, tried))
    return lost, ghosts


def watch_waits(waits: np.ndarray) -> None:
    """Note how long writers wait for the lock, apart from what they do before and with it."""
    writing, lock = Database.writing, threading.Lock()

    @contextmanager
    def watched(self: Database, *arguments: object, **options: object):
        started = time.perf_counter()
        with writing(self, *arguments, **options) as connection:
            seconds = time.perf_counter() - started
            with lock:
                waits[:] = waits[0] + 1, waits[1] + seconds, max(waits[2], seconds)
            yield connection

    Database.writing = watched


def main(folder: Path, process: int, times: tuple[float, float], processes: int, threads: int, memory_mb: int) -> None:
    faulthandler.dump_traceback_later(max(1.0, times[1] - time.time()) + 90, exit=True)
    logging.getLogger("tif1_pipeline").addHandler(Complaints(folder))
    cache = Cache(settings(folder, memory_mb))
    board = Board(folder, processes, threads)
    cache.open()  # the first write imports SQLAlchemy: seconds, where many processes start at once, but no wait
    watch_waits(board.waits[process])
    workers = [Worker(cache, board, process, number, times, folder) for number in range(threads)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        time.sleep(0.2)
        if cache.get_degraded():
            complain(folder, f"degraded: {cache.get_degraded()}")
            break
    for worker in workers:
        worker.join()
    cache.close()
    if degraded := cache.get_degraded():
        complain(folder, f"degraded at the end: {degraded}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), (float(sys.argv[3]), float(sys.argv[4])), *map(int, sys.argv[5:8]))
