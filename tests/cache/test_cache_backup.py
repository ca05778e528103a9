"""Backups of a cache that others write to: whole, verified, and without litter."""

import json
import os
import random
import signal
import sqlite3
import stat
import tarfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.connection import LAYOUT_VERSION
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import CacheError, InvalidDataError
from tif1_pipeline.keys import EntryKey

TABLE = pa.table({"p": ["a", "b"] * 20_000, "n": list(range(40_000))})


def unpack(path: Path, folder: Path) -> dict[str, object]:
    """Read a backup with the ordinary tools; returns its manifest."""
    folder.mkdir(exist_ok=True)
    with (
        path.open("rb") as packed,
        zstandard.ZstdDecompressor().stream_reader(packed) as stream,
        tarfile.open(fileobj=stream, mode="r|") as archive,
    ):
        archive.extractall(folder, filter="data")
    return json.loads((folder / "manifest.json").read_text())


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_backup_holds_all_entries_and_says_what_it_is(cache: Cache, key: EntryKey, tmp_path: Path) -> None:
    cache.write(key, TABLE, part_by="p")
    cache.write(EntryKey("other", "x"), {"a": 1})
    path = cache.backup()
    assert path.parent == cache.get_cache_dir() / "backups"
    manifest = unpack(path, tmp_path / "unpacked")
    assert manifest["layout"] == LAYOUT_VERSION
    assert [(member["name"], member["entries"]) for member in manifest["members"]] == [("tif1_cache.db", 2)]
    with closing(sqlite3.connect(tmp_path / "unpacked" / "tif1_cache.db")) as connection:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM parts").fetchone() == (4,)


WRITES_ON = """
import random
print("started", flush=True)
number = 0
while True:
    number += 1
    # Two entries of one number, the second after the first: no state of the cache has the second ahead.
    for name in ("first", "second"):
        rows = 30_000
        noise = [random.random() for _ in range(2 * rows)]
        value = pa.table({"p": ["a"] * rows + ["b"] * rows, "n": [number] * (2 * rows), "r": noise})
        assert cache.write(EntryKey(name, "x"), value, part_by="p").stored
    print(number, flush=True)
"""


@pytest.mark.slow
def test_backups_under_writers_hold_whole_states(
    cache: Cache, open_cache: Callable[..., Cache], start: Callable[..., object], tmp_path: Path
) -> None:
    for number in range(20):
        cache.write(EntryKey(f"filling/{number}", "x"), pa.table({"b": [os.urandom(1 << 20)]}))
    writer = start(WRITES_ON)
    writer.stdout.readline()
    acknowledged = int(writer.stdout.readline())
    for attempt in range(4):
        path = cache.backup(tmp_path / "backups")
        other = open_cache(Config(cache_dir=tmp_path / f"other{attempt}", cache_verify_checksum=True))
        other.restore(path)
        first, second = (set(other.read(name).value["n"].to_pylist()) for name in ("first", "second"))
        assert len(first) == len(second) == 1
        assert first.pop() - second.pop() in (0, 1)
        assert min(other.read("second").value["n"].to_pylist()) >= acknowledged
        assert len(other.get_entries()) == 22
        acknowledged = int(writer.stdout.readline())
    assert writer.poll() is None


def test_a_copy_is_not_begun_anew_by_what_others_commit(cache: Cache, tmp_path: Path) -> None:
    """The source is read within a transaction; without one each commit would send the copy back to page 1."""
    from tif1_pipeline.cache import backup

    for number in range(12):
        cache.write(EntryKey(f"e/{number}", "x"), pa.table({"b": [os.urandom(4 << 20)]}))
    (file,) = cache._tiered.files()
    steps = []

    def advance(_: float) -> None:  # between two steps of the copy somebody commits
        steps.append(cache.write(EntryKey("meanwhile", "x"), {"n": len(steps)}).stored)

    backup._copy(file.database, tmp_path / "copy.db", 5, advance)
    assert 3 <= len(steps) <= 8
    assert all(steps)
    with closing(sqlite3.connect(tmp_path / "copy.db")) as connection:
        assert connection.execute("SELECT count(*) FROM entries WHERE key = 'meanwhile'").fetchone() == (0,)


BACKS_UP = """
from tif1_pipeline.cache import manage
print("started", flush=True)
cache.backup(sys.argv[2])
print("done", flush=True)
"""


