"""The doctor: each fault is prepared for real, named, and has a remedy; and nothing is changed by looking."""

import hashlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from tif1_pipeline import api
from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.connection import LAYOUT_VERSION
from tif1_pipeline.cache.shards import shard_path
from tif1_pipeline.config import Config
from tif1_pipeline.doctor import Check, diagnose, places
from tif1_pipeline.keys import EntryKey
from tif1_pipeline.simulator import CdnServer, Fault, Season

TABLE = pa.table({"n": list(range(5000)), "p": ["a", "b"] * 2500})
KEY = EntryKey("2025_monaco_race_alpha", "alpha")
OTHER_USER = 65534
HOLD = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement).fetchall()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="session")
def season() -> list[Season]:
    """This season and the last: the doctor asks for what is published now."""
    year = datetime.now(UTC).year
    return [Season(each, seed=7, events=1, size="tiny") for each in (year, year - 1)]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    folder = tmp_path / "cache"
    return Config(cache_dir=folder, cache_lock_timeout=5, memory_cache_max_mb=64)


@pytest.fixture
def stored(config: Config) -> Path:
    """A cache file with some entries that nobody has open."""
    with closing(Cache(config)) as cache:
        cache.write(KEY, TABLE, part_by="p")
        cache.write(EntryKey("2025_monaco_race_beta", "beta"), TABLE)
        cache.write(EntryKey("2025_gamma", "gamma"), {"a": [1, 2]})
    return config.cache_path


@pytest.fixture
def hold() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that opens a database and stays."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path, *statements: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(path), *statements]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def look(config: Config, **options: object) -> list[Check]:
    return diagnose(config, **{"cdn": False, **options})


def faults(config: Config, **options: object) -> list[Check]:
    found = [check for check in look(config, **options) if check.status != "ok"]
    assert all(check.remedy for check in found), found
    return found


