"""A restore replaces everything or nothing, under the eyes of other processes."""

import hashlib
import io
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

from tests.cache.damages import asking_for_memory
from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.connection import APPLICATION_ID, LAYOUT_VERSION
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import (
    CacheError,
    CacheLockedError,
    CacheReadOnlyError,
    CacheVersionError,
    CorruptEntryError,
)
from tif1_pipeline.keys import EntryKey

TABLE = pa.table({"p": ["a", "b"] * 2_000, "n": list(range(4_000))})


@pytest.fixture
def backup(cache: Cache, key: EntryKey, tmp_path: Path) -> Path:
    """A backup of a cache whose content has changed since."""
    cache.write(key, TABLE, part_by="p")
    cache.write(EntryKey("removed", "x"), {"a": 1})
    path = cache.backup(tmp_path / "backups")
    cache.remove("removed")
    cache.write(key, {"new": True})
    cache.write(EntryKey("later", "x"), {"a": 2})
    return path


def listed(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def is_as_it_was(cache: Cache, key: EntryKey) -> bool:
    cache.clear_memory()
    litter = [name for name in listed(cache.get_cache_dir()) if name.startswith(".")]
    return cache.read(key, "json").value == {"new": True} and cache.read("later", "json") is not None and not litter


def test_a_restore_brings_back_what_was_there_and_nothing_else(cache: Cache, key: EntryKey, backup: Path) -> None:
    cache.restore(backup)
    hit = cache.read(key)
    assert hit.tier == "disk"
    assert hit.value.equals(TABLE)
    assert cache.read("later") is None
    assert cache.read("removed", "json").value == {"a": 1}
    assert cache.verify_integrity()["corrupted_entries"] == 0
    assert cache.write(key, {"still": "writable"}).stored
    assert [name for name in listed(cache.get_cache_dir()) if "partial" in name] == []


def test_another_process_sees_it_without_reopening(
    cache: Cache, key: EntryKey, backup: Path, start: Callable[..., object]
) -> None:
    process = start("""
        from tif1_pipeline.exceptions import InvalidDataError

        def value(key):
            try:
                hit = cache.read(key, "json")
            except InvalidDataError:  # a table again
                return None
            return hit and hit.value

        while True:
            values = [value("removed"), value(key)]
            print(values, flush=True)
            if values[0]:
                cache.write(EntryKey("from there", "x"), {"a": 1})
                print("written", flush=True)
                break
            time.sleep(0.01)
    """)
    assert process.stdout.readline() == "[None, {'new': True}]\n"
    cache.restore(backup)
    output, errors = process.communicate(timeout=30)
    assert not errors
    assert output.splitlines()[-2:] == ["[{'a': 1}, None]", "written"]
    assert cache.read("from there", "json").value == {"a": 1}


def test_it_goes_into_an_empty_place(
    open_cache: Callable[..., Cache], key: EntryKey, backup: Path, tmp_path: Path
) -> None:
    other = open_cache(Config(cache_dir=tmp_path / "new" / "place"))
    other.restore(backup)
    assert other.read(key).value.equals(TABLE)
    assert stat.S_IMODE(other.get_cache_file().stat().st_mode) == 0o640


@pytest.mark.parametrize("wal", [True, False])
def test_the_page_size_of_the_backup_may_be_another(
    open_cache: Callable[..., Cache], key: EntryKey, backup: Path, tmp_path: Path, wal: bool
) -> None:
    other = open_cache(Config(cache_dir=tmp_path / "other", cache_page_size=4096, cache_wal_mode=wal))
    other.write(EntryKey("old", "x"), {"a": 1})
    other.restore(backup)
    assert other.read(key).value.equals(TABLE)
    assert other.read("old") is None
    with closing(sqlite3.connect(other.get_cache_file())) as connection:
        assert connection.execute("PRAGMA page_size").fetchone() == (4096,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal" if wal else "delete",)
        assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)


def test_a_damaged_cache_is_set_aside(cache: Cache, key: EntryKey, backup: Path) -> None:
    cache.close()
    path = cache.get_cache_file()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(path.read_bytes()[:100] + os.urandom(50_000))
    fresh = Cache(cache._tiered.config)
    try:
        fresh.restore(backup)
        assert fresh.read(key).value.equals(TABLE)
    finally:
        fresh.close()
    assert any(".damaged-" in name for name in listed(path.parent))


def test_leases_are_not_restored(cache: Cache, tmp_path: Path) -> None:
    cache.write(EntryKey("a", "x"), {"a": 1})
    (file,) = cache._tiered.files()
    release = file.leases.acquire("a", lambda: False)
    path = cache.backup(tmp_path / "b")
    release()
    cache.restore(path)
    with file.database.querying() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM leases").scalar_one() == 0


def test_a_read_only_cache_is_not_restored(config: Config, cache: Cache, key: EntryKey, backup: Path) -> None:
    config.cache_readonly = True
    with pytest.raises(CacheReadOnlyError):
        cache.restore(backup)
    config.cache_readonly = False
    assert is_as_it_was(cache, key)


def test_a_locked_cache_is_said_so_and_left_alone(config: Config, cache: Cache, key: EntryKey, backup: Path) -> None:
    config.cache_lock_timeout = 0.3
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(CacheLockedError):
            cache.restore(backup)
    assert is_as_it_was(cache, key)


# ---- archives that are not what they should be


def content_of(backup: Path) -> tuple[dict[str, object], bytes]:
    with (
        backup.open("rb") as packed,
        zstandard.ZstdDecompressor().stream_reader(packed) as stream,
        tarfile.open(fileobj=io.BytesIO(stream.read())) as archive,
    ):
        return tuple(archive.extractfile(name).read() for name in ("manifest.json", "tif1_cache.db"))


def pack(path: Path, *members: tuple[str | tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(buffer.getvalue()))
    return path


def forged(backup: Path, database: bytes, **changes: object) -> Path:
    """The backup with another database in it, and a manifest that fits."""
    manifest = json.loads(content_of(backup)[0])
    manifest["members"][0] |= {"size": len(database), "blake2b": hashlib.blake2b(database, digest_size=32).hexdigest()}
    manifest |= changes
    return pack(
        backup.with_name("forged"), ("manifest.json", json.dumps(manifest).encode()), ("tif1_cache.db", database)
    )


def test_a_truncated_archive_is_refused_wherever_it_ends(cache: Cache, key: EntryKey, backup: Path) -> None:
    data = backup.read_bytes()
    cut = backup.with_name("cut")
    for length in [0, 1, 4, 100, len(data) // 2, *range(len(data) - 12, len(data))]:
        cut.write_bytes(data[:length])
        with pytest.raises(CacheError, match="cut"):
            cache.restore(cut)
    assert is_as_it_was(cache, key)


def test_a_flipped_byte_is_noticed_wherever_it_is(cache: Cache, key: EntryKey, backup: Path) -> None:
    data = bytearray(backup.read_bytes())
    flipped = backup.with_name("flipped")
    random_ = random.Random(5)
    refused = 0
    # Not in bytes 4 to 5, which only describe the frame.
    for position in [0, 8, len(data) - 1, *(random_.randrange(8, len(data)) for _ in range(40))]:
        data[position] ^= 0x10
        flipped.write_bytes(data)
        data[position] ^= 0x10
        try:
            cache.restore(flipped)
        except CacheError as error:
            refused += "flipped" in str(error)
            continue
        # Some bits of a compressed stream mean nothing: what it decompresses to is the backup all the same.
        assert cache.read(key).value.equals(TABLE)
        assert cache.verify_integrity()["integrity_pct"] == 100
        cache.clear()
        cache.write(key, {"new": True})
        cache.write(EntryKey("later", "x"), {"a": 2})
    assert refused >= 35
    assert is_as_it_was(cache, key)


def test_what_is_no_backup_is_refused(cache: Cache, key: EntryKey, backup: Path, tmp_path: Path) -> None:
    manifest, database = content_of(backup)
    text = tmp_path / "text"
    text.write_text("no backup")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    link = tarfile.TarInfo("tif1_cache.db")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    bomb = tmp_path / "bomb"
    bomb.write_bytes(zstandard.ZstdCompressor().compress(bytes(1 << 28)))
    pax = tarfile.TarInfo("manifest.json")
    pax.pax_headers = {"comment": "x" * (1 << 20)}
    refused = [
        text, fifo, bomb, tmp_path, tmp_path / "missing",
        pack(tmp_path / "no-manifest", ("tif1_cache.db", database)),
        pack(tmp_path / "no-database", ("manifest.json", manifest)),
        pack(tmp_path / "up", ("manifest.json", manifest), ("../tif1_cache.db", database)),
        pack(tmp_path / "absolute", ("manifest.json", manifest), ("/tif1_cache.db", database)),
        pack(tmp_path / "link", ("manifest.json", manifest), (link, b"")),
        pack(tmp_path / "longer", ("manifest.json", manifest), ("tif1_cache.db", database + bytes(512))),
        pack(tmp_path / "shorter", ("manifest.json", manifest), ("tif1_cache.db", database[:-512])),
        pack(tmp_path / "more", ("manifest.json", manifest), ("tif1_cache.db", database), ("x", b"x")),
        pack(tmp_path / "large", ("manifest.json", manifest + b" " * (2 << 20)), ("tif1_cache.db", database)),
        pack(tmp_path / "pax", (pax, manifest), ("tif1_cache.db", database), form=tarfile.PAX_FORMAT),
    ]  # fmt: skip
    for path in refused:
        with pytest.raises(CacheError, match=path.name):
            cache.restore(path)
    assert is_as_it_was(cache, key)


@pytest.mark.parametrize(
    "changes",
    [
        {"members": []}, {"members": None}, {"members": [{}]}, {"members": "x"}, {"format": None}, {"layout": "2"},
        {"layout": 0}, {"layout": True}, {"created_at": []},
    ],
)  # fmt: skip
def test_a_manifest_that_makes_no_sense_is_refused(
    cache: Cache, key: EntryKey, backup: Path, changes: dict[str, object]
) -> None:
    with pytest.raises(CacheError, match="manifest"):
        cache.restore(forged(backup, content_of(backup)[1], **changes))
    assert is_as_it_was(cache, key)


@pytest.mark.parametrize("changes", [{"layout": LAYOUT_VERSION + 1}, {"format": 2}])
def test_a_newer_backup_is_refused(cache: Cache, key: EntryKey, backup: Path, changes: dict[str, object]) -> None:
    with pytest.raises(CacheVersionError, match="Update tif1_pipeline"):
        cache.restore(forged(backup, content_of(backup)[1], **changes))
    assert is_as_it_was(cache, key)


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("PRAGMA application_id=5", CacheVersionError),
        (f"PRAGMA user_version={LAYOUT_VERSION + 1}", CacheVersionError),
        ("CREATE TRIGGER t AFTER DELETE ON leases BEGIN DELETE FROM entries; END", CacheError),
        ("CREATE VIEW v AS SELECT 1", CacheError),
        ("CREATE TABLE other (a)", CacheError),
        ("DROP TABLE leases", CacheError),
        ("ALTER TABLE entries ADD COLUMN x", CacheError),
        ("ALTER TABLE entries DROP COLUMN etag", CacheError),
    ],
)
def test_a_database_that_is_no_cache_is_refused(
    cache: Cache, key: EntryKey, backup: Path, tmp_path: Path, statement: str, error: type[CacheError]
) -> None:
    path = tmp_path / "changed.db"
    path.write_bytes(content_of(backup)[1])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)
    with pytest.raises(error):
        cache.restore(forged(backup, path.read_bytes()))
    assert is_as_it_was(cache, key)


