"""Stored bytes encrypted at rest: nothing plain in the file, nothing lost by a missing key, keys that change."""

import base64
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache, Fresh
from tif1_pipeline.cache.cipher import OVERHEAD, Keyring, context_of
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import CacheError, CacheReadOnlyError, ConfigError, CorruptEntryError
from tif1_pipeline.keys import EntryKey

A, B, C = ("a1" * 32, base64.b64encode(b"b" * 32).decode(), "c3" * 32)
DRIVERS = ["QVERQ", "QHAMQ"]
TABLE = pa.table({"SecretColumn": list(range(4000)), "Driver": pa.array(DRIVERS * 2000).dictionary_encode()})
VALUE = {"secret": "attack at dawn"}
JSON = EntryKey("plan", "asset")
PLAIN = (b"attack at dawn", b"SecretColumn", b"QVERQ", b"QHAMQ", b"PAR1", b"removed driver")


@pytest.fixture
def filled(config: Config, cache: Cache, key: EntryKey) -> Cache:
    """A cache with plain entries, former versions of them, and removed ones."""
    names = pa.array([f"removed driver {number}" for number in range(30_000)]).dictionary_encode()
    for number in range(3):
        cache.write(key, TABLE)
        cache.write(JSON, VALUE)
        cache.write(EntryKey(f"removed {number}", "asset"), VALUE)
        cache.remove(f"removed {number}")
    # Far more free pages than the entries that are left take.
    cache.write(EntryKey("removed", "asset"), pa.table({"a": names, "b": list(range(len(names)))}))
    cache.remove("removed")
    return cache


def raw_bytes(config: Config) -> bytes:
    """What is on disk; only for caches that no connection of this process has open."""
    return b"".join(path.read_bytes() for path in sorted(config.cache_dir.iterdir()))


def found_in(config: Config) -> list[bytes]:
    content = raw_bytes(config)
    return [plain for plain in PLAIN if plain in content]


def query(cache: Cache, statement: str) -> list[tuple]:
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


def read_anew(open_cache: Callable[..., Cache], settings: Config, key: EntryKey) -> tuple[object, object]:
    cache = open_cache(settings)
    table, value = cache.read(key), cache.read(JSON, "json")
    return table and table.value, value and value.value


# ---- reading and writing


@pytest.mark.parametrize("part_by", [None, "Driver"])
def test_values_come_back_and_nothing_of_them_is_in_the_file(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey, part_by: str | None
) -> None:
    config.cache_encryption_key = A
    config.cache_verify_checksum = True
    cache = open_cache()
    written = cache.write(key, TABLE, part_by=part_by)
    cache.write(JSON, VALUE)
    cache.clear_memory()
    assert cache.read(key).value == TABLE
    assert cache.read(JSON, "json").value == VALUE
    if part_by:
        cache.clear_memory()
        assert cache.read(key, parts=["QHAMQ"], columns=["Driver"]).value.num_rows == 2000
    assert written.info.encryption == cache.info(key).encryption == Keyring.of(config).current
    assert query(cache, "SELECT sum(length(data)), count(*) FROM parts")[0][0] == sum(
        info.compressed_size for info in (cache.info(key), cache.info(JSON))
    )
    cache.close()
    # The names of parts are metadata.
    assert set(found_in(config)) <= ({b"QVERQ", b"QHAMQ"} if part_by else set())


def test_the_checksum_of_the_content_is_that_of_the_plain_bytes(config: Config, cache: Cache, key: EntryKey) -> None:
    plain = cache.write(key, TABLE).info
    config.cache_encryption_key = A
    sealed = cache.write(key, TABLE).info
    assert sealed.checksum == plain.checksum
    assert sealed.compressed_size == plain.compressed_size + 2 * OVERHEAD
    assert (plain.encryption, sealed.encryption) == (None, Keyring.of(config).current)


def test_plain_and_encrypted_entries_live_in_one_file(config: Config, cache: Cache, key: EntryKey) -> None:
    cache.write(key, TABLE)
    config.cache_encryption_key = A
    cache.write(JSON, VALUE)
    cache.clear_memory()
    assert cache.read(key).value == TABLE
    assert cache.read(JSON, "json").value == VALUE


