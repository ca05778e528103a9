"""Real SQLite files in temporary folders, and other processes that work on them."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey, SessionKey

SESSION = SessionKey(2025, "Monaco Grand Prix", "Race")
PREAMBLE = """
import os, sys, time, threading, signal, logging
from pathlib import Path
import pyarrow as pa
from tif1_pipeline.cache import Cache, Fresh, Source
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey, SessionKey
config = Config(cache_dir=sys.argv[1], cache_lock_timeout=5)
cache = Cache(config)
key = SessionKey(2025, "Monaco Grand Prix", "Race").entry("laps")
def table(number, rows=3):
    return pa.table({"n": [number] * rows})
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(cache_dir=tmp_path / "cache", cache_lock_timeout=5, memory_cache_max_mb=64)


@pytest.fixture
def open_cache(config: Config) -> Iterator[Callable[..., Cache]]:
    """Make caches that are closed at the end; several on one file have a memory each, like processes."""
    made = []

    def make(settings: Config | None = None, **arguments: object) -> Cache:
        made.append(Cache(settings or config, **arguments))
        return made[-1]

    yield make
    for cache in made:
        cache.close()


@pytest.fixture
def cache(open_cache: Callable[..., Cache]) -> Cache:
    return open_cache()


@pytest.fixture
def key() -> EntryKey:
    return SESSION.entry("laps")


@pytest.fixture
def start(config: Config) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start another process that runs a script on the same cache folder."""
    started: list[subprocess.Popen[str]] = []

    def run(script: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-c", PREAMBLE + textwrap.dedent(script), str(config.cache_dir)]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        started.append(
            subprocess.Popen(
                [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., str]:
    """Run a script in another process; returns what it printed."""

    def wait(script: str, *arguments: str) -> str:
        process = start(script, *arguments)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert not errors, errors
        return output

    return wait