def test_a_damaged_database_is_refused(cache: Cache, key: EntryKey, backup: Path) -> None:
    database = bytearray(content_of(backup)[1])
    for broken in (b"x" * 5000, bytes(16384), bytes(database[:16384]), bytes(database[:16384]) + os.urandom(65536)):
        with pytest.raises(CacheError):
            cache.restore(forged(backup, broken))
    assert is_as_it_was(cache, key)


def test_a_database_that_asks_for_more_memory_than_there_is_is_refused(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey, tmp_path: Path
) -> None:
    config.cache_page_size = 4096
    cache = open_cache()
    cache.write(key, TABLE)
    backup = cache.backup(tmp_path / "backups")
    with pytest.raises(CorruptEntryError, match="the schema is malformed"):
        cache.restore(forged(backup, asking_for_memory(content_of(backup)[1], tmp_path)))
    assert cache.read(key).value.equals(TABLE)


def test_a_backup_of_a_former_layout_is_brought_to_this_one(
    cache: Cache, key: EntryKey, backup: Path, tmp_path: Path
) -> None:
    path = tmp_path / "former.db"
    path.write_bytes(content_of(backup)[1])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("ALTER TABLE entries DROP COLUMN encryption")
        connection.execute("PRAGMA user_version=1")
    cache.restore(forged(backup, path.read_bytes(), layout=1))
    assert cache.read(key).value.equals(TABLE)
    assert cache.write(key, {"a": 1}).stored
    with closing(sqlite3.connect(cache.get_cache_file())) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (LAYOUT_VERSION,)
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)