def test_the_first_key_encrypts_and_all_decrypt(config: Config, cache: Cache, key: EntryKey) -> None:
    config.cache_encryption_key = A
    cache.write(key, TABLE)
    config.cache_encryption_key = f"{B}, {A}"
    cache.write(JSON, VALUE)
    cache.clear_memory()
    assert cache.read(key).value == TABLE
    assert cache.read(JSON, "json").value == VALUE
    assert cache.info(JSON).encryption != cache.info(key).encryption


@pytest.mark.parametrize("column", ["data", "data and checksum"])
@pytest.mark.parametrize("rows", ["two parts", "two entries", "two versions"])
def test_bytes_moved_to_another_place_do_not_decrypt(
    config: Config, cache: Cache, key: EntryKey, rows: str, column: str
) -> None:
    config.cache_encryption_key = A
    table = pa.table({"n": [1, 2], "p": ["a", "b"]})
    cache.write(key, table, part_by="p")
    cache.write(EntryKey("other", "laps"), table, part_by="p")
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
        (first, *_), (second, *_) = connection.execute("SELECT id FROM parts WHERE ordinal = 1 ORDER BY id").fetchall()
        if rows == "two parts":
            (second,) = connection.execute("SELECT id FROM parts WHERE ordinal = 2 ORDER BY id").fetchone()
        data, checksum = connection.execute("SELECT data, checksum FROM parts WHERE id = ?", (second,)).fetchone()
        if rows == "two versions":
            data, checksum = connection.execute("SELECT data, checksum FROM parts WHERE id = ?", (first,)).fetchone()
    if rows == "two versions":
        cache.write(key, table, part_by="p")
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
        of = f"(SELECT id FROM entries WHERE key = '{key.text}')"
        connection.execute(f"UPDATE parts SET data = ? WHERE ordinal = 1 AND entry_id = {of}", (data,))
        if column == "data and checksum":
            connection.execute(f"UPDATE parts SET checksum = ? WHERE ordinal = 1 AND entry_id = {of}", (checksum,))
    cache.clear_memory()
    assert cache.read(key) is None
    assert cache.get_degraded() == {"read: corrupt entry": 1}
    assert cache.info(key) is None


@pytest.mark.parametrize("size", [0, 5, OVERHEAD - 1, OVERHEAD, 60])
def test_truncated_bytes_are_corrupt(config: Config, cache: Cache, size: int) -> None:
    config.cache_encryption_key = A
    cache.write(JSON, {"a": "text" * 100})
    cache.clear_memory()
    query(cache, f"UPDATE parts SET data = substr(data, 1, {size})")
    assert cache.read(JSON, "json") is None
    assert cache.get_degraded() == {"read: corrupt entry": 1}


def test_a_keyring_refuses_unknown_keys_and_changed_bytes(config: Config) -> None:
    config.cache_encryption_key = (A, B)
    keyring = Keyring.of(config)
    context = context_of("key", "generation", 1, "part")
    sealed = keyring.seal(b"data", context)
    assert sealed != keyring.seal(b"data", context)
    assert keyring.open(keyring.current, sealed, context) == b"data"
    with pytest.raises(CorruptEntryError):
        keyring.open(keyring.current, sealed, context_of("key", "generation", 2, "part"))
    with pytest.raises(CorruptEntryError):
        keyring.open(keyring.current, sealed[:-1] + bytes([sealed[-1] ^ 1]), context)
    with pytest.raises(CacheError, match="cache_encryption_key_file") as failed:
        keyring.open("00000000", sealed, context)
    assert failed.value.details["cause"] == "no key"
    assert Keyring.of(config) is keyring
    assert Keyring.of(Config()) is None
    assert len(keyring.current) == 8


# ---- a process without the key


