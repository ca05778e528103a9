"""The command line on caches with known entries."""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from tif1_pipeline.cache import Cache
from tif1_pipeline.cli import cli
from tif1_pipeline.keys import EntryKey, SessionKey

MONACO = SessionKey(2025, "Monaco Grand Prix", "Race")
DAY = 86400.0


@pytest.fixture
def invoke(tif1) -> Callable[..., Result]:
    """Run a command line as a user types it; Tif1Errors are in ``exception``."""

    def run(*arguments: object, answer: str | None = None) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=answer)

    return run


@pytest.fixture
def filled(tif1) -> Cache:
    """Six entries: two sessions, a pinned asset and one of 40 days."""
    cache = tif1.get_cache()
    for key, number in (
        (MONACO.entry("laps"), 20_000),
        (MONACO.entry("weather"), 10),
        (SessionKey(2025, "Monaco Grand Prix", "Qualifying").entry("laps"), 10),
        (SessionKey(2024, "São Paulo Grand Prix", "Sprint Qualifying").entry("telemetry"), 10),
        (EntryKey("asset_kept", "asset", pinned=True), 200_000),
        (EntryKey("asset_old", "asset"), 10),
    ):
        assert cache.write(key, pa.table({"n": range(number)})).stored
    then = time.time() - 40 * DAY
    _change(cache, "UPDATE entries SET created_at = ?, accessed_at = ? WHERE key = 'asset_old'", then, then)
    for _ in range(3):
        assert cache.read(MONACO.entry("laps"))
    cache.flush()
    return cache


@pytest.fixture
def damage() -> Callable[[Cache, str], None]:
    """Overwrite the stored bytes of an entry's last part."""

    def overwrite(cache: Cache, key: str) -> None:
        _change(
            cache,
            "UPDATE parts SET data = zeroblob(length(data)) WHERE id = "
            "(SELECT max(parts.id) FROM parts JOIN entries ON entries.id = entry_id WHERE key = ?)",
            key,
        )

    return overwrite


def _change(cache: Cache, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys=ON")
        assert connection.execute(statement, values).rowcount == 1


@pytest.fixture
def start(tif1, tmp_path) -> Callable[..., subprocess.Popen[str]]:
    """Start ``python -m tif1_pipeline.cli`` on the cache of the test."""
    started = []

    def popen(*arguments: object, **variables: str) -> subprocess.Popen[str]:
        config = tif1.get_config()
        environment = os.environ | {
            "TIF1_CDN_URLS": ",".join(config.cdn_urls),
            "TIF1_SCHEDULE_URLS": ",".join(config.schedule_urls),
            "TIF1_CACHE_DIR": str(tmp_path / "cache"),
            **variables,
        }
        command = [sys.executable, "-W", "error", "-m", "tif1_pipeline.cli", *map(str, arguments)]
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=environment)
        )
        return started[-1]

    yield popen
    for process in started:
        process.kill()
        process.communicate()
