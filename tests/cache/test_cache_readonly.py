"""Read-only: nothing is written, whatever lies beside the file, and what others write is seen."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache, Fresh
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import CacheError, CacheReadOnlyError, CacheVersionError
from tif1_pipeline.keys import EntryKey

TABLE = pa.table({"n": [1, 2, 3]})


def readonly(config: Config, **settings: object) -> Config:
    return Config(cache_dir=config.cache_dir, cache_readonly=True, cache_lock_timeout=5, **settings)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.fixture
def filled(config: Config, run: Callable[..., str]) -> Config:
    """A cache that another process has filled and closed."""
    run("cache.write(key, table(1)); cache.close()")
    assert set(listing(config.cache_dir)) == {"tif1_cache.db"}
    return config


def test_reads_leave_the_folder_as_it_was(filled: Config, open_cache: Callable[..., Cache], key: EntryKey):
    before = listing(filled.cache_dir)
    cache = open_cache(readonly(filled))
    assert cache.read(key).value["n"].to_pylist() == [1, 1, 1]
    assert cache.list_sessions()
    assert cache.get_stats()["total_entries"] == 1
    assert cache.verify_integrity()["valid_entries"] == 1
    cache.close()
    assert listing(filled.cache_dir) == before


@pytest.mark.parametrize(
    "call",
    [
        lambda cache, key: cache.remove(key),
        lambda cache, key: cache.clear(),
        lambda cache, key: cache.clear_old(0),
        lambda cache, key: cache.smart_cleanup(max_size_mb=0, max_age_days=0, min_access_count=9),
        lambda cache, key: cache.vacuum(),
        lambda cache, key: cache.rebuild_indexes(),
        lambda cache, key: cache.optimize(),
        lambda cache, key: cache.checkpoint(),
        lambda cache, key: cache.rotate_key(decrypt=True),
    ],
    ids=["remove", "clear", "clear_old", "cleanup", "vacuum", "reindex", "optimize", "checkpoint", "rotate"],
)
def test_what_would_change_it_is_refused(filled: Config, open_cache: Callable[..., Cache], key: EntryKey, call):
    before = listing(filled.cache_dir)
    cache = open_cache(readonly(filled))
    with pytest.raises(CacheReadOnlyError, match="cache_readonly"):
        call(cache, key)
    assert cache.read(key)
    cache.close()
    assert listing(filled.cache_dir) == before


def test_a_write_is_kept_in_memory_and_says_why_it_is_not_stored(
    filled: Config, open_cache: Callable[..., Cache], key: EntryKey
):
    before = listing(filled.cache_dir)
    cache = open_cache(readonly(filled))
    written = cache.write(key, TABLE)
    assert not written.stored
    assert "cache_readonly" in written.reason
    assert cache.read(key).value.equals(TABLE)
    assert cache.get_degraded() == {}
    assert listing(filled.cache_dir) == before


def test_a_miss_is_fetched_and_kept_in_memory(filled: Config, open_cache: Callable[..., Cache], key: EntryKey):
    cache = open_cache(readonly(filled))
    other = key.of_part("VER")
    calls = []

    def fetch(stored: object) -> Fresh:
        calls.append(stored)
        return Fresh(TABLE)

    assert cache.read_through(other, fetch).value.equals(TABLE)
    assert cache.read_through(other, fetch).tier == "memory"
    assert len(calls) == 1
    assert cache.info(other) is None


def test_what_a_writer_commits_meanwhile_is_seen(
    filled: Config, open_cache: Callable[..., Cache], key: EntryKey, start: Callable[..., subprocess.Popen[str]]
):
    cache = open_cache(readonly(filled))
    assert cache.read(key).value["n"].to_pylist() == [1, 1, 1]
    writer = start("cache.write(key, table(2)); print('done'); sys.stdin.readline(); cache.close()")
    assert writer.stdout.readline() == "done\n"
    assert cache.read(key).value["n"].to_pylist() == [2, 2, 2]  # in the log alone
    writer.kill()
    writer.wait()
    assert cache.read(key).value["n"].to_pylist() == [2, 2, 2]


def test_what_a_writer_left_behind_by_closing_is_seen(
    filled: Config, open_cache: Callable[..., Cache], key: EntryKey, run: Callable[..., str]
):
    cache = open_cache(readonly(filled))
    for number in (2, 3):
        run(f"cache.write(key, table({number})); cache.close()")
        assert cache.read(key).value["n"].to_pylist() == [number] * 3


def test_a_copy_without_its_log_on_a_folder_that_nobody_may_write_to(
    filled: Config, open_cache: Callable[..., Cache], key: EntryKey, tmp_path: Path
):
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("permissions do not stop root, and setpriv is not here to be someone else")
    folder = tmp_path / "copy"
    folder.mkdir()
    shutil.copyfile(filled.cache_path, folder / "tif1_cache.db")
    (folder / "tif1_cache.db").chmod(0o444)
    folder.chmod(0o555)
    for parent in (folder, *folder.parents):  # somebody else must get there
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    script = (
        "import sys\nfrom tif1_pipeline.cache import Cache\nfrom tif1_pipeline.config import Config\n"
        f"cache = Cache(Config(cache_dir={str(folder)!r}, cache_readonly=True))\n"
        f"print(cache.read({key.text!r}).value['n'].to_pylist(), cache.get_stats()['total_entries'])\n"
        "cache.close()\n"
        "try:\n    open(sys.argv[1] + '/x', 'w')\nexcept OSError:\n    print('not writable')\n"
    )
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    found = subprocess.run(
        [*user, sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    if user and "Permission denied" in found.stderr and "tif1_pipeline" not in found.stderr.split("Error")[0]:
        pytest.skip(f"another user cannot run Python here: {found.stderr[-200:]}")
    assert found.stdout.splitlines() == ["[1, 1, 1] 1", "not writable"], found.stderr
    assert {path.name for path in folder.iterdir()} == {"tif1_cache.db"}


def test_no_cache_is_no_error_for_a_read_and_is_not_made(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey
):
    cache = open_cache(readonly(config))
    assert cache.read(key) is None
    with pytest.raises(CacheError, match="there is no cache"):
        cache.open()
    assert not config.cache_dir.exists()


def test_a_damaged_file_is_left_where_it_is(config: Config, open_cache: Callable[..., Cache], key: EntryKey):
    config.cache_dir.mkdir()
    config.cache_path.write_bytes(b"no database" * 100)
    cache = open_cache(readonly(config))
    assert cache.read(key) is None
    assert sum(cache.get_degraded().values()) == 1
    assert config.cache_path.read_bytes() == b"no database" * 100


def test_a_former_layout_is_not_migrated_read_only(filled: Config, open_cache: Callable[..., Cache], key: EntryKey):
    with sqlite3.connect(filled.cache_path) as connection:
        connection.execute("ALTER TABLE entries DROP COLUMN encryption")
        connection.execute("PRAGMA user_version=1")
    connection.close()
    with pytest.raises(CacheVersionError, match="open it once without cache_readonly"):
        open_cache(readonly(filled)).read(key)
    assert open_cache(filled).read(key).value["n"].to_pylist() == [1, 1, 1]
    assert open_cache(readonly(filled)).read(key)


def test_read_only_can_be_switched_at_runtime(config: Config, open_cache: Callable[..., Cache], key: EntryKey):
    cache = open_cache()
    cache.write(key, TABLE)
    config.cache_readonly = True
    assert cache.read(key).value.equals(TABLE)
    with pytest.raises(CacheReadOnlyError):
        cache.clear()
    config.cache_readonly = False
    assert cache.clear() == 1


@pytest.mark.parametrize("mmap_size", [0, 256 << 20])
def test_a_read_in_which_somebody_writes_is_of_one_version(
    config: Config, open_cache: Callable[..., Cache], run: Callable[..., str], key: EntryKey, mmap_size: int
):
    write = """
    import numpy as np
    number = int(sys.argv[2])
    rows = np.random.default_rng(number).integers(0, 1 << 40, 40_000) * 10 + number
    cache.write(key, pa.table({"p": np.repeat([f"d{n:02}" for n in range(20)], 2000), "n": rows}), part_by="p")
    cache.close()
    """
    run(write, "1")
    cache = open_cache(
        readonly(config, memory_cache_enabled=False, cache_cache_size=10, cache_mmap_size=mmap_size),
    )
    store = cache._tiered.files()[0].store
    read_blob, reads = store._blob, []

    def in_the_middle(connection: sqlite3.Connection, part: int, name: str, checksum: str) -> object:
        reads.append(name)
        if len(reads) == 5:
            run(write, "2")
        return read_blob(connection, part, name, checksum)

    store._blob = in_the_middle
    assert {number % 10 for number in cache.read(key).value["n"].to_pylist()} == {2}
    assert cache.get_degraded() == {}


def test_a_journal_of_a_process_that_died_is_no_reason_to_read_half_a_change(
    config: Config, open_cache: Callable[..., Cache], run: Callable[..., str], key: EntryKey
):
    run("config.cache_wal_mode = False; cache.write(key, table(1, 100_000)); cache.close()")
    script = (
        "import os, sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size=2')\nc.execute('BEGIN IMMEDIATE')\n"
        "c.execute('UPDATE parts SET data = randomblob(length(data))')\nc.execute('UPDATE entries SET rows = 7')\n"
        "c.execute('INSERT INTO cache_metadata VALUES (1, randomblob(3000000))')\nos._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(config.cache_path)], check=False, timeout=60)
    assert config.cache_path.with_name("tif1_cache.db-journal").exists()
    cache = open_cache(readonly(config, cache_wal_mode=False))
    assert cache.read(key) is None
    with pytest.raises(CacheError, match="open it once without cache_readonly"):
        cache.get_stats()
    assert open_cache(Config(cache_dir=config.cache_dir, cache_wal_mode=False)).read(key).value["n"][0].as_py() == 1
    assert cache.read(key).value.num_rows == 100_000


BECOME = """
    for folder in config.cache_dir.parents:  # the temporary folder of the tests is its owner's alone
        if folder.stat().st_mode & 0o011 != 0o011:
            folder.chmod(folder.stat().st_mode | 0o011)
    warm = Cache(Config(cache_dir=config.cache_dir.with_name("warm")))  # imports what another user cannot read
    warm.write(key, table(1)); warm.read(key); warm.get_stats(); warm.close()
    os.setgroups([]); os.setgid(20001); os.setuid(20001)
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can turn into another user")


