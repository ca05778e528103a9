"""`backup`, `restore`, `export`, `import`, `rotate-key`."""

import re
from pathlib import Path

import pytest

LAPS = "2025_monaco_race_laps_pandas"


def keys(cache):
    return {row["key"] for row in cache.get_entries()}


def test_a_backup_is_printed_and_restored(invoke, filled, tmp_path):
    before = keys(filled)
    result = invoke("backup", tmp_path / "backups")
    assert result.exit_code == 0, result.output
    path = Path(result.stdout.removesuffix("\n"))
    assert path.is_file()
    assert path.parent == tmp_path / "backups"
    filled.clear()
    result = invoke("restore", path)
    assert result.exit_code == 0, result.output
    assert "6 entries restored" in result.stdout
    assert keys(filled) == before


def test_backups_are_kept_as_many_as_asked_for(invoke, filled):
    paths = [Path(invoke("backup", "--keep", "2").stdout.strip()) for _ in range(3)]
    assert [path.exists() for path in paths] == [False, True, True]
    assert paths[0].parent == filled.get_cache_dir() / "backups"


def test_restoring_over_entries_needs_a_yes(invoke, filled):
    path = invoke("backup").stdout.strip()
    filled.remove(LAPS)
    result = invoke("restore", path)
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert LAPS not in keys(filled)
    assert invoke("restore", path, "--yes").exit_code == 0
    assert LAPS in keys(filled)


def test_what_is_no_backup_changes_nothing(invoke, filled, tif1, tmp_path):
    file = tmp_path / "no.backup"
    file.write_bytes(b"nothing of the kind" * 100)
    before = keys(filled)
    assert isinstance(invoke("restore", file, "--yes").exception, tif1.CacheError)
    assert keys(filled) == before
    assert invoke("restore", tmp_path / "missing", "--yes").exit_code == 2
    assert invoke("restore", tmp_path, "--yes").exit_code == 2


def test_a_backup_of_nothing_is_an_error(invoke, tif1, tmp_path):
    file = tmp_path / "nowhere" / "cache.db"
    assert isinstance(invoke("backup", "--cache", file).exception, tif1.CacheError)
    assert not file.exists()
    assert invoke("backup", "--keep", "0").exit_code == 2


def test_exports_are_imported_into_another_cache(invoke, filled, tmp_path):
    result = invoke("export", tmp_path / "files")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("6 files written")
    assert (tmp_path / "files" / "2025" / "monaco" / "race" / "laps.parquet").is_file()
    result = invoke("import", tmp_path / "files", "--cache", tmp_path / "other.db")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("6 entries stored")
    assert LAPS in invoke("ls", "--entries", "--cache", tmp_path / "other.db").stdout


def test_an_unreadable_file_is_named_and_the_others_are_stored(invoke, filled, tif1, tmp_path):
    invoke("export", tmp_path / "files")
    (tmp_path / "files" / "2025" / "monaco" / "race" / "laps.parquet").write_bytes(b"nothing")
    result = invoke("import", tmp_path / "files", "--cache", tmp_path / "other.db")
    assert isinstance(result.exception, tif1.InvalidDataError)
    assert "laps.parquet" in str(result.exception)
    assert len(tif1.get_cache(tmp_path / "other.db").get_entries()) == 5
    assert invoke("import", tmp_path / "missing").exit_code == 2


def test_a_new_key_is_printed_and_nothing_else_done(invoke, tif1):
    keys = [invoke("rotate-key", "--generate").stdout for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{64}\n", key) for key in keys)
    assert keys[0] != keys[1]
    assert not tif1.get_cache().get_cache_file().exists()
    assert invoke("rotate-key", "--generate", "--decrypt").exit_code == 2


def test_entries_are_encrypted_with_another_key_and_decrypted(invoke, filled, tif1):
    config = tif1.get_config()
    first, second = "11" * 32, "22" * 32
    assert isinstance(invoke("rotate-key").exception, tif1.CacheError)
    try:
        for setting in (first, f"{second},{first}"):
            config.cache_encryption_key = setting
            assert invoke("rotate-key").stdout == "6 entries encrypted\n"
        config.cache_encryption_key = first
        assert isinstance(invoke("rotate-key").exception, tif1.CacheError)
        config.cache_encryption_key = second
        assert invoke("rotate-key", "--decrypt").stdout == "6 entries decrypted\n"
    finally:
        config.cache_encryption_key = None
    assert filled.verify_integrity()["valid_entries"] == 6


@pytest.mark.parametrize("verb", ["export", "import", "restore"])
def test_where_to_or_from_must_be_said(invoke, verb):
    assert invoke(verb).exit_code == 2