@pytest.mark.slow
def test_a_killed_backup_leaves_nothing_that_the_next_one_does_not_remove(
    cache: Cache, key: EntryKey, start: Callable[..., object], tmp_path: Path
) -> None:
    for number in range(12):
        cache.write(EntryKey(f"e/{number}", "x"), pa.table({"b": [os.urandom(4 << 20)]}))
    folder = tmp_path / "backups"
    first = cache.backup(folder)
    random_ = random.Random(3)
    killed = 0
    for number in range(40):
        if number >= 8 and killed:
            break
        process = start(BACKS_UP, str(folder))
        process.stdout.readline()
        time.sleep(random_.uniform(0.02, 0.5 + number / 10))  # a busy machine takes longer to begin
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += any(name.endswith(".partial") for name in listed(folder))
        assert first.exists()
    assert killed
    last = cache.backup(folder, keep=1)
    assert listed(folder) == [last.name]
    cache.clear()
    cache.restore(last)
    assert len(cache.get_entries()) == 12


def test_two_backups_at_once_do_not_disturb_each_other(
    cache: Cache, start: Callable[..., object], tmp_path: Path
) -> None:
    for number in range(6):
        cache.write(EntryKey(f"e/{number}", "x"), pa.table({"b": [os.urandom(4 << 20)]}))
    folder = tmp_path / "backups"
    processes = [start(BACKS_UP, str(folder)) for _ in range(3)]
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert output == "started\ndone\n", errors
    assert len(listed(folder)) == 3
    for name in listed(folder):
        cache.restore(folder / name)


def test_the_newest_are_kept_and_other_files_are_left_alone(cache: Cache, key: EntryKey, tmp_path: Path) -> None:
    cache.write(key, {"a": 1})
    others = [
        "notes.txt",
        "tif1_cache-2025.tar.zst",
        "xtif1_cache-20200101T000000.000Z.tar.zst",
        ".tif1_cache-x y.partial",
    ]
    for name in others:
        (tmp_path / name).write_text("mine")
    made = [cache.backup(tmp_path / ".", keep=3).name for _ in range(5)]
    assert set(listed(tmp_path)) - {"cache"} == {*others, *made[-3:]}
    assert made == sorted(made)
    assert cache.backup(tmp_path, keep=1).exists()
    assert len(listed(tmp_path)) == len(others) + 2
    for keep in (0, -1):
        with pytest.raises(InvalidDataError, match="keep"):
            cache.backup(tmp_path, keep=keep)


def test_an_old_backup_goes_only_when_the_new_one_is_complete(cache: Cache, key: EntryKey, tmp_path: Path) -> None:
    cache.write(key, {"a": 1})
    old = cache.backup(tmp_path / "b", keep=1)
    (file,) = cache._tiered.files()
    with file.database.raw(1) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET rootpage = 2 WHERE name = 'parts'")
    cache.close()
    with pytest.raises(CacheError):
        cache.backup(tmp_path / "b", keep=1)
    assert listed(tmp_path / "b") == [old.name]


def test_files_are_closed_to_others_whatever_the_umask(cache: Cache, key: EntryKey, tmp_path: Path) -> None:
    cache.write(key, {"a": 1})
    before = os.umask(0)
    try:
        path = cache.backup(tmp_path / "a" / "b")
        cache.restore(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in list(path.parents)[:2]] == [0o750] * 2


def test_nothing_to_back_up_is_said_so(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="nothing to back up"):
        cache.backup(tmp_path / "b")


def test_a_disk_without_room_is_said_so_with_numbers(
    cache: Cache, key: EntryKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write(key, {"a": 1})
    path = cache.backup(tmp_path / "b")
    monkeypatch.setattr("tif1_pipeline.cache.backup._SLACK", 1 << 60)
    for work in (lambda: cache.backup(tmp_path / "b"), lambda: cache.restore(path)):
        with pytest.raises(CacheError, match=r"takes [\d,]+ bytes .* [\d,]+ are free"):
            work()
    assert listed(tmp_path / "b") == [path.name]


def test_a_folder_that_cannot_be_written_is_said_so(cache: Cache, key: EntryKey, tmp_path: Path) -> None:
    cache.write(key, {"a": 1})
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="file"):
        cache.backup(tmp_path / "file" / "b")


def test_every_shard_is_backed_up(open_cache: Callable[..., Cache], tmp_path: Path) -> None:
    cache = open_cache(Config(cache_dir=tmp_path / "c", cache_shards=3))
    for number in range(20):
        cache.write(EntryKey(f"entry{number}", "x"), {"n": number})
    path = cache.backup()
    assert len(unpack(path, tmp_path / "u")["members"]) == 3
    other = open_cache(Config(cache_dir=tmp_path / "o", cache_shards=3))
    other.restore(path)
    assert [other.read(f"entry{number}", "json").value["n"] for number in range(20)] == list(range(20))
    one = open_cache(Config(cache_dir=tmp_path / "one"))
    with pytest.raises(CacheError, match="Set cache_shards to 3"):
        one.restore(path)
    assert not one.get_cache_file().exists()