@pytest.mark.parametrize("other", [None, C], ids=["no key", "another key"])
def test_a_process_without_the_key_reads_nothing_and_replaces_nothing(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey, other: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    config.cache_encryption_key = A
    open_cache().write(key, TABLE)
    before = open_cache().info(key)
    stranger = Config(cache_dir=config.cache_dir, cache_encryption_key=other)
    cache = open_cache(stranger)
    assert cache.read(key) is None
    assert "cache_encryption_key" in caplog.text
    hit = cache.read_through(key, lambda _: Fresh(pa.table({"n": [1]})))
    assert (hit.tier, hit.value.num_rows) == ("cdn", 1)
    written = cache.write(key, pa.table({"n": [1]}))
    assert not written.stored
    assert before.encryption in written.reason
    assert set(cache.get_degraded()) == {"read: no key", "write: no key"}
    assert A not in caplog.text
    assert cache.write(JSON, VALUE).stored
    assert open_cache().info(key) == before
    assert open_cache().read(key).value == TABLE
    assert open_cache(stranger).remove(key) == 1


def test_a_part_under_an_unknown_key_keeps_the_whole_from_being_stored(
    config: Config, cache: Cache, key: EntryKey
) -> None:
    config.cache_encryption_key = A
    part = EntryKey(f"{key.text}/VER", "laps")
    cache.write(part, TABLE)
    config.cache_encryption_key = None
    assert not cache.write(key, TABLE).stored
    assert cache.info(part) is not None


# ---- the key file


def test_keys_come_from_a_file_which_is_read_again_when_it_changes(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text(f"# ours\n\n  {A}  # since spring\n")
    config.cache_encryption_key_file = file
    cache = open_cache()
    cache.write(key, TABLE)
    file.write_text(f"{B}\n{A}\n")
    cache.write(JSON, VALUE)
    assert read_anew(open_cache, config, key) == (TABLE, VALUE)
    file.write_text(B)
    os.utime(file, ns=(1, 1))
    assert read_anew(open_cache, config, key) == (None, VALUE)
    assert not [record for record in caplog.records if "chmod" in record.getMessage()]
    file.chmod(0o644)
    assert read_anew(open_cache, config, key) == (None, VALUE)
    assert len([record for record in caplog.records if "chmod" in record.getMessage()]) == 1


def test_the_setting_goes_before_the_file(config: Config, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(B)
    config.update({"cache_encryption_key": A, "cache_encryption_key_file": tmp_path / "keys"})
    keyring = Keyring.of(config)
    assert keyring.current == Keyring([bytes.fromhex(A)]).current
    assert Keyring([b"b" * 32]).current in keyring


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "cannot be read"),
        ("", "no key in it"),
        ("# nothing\n", "no key in it"),
        (f"{A}\n{A[:-2]}\n", "line 2 is no key"),
        ("hunter2", "line 1 is no key"),
        (b"\xff\xfe\x00", "is no text"),
    ],
)
def test_a_bad_key_file_is_named_without_what_is_in_it(
    config: Config, cache: Cache, key: EntryKey, tmp_path: Path, content: str | bytes | None, what: str
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    config.cache_encryption_key_file = file
    with pytest.raises(ConfigError, match=what) as failed:
        cache.write(key, TABLE)
    assert str(file) in failed.value.message
    assert not any(word in repr(failed.value) for word in (A[:-2], "hunter2"))
    assert "hunter2" not in "".join(map(repr, (failed.value.__cause__, failed.value.__context__)))


def test_a_folder_as_key_file_is_refused(config: Config, cache: Cache, key: EntryKey, tmp_path: Path) -> None:
    config.cache_encryption_key_file = tmp_path
    with pytest.raises(ConfigError, match="no regular file"):
        cache.write(key, TABLE)


def test_without_the_package_a_key_is_an_error_that_says_so(config: Config) -> None:
    script = """
import sys
sys.modules["cryptography"] = None  # as if it were not installed
from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import ConfigError
from tif1_pipeline.keys import EntryKey
config = Config(cache_dir=sys.argv[1])
cache = Cache(config)
assert cache.write(EntryKey("x", "x"), {"a": 1}).stored
config.cache_encryption_key = "a1" * 32
try:
    cache.write(EntryKey("x", "x"), {"a": 2})
except ConfigError as error:
    print(error)
config.cache_encryption_key = None
cache.close()
print("isal" in sys.modules)
"""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(config.cache_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "package cryptography is not installed" in ran.stdout
    assert "a1a1" not in ran.stdout
    assert ran.stdout.endswith("False\n")


# ---- rotation


@pytest.mark.parametrize("wal", [True, False])
def test_after_a_rotation_no_plain_text_is_left_in_the_files(
    config: Config, open_cache: Callable[..., Cache], filled: Cache, key: EntryKey, wal: bool
) -> None:
    filled.close()
    config.cache_wal_mode = wal
    assert set(found_in(config)) == set(PLAIN)
    before = {name: filled.info(name) for name in (key, JSON)}
    config.cache_encryption_key = A
    filled.read(key)
    assert filled.rotate_key() == 2
    assert filled.rotate_key() == 0
    assert filled.read(key).tier == "memory"
    filled.close()
    assert found_in(config) == []
    assert read_anew(open_cache, config, key) == (TABLE, VALUE)
    after = open_cache().info(key)
    assert (after.generation, after.checksum) == (before[key].generation, before[key].checksum)
    assert after.compressed_size == before[key].compressed_size + 2 * OVERHEAD


def test_after_a_rotation_no_stored_json_is_left_in_the_files(config: Config, filled: Cache, key: EntryKey) -> None:
    stored = [bytes(row[0]) for row in query(filled, "SELECT data FROM parts")]
    filled.close()
    assert all(data in raw_bytes(config) for data in stored if len(data) < 10_000)
    config.cache_encryption_key = A
    filled.rotate_key()
    # What is there while the file is in use, too: asked of another process, because this one has it open.
    in_use = subprocess.run(
        ["cat", *map(str, config.cache_dir.iterdir())], capture_output=True, check=True, timeout=60
    ).stdout
    filled.close()
    for content in (in_use, raw_bytes(config)):
        assert not any(data[:64] in content for data in stored)
        assert not any(plain in content for plain in PLAIN)


def test_keys_are_rotated_and_taken_back(
    config: Config, open_cache: Callable[..., Cache], filled: Cache, key: EntryKey
) -> None:
    config.cache_encryption_key = A
    assert filled.rotate_key() == 2
    sealed = [bytes(row[0]) for row in query(filled, "SELECT data FROM parts")]
    config.cache_encryption_key = (B, A)
    assert filled.rotate_key() == 2
    filled.close()
    assert not any(data[:64] in raw_bytes(config) for data in sealed)
    assert read_anew(open_cache, Config(cache_dir=config.cache_dir, cache_encryption_key=B), key) == (TABLE, VALUE)
    assert filled.rotate_key(decrypt=True) == 2
    assert filled.rotate_key(decrypt=True) == 0
    plain = Config(cache_dir=config.cache_dir, cache_verify_checksum=True)
    assert read_anew(open_cache, plain, key) == (TABLE, VALUE)
    assert filled.info(key).encryption is None


def test_a_missing_key_stops_a_rotation_before_anything_changes(
    config: Config, cache: Cache, filled: Cache, key: EntryKey
) -> None:
    ids = set()
    for number, secret in enumerate((A, B)):
        config.cache_encryption_key = secret
        ids.add(Keyring.of(config).current)
        cache.write(EntryKey(f"of {number}", "asset"), VALUE)
    before = query(cache, "SELECT key, encryption FROM entries ORDER BY key")
    for secret, decrypt in ((C, False), (C, True), (None, True)):
        config.cache_encryption_key = secret
        with pytest.raises(CacheError) as failed:
            cache.rotate_key(decrypt=decrypt)
        assert set(failed.value.details["key_ids"]) == ids
        assert all(key_id in failed.value.message for key_id in ids)
        assert query(cache, "SELECT key, encryption FROM entries ORDER BY key") == before
    with pytest.raises(CacheError, match="no key to encrypt with"):
        cache.rotate_key()


def test_a_corrupt_entry_is_not_sealed_as_if_it_were_sound(
    config: Config, filled: Cache, key: EntryKey, caplog: pytest.LogCaptureFixture
) -> None:
    query(filled, "UPDATE parts SET data = zeroblob(length(data)) WHERE ordinal = 1 AND name = ''")
    filled.write(JSON, VALUE)
    config.cache_encryption_key = A
    assert filled.rotate_key() == 1
    assert filled.info(key) is None
    assert key.text in caplog.text
    assert filled.read(JSON, "json").value == VALUE


def test_a_read_only_cache_is_not_rotated(config: Config, filled: Cache) -> None:
    filled.close()
    config.update({"cache_encryption_key": A, "cache_readonly": True})
    for decrypt in (False, True):
        with pytest.raises(CacheReadOnlyError, match="cache_readonly"):
            filled.rotate_key(decrypt=decrypt)
    assert set(found_in(config)) == set(PLAIN)


def test_all_files_of_a_cache_with_shards_are_rotated(config: Config, open_cache: Callable[..., Cache]) -> None:
    config.cache_shards = 3
    cache = open_cache()
    for number in range(30):
        cache.write(EntryKey(f"{number}", "asset"), VALUE)
    assert len(cache._tiered.files()) == 3
    config.cache_encryption_key = A
    assert cache.rotate_key() == 30
    cache.close()
    assert found_in(config) == []
    reader = open_cache()
    assert all(reader.read(f"{number}", "json").value == VALUE for number in range(30))


def test_rotating_an_empty_cache(config: Config, cache: Cache) -> None:
    config.cache_encryption_key = A
    assert cache.rotate_key() == 0
    assert not config.cache_path.exists()


def test_others_read_and_write_during_a_rotation(
    config: Config, open_cache: Callable[..., Cache], start: Callable[..., subprocess.Popen[str]]
) -> None:
    config.cache_encryption_key = (A, B)
    cache = open_cache()
    for number in range(60):
        cache.write(EntryKey(f"{number}", "asset"), {"n": number, "text": "x" * 1000})
    script = f"""
    config.update({{"cache_encryption_key": ("{A}", "{B}"), "memory_cache_enabled": False}})
    print("ready", flush=True)
    reads = 0
    while not (config.cache_dir / "stop").exists():
        for number in range(60):
            assert cache.read(str(number), "json").value["n"] == number, number
            reads += 1
        assert cache.write(EntryKey("mine", "asset"), {{"reads": reads}}).stored
    assert not cache.get_degraded(), cache.get_degraded()
    cache.close()
    print(reads > 0)
    """
    others = [start(script) for _ in range(2)]
    for process in others:
        assert process.stdout.readline() == "ready\n"
    changed = []
    try:
        for secrets in ((B, A), (A, B), (B, A)):
            config.cache_encryption_key = secrets
            changed.append(cache.rotate_key())
        changed.append(cache.rotate_key(decrypt=True))
    finally:
        (config.cache_dir / "stop").touch()
    for process in others:
        output, errors = process.communicate(timeout=60)
        assert (output, errors) == ("True\n", "")
    assert all(number >= 60 for number in changed)
    assert cache.read("7", "json").value["n"] == 7


def test_a_killed_rotation_is_completed_by_the_next(
    config: Config, open_cache: Callable[..., Cache], start: Callable[..., subprocess.Popen[str]]
) -> None:
    cache = open_cache()
    for number in range(300):
        cache.write(EntryKey(f"{number}", "asset"), {"n": number, "text": VALUE["secret"]})
    process = start(f'config.cache_encryption_key = "{A}"\nprint("go", flush=True)\ncache.rotate_key()')
    assert process.stdout.readline() == "go\n"
    count = "SELECT count(*) FROM entries WHERE encryption IS NOT NULL"
    while query(cache, count)[0][0] < 20:
        assert process.poll() is None
    process.kill()
    process.communicate()
    done = query(cache, count)[0][0]
    config.cache_encryption_key = A
    assert cache.rotate_key() == 300 - done
    assert done < 300
    reader = open_cache()
    assert all(reader.read(str(number), "json").value["n"] == number for number in range(300))
    assert not reader.get_degraded()


def test_readers_that_hold_an_old_version_keep_a_rotation_from_claiming_success(
    config: Config, filled: Cache, key: EntryKey
) -> None:
    config.update({"cache_encryption_key": A, "cache_lock_timeout": 0.3})
    with closing(sqlite3.connect(filled.get_cache_file(), isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entries").fetchone()
        with pytest.raises(CacheError, match="rotate again"):
            filled.rotate_key()
    assert filled.rotate_key() == 0
    filled.close()
    assert found_in(config) == []


def test_threads_share_one_keyring(config: Config, cache: Cache) -> None:
    config.cache_encryption_key = A
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(30):
                entry = EntryKey(f"{number}", "asset")
                cache.write(entry, {"turn": turn})
                cache.evict_memory(entry)
                assert cache.read(entry, "json").value == {"turn": turn}
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_keys_are_in_no_log_and_no_text(
    config: Config, cache: Cache, key: EntryKey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    config.update({"cache_encryption_key": (A, B), "cache_debug": True, "cache_audit_log": config.cache_dir / "audit"})
    cache.write(key, TABLE)
    cache.clear_memory()
    cache.read(key)
    cache.rotate_key(decrypt=True)
    keyring = Keyring.of(config)
    shown = caplog.text + repr(config) + repr(keyring) + str(vars(keyring))
    cache.close()
    shown += raw_bytes(config).decode("latin-1")
    for secret in (A, B, "b" * 32, bytes.fromhex(A).decode("latin-1")):
        assert secret not in shown
