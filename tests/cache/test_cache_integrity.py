"""Verification: each way an entry or the file can be broken is found, and nothing that is sound is accused."""

import shutil
import sqlite3
import subprocess
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.integrity import _BATCH_BYTES
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey

ROWS = 4000
TABLE = pa.table({"n": np.random.default_rng(1).random(ROWS), "p": ["a", "b"] * (ROWS // 2)})
OTHERS = 3
BAD = "(SELECT id FROM entries WHERE key = 'bad')"


@pytest.fixture
def filled(cache: Cache) -> Cache:
    """Some sound entries, and one called ``bad`` that the tests break."""
    for number in range(OTHERS):
        cache.write(EntryKey(f"good{number}", "x"), TABLE, part_by="p")
    cache.write(EntryKey("json", "x"), {"a": list(range(100))})
    cache.write(EntryKey("bad", "x"), TABLE, part_by="p")
    cache.write(EntryKey("empty", "x"), TABLE.slice(0, 0), part_by="p")
    return cache


def change(cache: Cache, *statements: str) -> None:
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
        connection.create_function("crc", 1, lambda data: f"{zlib.crc32(data):08x}")
        for statement in statements:
            connection.execute(statement)


def keys(report: dict[str, Any]) -> list[str]:
    return [item["key"] for item in report["corrupted_list"]]


def test_a_sound_cache_is_sound(filled: Cache) -> None:
    assert filled.verify_integrity() == {
        "total_entries": 6,
        "valid_entries": 6,
        "corrupted_entries": 0,
        "missing_entries": 0,
        "integrity_pct": 100.0,
        "corrupted_list": [],
    }
    assert all(filled.verify_entry(key) for key in ("good0", "json", "bad", "empty"))
    assert filled.clear_corrupted() == 0


def test_a_cache_without_a_file_is_sound_and_none_is_made(config: Config, cache: Cache) -> None:
    report = cache.verify_integrity()
    assert (report["total_entries"], report["integrity_pct"], report["corrupted_list"]) == (0, 100.0, [])
    assert not cache.verify_entry("x")
    assert cache.clear_corrupted() == 0
    assert not config.cache_path.exists()


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        (f"UPDATE parts SET data = zeroblob(length(data)) WHERE ordinal = 1 AND entry_id = {BAD}", "checksum"),
        (f"UPDATE parts SET data = substr(data, 1, 100) WHERE ordinal = 2 AND entry_id = {BAD}", "checksum"),
        (f"UPDATE parts SET data = x'' WHERE ordinal = 2 AND entry_id = {BAD}", "checksum"),
        (f"UPDATE parts SET data = 7 WHERE ordinal = 2 AND entry_id = {BAD}", "cannot open value"),
        (f"UPDATE parts SET checksum = '00000000' WHERE ordinal = 1 AND entry_id = {BAD}", "checksum"),
        (f"UPDATE parts SET data = zeroblob(length(data)) WHERE ordinal = 0 AND entry_id = {BAD}", "checksum"),
        (
            "UPDATE parts SET data = zeroblob(500), checksum = crc(zeroblob(500))"
            f" WHERE ordinal = 1 AND entry_id = {BAD}",
            "does not decode",
        ),
        (
            "UPDATE parts SET data = zeroblob(500), checksum = crc(zeroblob(500))"
            f" WHERE ordinal = 0 AND entry_id = {BAD}",
            "does not decode",
        ),
        ("UPDATE entries SET checksum = 'other' WHERE key = 'bad'", "entry's checksum"),
        ("UPDATE entries SET checksum = 'other' WHERE key = 'json'", "entry's checksum"),
        ("UPDATE entries SET rows = rows + 1 WHERE key = 'bad'", "rows"),
        (
            f"UPDATE parts SET name = CASE name WHEN 'a' THEN 'b' ELSE 'a' END WHERE ordinal > 0 AND entry_id = {BAD}",
            "entry's checksum",
        ),
        ("UPDATE entries SET parts = 'no list' WHERE key = 'bad'", "list of its parts"),
        ("UPDATE entries SET created_at = 'never' WHERE key = 'bad'", "metadata"),
    ],
)
@pytest.mark.parametrize("former", [False, True])
def test_each_corruption_is_found_and_removed_alone(filled: Cache, statement: str, error: str, former: bool) -> None:
    if former:  # entries of former versions have no seals
        change(filled, "UPDATE entries SET generation = substr(generation, 1, 32)")
    change(filled, statement)
    report = filled.verify_integrity()
    (item,) = report["corrupted_list"]
    assert error in item["error"] or (not former and "stored with" in item["error"])
    assert item["key"] in ("bad", "json")
    assert (report["valid_entries"], report["corrupted_entries"], report["missing_entries"]) == (5, 1, 0)
    assert report["integrity_pct"] == pytest.approx(100 * 5 / 6)
    assert not filled.verify_entry(item["key"])
    assert filled.verify_entry("good1")
    assert filled.clear_corrupted() == 1
    assert filled.info(item["key"]) is None
    assert filled.verify_integrity()["valid_entries"] == 5


@pytest.mark.parametrize("ordinal", [0, 1, 2])
def test_an_entry_that_lacks_a_part_is_missing(filled: Cache, ordinal: int) -> None:
    change(filled, f"DELETE FROM parts WHERE ordinal = {ordinal} AND entry_id = {BAD}")
    report = filled.verify_integrity()
    assert (report["total_entries"], report["corrupted_entries"], report["missing_entries"]) == (6, 0, 1)
    assert keys(report) == ["bad"]
    assert not filled.verify_entry("bad")
    assert filled.clear_corrupted() == 1
    assert filled.verify_integrity()["missing_entries"] == 0


def test_parts_without_an_entry_are_missing_and_removed(filled: Cache) -> None:
    change(filled, "DELETE FROM entries WHERE key = 'bad'")  # without foreign keys
    report = filled.verify_integrity()
    assert (report["total_entries"], report["valid_entries"], report["missing_entries"]) == (5, 5, 3)
    assert report["integrity_pct"] == pytest.approx(100 * 5 / 8)
    assert filled.clear_corrupted() == 0
    assert filled.verify_integrity()["integrity_pct"] == 100
    assert filled.write(EntryKey("new", "x"), TABLE).stored


def test_pinned_entries_that_are_corrupt_are_removed_too(cache: Cache) -> None:
    cache.write(EntryKey("pinned", "x", pinned=True), TABLE)
    change(cache, "UPDATE parts SET data = x'00'")
    assert cache.clear_corrupted() == 1


def test_an_entry_of_another_format_is_sound_when_its_checksums_are(filled: Cache) -> None:
    change(
        filled,
        "UPDATE entries SET format_version = 99 WHERE key IN ('bad', 'good0')",
        "UPDATE parts SET data = zeroblob(500), checksum = crc(zeroblob(500)) WHERE entry_id = "
        "(SELECT id FROM entries WHERE key = 'good0')",
    )
    assert filled.verify_integrity()["valid_entries"] == 6
    change(filled, f"UPDATE parts SET data = zeroblob(9) WHERE ordinal = 1 AND entry_id = {BAD}")
    assert keys(filled.verify_integrity()) == ["bad"]


def test_a_table_of_several_batches_is_checked_whole(cache: Cache) -> None:
    rows = _BATCH_BYTES // 8
    large = pa.table({"n": np.random.default_rng(2).random(rows), "p": np.repeat(["a", "b", "c", "d"], rows // 4)})
    large = pa.concat_tables([large, large, large])
    cache.write(EntryKey("large", "x"), large, part_by="p")
    assert cache.verify_integrity()["valid_entries"] == 1
    change(cache, "UPDATE parts SET data = zeroblob(length(data)) WHERE ordinal = 4")
    assert keys(cache.verify_integrity()) == ["large"]


@pytest.mark.parametrize("part_by", [None, "p"])
def test_encrypted_entries_are_checked_with_and_without_their_key(
    config: Config, cache: Cache, part_by: str | None
) -> None:
    config.cache_encryption_key = "11" * 32
    cache.write(EntryKey("e", "x"), TABLE, part_by=part_by)
    cache.write(EntryKey("j", "x"), {"a": 1})
    assert cache.verify_integrity()["valid_entries"] == 2
    config.cache_encryption_key = None
    assert cache.verify_integrity()["valid_entries"] == 2
    change(cache, "UPDATE parts SET data = zeroblob(length(data)) WHERE ordinal = 1")
    for key in (None, "11" * 32):
        config.cache_encryption_key = key
        assert set(keys(cache.verify_integrity())) == {"e", "j"}


def test_what_others_replace_and_remove_meanwhile_is_no_corruption(
    cache: Cache, start: Callable[..., subprocess.Popen[str]]
) -> None:
    for number in range(30):
        cache.write(EntryKey(f"e{number}", "x"), TABLE, part_by="p")
    process = start(
        """
        numbers = list(range(3000))
        value = pa.table({"n": numbers, "p": ["a", "b"] * 1500})
        print("ready")
        until = time.time() + 4
        while time.time() < until:
            for number in range(30):
                cache.write(EntryKey(f"e{number}", "x"), value, part_by="p")
                cache.remove(f"e{(number * 7) % 30}")
        """
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    while process.poll() is None:
        report = cache.verify_integrity()
        assert report["corrupted_list"] == []
        assert report["valid_entries"] == report["total_entries"]
        assert cache.clear_corrupted() == 0
    assert process.communicate()[1] == ""


# ---- the file itself


def damaged_copy(config: Config, cache: Cache, damage: Callable[[bytearray], None]) -> None:
    """Point the settings at a damaged copy, which no process has opened yet."""
    cache.checkpoint()
    cache.close()
    shutil.copy(config.cache_path, copy := config.cache_dir / "copy.db")
    content = bytearray(copy.read_bytes())
    damage(content)
    copy.write_bytes(content)
    config.cache_filename = "copy.db"


def test_a_page_of_a_blob_that_was_overwritten_is_found(config: Config, filled: Cache) -> None:
    def damage(content: bytearray) -> None:
        content[-3 * config.cache_page_size :] = b"\xff" * (3 * config.cache_page_size)

    damaged_copy(config, filled, damage)
    report = filled.verify_integrity()
    assert report["corrupted_entries"] + report["missing_entries"] >= 1
    assert report["integrity_pct"] < 100
    assert report["corrupted_list"]
    assert filled.clear_corrupted() >= 1
    assert filled.write(EntryKey("new", "x"), TABLE).stored


@pytest.mark.parametrize("seed", range(12))
def test_any_damage_gives_a_report_and_clearing_leaves_a_cache_that_works(
    config: Config, filled: Cache, seed: int
) -> None:
    random = np.random.default_rng(seed)

    def damage(content: bytearray) -> None:
        page = config.cache_page_size
        for number in random.integers(1, len(content) // page, 2):
            start = int(number) * page
            content[start : start + page] = random.bytes(page)

    damaged_copy(config, filled, damage)
    report = filled.verify_integrity()
    assert report["corrupted_list"]
    assert report["integrity_pct"] < 100
    filled.clear_corrupted()
    assert all(entry["key"] for entry in filled.get_entries())
    assert filled.write(EntryKey("new", "x"), TABLE).stored
    assert filled.verify_entry("new")


def test_a_truncated_file_gives_a_report(config: Config, filled: Cache) -> None:
    damaged_copy(config, filled, lambda content: content.__delitem__(slice(len(content) // 2, None)))
    assert filled.verify_integrity()["corrupted_list"]


def test_an_index_that_lost_rows_is_found_and_built_anew(config: Config, filled: Cache, tmp_path: Path) -> None:
    change(
        filled,
        "PRAGMA writable_schema=ON",
        "DELETE FROM sqlite_schema WHERE name = 'entries_accessed_at'",
    )
    with closing(sqlite3.connect(filled.get_cache_file(), isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema=RESET")
        connection.execute("CREATE INDEX entries_accessed_at ON entries (accessed_at) WHERE key = 'nothing'")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(
            "UPDATE sqlite_schema SET sql = 'CREATE INDEX entries_accessed_at ON entries (accessed_at)' "
            "WHERE name = 'entries_accessed_at'"
        )
    report = filled.verify_integrity()
    assert any("entries_accessed_at" in item["error"] for item in report["corrupted_list"])
    assert set(keys(report)) == {""}
    assert filled.clear_corrupted() == 0
    assert not any("index" in item["error"] for item in filled.verify_integrity()["corrupted_list"])


def test_several_files_are_verified_as_one(config: Config, open_cache: Callable[..., Cache]) -> None:
    config.cache_shards = 3
    cache = open_cache()
    for number in range(12):
        cache.write(EntryKey(f"e{number}", "x"), {"n": number})
    assert cache.verify_integrity()["valid_entries"] == 12
    assert cache.verify_entry("e11")