def test_what_stands_in_for_a_file_is_backed_up_with_it(
    open_cache: Callable[..., Cache], tmp_path: Path, key: EntryKey
) -> None:
    from tif1_pipeline.cache import backup

    first, second = (open_cache(Config(cache_dir=tmp_path / name)) for name in ("primary", "standin"))
    for name in ("only here", "in both"):
        first.write(EntryKey(name, "x"), {"from": "primary"})
    for name in ("in both", "only there"):
        second.write(EntryKey(name, "x"), pa.table({"p": ["a", "b"]}), part_by="p")
    files = [second._tiered.files()[0], first._tiered.files()[0]]
    (tmp_path / "work").mkdir()
    member = backup._copy_shard(files, tmp_path / "work", 0, 5, lambda _: None)
    assert member.entries == 3
    (tmp_path / "work" / "tif1_cache.db").chmod(0o640)
    merged = open_cache(Config(cache_dir=tmp_path / "work", cache_verify_checksum=True))
    assert merged.read("only here", "json").value == {"from": "primary"}
    for name in ("in both", "only there"):
        assert merged.read(name, parts=["b"]).value.to_pydict() == {"p": ["b"]}


def test_what_the_standin_has_counted_is_added(open_cache: Callable[..., Cache], tmp_path: Path) -> None:
    from tif1_pipeline.cache import backup

    first, second = (open_cache(Config(cache_dir=tmp_path / name)) for name in ("primary", "standin"))
    for cache, reads in ((first, 5), (second, 2)):
        cache.write(EntryKey("in both", "x"), {"a": 1})
        for _ in range(reads):
            cache.read("in both", "json")
        cache.read("missing")
        cache.flush()
    files = [second._tiered.files()[0], first._tiered.files()[0]]
    (tmp_path / "work").mkdir()
    backup._copy_shard(files, tmp_path / "work", 0, 5, lambda _: None)
    merged = open_cache(Config(cache_dir=tmp_path / "work"))
    assert merged.info("in both").access_count == 7
    assert merged.get_stats()["total_hits"] == 7
    assert merged.get_stats()["total_misses"] == 2


def test_an_entry_that_is_being_moved_back_is_counted_once(open_cache: Callable[..., Cache], tmp_path: Path) -> None:
    from tif1_pipeline.cache import backup

    cache = open_cache(Config(cache_dir=tmp_path / "primary"))
    cache.write(EntryKey("in both", "x"), {"a": 1})
    cache.read("in both", "json")
    cache.flush()
    (tmp_path / "work").mkdir()
    (file,) = cache._tiered.files()
    backup._copy_shard([file, file], tmp_path / "work", 0, 5, lambda _: None)
    assert open_cache(Config(cache_dir=tmp_path / "work")).info("in both").access_count == 1


@pytest.mark.parametrize("is_gone", [False, True])
def test_no_backup_is_made_and_none_removed_while_only_the_standin_can_be_read(
    open_cache: Callable[..., Cache], tmp_path: Path, is_gone: bool
) -> None:
    settings = Config(cache_dir=tmp_path / "disk" / "cache", cache_fallback_dir=tmp_path / "fallback")
    cache = open_cache(settings)
    cache.write(EntryKey("full", "x"), {"a": 1})
    full = cache.backup(tmp_path / "b", keep=1)
    cache.close()
    (tmp_path / "disk").rename(tmp_path / "away")
    (tmp_path / "disk").write_text("no folder")
    cache = open_cache(settings)
    assert cache.write(EntryKey("new", "x"), {"a": 2}).stored
    assert cache.check_health() == "failover"
    if is_gone:  # not broken but empty, as where a disk is not mounted
        cache._tiered.shards()[0]._retry_at = time.monotonic() + 1000
        (tmp_path / "disk").unlink()
        (tmp_path / "disk").mkdir()
    with pytest.raises(CacheError, match="Make cache_dir usable again") as caught:
        cache.backup(tmp_path / "b", keep=1)
    assert str(tmp_path / "disk" / "cache") in caught.value.message
    assert listed(tmp_path / "b") == [full.name]
    assert cache.export(tmp_path / "exported") == 1


LIMITED = """
import resource
from tif1_pipeline.cache import manage
from tif1_pipeline.exceptions import CacheError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
try:
    print(cache.backup(sys.argv[2]))
except CacheError as error:
    print(error.message)
"""


def test_a_full_destination_is_named_and_not_the_cache(
    cache: Cache, key: EntryKey, run: Callable[..., str], tmp_path: Path
) -> None:
    cache.write(key, pa.table({"b": [os.urandom(2 << 20)]}))
    cache.checkpoint()
    message = run(LIMITED, str(tmp_path / "b"))
    assert str(tmp_path / "b") in message
    assert "free some space there or name another folder" in message
    assert str(cache.get_cache_dir()) not in message
    assert listed(tmp_path / "b") == []