# ---- kills

RESTORES = """
from tif1_pipeline.cache import manage
print("started", flush=True)
cache.restore(sys.argv[2])
print("done", flush=True)
"""


@pytest.mark.slow
def test_a_killed_restore_leaves_the_old_or_the_new_content(
    config: Config, cache: Cache, open_cache: Callable[..., Cache], start: Callable[..., object], tmp_path: Path
) -> None:
    for number in range(12):
        cache.write(EntryKey(f"e/{number}", "x"), pa.table({"b": [os.urandom(4 << 20)]}))
    backup = cache.backup(tmp_path / "backups")
    old = [f"old/{number}" for number in range(4)]
    random_ = random.Random(4)
    seen = set()
    for attempt in range(7):
        cache.clear()
        for name in old:
            cache.write(EntryKey(name, "x"), pa.table({"b": [os.urandom(4 << 20)]}))
        process = start(RESTORES, str(backup))
        process.stdout.readline()
        if attempt < 6:
            time.sleep(random_.uniform(0.05, 0.4))
            process.send_signal(signal.SIGKILL)
        process.wait()
        reader = open_cache(Config(cache_dir=config.cache_dir, cache_verify_checksum=True))
        keys = sorted(entry["key"] for entry in reader.get_entries())
        assert keys in (old, sorted(f"e/{number}" for number in range(12)))
        assert all(reader.read(name) is not None for name in keys)
        with closing(sqlite3.connect(config.cache_path)) as connection:
            assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
        seen.add(keys[0])
        reader.close()
    assert seen == {"e/0", "old/0"}
    cache.restore(backup)
    assert len(cache.get_entries()) == 12
    assert not [name for name in listed(config.cache_dir) if name.endswith(".partial")]


LIMITED = """
import resource
from tif1_pipeline.cache import manage
from tif1_pipeline.exceptions import CacheError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
try:
    cache.restore(sys.argv[2])
except CacheError as error:
    print(error.message)
"""


def test_a_full_disk_is_not_blamed_on_the_backup(
    cache: Cache, key: EntryKey, run: Callable[..., str], tmp_path: Path
) -> None:
    cache.write(EntryKey("large", "x"), pa.table({"b": [os.urandom(2 << 20)]}))
    path = cache.backup(tmp_path / "backups")
    cache.clear()
    cache.write(key, {"new": True})
    cache.write(EntryKey("later", "x"), {"a": 2})
    cache.close()
    message = run(LIMITED, str(path))
    assert f"the work folder in {cache.get_cache_dir()} cannot be written" in message
    assert "Free some space" in message
    assert is_as_it_was(cache, key)