def the_fault(config: Config, name: str, **options: object) -> Check:
    found = [check for check in faults(config, **options) if check.name == name]
    assert len(found) == 1, found
    return found[0]


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything about the files of a folder that could change, for files that nobody has open here."""
    return {
        path.name: (path.stat().st_mtime_ns, path.stat().st_mode, hashlib.blake2b(path.read_bytes()).hexdigest())
        for path in folder.iterdir()
        if path.is_file()
    }


# ---- nothing is wrong, and nothing changes


def test_a_sound_cache_has_no_faults(config: Config, stored: Path) -> None:
    for integrity in ("quick", "full"):
        checks = look(config, integrity=integrity)
        assert {check.status for check in checks} == {"ok"}, [check for check in checks if check.status != "ok"]
        assert {check.remedy for check in checks} == {""}
    named = {check.name for check in checks}
    assert named >= {"cache directory", "disk", "lock", "log", "version", "integrity", "versions", "permissions"}
    assert any("3 entries" in check.finding for check in checks)
    versions = next(check.finding for check in checks if check.name == "versions")
    assert all(name in versions for name in ("tif1_pipeline", "Python", "SQLite", "pandas", "pyarrow", "dagster"))


@pytest.mark.parametrize(
    "state", ["idle", "no log", "killed", "log without index", "in use", "locked", "former layout"]
)
@pytest.mark.parametrize("integrity", ["quick", "full"])
def test_looking_changes_no_file_and_makes_none(
    config: Config, stored: Path, hold: Callable[..., subprocess.Popen[str]], state: str, integrity: str
) -> None:
    if state == "no log":
        change(stored, "PRAGMA journal_mode=delete")
    elif state == "former layout":
        change(stored, "ALTER TABLE entries DROP COLUMN encryption", "PRAGMA user_version=1")
    elif state == "locked":
        hold(stored, "BEGIN IMMEDIATE")
        stored.chmod(0o600)  # SQLite gives an empty log that it opens the mode of the file
    elif state != "idle":
        process = hold(stored, "UPDATE entries SET access_count = 7")
        if state != "in use":
            process.kill()
            process.wait()
        if state == "log without index":
            stored.with_name(stored.name + "-shm").unlink()
    before = snapshot(config.cache_dir)
    look(config, integrity=integrity)
    after = snapshot(config.cache_dir)
    # What is in use is verified in full as any reader does it, who notes in the log's index up to where it reads.
    is_used = integrity == "full" and state in {"in use", "locked"}
    skipped = {stored.name + suffix for suffix in ("-wal", "-shm")} if is_used else set()
    assert set(after) == set(before)
    assert {name for name in before if before[name] != after[name]} <= skipped


def test_a_cache_in_use_by_this_process_stays_locked_for_others(config: Config, stored: Path) -> None:
    with closing(sqlite3.connect(stored, isolation_level=None)) as mine:
        mine.execute("BEGIN IMMEDIATE")
        held = the_fault(config, "lock")
        assert f"process {os.getpid()}" in held.finding
        assert "this one" in held.finding
        impatient = HOLD.replace("connect(sys.argv[1]", "connect(sys.argv[1], timeout=0.1")
        other = subprocess.run(
            [sys.executable, "-c", impatient, str(stored), "BEGIN IMMEDIATE"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "database is locked" in other.stderr


# ---- the folder and its disk


def test_a_folder_that_is_not_there_yet(config: Config) -> None:
    fault = the_fault(config, "cache directory")
    assert fault.status == "warning"
    assert "does not exist yet" in fault.finding
    assert not config.cache_dir.exists()


def test_a_folder_that_cannot_be_made(config: Config) -> None:
    config.cache_dir = "/proc/tif1/cache"  # nobody may make anything there, root neither
    fault = the_fault(config, "cache directory")
    assert fault.status == "problem"
    assert "cannot make it in /proc" in fault.finding


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_in_place_of_the_folder(config: Config, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("x")
    config.cache_dir = tmp_path / "file" / below
    fault = the_fault(config, "cache directory")
    assert fault.status == "problem"
    assert f"{tmp_path / 'file'} is a file" in fault.finding
    assert "Move" in fault.remedy


def test_a_folder_that_cannot_be_written_to(config: Config) -> None:
    config.cache_dir = "/proc"
    fault = the_fault(config, "write access")
    assert fault.status == "problem"
    assert "/proc" in fault.finding
    assert "chown" in fault.remedy


def test_a_folder_and_file_of_another_user() -> None:
    setpriv = shutil.which("setpriv")
    if os.geteuid() or setpriv is None:
        pytest.skip("becoming another user needs root and setpriv")
    base = Path(tempfile.mkdtemp())  # not in tmp_path, which only its owner may enter
    try:
        base.chmod(0o755)
        config = Config(cache_dir=base / "cache")
        with closing(Cache(config)) as cache:
            cache.write(KEY, TABLE)
        config.cache_dir.chmod(0o755)
        config.cache_path.chmod(0o644)
        script = (
            "import sys; from tif1_pipeline.config import Config; from tif1_pipeline.doctor import diagnose\n"
            "for check in diagnose(Config(cache_dir=sys.argv[1]), cdn=False):\n"
            "    print(check.name, check.status, check.finding, sep='|')\n"
        )
        found = subprocess.run(
            [setpriv, f"--reuid={OTHER_USER}", "--clear-groups", sys.executable, "-c", script, str(config.cache_dir)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
        )
        if "ModuleNotFoundError" in found.stderr or "Permission denied" in found.stderr:
            pytest.skip("another user cannot read this package")
        assert not found.stderr, found.stderr
        lines = [line for line in found.stdout.splitlines() if line.startswith("write access|problem")]
        assert len(lines) == 2, found.stdout
        assert f"may not write in {config.cache_dir}" in lines[0]
        assert f"may not read and write {config.cache_path}" in lines[1]
        assert "integrity|ok" in found.stdout
    finally:
        shutil.rmtree(base)


def test_a_disk_that_is_full_or_nearly_so(config: Config, tmp_path: Path) -> None:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=750", "tmpfs", str(mounted)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        config.cache_dir = mounted
        with (mounted / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            file.writelines([bytes(4096)] * 1000)
        found = [check for check in faults(config) if check.name == "disk"]
        assert {check.status for check in found} == {"problem"}
        assert any("No space left" in check.finding for check in found)
        assert any("0.0 MiB of 2.0 MiB are free" in check.finding for check in found)
        assert [path.name for path in mounted.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_disk_below_the_threshold(config: Config, stored: Path) -> None:
    (nearly,) = places.disk(config, threshold=1.0)
    assert (nearly.status, "nearly full" in nearly.finding) == ("warning", True)
    os.truncate(stored, shutil.disk_usage(stored).free)  # sparse: it takes no room
    (little,) = places.disk(config, threshold=0.0)
    assert (little.status, "vacuum" in little.finding) == ("warning", True)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "smb3", "fuse.sshfs", "9p"])
def test_a_network_file_system(tmp_path: Path, kind: str) -> None:
    mounts = tmp_path / "mounts"
    folder = tmp_path / "a share" / "cache"
    point = str(tmp_path / "a share").replace(" ", "\\040")
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nhost:/export {point} {kind} rw 0 0\nnone {tmp_path}/a tmpfs rw 0 0\n")
    (fault,) = places.file_system(folder, mounts)
    assert fault.status == "problem"
    assert kind in fault.finding
    assert "host:/export" in fault.finding
    (local,) = places.file_system(tmp_path, mounts)
    assert local.status == "ok"


def test_wide_permissions(config: Config, stored: Path) -> None:
    stored.chmod(0o666)
    config.cache_dir.chmod(0o777)
    found = [check for check in faults(config) if check.name == "permissions"]
    assert [check.remedy for check in found] == [f"chmod 0750 {config.cache_dir}", f"chmod 0640 {stored}"]


def test_what_damage_and_killed_backups_left(config: Config, stored: Path) -> None:
    (config.cache_dir / f"{stored.name}.damaged-20250101T000000.000000Z").write_bytes(bytes(3 << 20))
    (config.cache_dir / "backups" / ".tif1_cache-abc.partial").mkdir(parents=True)
    aside, partial = (check for check in faults(config) if check.name == "leftovers")
    assert "3.0 MiB" in aside.finding
    assert "1 unfinished" in partial.finding


# ---- locks and logs


def test_who_holds_the_write_lock(config: Config, stored: Path, hold: Callable[..., subprocess.Popen[str]]) -> None:
    process = hold(stored, "BEGIN IMMEDIATE")
    fault = the_fault(config, "lock")
    assert fault.status == "problem"
    assert f"process {process.pid} (" in fault.finding
    assert Path(sys.executable).name in fault.finding
    assert f"kill {process.pid}" in fault.remedy


def test_who_holds_the_write_lock_without_a_log(
    config: Config, stored: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    config.cache_wal_mode = False
    change(stored, "PRAGMA journal_mode=delete")
    process = hold(stored, "BEGIN IMMEDIATE", "UPDATE entries SET access_count = 9")
    fault = the_fault(config, "lock")
    assert f"process {process.pid} (" in fault.finding


def test_readers_and_idle_users_are_listed_and_no_fault(
    config: Config, stored: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    process = hold(stored, "BEGIN", "SELECT count(*) FROM entries")
    checks = look(config)
    assert {check.status for check in checks} == {"ok"}
    (users,) = (check for check in checks if check.name == "open files")
    assert "in 1 processes" in users.finding
    assert f"process {process.pid} " in users.finding


def test_a_log_that_a_crash_left(config: Config, stored: Path, hold: Callable[..., subprocess.Popen[str]]) -> None:
    process = hold(stored, "CREATE TABLE extra (b)", "INSERT INTO extra VALUES (zeroblob(3000000))")
    process.send_signal(signal.SIGKILL)
    process.wait()
    fault = the_fault(config, "log")
    assert fault.status == "warning"
    assert "crashed" in fault.finding
    assert "2.9 MiB" in fault.finding or "3.0 MiB" in fault.finding
    assert "optimize --checkpoint" in fault.remedy
    with closing(Cache(config)) as cache:  # the remedy helps
        cache.checkpoint()
    assert not faults(config)


def test_a_log_that_grew_large(config: Config, stored: Path, hold: Callable[..., subprocess.Popen[str]]) -> None:
    process = hold(
        stored,
        "PRAGMA wal_autocheckpoint=0",
        "PRAGMA synchronous=OFF",
        "CREATE TABLE extra (b)",
        "INSERT INTO extra VALUES (zeroblob(70000000))",
    )
    fault = the_fault(config, "log")
    assert fault.status == "warning"
    assert str(process.pid) in fault.remedy


def test_a_journal_that_a_crash_left(config: Config, stored: Path, hold: Callable[..., subprocess.Popen[str]]) -> None:
    change(stored, "PRAGMA journal_mode=delete")
    process = hold(stored, "PRAGMA cache_size=1", "BEGIN", "UPDATE parts SET data = zeroblob(100000)")
    process.kill()
    process.wait()
    assert "-journal" in the_fault(config, "log").finding


# ---- versions and integrity


@pytest.mark.parametrize(
    ("statement", "finding", "remedy"),
    [
        (f"PRAGMA user_version={LAYOUT_VERSION + 7}", f"layout {LAYOUT_VERSION + 7}", "update tif1_pipeline"),
        ("PRAGMA application_id=4711", "another program", "cache_dir"),
        ("UPDATE entries SET format_version = 99", "3 entries", "Update"),
        ("UPDATE entries SET format_version = 0 WHERE data_type = 'alpha'", "1 entries", "upgrade_version"),
        ("UPDATE entries SET library_version = '7.1' WHERE data_type = 'alpha'", "1 entries", "Update"),
    ],
)
def test_another_version(config: Config, stored: Path, statement: str, finding: str, remedy: str) -> None:
    change(stored, statement)
    fault = the_fault(config, "version")
    assert finding in fault.finding
    assert remedy in fault.remedy


def test_no_database_at_all(config: Config, stored: Path) -> None:
    stored.write_bytes(b"not a database at all" * 1000)
    fault = the_fault(config, "version")
    assert fault.status == "problem"
    assert f"{stored} is no SQLite database" in fault.finding


def test_a_folder_called_like_the_file(config: Config) -> None:
    config.cache_path.mkdir(parents=True, mode=0o750)
    assert "is no file" in the_fault(config, "cache file").finding


def test_an_empty_file_is_no_fault(config: Config) -> None:
    config.cache_dir.mkdir(mode=0o750)
    config.cache_path.touch(mode=0o640)
    assert not faults(config)


def test_a_former_layout_is_a_fault_only_where_it_cannot_be_migrated(config: Config, stored: Path) -> None:
    change(stored, "ALTER TABLE entries DROP COLUMN encryption", "PRAGMA user_version=1")
    assert not faults(config)
    config.cache_readonly = True
    assert "former cache layout 1" in the_fault(config, "version").finding


def test_pages_that_were_overwritten(config: Config, stored: Path) -> None:
    with stored.open("r+b") as file:
        file.seek(2 * config.cache_page_size)
        file.write(os.urandom(3 * config.cache_page_size))
    found = [check for check in faults(config) if check.name == "integrity"]
    assert found
    assert all(check.status == "problem" for check in found)
    assert "is damaged" in found[0].finding
    assert "restore" in found[0].remedy


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("DELETE FROM parts WHERE ordinal = 2", "1 entries of"),
        ("DELETE FROM entries WHERE data_type = 'alpha'", "3 parts in"),
        ("UPDATE parts SET data = zeroblob(length(data)) WHERE name = 'a'", "1 entries of"),
    ],
)
@pytest.mark.parametrize("integrity", ["quick", "full"])
def test_entries_and_parts_that_do_not_belong_together(
    config: Config, stored: Path, statement: str, finding: str, integrity: str
) -> None:
    change(stored, "PRAGMA foreign_keys=OFF", statement)
    found = [check for check in faults(config, integrity=integrity) if check.name == "integrity"]
    assert found[0].status == "problem"
    assert finding in found[0].finding
    assert "clear_corrupted()" in found[0].remedy
    if integrity == "full":
        assert "when all are decoded" in found[-1].finding


# ---- the clock


def test_entries_and_leases_of_other_times(config: Config, stored: Path) -> None:
    now = time.time()
    change(
        stored,
        f"UPDATE entries SET created_at = {now + 90000} WHERE data_type = 'alpha'",
        f"INSERT INTO leases VALUES ('a', 'x', {now + 90000}), ('b', 'x', {now - 900000}), ('c', 'x', {now - 5})",
    )
    found = faults(config)
    assert [check.name for check in found] == ["clock", "leases", "leases"]
    assert "1 entries" in found[0].finding
    assert "far in the future" in found[1].finding
    assert "more than a day ago" in found[2].finding


# ---- settings


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that has not loaded its settings yet, in an empty folder."""
    monkeypatch.setattr(api, "_config", None)
    monkeypatch.setenv("TIF1_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_variables_that_cannot_be_loaded(unloaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIF1_CACHE_DIRR", "x")
    monkeypatch.setenv("TIF1_MAX_RETRIES", "many")
    checks = diagnose(cdn=False)
    found = [check for check in checks if check.name == "settings"]
    assert [check.status for check in found] == ["problem", "problem", "ok"]
    assert {word for check in found for word in check.remedy.split() if word.startswith("TIF1_")} == {
        "TIF1_CACHE_DIRR;",
        "TIF1_MAX_RETRIES;",
    }
    assert any(str(unloaded / "cache") in check.finding for check in checks)  # what is good is used


