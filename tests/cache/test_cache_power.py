"""What must be on the disk before something else is: else a power cut between the two loses what was stored before.

The trial ``python -m tests.stress --only power`` tries what these orders are for.
"""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tif1_pipeline.cache import Cache, connection
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey

ENTRIES = [EntryKey(f"entry {number}", "x") for number in range(6)]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is synced and named, in this order."""
    calls = []
    real_sync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        real_sync(descriptor)
        calls.append(("synced", str(Path(f"/proc/self/fd/{descriptor}").readlink())))

    def replace(source: str, target: str) -> None:
        assert calls[-1] == ("synced", str(source))
        real_replace(source, target)
        calls.append(("named", str(target)))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return calls


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What SQLite is told, by file."""
    told = []
    real = connection.connect

    def connect(settings: connection.Settings, *arguments: object, **options: object) -> sqlite3.Connection:
        opened = real(settings, *arguments, **options)
        opened.set_trace_callback(lambda statement: told.append((settings.path.name, statement)))
        return opened

    monkeypatch.setattr(connection, "connect", connect)
    return told


def write_all(cache: Cache) -> None:
    for key in ENTRIES:
        assert cache.write(key, {"a": 1}).stored
    cache.close()


def test_the_names_of_new_folders_are_synced(
    open_cache: Callable[..., Cache], tmp_path: Path, synced: list[tuple[str, str]]
) -> None:
    cache = open_cache(Config(cache_dir=tmp_path / "a" / "b"))
    cache.write(ENTRIES[0], {"a": 1})
    assert synced == [("synced", str(tmp_path)), ("synced", str(tmp_path / "a"))]
    synced.clear()
    path = cache.backup(tmp_path / "c")
    assert [where for _, where in synced if "partial" not in where] == [str(tmp_path), str(path.parent)]


def test_an_exported_file_is_synced_before_it_has_its_name_and_the_folders_before_anything_is_removed(
    cache: Cache, tmp_path: Path, synced: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write(ENTRIES[0], {"a": 1})
    cache.export(tmp_path / "tree")
    stale = next((tmp_path / "tree").rglob("*.json"))
    os.utime(stale, (1, 1))
    cache.remove(ENTRIES[0])
    cache.write(ENTRIES[1], {"a": 1})
    synced.clear()
    real_unlink = os.unlink

    def unlink(path: str, **options: object) -> None:
        real_unlink(path, **options)
        synced.append(("removed", str(path)))

    monkeypatch.setattr(os, "unlink", unlink)
    cache.export(tmp_path / "tree")
    removed = synced.index(("removed", str(stale)))
    assert [kind for kind, _ in synced[:2]] == ["synced", "named"]
    assert {("synced", str(stale.parent)), ("synced", str(tmp_path / "tree"))} <= set(synced[2:removed])


def test_an_entry_leaves_its_file_only_when_it_is_on_disk_in_the_other(
    config: Config, open_cache: Callable[..., Cache], statements: list[tuple[str, str]]
) -> None:
    write_all(open_cache())
    config.cache_shards = 3
    statements.clear()
    assert len(open_cache().get_entries()) == len(ENTRIES)
    safe, moved = False, 0
    level: dict[str, str] = {}
    for name, statement in statements:
        if statement.startswith("PRAGMA synchronous="):
            level[name] = statement.partition("=")[2]
        if name == config.cache_filename:
            assert safe or not statement.startswith("DELETE FROM entries")
        elif statement == "BEGIN IMMEDIATE":
            safe = False
        elif statement.startswith("INSERT INTO parts"):
            safe, moved = level[name] == "FULL", moved + 1
    assert moved > 0


def test_who_throws_the_keys_away_after_a_decryption_needs_them_no_more(
    config: Config, open_cache: Callable[..., Cache], statements: list[tuple[str, str]]
) -> None:
    config.cache_encryption_key = ("11" * 32,)
    cache = open_cache()
    write_all(cache)
    statements.clear()
    assert cache.rotate_key(decrypt=True) == len(ENTRIES)
    level = ""
    changes = 0
    for _, statement in statements:
        if statement.startswith("PRAGMA synchronous="):
            level = statement.partition("=")[2]
        if statement.startswith("UPDATE entries SET encryption"):
            assert level == "FULL"
            changes += 1
    assert changes == len(ENTRIES)


@pytest.mark.parametrize(("wal", "level"), [(True, 1), (False, 2)])
def test_without_a_log_every_commit_is_synced_in_full(
    config: Config, open_cache: Callable[..., Cache], wal: bool, level: int
) -> None:
    """Under NORMAL a torn journal can pass SQLite's checksums, which look at each 200th byte, and damage the file."""
    config.cache_wal_mode = wal
    cache = open_cache()
    cache.write(ENTRIES[0], {"a": 1})
    database = cache._tiered.file_of(ENTRIES[0].text).database
    with database.writing(synced=True) as writing:
        assert writing.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    with database.writing() as writing:
        assert writing.exec_driver_sql("PRAGMA synchronous").scalar() == level
    with database.raw(5) as raw:
        assert raw.execute("PRAGMA synchronous").fetchone() == (level,)


def test_what_is_done_outside_wal_mode_in_between_is_synced_in_full(
    config: Config, open_cache: Callable[..., Cache], statements: list[tuple[str, str]]
) -> None:
    cache = open_cache()
    write_all(cache)
    created = [statement for _, statement in statements]
    assert created.index("PRAGMA synchronous=FULL") < next(
        number for number, statement in enumerate(created) if statement.lstrip().startswith("CREATE TABLE")
    )
    config.cache_page_size = 4096
    statements.clear()
    cache.vacuum()
    done = [statement for _, statement in statements]
    assert done.index("PRAGMA synchronous=FULL") < done.index("PRAGMA journal_mode=delete") < done.index("VACUUM")
    assert "PRAGMA synchronous=NORMAL" not in done[done.index("PRAGMA journal_mode=delete") : done.index("VACUUM")]


def test_a_file_that_a_power_cut_left_half_made_is_undone_not_set_aside(
    config: Config, open_cache: Callable[..., Cache], tmp_path: Path
) -> None:
    making = sqlite3.connect(tmp_path / "making", isolation_level=None)
    making.execute("PRAGMA cache_size=1")
    making.execute("BEGIN")
    making.execute("CREATE TABLE entries (x)")
    making.execute(
        "INSERT INTO entries VALUES (zeroblob(100000))"
    )  # more than is kept: it is written before the commit
    file = config.cache_path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"torn" * 25 + (tmp_path / "making").read_bytes()[100:])
    journal = Path(f"{file}-journal")
    journal.write_bytes((tmp_path / "making-journal").read_bytes())
    making.close()
    assert journal.stat().st_size > 0
    cache = open_cache()
    assert cache.write(ENTRIES[0], {"a": 1}).stored
    cache.clear_memory()
    assert cache.read(ENTRIES[0], "json").value == {"a": 1}
    assert cache.get_degraded() == {}
    assert not list(file.parent.glob("*damaged*"))
