"""Damage to every place of a cache file: what is read is right, or missing and then fetched anew, never anything else.

Each damage is done to copies of a file that was built once, and read with ``cache_verify_checksum`` on and off. That is
done in processes of their own, so that a crash, a hang or a hunger for memory of what decodes it is seen. Run as a
module with arguments, it is such a process.
"""

import faulthandler
import json
import logging
import os
import random
import resource
import shutil
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.stress.trial import Plan, Row

ROOT = Path(__file__).parents[2]
NAME = "cache.db"
KEY = "00112233445566778899aabbccddeeff" * 2
"""Of the encrypted file."""
PAGE_SIZES = {"plain": 4096, "encrypted": 16384, "log": 4096}
"""The files that are damaged, with their page sizes; the last has a log that is not carried over."""
MEMORY = 3 << 30
"""Address space of a process that reads; half of it is far more than any sound read of these files takes."""
PROCESSES = 2
"""At work at once."""
SECONDS = 120.0
"""For one damage, at most, beside other trials that come first; it takes a tenth of a second alone."""
BATCH = 200
"""Damages a process, at most."""
CHECKED = (True, False)
"""``cache_verify_checksum``, of the two readings of each damage."""
MENDED = 3
"""Entries that are fetched anew after a damage, of those that are missing."""

PLACES = {
    "nothing": ("nothing: the copies themselves", 20),
    "head": ("the file's header", 100),
    "schema": ("the page of the schema", 100),
    "entries": ("pages of the table of entries", 200),
    "parts": ("pages of the table of parts", 200),
    "indexes": ("pages of indexes", 170),
    "links": ("links between the pages of stored parts", 110),
    "ends": ("heads and ends of stored parts", 180),
    "bytes": ("bytes within stored parts", 240),
    "free": ("free pages", 60),
    "length": ("files cut short or with noise behind", 90),
    "pages": ("pages written to the place of others", 110),
    "log": ("the log", 140),
    "log index": ("the log's index", 20),
    "rows": ("one value of a row", 180),
    "exchange": ("parts exchanged, cut, or taken from another entry", 100),
}
"""What is damaged, and how often."""


LARGE = 1 << 20
"""Bytes from which a table is decoded on threads here, so that the largest one is."""
INSPECTED = 0.2
"""How often one of these is asked first, which look at rows of all entries."""
INSPECTIONS = (
    *("get_stats", "get_stats_by_type", "get_stats_by_year", "get_access_stats", "get_size_info", "get_size_by_type"),
    *("get_size_by_year", "list_sessions", "get_largest", "get_lru", "get_entries", "get_expired_entries"),
)


# ---- the parent: batches of damages, each in a process


@dataclass
class _Tally:
    """What came out for one place."""

    row: Row
    unseen: int = 0
    refetched: int = 0
    refused: int = 0
    verified: int = 0
    twice: int = 0