def test_a_settings_file_that_cannot_be_loaded(unloaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (unloaded / "pyproject.toml").write_text("[tool.tif1_pipeline]\nmax_retries = -1\n")
    fault = next(check for check in diagnose(cdn=False) if check.name == "settings")
    assert str(unloaded / "pyproject.toml") in fault.remedy
    monkeypatch.setenv("TIF1_CONFIG", str(unloaded / "missing.toml"))
    fault = next(check for check in diagnose(cdn=False) if check.name == "settings")
    assert "missing.toml" in fault.remedy


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"cache_cleanup_threshold_mb": 9000}, "cache_cleanup_threshold_mb 9,000"),
        ({"cache_cleanup_target_mb": 4600}, "cache_cleanup_target_mb is 4,600"),
        ({"cache_enabled": False}, "cache_enabled is off"),
        ({"cache_readonly": True, "cache_auto_cleanup": True}, "nothing is cleaned"),
        ({"cache_wal_autocheckpoint": 0}, "cache_wal_autocheckpoint is 0"),
    ],
)
def test_contradictions(config: Config, stored: Path, settings: dict[str, object], finding: str) -> None:
    config.update(settings)
    assert finding in the_fault(config, "settings").finding


def test_read_only_without_a_cache(config: Config) -> None:
    config.cache_readonly = True
    assert "there is no cache file" in the_fault(config, "settings").finding
    assert "cache_readonly is on" in the_fault(config, "cache directory").finding


