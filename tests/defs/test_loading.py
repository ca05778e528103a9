"""Loading the definitions: soon, without the network, and whatever state the cache is in.

Each load is a process of its own, as those of Dagster are.
"""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import tif1_pipeline
from tif1_pipeline.simulator import CdnServer, Season

FILE = "tif1_cache.db"
SESSIONS = 10
PATIENT_SECONDS = 15.0
"""A load takes two seconds, and one more where the cache is locked; the lock timeout is thirty."""

LOAD = """
import json, time
import dagster
started = time.perf_counter()
import tif1_pipeline.definitions
seconds = time.perf_counter() - started
from tif1_pipeline.defs.partitions import PARTITIONS
counts = {name: len(getattr(PARTITIONS, name).get_partition_keys()) for name in ("seasons", "events", "sessions")}
print(json.dumps({"seconds": seconds, **counts}))
"""

DENY = """
import sys
asked = []
def deny(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        asked.append(event)
        raise OSError(f"{event} is denied")
sys.addaudithook(deny)
"""

ASK = """
assert not asked, asked
import tif1_pipeline
try:
    tif1_pipeline.get_events(2019)
except tif1_pipeline.NetworkError:
    assert asked
else:
    raise AssertionError("nothing was denied")
"""


class Loaded:
    """What came of a load."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        self.seconds: float = found["seconds"]
        self.seasons: int = found["seasons"]
        self.events: int = found["events"]
        self.sessions: int = found["sessions"]
        self.said = done.stderr


def load(folder: Path, code: str = LOAD, **settings: object) -> Loaded:
    """Load the definitions in a new process over a cache in this folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIF1_")}
    environment |= {f"TIF1_{name.upper()}": str(value) for name, value in {"cache_dir": folder, **settings}.items()}
    command = [sys.executable, "-c", code]
    return Loaded(
        subprocess.run(command, env=environment, cwd=folder.parent, capture_output=True, text=True, timeout=100)
    )


def fill(folder: Path, *seasons: Season) -> None:
    """Store the calendars of these seasons."""
    config = tif1_pipeline.get_config()
    names = ("cdn_urls", "schedule_urls", "cache_dir")
    before = {name: getattr(config, name) for name in names}
    try:
        for season in seasons:
            with CdnServer(season) as server:
                config.update({"cdn_urls": server.cdn_urls, "schedule_urls": server.schedule_urls, "cache_dir": folder})
                tif1_pipeline.get_events(season.year)
                tif1_pipeline.close()
    finally:
        config.update(before)


@pytest.fixture
def folder(season: Season, tmp_path: Path) -> Path:
    """A folder with a cache of one calendar."""
    fill(tmp_path / "cache", season)
    return tmp_path / "cache"


@contextmanager
def locked(file: Path, *, mode: str, kind: str) -> Iterator[None]:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        assert connection.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode,)
        connection.execute(f"BEGIN {kind}")
        yield


def test_without_a_cache_there_are_seasons_and_nothing_is_made(tmp_path):
    loaded = load(tmp_path / "none")
    assert loaded.seasons >= 8
    assert loaded.sessions == 0
    assert loaded.said == ""
    assert not (tmp_path / "none").exists()


def test_a_locked_cache_is_not_waited_for(folder):
    with locked(folder / FILE, mode="delete", kind="EXCLUSIVE"):
        loaded = load(folder, cache_wal_mode=False)
        assert loaded.seconds < PATIENT_SECONDS
        assert loaded.seasons >= 8
        assert loaded.sessions == 0
        assert loaded.said.count("held the lock for more than 1 s") == 1
        assert loaded.said.count("there are no event and session partitions") == 1
        assert "calendar_sensor has the code location reloaded" in loaded.said
    assert load(folder, cache_wal_mode=False).sessions == SESSIONS


def test_a_shorter_lock_timeout_stays(folder):
    with locked(folder / FILE, mode="delete", kind="EXCLUSIVE"):
        assert "held the lock for more than 0.2 s" in load(folder, cache_wal_mode=False, cache_lock_timeout=0.2).said


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_one_who_writes_is_no_hindrance(folder, mode):
    with locked(folder / FILE, mode=mode, kind="IMMEDIATE"):
        loaded = load(folder, cache_wal_mode=mode == "wal")
    assert loaded.seconds < PATIENT_SECONDS
    assert loaded.sessions == SESSIONS
    assert loaded.said == ""


def test_a_cache_on_a_disk_that_is_read_only(folder):
    """By the setting that is for it; root may write to any file, so what was done is compared."""
    with closing(sqlite3.connect(folder / FILE)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = contents(folder)
    (folder / FILE).chmod(0o440)
    folder.chmod(0o550)
    try:
        loaded = load(folder, cache_readonly=True)
    finally:
        folder.chmod(0o750)
    assert loaded.sessions == SESSIONS
    assert loaded.said == ""
    assert contents(folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to files that are read-only, so this would prove nothing")
def test_a_cache_that_may_not_be_written_to(folder):
    (folder / FILE).chmod(0o440)
    folder.chmod(0o550)
    try:
        assert load(folder).seasons >= 8
    finally:
        folder.chmod(0o750)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_no_database_is_set_aside_and_said(folder):
    (folder / FILE).write_bytes(b"this is not a database, it is a text\n" * 100)
    loaded = load(folder)
    assert loaded.seasons >= 8
    assert loaded.sessions == 0
    assert "is damaged; it is kept as" in loaded.said
    assert [path.read_bytes()[:7] for path in folder.glob(f"{FILE}.damaged-*")] == [b"this is"]


def test_a_database_of_another_program_is_left_alone(folder):
    (folder / FILE).unlink()
    with closing(sqlite3.connect(folder / FILE)) as connection:
        connection.execute("CREATE TABLE theirs (n)")
        connection.commit()
    before = (folder / FILE).read_bytes()
    loaded = load(folder)
    assert loaded.seasons >= 8
    assert loaded.sessions == 0
    assert loaded.said.count("there are no event and session partitions") == 1
    assert "is a database of another program" in loaded.said
    assert (folder / FILE).read_bytes() == before


@pytest.mark.parametrize("stored", [True, False], ids=["with calendars", "without"])
def test_the_network_is_not_touched(folder, stored):
    if not stored:
        folder = folder.parent / "none"
    loaded = load(folder, DENY + LOAD + ASK, max_retries=0)
    assert loaded.sessions == (SESSIONS if stored else 0)


@pytest.mark.slow
def test_a_thousand_partitions_load_soon(tmp_path):
    """Best of three: the machine may have other things to do, which is not what is measured."""
    folder = tmp_path / "cache"
    fill(folder, *(Season(year, size="tiny") for year in range(2018, 2027)))
    loads = [load(folder) for _ in range(3)]
    assert all(loaded.sessions > 950 for loaded in loads)
    assert min(loaded.seconds for loaded in loads) < 1.5
