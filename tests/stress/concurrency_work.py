"""What the processes of the trial of concurrency do: ``python -m tests.stress.concurrency_work WORK FOLDER ...``.

Each prints one JSON object of what it counted, and what went wrong in words.
"""

import faulthandler
import gc
import json
import os
import random
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

import tif1_pipeline as tif1
from tests.stress.processes import held
from tif1_pipeline.cache import Cache, Fresh
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import Tif1Error
from tif1_pipeline.keys import EntryKey

ROWS = 20_000
PARTS = 12
LARGE = 200_000
"""Rows from which a table is decoded on threads: 5 MB."""


def table(number: int, rows: int = 200) -> pa.Table:
    """Return a table whose every row tells of which number it is."""
    row = np.arange(rows)
    parts = pa.array((row * PARTS // rows).astype(str))
    return pa.table({"n": np.full(rows, number), "x": row * 31 + number, "y": np.sqrt(row + number), "p": parts})


def is_whole(frame: pd.DataFrame, number: int, rows: int) -> bool:
    """Tell whether a frame is what :func:`table` made."""
    row = np.arange(rows)
    if len(frame) != rows or not (frame["n"].to_numpy() == number).all():
        return False
    return bool(
        (frame["x"].to_numpy() == row * 31 + number).all() and (frame["y"].to_numpy() == np.sqrt(row + number)).all()
    )


def cache_in(folder: Path, **settings: Any) -> Cache:
    """Return a cache with a small memory."""
    return Cache(Config(cache_dir=folder / "cache", memory_cache_size=8, memory_cache_max_mb=16, **settings))


def together(moment: float) -> None:
    """Wait until all are to begin."""
    time.sleep(max(0.0, moment - time.time()))


def run_threads(number: int, work: Callable[[int], None], wrong: list[str], seconds: float) -> None:
    """Run threads; what they raise is wrong."""

    def guarded(which: int) -> None:
        try:
            work(which)
        except BaseException as error:
            wrong.append(f"thread {which}: {type(error).__name__}: {error}")

    running = [threading.Thread(target=guarded, args=(which,), daemon=True) for which in range(number)]
    for thread in running:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in running:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            wrong.append(f"{thread.name} hangs")


# ---- single flight


def flight(folder: Path, origin: str, name: str, keys: int, threads: int, seed: int, moment: float) -> dict[str, Any]:
    """Read all keys, each missing at first, in every thread."""
    cache = cache_in(folder)
    wrong: list[str] = []
    reads = []

    def work(which: int) -> None:
        chance = random.Random(f"{seed} {which}")
        order = chance.sample(range(keys), keys)
        together(moment)
        for number in order:

            def fetch(_: Any, number: int = number) -> Fresh:
                with urllib.request.urlopen(f"{origin}/{name}/{number}", timeout=120) as answer:
                    answer.read()
                return Fresh(table(number))

            value = cache.read_through(EntryKey(f"{name}-{number}", "x"), fetch, "pandas").value
            if not is_whole(value, number, 200):
                wrong.append(f"{name}-{number} is not what was fetched")
            reads.append(number)

    run_threads(threads, work, wrong, 150)
    degraded = cache.get_degraded()
    cache.close()
    if degraded:
        wrong.append(f"degraded: {degraded}")
    return {"reads": len(reads), "wrong": wrong}


def session(folder: Path, cdn_url: str, schedule_url: str, year: int, event: str, moment: float) -> dict[str, Any]:
    """Load all tables of a race in four threads."""
    tif1.get_config().update(
        {"cache_dir": folder / "cache", "cdn_urls": (cdn_url,), "schedule_urls": (schedule_url,), "max_retries": 0}
    )
    wrong: list[str] = []
    rows: list[list[int]] = []

    def work(which: int) -> None:
        together(moment)
        it = tif1.get_session(year, event, "Race")
        names = ["laps", "telemetry", "weather", "messages", "drivers_df", "corners"]
        random.Random(f"{os.getpid()} {which}").shuffle(names)
        found = {name: len(getattr(it, name)) for name in names}
        rows.append([found[name] for name in sorted(found)])

    run_threads(4, work, wrong, 150)
    degraded = tif1.get_cache().get_degraded()
    tif1.get_cache().close()
    if degraded:
        wrong.append(f"degraded: {degraded}")
    return {"reads": 6 * len(rows), "rows": rows, "wrong": wrong}


# ---- forks


def forks(folder: Path, children: int, seed: int) -> dict[str, Any]:
    """Fork while other threads read, decode and write; each child reads, decodes and writes on."""
    cache = cache_in(folder)
    chance = random.Random(seed)
    wrong: list[str] = []
    cache.write(EntryKey("large", "x"), table(7, LARGE), part_by="p")
    over = threading.Event()
    written = [0] * 3

    def decode() -> None:
        while not over.is_set():
            cache.clear_memory()
            hit = cache.read("large", "pandas")
            if hit is None or not is_whole(hit.value, 7, LARGE):
                wrong.append("the parent read something else")

    def write(which: int) -> None:
        while not over.is_set():
            done = cache.write(EntryKey(f"parent-{which}-{written[which]}", "x"), table(written[which]))
            if not done.stored:
                wrong.append(f"the parent's write was refused: {done.reason}")
                return
            written[which] += 1
            time.sleep(0.02)

    threads = [threading.Thread(target=decode) for _ in range(2)]
    threads += [threading.Thread(target=write, args=(which,)) for which in range(3)]
    for thread in threads:
        thread.start()
    alive: dict[int, tuple[int, float]] = {}
    codes: dict[int, int] = {}
    longest = 0.0

    def collect(limit: int) -> None:
        while len(alive) > limit:
            for pid, (number, since) in list(alive.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[number] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() - since > 60:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    codes[number] = -1
                else:
                    continue
                del alive[pid]
            time.sleep(0.01)

    for number in range(children):
        time.sleep(chance.random() * 0.1)
        begun = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os._exit(_child(cache, number))
        longest = max(longest, time.monotonic() - begun)
        alive[pid] = number, begun
        collect(4)
    # The last ones are at work while the parent closes the file.
    over.set()
    for thread in threads:
        thread.join(60)
        if thread.is_alive():
            wrong.append("a thread of the parent hangs")
    cache.close()
    collect(0)
    meaning = {
        -1: "hung",
        -signal.SIGALRM: "hung",
        1: "failed",
        2: "was refused a write",
        3: "read something else",
        4: "skipped the disk",
    }
    wrong += [f"child {number} {meaning.get(code, code)}" for number, code in sorted(codes.items()) if code]
    lost = []
    for name, number in _expected(children, written):
        hit = cache.read(name)
        if hit is None or not hit.value.equals(table(number)):
            lost.append(name)
    report = cache.verify_integrity()
    if report["integrity_pct"] != 100 or cache.get_degraded():
        wrong.append(f"{report}, degraded {cache.get_degraded()}")
    cache.close()
    return {"tried": children, "writes": sum(written), "longest": longest, "lost": lost, "wrong": wrong}


def _child(cache: Cache, number: int) -> int:
    signal.alarm(50)  # faulthandler's own alarm hangs in a child
    try:
        hit = cache.read("large", "pandas")
        for part in range(4):
            if not cache.write(EntryKey(f"child-{number}-{part}", "x"), table(number)).stored:
                return 2
            time.sleep(0.02)
        last = cache.read(f"child-{number}-3", "pandas")
        if hit is None or last is None or not is_whole(hit.value, 7, LARGE) or not is_whole(last.value, number, 200):
            return 3
        if cache.get_degraded():
            return 4
        cache.close()
    except BaseException as error:
        print(f"child {number}: {error!r}", file=sys.stderr)
        return 1
    return 0


def _expected(children: int, written: list[int]) -> list[tuple[str, int]]:
    of_children = [(f"child-{number}-{part}", number) for number in range(children) for part in range(4)]
    return of_children + [(f"parent-{which}-{n}", n) for which, count in enumerate(written) for n in range(count)]


# ---- closing


def closes(folder: Path, seconds: float) -> dict[str, Any]:
    """Close the cache over and over while threads use it: they are served, or told why not."""
    cache = cache_in(folder)
    wrong: list[str] = []
    calls, closed = [0] * 8, 0
    until = time.monotonic() + seconds
    for number in range(20):
        cache.write(EntryKey(f"k{number}", "x"), table(number))
    cache.write(EntryKey("large", "x"), table(7, LARGE), part_by="p")

    def work(which: int) -> None:
        chance = random.Random(which)
        while time.monotonic() < until:
            number = chance.randrange(20)
            kind = chance.random()
            try:
                if kind < 0.5:
                    hit = cache.read(f"k{number}", "pandas")
                    if hit is None or not is_whole(hit.value, number, 200):
                        wrong.append(f"k{number}: {'a miss' if hit is None else 'something else'}")
                elif kind < 0.55:
                    hit = cache.read("large", "pandas")
                    if hit is None or not is_whole(hit.value, 7, LARGE):
                        wrong.append(f"large: {'a miss' if hit is None else 'something else'}")
                elif kind < 0.8:
                    done = cache.write(EntryKey(f"k{number}", "x"), table(number))
                    if not done.stored:
                        wrong.append(f"a write was refused: {done.reason}")
                elif kind < 0.9:
                    cache.read_through(EntryKey(f"k{number}", "x"), lambda _, number=number: Fresh(table(number)))
                else:
                    cache.get_stats()
                    cache.search("k1*")
            except Tif1Error as error:
                wrong.append(f"{type(error).__name__}: {error}")
            calls[which] += 1

    def close() -> None:
        nonlocal closed
        while time.monotonic() < until:
            time.sleep(0.02)
            cache.close()
            closed += 1

    closer = threading.Thread(target=close)
    closer.start()
    run_threads(8, work, wrong, seconds + 60)
    closer.join(60)
    if cache.get_degraded():
        wrong.append(f"degraded: {cache.get_degraded()}")
    cache.close()
    gc.collect()
    left = _open_files(folder)
    return {"tried": sum(calls), "closed": closed, "left": left, "wrong": wrong[:50]}


def _open_files(folder: Path) -> list[str]:
    found = []
    for name in Path("/proc/self/fd").iterdir():
        try:
            target = str(name.readlink())
        except OSError:
            continue
        if target.startswith(str(folder)):
            found.append(target)
    return found


def many(folder: Path, number: int) -> dict[str, Any]:
    """Open and close many caches, one after the other and some at once."""
    wrong: list[str] = []
    samples = []
    for which in range(number):
        together_open = [cache_in(folder / f"{which % 7}", cache_shards=1 + which % 2) for _ in range(1 + which % 3)]
        for cache in together_open:
            threads = [threading.Thread(target=_use, args=(cache, which, wrong)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        for cache in together_open:
            cache.close()
        del cache, together_open
        if which % 5 == 4:
            gc.collect()
            now = held()
            if now:
                samples.append([now.descriptors, now.resident, now.threads])
    return {"tried": number, "samples": samples, "left": _open_files(folder), "wrong": wrong[:50]}


def _use(cache: Cache, number: int, wrong: list[str]) -> None:
    key = EntryKey(f"{threading.get_ident()}", "x")
    done = cache.write(key, table(number, 20_000), part_by="p")
    cache.clear_memory()
    hit = cache.read(key, "pandas")
    if not done.stored or hit is None or not is_whole(hit.value, number, 20_000):
        wrong.append(f"cache {number}: {done.reason}, {hit and hit.tier}")
    cache.get_stats()
    cache.remove(key)


WORKS: dict[str, Callable[..., dict[str, Any]]] = {
    work.__name__: work for work in (flight, session, forks, closes, many)
}


def main() -> None:
    """Do what the command line says."""
    name, folder, *given = sys.argv[1:]
    faulthandler.enable()
    faulthandler.dump_traceback_later(280, exit=True)
    work = WORKS[name]
    kinds = list(work.__annotations__.values())[1:]
    print(json.dumps(work(Path(folder), *(kind(text) for kind, text in zip(kinds, given, strict=False)))))


if __name__ == "__main__":
    main()