def test_more_memory_than_there_is(config: Config, stored: Path) -> None:
    config.memory_cache_max_mb = 1 << 20
    assert "1,048,576" in the_fault(config, "memory").finding


def test_key_files(config: Config, stored: Path, tmp_path: Path) -> None:
    file = config.cache_encryption_key_file = tmp_path / "key"
    assert "cannot be read" in the_fault(config, "encryption").finding
    file.write_text("no key")
    assert "is no key" in the_fault(config, "encryption").finding
    file.write_text("ab" * 32)
    file.chmod(0o640)
    assert f"chmod 0600 {file}" in the_fault(config, "encryption").remedy
    file.chmod(0o600)
    assert not faults(config)


def test_a_key_without_the_package(config: Config) -> None:
    script = f"""
        import sys
        sys.modules["cryptography"] = None
        from tif1_pipeline.config import Config
        from tif1_pipeline.doctor import diagnose
        config = Config(cache_dir={str(config.cache_dir)!r}, cache_encryption_key="ab" * 32)
        print(*(check.remedy for check in diagnose(config, cdn=False) if check.status == "problem"), sep="|")
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.startswith("pip install 'tif1_pipeline[encryption]'")


def test_entries_of_a_key_that_is_not_given(config: Config) -> None:
    config.cache_encryption_key = "ab" * 32
    with closing(Cache(config)) as cache:
        cache.write(KEY, TABLE)
        key_id = cache.info(KEY).encryption
    for integrity in ("quick", "full"):
        assert not faults(config, integrity=integrity)
    for other in (None, "cd" * 32):
        config.cache_encryption_key = other
        fault = the_fault(config, "encryption", integrity="full")
        assert f"1 entries of {config.cache_path} are encrypted with the key {key_id}" in fault.finding


def test_entries_left_in_the_fallback(config: Config, stored: Path, tmp_path: Path) -> None:
    config.cache_fallback_dir = tmp_path / "standin"
    assert not faults(config)
    config.cache_dir.rename(tmp_path / "away")
    config.cache_dir.write_text("no folder")
    with closing(Cache(config)) as cache:
        assert cache.write(KEY, TABLE).stored
    config.cache_dir.unlink()
    (tmp_path / "away").rename(config.cache_dir)
    assert "1 entries are in the fallback" in the_fault(config, "fallback").finding
    config.cache_fallback_dir = config.cache_dir
    assert "cache_dir itself" in the_fault(config, "fallback").finding
    config.cache_fallback_dir = "/proc/standin"
    assert "cannot be written" in the_fault(config, "fallback").finding


def test_another_number_of_files_than_shards(config: Config) -> None:
    config.cache_shards = 3
    with closing(Cache(config)) as cache:
        cache.open()
        for number in range(20):
            cache.write(EntryKey(f"{number}_x", "x"), {"a": number})
    assert not faults(config, integrity="full")
    config.cache_shards = 2
    assert "3 files, and cache_shards is 2" in the_fault(config, "shards").finding
    config.cache_shards = 5
    assert "lie in another file" in the_fault(config, "shards").finding
    config.cache_shards = 3
    shard_path(config.cache_path, 1).unlink()
    assert "tif1_cache.1.db is not there" in the_fault(config, "shards").finding


@pytest.mark.parametrize("place", ["/proc/audit.log", "a folder", "below a file/audit.log"])
def test_an_audit_log_that_cannot_be_written(config: Config, stored: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "a folder").mkdir()
    (tmp_path / "below a file").write_text("x")
    config.cache_audit_log = tmp_path / place
    assert "cannot be written" in the_fault(config, "audit log").finding
    config.cache_audit_log = tmp_path / "audit.log"
    assert not faults(config)
    assert not config.cache_audit_log.exists()


# ---- the mirrors


@pytest.fixture
def to_cdn(config: Config, stored: Path, cdn: CdnServer) -> Config:
    config.update({"cdn_urls": cdn.cdn_urls, "schedule_urls": cdn.schedule_urls})
    return config


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_mirrors_that_answer(to_cdn: Config, cdn: CdnServer) -> None:
    checks = look(to_cdn, cdn=True)
    assert {check.status for check in checks} == {"ok"}
    found = [check.finding for check in checks if check.name in {"CDN", "schedules"}]
    assert len(found) == 2
    assert cdn.requests.count("*/doctor.json") == 1
    assert cdn.requests.count("*schedule_*") == 1
    cdn.hide("*schedule_*")  # before the season's schedule is published, the last one's does
    found = [check for check in faults(to_cdn, cdn=True) if check.name == "schedules"]
    assert "HTTP 404" in found[0].finding
    cdn.publish(f"*schedule_{datetime.now(UTC).year - 1}.json")
    assert not faults(to_cdn, cdn=True)


def test_a_file_that_was_fetched_once_is_asked_for(tif1: object, cdn: CdnServer) -> None:
    year = datetime.now(UTC).year - 1
    event = api.get_events(year)[0]
    session = api.get_session(year, event, "Race")
    assert len(session.drivers)
    api.close()
    cdn.requests.clear()
    checks = diagnose()
    assert {check.status for check in checks if check.name == "CDN"} == {"ok"}
    assert cdn.requests.count(f"{year}@main/{event}/Race/drivers.json") == 1


@pytest.mark.parametrize(
    ("fault", "status", "finding"),
    [
        (Fault("latency", seconds=2.2), "warning", "is slow"),
        (Fault("error", status=503), "problem", "HTTP 503"),
        (Fault("rate_limit"), "problem", "HTTP 429"),
        (Fault("forbidden"), "problem", "HTTP 403"),
        (Fault("garbage"), "problem", "something else than the file"),
        (Fault("reset"), "problem", "cannot be reached"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else None,
)
def test_mirrors_in_trouble(to_cdn: Config, cdn: CdnServer, fault: Fault, status: str, finding: str) -> None:
    cdn.faults.set(fault)
    found = [check for check in faults(to_cdn, cdn=True) if check.name in {"CDN", "schedules"}]
    assert [check.name for check in found] == ["CDN", "schedules"]
    assert {check.status for check in found} == {status}
    assert all(finding in check.finding for check in found)


def test_mirrors_that_hang_are_waited_for_at_once(to_cdn: Config, cdn: CdnServer) -> None:
    to_cdn.update({"cdn_urls": cdn.mirror_urls(4), "schedule_urls": cdn.mirror_schedule_urls(4)})
    cdn.faults.set(Fault("hang"))
    started = time.monotonic()
    found = [check for check in faults(to_cdn, cdn=True) if "no answer within" in check.finding]
    assert len(found) == 8
    assert time.monotonic() - started < 15


def test_mirrors_that_cannot_be_reached_and_one_that_stands_in(to_cdn: Config, cdn: CdnServer) -> None:
    port = closed_port()
    to_cdn.cdn_urls = (
        f"http://127.0.0.1:{port}/{{year}}",
        f"https://127.0.0.1:{cdn.port}/{{year}}",
        "https://no-such-host.invalid/{year}",
    )
    found = [check for check in faults(to_cdn, cdn=True) if check.name == "CDN"]
    assert [check.status for check in found] == ["problem"] * 3
    assert f"127.0.0.1:{port}" in found[0].finding
    assert "refused" in found[0].finding
    assert "TLS failed" in found[1].finding
    assert "clock" in found[1].remedy
    assert "no-such-host.invalid" in found[2].finding
    to_cdn.cdn_urls = (f"http://127.0.0.1:{port}/{{year}}", *cdn.cdn_urls)
    fault = the_fault(to_cdn, "CDN", cdn=True)
    assert fault.status == "warning"
    assert "stand in" in fault.remedy


def test_offline_is_said_and_nobody_asked(to_cdn: Config, cdn: CdnServer) -> None:
    to_cdn.offline = True
    assert "offline is on" in the_fault(to_cdn, "CDN", cdn=True).finding
    assert cdn.requests.total == 0
