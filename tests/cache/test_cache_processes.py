"""Several processes on one file: freshness, kills, forks, counters, and what a warm read imports."""

import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey

TABLE = pa.table({"n": [1, 2, 3]})


def test_what_another_process_writes_is_seen_at_once(cache: Cache, key: EntryKey) -> None:
    cache.write(key, pa.table({"n": [0]}))
    command = [sys.executable, "-c", WRITES, str(cache.get_cache_dir())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        for number in range(1, 6):
            assert cache.read(key, "pandas").tier in ("memory", "disk")
            assert cache.read(key, "pandas").tier == "memory"
            writer.stdin.write(f"{number}\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == "done\n"
            hit = cache.read(key, "pandas")
            assert (hit.tier, hit.value["n"].tolist()) == ("disk", [number] * 3)
        writer.stdin.close()


WRITES = """
import sys
import pyarrow as pa
from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
from tif1_pipeline.keys import SessionKey
cache = Cache(Config(cache_dir=sys.argv[1]))
key = SessionKey(2025, "Monaco Grand Prix", "Race").entry("laps")
for line in sys.stdin:
    assert cache.write(key, pa.table({"n": [int(line)] * 3})).stored
    print("done", flush=True)
"""

ENDLESS = """
import random
random = random.Random(int(sys.argv[2]))
rows = 40_000
print("started", flush=True)
while True:
    number = random.randrange(1000)
    parts = pa.table({"p": ["a"] * rows + ["b"] * rows, "n": [number] * (2 * rows)})
    cache.write(key, parts, part_by="p")
"""


def test_readers_see_whole_versions_while_others_write(
    cache: Cache, key: EntryKey, start: Callable[..., subprocess.Popen[str]]
) -> None:
    writers = [start(ENDLESS, str(seed)) for seed in range(2)]
    for writer in writers:
        writer.stdout.readline()
    while cache.read(key) is None:
        time.sleep(0.02)
    deadline, seen = time.monotonic() + 3, set()
    while time.monotonic() < deadline:
        hit = cache.read(key)
        values = set(hit.value["n"].to_pylist())
        assert len(values) == 1
        assert hit.value.num_rows == 80_000
        seen.add(hit.info.generation)
    assert len(seen) > 3
    assert cache.get_degraded() == {}


def test_a_kill_at_any_moment_leaves_a_sound_file(
    config: Config, key: EntryKey, start: Callable[..., subprocess.Popen[str]]
) -> None:
    chance = random.Random(5)
    for seed in range(6):
        writer = start(ENDLESS, str(seed))
        if seed:
            writer.stdout.readline()
        else:  # also while the file is being made
            while not (config.cache_dir / config.cache_filename).exists():
                pass
        time.sleep(chance.random() * 0.3)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        cache = Cache(config)
        config.cache_verify_checksum = True
        cache.open()
        hit = cache.read(key)
        assert hit is None or len(set(hit.value["n"].to_pylist())) == 1
        assert cache.get_degraded() == {}
        cache.close()
        connection = sqlite3.connect(config.cache_path)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM parts").fetchone()[0] in (0, 3)
        connection.close()


def _read_in_child(cache: Cache, key: EntryKey, answers: "multiprocessing.Queue[object]") -> None:
    hit = cache.read(key, "pandas")
    written = cache.write(EntryKey("child", "x"), {"a": 1})
    cache.flush()
    answers.put((hit.tier, hit.value["n"].tolist(), written.stored, cache.read("child", "json").value))
    cache.close()


def test_a_forked_child_has_connections_of_its_own(cache: Cache, key: EntryKey) -> None:
    cache.write(key, TABLE)
    assert cache.read(key, "pandas")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_read_in_child, args=(cache, key, answers))
    child.start()
    assert answers.get(timeout=30) == ("disk", [1, 2, 3], True, {"a": 1})
    child.join()
    assert child.exitcode == 0
    assert cache.read("child", "json").value == {"a": 1}
    assert cache.read(key).value == TABLE
    assert cache.get_stats()["total_hits"] == 5  # the child has not written down what the parent had pending


def _fork(work: Callable[[], bool]) -> int:
    """Fork; the child says by its exit code whether the work came out right."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return child


def _code(child: int) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


def test_what_a_forked_child_writes_outlives_the_parents_connections(cache: Cache, config: Config) -> None:
    assert cache.write(EntryKey("parent", "x"), {"a": 0}).stored
    assert cache.read("parent", "json")
    wrote, closed = os.pipe(), os.pipe()

    def work() -> bool:
        first = cache.write(EntryKey("child 1", "x"), {"a": 1}).stored
        os.write(wrote[1], b".")
        os.read(closed[0], 1)
        return first and cache.write(EntryKey("child 2", "x"), {"a": 2}).stored

    child = _fork(work)
    os.read(wrote[0], 1)
    cache.close()  # the last connection that the system knows of: SQLite deletes the log
    os.write(closed[1], b".")
    assert _code(child) == 0
    for end in (*wrote, *closed):
        os.close(end)
    after = Cache(config)
    assert [after.read(name, "json").value["a"] for name in ("parent", "child 1", "child 2")] == [0, 1, 2]
    after.close()


def test_a_child_forked_in_the_middle_of_a_write_can_write(cache: Cache) -> None:
    assert cache.write(EntryKey("parent", "x"), {"a": 0}).stored
    database = cache._tiered.files()[0].database
    begun, forked = threading.Event(), threading.Event()

    def write() -> None:
        with database.writing():
            begun.set()
            forked.wait(0.5)  # the fork waits for it

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait()
    child = _fork(lambda: cache.write(EntryKey("child", "x"), {"a": 1}).stored)
    forked.set()
    writer.join()
    assert _code(child) == 0
    assert cache.read("child", "json").value == {"a": 1}


def test_a_child_forked_from_within_a_read_is_refused_the_file(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    assert cache.write(EntryKey("parent", "x"), {"a": 0}).stored

    def work() -> bool:
        written = cache.write(EntryKey("child", "x"), {"a": 1})
        return not written.stored and "forked" in written.reason and cache.read("parent", "json") is None

    with cache._tiered.files()[0].database.reading():
        child = _fork(work)
    assert _code(child) == 0
    assert "forked in the middle" in caplog.text
    assert cache.write(EntryKey("parent", "x"), {"a": 2}).stored
    assert cache.read("child", "json") is None


def test_a_process_that_only_reads_imports_neither_sqlalchemy_nor_polars(
    cache: Cache, key: EntryKey, run: Callable[..., str]
) -> None:
    cache.write(key, TABLE, part_by="n")
    script = """
    loaded = {"sqlalchemy", "polars", "pyarrow.parquet", "pandas", "zstandard", "httpx", "dagster"} & set(sys.modules)
    print("import:", *sorted(loaded))
    hit = cache.read(key, "pandas", parts=["2"])
    assert hit.tier == "disk"
    assert [cache.read(key, "pandas").tier for _ in range(2)] == ["disk", "memory"]
    cache.flush()
    cache.close()
    loaded = {"sqlalchemy", "polars", "httpx", "dagster", "zstandard", "tif1_pipeline.cache.schema"} & set(sys.modules)
    print("read:", *sorted(loaded))
    """
    assert run(script) == "import:\nread:\n"


def test_counters_add_up_over_processes(cache: Cache, key: EntryKey, run: Callable[..., str]) -> None:
    cache.write(key, TABLE)
    script = """
    for _ in range(3):
        cache.read(key)
    cache.read("unknown")
    # and no flush: it happens at exit
    """
    for _ in range(2):
        run(script)
    cache.read(key)
    stats = cache.get_stats()
    assert (stats["total_hits"], stats["total_misses"]) == (7, 2)
    assert (stats["hit_rate"], stats["miss_rate"]) == (pytest.approx(7 / 9), pytest.approx(2 / 9))
    assert stats["avg_access_ms"] > 0
    assert cache.info(key).access_count == 6
    assert cache.flush()
    assert cache.info(key).access_count == 7
    assert cache.info(key).accessed_at > cache.info(key).created_at
    cache.write(key, TABLE)
    assert cache.info(key).access_count == 7


def test_processes_that_create_the_file_at_once_share_it(
    start: Callable[..., subprocess.Popen[str]], cache: Cache
) -> None:
    script = """
    while not os.path.exists(sys.argv[2]):
        pass
    assert cache.write(EntryKey(str(os.getpid()), "x"), {"a": 1}).stored
    print(cache.get_degraded())
    """
    signal_file = cache.get_cache_dir().parent / "go"
    processes = [start(script, str(signal_file)) for _ in range(4)]
    time.sleep(1.5)
    signal_file.touch()
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert (output, errors) == ("{}\n", "")
    assert cache.get_stats()["total_entries"] == 4


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_connections_of_ended_threads_and_closed_caches_are_closed(cache: Cache, key: EntryKey) -> None:
    def open_files() -> int:
        return sum(str(cache.get_cache_file()) in str(name.resolve()) for name in Path("/proc/self/fd").iterdir())

    cache.write(key, TABLE)
    for _ in range(30):
        thread = threading.Thread(target=cache.read, args=(key,))
        thread.start()
        thread.join()
    assert open_files() < 12
    cache.close()
    assert open_files() == 0