@as_root
def test_who_may_not_look_into_the_folder_gets_what_is_fetched(
    filled: Config, start: Callable[..., subprocess.Popen[str]]
):
    filled.cache_dir.chmod(0o700)
    process = start(f"""{BECOME}
    config.cache_readonly = True
    print(cache.read(key), cache.read_through(key, lambda _: Fresh(table(2))).tier, cache.get_degraded() != {{}})
    """)
    output, errors = process.communicate(timeout=60)
    assert output == "None cdn True\n", errors
    assert "Permission denied" in errors


@as_root
def test_who_may_not_write_the_file_leaves_no_log_that_its_owner_cannot_write(
    filled: Config, start: Callable[..., subprocess.Popen[str]], open_cache: Callable[..., Cache], key: EntryKey
):
    filled.cache_dir.chmod(0o777)
    filled.cache_path.chmod(0o644)
    process = start(f"""{BECOME}
    print(cache.read_through(key, lambda _: Fresh(table(2))).tier)
    print(cache.write(key, table(3)).reason)
    """)
    output, errors = process.communicate(timeout=60)
    assert output.startswith("cdn\n"), errors
    assert "cache_readonly" in output
    assert set(listing(filled.cache_dir)) == {"tif1_cache.db"}
    owner = open_cache(filled)
    assert owner.read(key).value["n"][0].as_py() == 1
    assert owner.write(key, TABLE).stored
