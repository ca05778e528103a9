"""The command `doctor`: what it finds, how it says it, how it ends."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey
from tif1_pipeline.simulator import CdnServer, Fault, Season

COMMAND = [sys.executable, "-W", "error", "-c", "from tif1_pipeline.cli.doctor import doctor; doctor()"]
TABLE = pa.table({"n": list(range(5000)), "p": ["a", "b"] * 2500})
HOLD = (
    "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN IMMEDIATE'); "
    "print('ready', flush=True); time.sleep(600)"
)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def season() -> list[Season]:
    """This season and the last: the doctor asks for what is published now."""
    year = datetime.now(UTC).year
    return [Season(each, seed=7, events=1, size="tiny") for each in (year, year - 1)]


@pytest.fixture
def environment(tmp_path: Path, cdn: CdnServer) -> dict[str, str]:
    """The settings of the command, which starts without those of this process."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TIF1_")} | {
        "TIF1_CACHE_DIR": str(tmp_path / "cache"),
        "TIF1_CDN_URLS": ",".join(cdn.cdn_urls),
        "TIF1_SCHEDULE_URLS": ",".join(cdn.schedule_urls),
        "TIF1_MEMORY_CACHE_MAX_MB": "64",
        "COLUMNS": "100",
        "PYTHONIOENCODING": "utf-8",
    }


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    def start(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            env=environment | variables,
            cwd=tmp_path,
        )

    return start


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    config = Config(cache_dir=tmp_path / "cache")
    with closing(Cache(config)) as cache:
        cache.write(EntryKey("2025_monaco_race_alpha", "alpha"), TABLE, part_by="p")
        cache.write(EntryKey("2025_monaco_race_beta", "beta"), TABLE, part_by="p")
        cache.write(EntryKey("2025_gamma", "gamma"), {"a": [1, 2]})
    return config.cache_path


