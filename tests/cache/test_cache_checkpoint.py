"""After a large write the log is carried over by a thread of its own: nobody waits for it, and it does not grow."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tif1_pipeline.cache import connection, journal
from tif1_pipeline.cache.connection import JOURNAL_LIMIT
from tif1_pipeline.keys import EntryKey

LARGE = pa.table({"x": np.random.default_rng(1).random(1_500_000)})  # 12 MB that hardly compress


def log_of(cache) -> Path:
    return Path(f"{cache.get_cache_file()}-wal")


def test_the_log_is_carried_over_while_the_cache_stays_open(cache, key):
    assert cache.write(key, LARGE).stored
    size = cache.info(key).compressed_size
    deadline = time.monotonic() + 20
    while cache.get_cache_file().stat().st_size < size and time.monotonic() < deadline:
        time.sleep(0.02)
    assert cache.get_cache_file().stat().st_size >= size
    cache.clear_memory()
    assert cache.read(key).value.equals(LARGE)


def test_the_log_is_bounded_however_fast_is_written(cache):
    longest = 0
    for number in range(24):
        assert cache.write(EntryKey(f"large{number}", "x"), LARGE).stored
        longest = max(longest, log_of(cache).stat().st_size)
    assert longest < JOURNAL_LIMIT + 2 * LARGE.nbytes
    assert cache.verify_integrity()["valid_entries"] == 24


def test_the_log_is_bounded_while_somebody_always_reads(cache, monkeypatch):
    # A log begins anew only when nobody reads from it: two readers are enough for it to grow for ever.
    monkeypatch.setattr(connection, "JOURNAL_LIMIT", 1 << 20)
    monkeypatch.setattr(journal, "_SHORTEN_EVERY_SECONDS", 0.05)
    rows = LARGE.slice(0, 20_000)  # 160 KB
    assert cache.write(EntryKey("x", "x"), rows).stored
    over = threading.Event()

    def read() -> None:
        reader = sqlite3.connect(cache.get_cache_file(), isolation_level=None)
        while not over.is_set():
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM entries").fetchone()
            time.sleep(0.03)
            reader.execute("COMMIT")
        reader.close()

    readers = [threading.Thread(target=read) for _ in range(3)]
    for number, reader in enumerate(readers):
        reader.start()
        time.sleep(0.01 * number)
    longest = 0
    for _ in range(150):
        assert cache.write(EntryKey("x", "x"), rows).stored
        longest = max(longest, log_of(cache).stat().st_size)
    over.set()
    for reader in readers:
        reader.join()
    assert longest < 12 << 20


_CARRIES_OVER = """
import fcntl, sys, time
with open(sys.argv[1], "r+b") as index:
    fcntl.lockf(index, fcntl.LOCK_EX, 1, 121)  # where SQLite locks while a connection carries the log over
    print("begun", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SQLite locks in another way there")
def test_a_log_that_another_process_is_carrying_over_is_waited_for(cache, monkeypatch):
    # SQLite refuses a second one at once: each writer would find that, write on, and the log grow with each.
    rows = LARGE.slice(0, 20_000)  # 160 KB
    for number in range(10):
        assert cache.write(EntryKey(f"before{number}", "x"), rows).stored
    monkeypatch.setattr(connection, "JOURNAL_LIMIT", 1 << 20)
    monkeypatch.setattr(journal, "_OTHERS_SECONDS", 20.0)
    index = Path(f"{cache.get_cache_file()}-shm")
    command = [sys.executable, "-c", _CARRIES_OVER, str(index), "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "begun\n"
        grown = log_of(cache).stat().st_size
        assert grown > 1 << 20
        assert cache.write(EntryKey("after", "x"), rows).stored
        assert log_of(cache).stat().st_size < grown / 2
    assert other.returncode == 0


def test_a_small_write_meanwhile_leaves_it_to_the_thread(open_cache, config, key, monkeypatch):
    config.cache_wal_autocheckpoint = 100
    cache = open_cache()
    begun, connect = threading.Event(), connection.connect

    def late(*arguments, **options) -> sqlite3.Connection:
        if threading.current_thread().name == "tif1-checkpoint":
            begun.wait(30)
        return connect(*arguments, **options)

    assert cache.write(EntryKey("small", "x"), {"a": 0}).stored
    assert cache.info("small")  # the first look at a new file opens it anew, which waits
    monkeypatch.setattr(connection, "connect", late)
    assert cache.write(key, LARGE).stored
    assert cache.write(EntryKey("small", "x"), {"a": 1}).stored
    assert cache.get_cache_file().stat().st_size < LARGE.nbytes // 2  # else the small write has done it, and waited
    begun.set()
    cache._tiered.file_of(key.text).database._log.wait()
    assert cache.get_cache_file().stat().st_size >= cache.info(key).compressed_size
    assert cache.read("small", "json").value == {"a": 1}


def test_closing_waits_for_it(cache, key):
    assert cache.write(key, LARGE).stored
    cache.close()
    assert not log_of(cache).exists()
    assert cache.read(key).value.num_rows == LARGE.num_rows


def test_a_child_forked_meanwhile_reads_and_writes(cache, key):
    assert cache.write(key, LARGE).stored
    child = os.fork()
    if child == 0:
        code = 1
        try:
            fine = cache.read(key).value.equals(LARGE) and cache.write(EntryKey("of the child", "x"), {"a": 1}).stored
            code = 0 if fine else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.read("of the child", "json").value == {"a": 1}
    assert cache.verify_integrity()["integrity_pct"] == 100


def test_a_small_write_starts_no_thread(cache, key):
    assert LARGE.nbytes > journal._LARGE
    assert cache.write(key, {"a": 1}).stored
    assert cache._tiered.file_of(key.text).database._log.running is None