def rows(plan: Plan) -> Iterator[Row]:
    """Damage, read and compare; one row a place."""
    _run("build", str(plan.scratch), timeout=120)
    tallies = {place: _Tally(Row("corruption", what)) for place, (what, _) in PLACES.items()}
    chance = plan.chance("corruption")
    jobs = [
        (place, f"{plan.seed} {place} {number}")
        for place, (_, full) in PLACES.items()
        for number in range(plan.count(full))
    ]
    chance.shuffle(jobs)  # so that all batches take about as long
    size = min(BATCH, -(-len(jobs) // PROCESSES))
    batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    peak, lock = 0, threading.Lock()

    def work(number: int) -> None:
        nonlocal peak
        while True:
            with lock:
                if not batches:
                    return
                left = batches.pop()
            while left:
                results, failure = _examine(plan.scratch, number, left)
                with lock:
                    for result in results:
                        _add(tallies[result["place"]], result)
                        peak = max(peak, result["peak"])
                    if failure is not None and len(results) < len(left):
                        place, seed = left[len(results)]
                        tallies[place].row.tried += 1
                        tallies[place].row.wrong += 1
                        tallies[place].row.say(f"[{seed}] {failure}")
                left = left[len(results) + 1 :]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(PROCESSES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, tally in tallies.items():
        tally.row.remark = (
            f"{tally.refetched:,} entries fetched anew, {tally.refused:,} refusals with advice"
            + (f", {tally.twice} of them twice" if tally.twice else "")
            + (f", {tally.verified} damages that only verifying finds" if tally.verified else "")
            + (f"; unseen without checksums: {tally.unseen} values" if tally.unseen else "")
            + (f"; most memory {peak >> 20} MiB" if place == "bytes" else "")
        )
        if place == "bytes" and peak > MEMORY // 2:
            tally.row.leaked += 1
            tally.row.say(f"{peak >> 20} MiB of memory")
        yield tally.row


def _add(tally: _Tally, result: dict[str, Any]) -> None:
    row = tally.row
    row.tried += result["tried"]
    tally.unseen += result["unseen"]
    tally.refetched += result["refetched"]
    tally.refused += result["refused"]
    tally.verified += result["verified"]
    tally.twice += result["twice"]
    row.wrong += len(result["wrong"])
    for text in result["wrong"]:
        row.say(text)


def _examine(scratch: Path, number: int, jobs: list[tuple[str, str]]) -> tuple[list[dict[str, Any]], str | None]:
    """Have a process do the jobs; returns the results it came to, and why it came to no more."""
    process = _start("examine", str(scratch), str(number))
    try:
        output, errors = process.communicate(json.dumps(jobs), timeout=SECONDS + 10 * len(jobs))
        reason = f"the process ended with {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        reason = "the process hung"
    results = [json.loads(line) for line in output.splitlines() if line.endswith("}")]
    return results, None if len(results) == len(jobs) else f"{reason}: {errors[-1500:]}"


def _start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.stress.corruption", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


def _run(*arguments: str, timeout: float) -> None:
    process = _start(*arguments)
    try:
        _, errors = process.communicate("", timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    if process.returncode:
        raise RuntimeError(f"{arguments[0]} failed: {errors[-2000:]}")


# ---- what is stored


@dataclass(frozen=True)
class Stored:
    """One entry: what may be read of it, first what was written last."""

    key: Any
    values: tuple[Any, ...]
    part_by: str | None = None


def telemetry(number: int, drivers: int, rows: int) -> Any:
    """Return a table like a race's: numbers that hardly compress, whole numbers, flags, times, categories."""
    import numpy as np
    import pandas as pd

    chance, size = np.random.default_rng(number), drivers * rows
    frame = pd.DataFrame(
        {
            "Driver": pd.Categorical([f"D{driver:02}" for driver in range(drivers) for _ in range(rows)]),
            "LapNumber": np.repeat(np.arange(size // 100 + 1, dtype=np.int32), 100)[:size],
            "Time": pd.to_timedelta(chance.integers(0, 10**12, size), unit="ns"),
            "Brake": pd.array(chance.random(size) < 0.2, dtype="boolean"),
            "nGear": chance.integers(0, 9, size).astype(np.int8),
        }
    )
    for name in ("Speed", "RPM", "X", "Y", "Z", "Distance", "Throttle"):
        frame[name] = np.round(np.cumsum(chance.normal(size=size)), 1).astype(np.float32)
    for name in ("AccelerationX", "AccelerationY", "AccelerationZ", "Relative"):
        frame[name] = chance.normal(size=size).astype(np.float32)
    frame.loc[::7, "Speed"] = np.nan
    frame.loc[::11, "Brake"] = pd.NA
    return frame


def laps(number: int) -> Any:
    """Return a small table of many kinds of columns."""
    import numpy as np
    import pandas as pd

    chance = np.random.default_rng(number)
    frame = pd.DataFrame(
        {
            "Driver": pd.Categorical([f"D{row % 20:02}" for row in range(300)]),
            "Compound": pd.Categorical(chance.choice(["SOFT", "HARD", "MEDIUM"], 300)),
            "LapTime": pd.to_timedelta(chance.integers(80 * 10**9, 99 * 10**9, 300), unit="ns"),
            "Stint": chance.random(300).round(1),
            "Deleted": pd.array(chance.random(300) < 0.1, dtype="boolean"),
            "Reason": [None if row % 5 else f"track limits {row * number}" for row in range(300)],
            "Date": pd.to_datetime(chance.integers(10**18, 2 * 10**18, 300), unit="ns"),
        }
    )
    frame.loc[::9, ["LapTime", "Stint"]] = [pd.NaT, np.nan]
    return frame


def messages(number: int) -> Any:
    """Return an Arrow table with texts and lists."""
    import pyarrow as pa

    texts = [f"CAR {row * number} (TIM) TIME {row}: ünïcode ✓" if row % 6 else None for row in range(200)]
    return pa.table({"Message": texts, "Cars": [[row, number] for row in range(200)], "Lap": list(range(200))})


def entries(file: str) -> list[Stored]:
    """Return what a file holds, pairs of the same shape among it, which could be taken for each other."""
    from tif1_pipeline.keys import EntryKey, SessionKey

    def of(event: str, data_type: str) -> EntryKey:
        return SessionKey(2025, f"{event} Grand Prix", "Race").entry(data_type)

    stored = [Stored(of("Monaco", "telemetry"), (telemetry(1, 4, 5000),), "Driver")]
    for number, event in enumerate(("Dutch", "British"), 2):
        stored += [
            Stored(of(event, "telemetry"), (telemetry(number, 3, 500),), "Driver"),
            Stored(of(event, "laps"), (laps(number),)),
            Stored(of(event, "messages"), (messages(number),)),
            Stored(EntryKey(f"report/{number}", "report"), ({"notes": [f"{number} {line}" for line in range(4000)]},)),
        ]
    stored += [Stored(EntryKey(f"small{number:03}", "small"), ({"n": number},)) for number in range(10)]
    if file == "log":  # some are in the log alone, and of one the file has a former version
        stored[2] = Stored(stored[2].key, (laps(20), laps(2)))
    return stored


def settings(file: str, folder: Path, **more: Any) -> Any:
    """Return the settings that a file is written and read with."""
    from tif1_pipeline.config import Config

    key = KEY if file == "encrypted" else None
    return Config(
        cache_dir=folder,
        cache_filename=NAME,
        cache_page_size=PAGE_SIZES[file],
        cache_encryption_key=key,
        cache_lock_timeout=2,
        memory_cache_enabled=False,
        **more,
    )


def build(scratch: Path) -> None:
    """Write the files that are damaged later."""
    from tif1_pipeline.cache import Cache
    from tif1_pipeline.keys import EntryKey

    for file in PAGE_SIZES:
        folder, kept = scratch / f"{file}.making", scratch / file
        config = settings(file, folder)
        cache, stored = Cache(config), entries(file)
        for number in range(8):
            cache.write(EntryKey(f"gone{number}", "gone"), {"text": "x" * 1000 * number, "n": list(range(3000))})
        for position, entry in enumerate(stored):
            if file != "log" or position % 3:
                cache.write(entry.key, entry.values[-1], part_by=entry.part_by)
        cache.clear_type("gone")
        cache.close()
        if file == "log":
            config.cache_wal_autocheckpoint = 0
            for position, entry in enumerate(stored):
                if not position % 3 or len(entry.values) > 1:
                    cache.write(entry.key, entry.values[0], part_by=entry.part_by)
        kept.mkdir()
        # By another process: closing a file drops the locks that this one has on it.
        names = [NAME, f"{NAME}-wal", f"{NAME}-shm"] if file == "log" else [NAME]
        subprocess.run(["cp", *(str(folder / name) for name in names), str(kept)], check=True)
        cache.close()
        shutil.rmtree(folder)


# ---- where what lies in a file


def regions(data: bytes) -> dict[str, list[tuple[int, int]]]:
    """Return from where to where each place lies, by walking the trees as SQLite's file format says."""
    size = struct.unpack(">H", data[16:18])[0]
    pages = len(data) // size
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(data[:18] + b"\1\1" + data[20:])  # else it looks for a log
        roots = connection.execute("SELECT name, type, rootpage FROM sqlite_master").fetchall()
        blobs = [row[0] for row in connection.execute("SELECT data FROM parts WHERE length(data) > ?", (size,))]

    def span(page: int) -> tuple[int, int]:
        return (page - 1) * size, page * size

    def walk(page: int) -> Iterator[int]:
        yield page
        start = span(page)[0]
        head = start + 100 if page == 1 else start
        if data[head] in (2, 5):
            cells = struct.unpack_from(">H", data, head + 3)[0]
            yield from walk(struct.unpack_from(">I", data, head + 8)[0])
            for (pointer,) in struct.iter_unpack(">H", data[head + 12 : head + 12 + 2 * cells]):
                yield from walk(struct.unpack_from(">I", data, start + pointer)[0])

    found: dict[str, list[tuple[int, int]]] = {"head": [(0, 100)], "schema": [(100, size)], "indexes": [], "free": []}
    taken = {1}
    for name, kind, root in roots:
        mine = list(walk(root))
        taken |= set(mine)
        place = "indexes" if kind == "index" else name
        found.setdefault(place, []).extend(map(span, mine))
    trunk = struct.unpack_from(">I", data, 32)[0]
    while trunk:
        start = span(trunk)[0]
        following, leaves = struct.unpack_from(">II", data, start)
        free = [trunk, *struct.unpack_from(f">{leaves}I", data, start + 8)]
        taken |= set(free)
        found["free"] += map(span, free)
        trunk = following
    rest = [span(page) for page in range(1, pages + 1) if page not in taken]
    found["links"] = [(start, start + 4) for start, _ in rest]
    found["bytes"] = [(start + 4, end) for start, end in rest]
    ends = [data.find(piece) for blob in blobs for piece in (blob[:64], blob[-64:])]
    found["ends"] = [(at, at + 64) for at in ends if at >= 0]
    found["pages"] = [span(page) for page in range(1, pages + 1)]
    return found


# ---- damages


def damage_bytes(data: bytearray, start: int, end: int, chance: random.Random) -> None:
    """Change something between two places."""
    kind = chance.choice(["bit", "bit", "bits", "zeros", "noise", "ones"])
    if kind == "bit":
        data[chance.randrange(start, end)] ^= 1 << chance.randrange(8)
    elif kind == "bits":
        for _ in range(chance.randint(2, 20)):
            data[chance.randrange(start, end)] ^= 1 << chance.randrange(8)
    else:
        first = chance.randrange(start, end)
        last = chance.choice([end, min(end, first + chance.randint(1, 64))])
        size = last - first
        data[first:last] = {"zeros": bytes(size), "ones": b"\xff" * size}.get(kind) or chance.randbytes(size)


def damage(place: str, file: str, contents: dict[str, bytearray], where: Any, chance: random.Random) -> None:
    """Damage the bytes of a file, or of its log."""
    data = contents[NAME]
    log = contents.get(f"{NAME}-wal", bytearray())
    if place == "length":
        if chance.random() < 0.2:
            data += chance.choice([bytes, chance.randbytes])(chance.randint(1, 50_000))
        else:
            cut = chance.randrange(len(data))
            size = PAGE_SIZES[file]
            del data[chance.choice([cut, cut // size * size, chance.randrange(200)]) :]
    elif place == "pages":
        (start, end), (other, last) = chance.choice(where["pages"]), chance.choice(where["pages"])
        half = chance.choice([0, (end - start) // 2])  # of a write that was torn
        data[start + half : end] = data[other + half : last]
    elif place == "log":
        frames = range(32, len(log), 24 + PAGE_SIZES[file])
        frame = chance.choice(frames)
        following = min(len(log), frame + 24 + PAGE_SIZES[file])
        spans = [(0, 32), (frame, frame + 24), (frame + 24, following), (frame + 24, following)]
        if chance.random() < 0.25:
            del log[chance.choice([chance.randrange(len(log)), frame]) :]
        else:
            damage_bytes(log, *chance.choice(spans), chance)
    elif place == "log index":
        name = f"{NAME}-shm"
        if chance.random() < 0.5:
            contents[name] = bytearray(chance.randbytes(32768))
        else:
            damage_bytes(contents[name], 0, 400, chance)
    else:
        damage_bytes(data, *chance.choice(where[place]), chance)


def damage_by_sql(place: str, path: Path, chance: random.Random) -> None:
    """Change rows through SQLite, whose pages stay sound: what lost or misplaced writes of a disk come to."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        if place == "rows":
            table = chance.choice(["entries", "entries", "parts"])
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[1] != "data"]
            name = chance.choice(names)
            ids = [row[0] for row in connection.execute(f"SELECT id FROM {table} ORDER BY id")]
            row = chance.choice(ids[:20] if chance.random() < 0.7 else ids)
            value = connection.execute(f"SELECT {name} FROM {table} WHERE id = ?", (row,)).fetchone()[0]
            with suppress(sqlite3.IntegrityError, OverflowError):  # what cannot be there
                changed = f"UPDATE {table} SET {name} = {{}} WHERE id = ?"
                if isinstance(value, str) and value and chance.random() < 0.7:
                    text = bytearray(value.encode())
                    text[chance.randrange(len(text))] ^= 1 << chance.randrange(8)
                    connection.execute(changed.format("CAST(? AS TEXT)"), (bytes(text), row))
                elif isinstance(value, int) and chance.random() < 0.7:
                    connection.execute(changed.format("?"), (value ^ 1 << chance.randrange(40), row))
                else:
                    other = chance.choice(["text", b"bytes", 7, -1, 1.5, None, "", 1 << 62])
                    connection.execute(changed.format("?"), (other, row))
            return
        shaped: dict[Any, list[int]] = {}
        look = "SELECT name, ordinal, length(data) > 4000, id FROM parts ORDER BY id"
        for name, ordinal, large, id_ in connection.execute(look):
            shaped.setdefault((name if chance.random() < 0.5 else "", ordinal > 0, large), []).append(id_)
        one, other = chance.sample(chance.choice([ids for ids in shaped.values() if len(ids) > 1]), 2)
        columns = chance.choice([("data",), ("data", "checksum", "size"), ("data", "checksum", "size")])
        kind = chance.choice(["exchange", "take", "cut", "grow", "all of another"])
        look = f"SELECT {', '.join(columns)} FROM parts WHERE id = ?"
        put = f"UPDATE parts SET {', '.join(f'{name} = ?' for name in columns)} WHERE id = ?"
        first, second = (connection.execute(look, (id_,)).fetchone() for id_ in (one, other))
        if kind in ("exchange", "take"):
            connection.execute(put, (*second, one))
            if kind == "exchange":
                connection.execute(put, (*first, other))
        elif kind == "all of another":
            entry = [
                connection.execute("SELECT entry_id FROM parts WHERE id = ?", (id_,)).fetchone()[0]
                for id_ in (one, other)
            ]
            connection.execute("UPDATE parts SET entry_id = -1 WHERE entry_id = ?", entry[:1])
            connection.execute("UPDATE parts SET entry_id = ? WHERE entry_id = ?", entry)
            connection.execute("UPDATE parts SET entry_id = ? WHERE entry_id = -1", entry[1:])
        else:
            data = first[0]
            data = data[: chance.randrange(len(data))] if kind == "cut" else data + chance.randbytes(100)
            connection.execute("UPDATE parts SET data = ? WHERE id = ?", (data, one))


# ---- the child: one damage after the other


class Reader:
    """Reads what is left of a damaged file, and compares it."""

    def __init__(
        self, file: str, stored: list[Stored], expected: dict[tuple[str, str, int], Any], *, is_whole: bool
    ) -> None:
        self._file = file
        self._is_whole = is_whole
        self._stored = stored
        self._expected = expected
        self.wrong: list[str] = []
        self.unseen = self.refetched = self.refused = self.verified = self.twice = 0

    def read(self, folder: Path, *, check: bool, chance: random.Random) -> None:
        """Read every entry, mend what is missing, and read that again."""
        from tif1_pipeline.cache import Cache

        # Closed whatever comes: the file is cut to nothing next, under whoever has it mapped.
        with closing(Cache(settings(self._file, folder, cache_verify_checksum=check))) as cache:
            self._read(cache, check, chance)

    def _read(self, cache: Any, check: bool, chance: random.Random) -> None:
        from tif1_pipeline.exceptions import CacheVersionError, Tif1Error

        if chance.random() < INSPECTED:  # before anything is found and removed
            try:
                getattr(cache, chance.choice(INSPECTIONS))()
            except Tif1Error as error:
                self._refuse(error)
        missing, foreign, was = [], False, self.unseen
        for entry in self._stored:
            try:
                found = [self._look(cache, entry, as_, part, check) for as_, part in self._views(entry, chance)]
                sound = all(found)
            except CacheVersionError as error:
                foreign = True
                self._refuse(error)
                break
            except Tif1Error as error:
                self._refuse(error)
                sound = False
            if not sound:
                missing.append(entry)
        if self._is_whole and missing:
            self.wrong.append(f"{len(missing)} entries of an undamaged file were not read")
        for entry in [] if foreign else chance.sample(missing, min(MENDED, len(missing))):
            try:
                self._mend(cache, entry, self._views(entry, chance)[0][0], check)
            except Tif1Error as error:
                self.wrong.append(f"{entry.key} cannot be fetched anew: {type(error).__name__}: {error}")
        if not foreign and chance.random() < 0.07:
            try:
                report = cache.verify_integrity()
                self.verified += bool(report["corrupted_list"] and not missing and self.unseen == was)
                cache.clear_corrupted()
            except Tif1Error as error:
                self._refuse(error)

    def _mend(self, cache: Any, entry: Stored, as_: str, check: bool) -> None:
        """Fetch an entry anew, and read it again; a second time if reading found the file itself to be damaged."""
        from tif1_pipeline.cache import Fresh

        for turn in range(2):
            hit = cache.read_through(entry.key, lambda _: Fresh(entry.values[0]), as_, part_by=entry.part_by)
            self.refetched += hit.tier == "cdn"
            self._compare(entry, hit.value, as_, "", check, "fetched anew")
            again = cache.read(entry.key, as_)
            if again is not None:
                self._compare(entry, again.value, as_, "", check, "stored anew")
                self.twice += turn
                return
        if any("no key" in cause for cause in cache.get_degraded()):
            self.refused += 1  # the key's name was damaged: what another key may open is not replaced
        else:
            self.wrong.append(f"{entry.key} was not stored anew: {cache.get_degraded()}")

    def _views(self, entry: Stored, chance: random.Random) -> list[tuple[str, str]]:
        if isinstance(entry.values[0], dict):
            return [("json", "")]
        parts = [("arrow", chance.choice(["D00", "D01", "D02"]))] if entry.part_by else []
        wholes = [("pandas", ""), ("arrow", "")]
        return [*parts, *(wholes if chance.random() < 0.2 else [chance.choice(wholes)])]

    def _look(self, cache: Any, entry: Stored, as_: str, part: str, check: bool) -> bool:
        hit = cache.read(entry.key, as_, parts=[part] if part else None)
        if hit is not None:
            self._compare(entry, hit.value, as_, part, check, "read")
        return hit is not None

    def _compare(self, entry: Stored, value: Any, as_: str, part: str, check: bool, how: str) -> None:
        versions = range(len(entry.values))
        if any(_same(value, self.expected(entry, as_, part, version)) for version in versions):
            return
        _use(value)
        if not check:  # then parts can be exchanged without a trace
            self.unseen += 1
            return
        others = [
            other for other in self._stored if other is not entry and type(other.values[0]) is type(entry.values[0])
        ]
        taken = next((other for other in others if _same(value, self.expected(other, as_, part, 0))), None)
        if taken is not None:
            self.wrong.append(f"the value of {taken.key} was {how} as that of {entry.key}")
        else:
            self.wrong.append(f"another value of {entry.key} was {how} as {as_} {part}")

    def expected(self, entry: Stored, as_: str, part: str, version: int) -> Any:
        """Return what is to be read."""
        from tif1_pipeline.cache import frames

        place = (str(entry.key), f"{as_} {part}", version)
        if place not in self._expected:
            value = entry.values[version]
            table = value if as_ == "json" else frames.to_table(value, frames.backend_of(value))
            if part:
                import pyarrow.compute as pc

                table = table.filter(pc.equal(table["Driver"].cast("string"), part))
            self._expected[place] = frames.from_table(table, as_) if as_ == "pandas" else table
        return self._expected[place]

    def _refuse(self, error: Exception) -> None:
        self.refused += 1
        if len(str(error)) < 20:
            self.wrong.append(f"an error that says nothing: {error!r}")


def _same(value: Any, expected: Any) -> bool:
    """Compare every cell, and the types."""
    if isinstance(value, dict) or isinstance(expected, dict):
        return value == expected
    try:
        if not value.equals(expected):
            return False
        return (
            value.schema.equals(expected.schema)
            if hasattr(value, "schema")
            else bool((value.dtypes == expected.dtypes).all())
        )
    except (UnicodeDecodeError, ValueError):
        return False


def _use(value: Any) -> None:
    """Touch every cell of a wrong value: what is out of bounds crashes now, if ever."""
    with suppress(Exception):
        frame = value.to_pandas() if hasattr(value, "to_pandas") else value
        for name in frame.columns:
            str(frame[name].to_numpy(dtype=None if frame[name].dtype.kind in "fim" else object)[-1])


def examine(scratch: Path, number: int, jobs: list[tuple[str, str]]) -> None:
    """Do the damages, one after the other; prints a line of JSON after each."""
    from tif1_pipeline.cache import decoding

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable()
    assert decoding._LARGE > LARGE
    decoding._LARGE = LARGE
    contents: dict[str, dict[str, bytes]] = {}
    where: dict[str, Any] = {}
    stored: dict[str, list[Stored]] = {}
    expected: dict[str, dict[Any, Any]] = {file: {} for file in PAGE_SIZES}
    for file in PAGE_SIZES:
        contents[file] = {path.name: path.read_bytes() for path in (scratch / file).iterdir()}
        where[file] = regions(contents[file][NAME]) if file != "log" else None
        stored[file] = entries(file)
    folder = scratch / f"work{number}-{os.getpid()}"
    try:
        for count, (place, seed) in enumerate(jobs):
            chance = random.Random(seed)
            file = "log" if place.startswith("log") else chance.choice(["plain", "plain", "encrypted"])
            if place == "nothing":
                file = chance.choice(list(PAGE_SIZES))
            reader = Reader(file, stored[file], expected[file], is_whole=place == "nothing")
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            for check in CHECKED:
                copy = folder / f"{count}{'on' if check else 'off'}"
                copy.mkdir(parents=True)
                damaged = {name: bytearray(data) for name, data in contents[file].items()}
                same = random.Random(seed)
                if place not in ("nothing", "rows", "exchange"):
                    damage(place, file, damaged, where[file], same)
                for name, data in damaged.items():
                    (copy / name).write_bytes(data)
                if place in ("rows", "exchange"):
                    damage_by_sql(place, copy / NAME, same)
                try:
                    reader.read(copy, check=check, chance=same)
                except Exception as error:
                    reader.wrong.append(f"{type(error).__name__}: {error}")
                for path in copy.iterdir():  # not removed: another file must not get its number, and be known for it
                    os.truncate(path, 0)
            faulthandler.cancel_dump_traceback_later()
            result = {
                "place": place,
                "tried": len(CHECKED),
                "wrong": [f"[{seed}] {file}: {text}" for text in reader.wrong],
                "unseen": reader.unseen,
                "refetched": reader.refetched,
                "refused": reader.refused,
                "verified": reader.verified,
                "twice": reader.twice,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
            }
            print(json.dumps(result), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    faulthandler.enable()
    if sys.argv[1] == "build":
        build(Path(sys.argv[2]))
    else:
        examine(Path(sys.argv[2]), int(sys.argv[3]), [tuple(job) for job in json.load(sys.stdin)])