@pytest.fixture
def locked(stored: Path) -> Iterator[int]:
    """A process that holds the write lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(stored)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process.pid
    process.kill()
    process.communicate()


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def test_nothing_is_wrong(run: Run, stored: Path) -> None:
    started = time.monotonic()
    found = run()
    assert (found.returncode, found.stderr) == (0, ""), found.stdout
    assert "0 problems, 0 warnings" in found.stdout
    assert all(line.startswith(("✓ ", "  ")) for line in found.stdout.splitlines()[:-2])
    assert "3 entries" in " ".join(found.stdout.split())
    assert time.monotonic() - started < 30  # a hang guard; it takes about two seconds
    assert run("--full").returncode == 0


@pytest.fixture
def ten_faults(stored: Path, tmp_path: Path, cdn: CdnServer, request: pytest.FixtureRequest) -> dict[str, str]:
    """Ten faults at once; returns the variables that belong to them."""
    with closing(Cache(Config(cache_dir=tmp_path / "cache", cache_encryption_key="ab" * 32))) as cache:
        cache.write(EntryKey("secret_x", "x"), {"a": 1})
    stored.parent.rename(tmp_path / "away")
    stored.parent.write_text("no folder")
    with closing(Cache(Config(cache_dir=stored.parent, cache_fallback_dir=tmp_path / "standin"))) as cache:
        assert cache.write(EntryKey("left_x", "x"), {"a": 1}).stored
    stored.parent.unlink()
    (tmp_path / "away").rename(stored.parent)
    change(
        stored,
        "PRAGMA foreign_keys=OFF",
        "UPDATE parts SET data = zeroblob(length(data)) WHERE name = 'a' AND entry_id = 1",
        "DELETE FROM parts WHERE name = 'b' AND entry_id = 2",
        f"UPDATE entries SET created_at = {time.time() + 90000} WHERE id = 1",
        "UPDATE entries SET format_version = 0 WHERE id = 3",
    )
    stored.with_name(f"{stored.name}.damaged-20250101T000000.000000Z").write_bytes(b"x")
    request.getfixturevalue("locked")
    stored.chmod(0o666)  # now: the log gets the mode of the file
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    cdn.faults.set(Fault("latency", seconds=2.2))
    return {
        "TIF1_NO_SUCH_SETTING": "1",
        "TIF1_CACHE_CLEANUP_THRESHOLD_MB": "9000",
        "TIF1_CACHE_AUDIT_LOG": "/proc/audit.log",
        "TIF1_CACHE_FALLBACK_DIR": str(tmp_path / "standin"),
        "TIF1_CDN_URLS": f"http://127.0.0.1:{port}/{{year}}",
    }


def test_ten_faults_and_more_are_each_named_with_a_remedy(
    run: Run, ten_faults: dict[str, str], locked: int, stored: Path
) -> None:
    expected = [
        ("problem", "settings", "TIF1_NO_SUCH_SETTING"),
        ("warning", "settings", "cache_cleanup_threshold_mb 9,000"),
        ("problem", "audit log", "/proc/audit.log"),
        ("warning", "fallback", "1 entries are in the fallback"),
        ("problem", "lock", f"process {locked} ("),
        ("warning", "permissions", "has mode 0666"),
        ("warning", "leftovers", "1 damaged file(s)"),
        ("problem", "encryption", "1 entries"),
        ("warning", "clock", "1 entries"),
        ("warning", "version", "1 entries"),
        ("problem", "integrity", "lack parts"),
        ("problem", "integrity", "are corrupt"),
        ("problem", "CDN", "refused"),
        ("warning", "schedules", "is slow"),
    ]
    found = run("--json", **ten_faults)
    assert (found.returncode, found.stderr) == (1, "")
    checks = [check for check in json.loads(found.stdout) if check["status"] != "ok"]
    for status, name, finding in expected:
        matching = [check for check in checks if (check["status"], check["name"]) == (status, name)]
        assert any(finding in check["finding"] for check in matching), (status, name, finding, checks)
    assert all(check["remedy"] for check in checks)
    assert len(checks) == len(expected), checks
    text = run(**ten_faults)
    lines = text.stdout.splitlines()
    assert (text.returncode, text.stderr) == (1, "")
    marks = [line[0] for line in lines[:-2] if not line.startswith(" ")]
    assert marks == sorted(marks, key="✗!✓".index)
    assert (marks.count("✗"), marks.count("!")) == (7, 7), text.stdout
    together = " ".join(text.stdout.split())
    assert all(finding in together for _, _, finding in expected)
    assert sum(line.startswith("    → ") for line in lines) == 14
    assert max(len(line) for line in lines if " " in line.strip() and "://" not in line and "/tmp" not in line) <= 100


def test_warnings_alone_are_no_failure(run: Run, stored: Path) -> None:
    stored.chmod(0o666)
    found = run("--no-cdn")
    assert found.returncode == 0
    assert "0 problems, 1 warnings" in found.stdout


def test_plain_marks_where_the_output_knows_no_others(run: Run, stored: Path) -> None:
    stored.chmod(0o666)
    found = run("--no-cdn", PYTHONIOENCODING="ascii")
    assert found.returncode == 0, found.stderr
    assert found.stdout.isascii()
    assert found.stdout.startswith("! permissions:")
    assert "    -> chmod 0640" in found.stdout
    assert "\n+ " in found.stdout


def test_lines_are_as_long_as_the_terminal_is_wide(run: Run, stored: Path, tmp_path: Path) -> None:
    found = run("--no-cdn", "--cache", "/proc", COLUMNS="50")
    assert found.returncode == 1
    assert max(map(len, found.stdout.splitlines()[:-1])) <= 50


def test_another_cache_than_that_of_the_settings(run: Run, stored: Path, tmp_path: Path) -> None:
    other = stored.rename(tmp_path / "other.db")
    found = run("--no-cdn", "--cache", str(other))
    assert f"{other}: 3 entries" in " ".join(found.stdout.split())
    assert "there is none" in " ".join(run("--no-cdn", "--cache", str(tmp_path / "cache")).stdout.split())


def test_the_mirrors_are_left_alone_on_demand(run: Run, cdn: CdnServer) -> None:
    run("--no-cdn")
    assert cdn.requests.total == 0


def test_help_explains(run: Run) -> None:
    found = run("--help")
    assert found.returncode == 0
    assert all(word in found.stdout for word in ("--full", "--no-cdn", "--cache", "--json", "Exit codes", "Nothing is"))
    assert run("--no-such-option").returncode == 2
