"""A folder that cannot be used: another one stands in, and what was written there comes back."""

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache, Fresh, shard
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import CacheError, CacheVersionError
from tif1_pipeline.keys import EntryKey, SessionKey

SESSION = SessionKey(2025, "Monaco Grand Prix", "Race")
OTHER = SessionKey(2025, "British Grand Prix", "Race").entry("laps")


def table(number: int) -> pa.Table:
    return pa.table({"n": [number]})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shard, "RETRY_SECONDS", 0.1)


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    config.cache_fallback_dir = tmp_path / "fallback"
    return config


def break_folder(config: Config) -> None:
    """Put a file in the folder's place: nobody, not even root, can open a cache in it."""
    if config.cache_dir.exists():
        config.cache_dir.rename(config.cache_dir.with_name("away"))
    config.cache_dir.write_text("no folder")


def mend_folder(config: Config) -> None:
    config.cache_dir.unlink()
    if (away := config.cache_dir.with_name("away")).exists():
        away.rename(config.cache_dir)


@pytest.fixture
def say(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., str]:
    """Run a script in another process, which may warn; returns what it printed."""

    def wait(script: str) -> str:
        process = start(script)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return output

    return wait


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_writes_go_to_the_fallback_and_come_back(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey, caplog: pytest.LogCaptureFixture
):
    cache = open_cache()
    cache.write(key, table(1))
    assert cache.check_health() == "healthy"
    break_folder(config)
    assert cache.write(OTHER, table(2)).stored
    assert cache.check_health() == "failover"
    assert cache.check_health().reasons
    assert "stands in" in caplog.text
    cache.clear_memory()
    assert cache.read(OTHER).tier == "disk"
    assert list(config.cache_fallback_dir.glob("tif1_cache-*.db"))
    mend_folder(config)
    wait_for(lambda: cache.check_health() == "healthy")
    cache.clear_memory()
    assert cache.read(key).value.equals(table(1))
    assert cache.read(OTHER).value.equals(table(2))
    assert cache.get_stats()["total_entries"] == 2


def test_the_newer_of_two_versions_stays(config: Config, open_cache: Callable[..., Cache], key: EntryKey):
    cache = open_cache()
    cache.write(key, table(1))
    cache.write(OTHER, table(1))
    break_folder(config)
    cache.write(key, table(2))
    mend_folder(config)
    wait_for(lambda: cache.check_health() == "healthy")
    cache.clear_memory()
    assert cache.read(key).value.equals(table(2))
    assert cache.read(OTHER).value.equals(table(1))


def test_another_process_finds_what_the_first_left_in_the_fallback(
    config: Config, open_cache: Callable[..., Cache], say: Callable[..., str]
):
    key = SESSION.entry("laps")
    config.cache_dir.write_text("no folder")
    setting = f"config.cache_fallback_dir = {str(config.cache_fallback_dir)!r}\n"
    assert say(setting + "print(cache.write(key, table(5)).stored)") == "True\n"
    assert say(setting + "print(cache.read(key).value['n'][0])") == "5\n"  # while the folder is still broken
    config.cache_dir.unlink()
    assert open_cache().read(key).value["n"].to_pylist() == [5, 5, 5]
    config.cache_fallback_dir = None
    assert open_cache().read(key).value["n"].to_pylist() == [5, 5, 5]


def test_reads_are_fetched_once_while_it_stands_in(config: Config, open_cache: Callable[..., Cache], key: EntryKey):
    config.cache_dir.write_text("no folder")
    cache = open_cache()
    calls = []

    def fetch(stored: object) -> Fresh:
        calls.append(stored)
        return Fresh(table(1))

    for _ in range(3):
        cache.clear_memory()
        assert cache.read_through(key, fetch).value.equals(table(1))
    assert len(calls) == 1


def test_a_full_disk_keeps_what_can_be_read(config: Config, say: Callable[..., str]):
    said = say(
        f"""
        import resource
        config.cache_fallback_dir = {str(config.cache_fallback_dir)!r}
        cache.write(key, table(1))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = os.path.getsize(config.cache_path)
        other = SessionKey(2025, "British Grand Prix", "Race").entry("laps")
        big = pa.table({{"n": list(os.urandom(3_000_000))}})
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
        print(cache.write(other, big).stored)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        cache.clear_memory()
        print(cache.read(key).value["n"][0])
        """
    )
    # Both folders have the limit, so the large table is refused; the small one stays readable.
    assert said == "False\n1\n"


def test_a_foreign_file_in_the_place_is_spoken_about_not_avoided(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey
):
    import sqlite3

    config.cache_dir.mkdir()
    with sqlite3.connect(config.cache_path) as connection:
        connection.execute("CREATE TABLE theirs (n)")
    connection.close()
    with pytest.raises(CacheVersionError):
        open_cache().write(key, table(1))


def test_without_the_setting_nothing_stands_in(config: Config, open_cache: Callable[..., Cache], key: EntryKey):
    config.cache_fallback_dir = None
    config.cache_dir.write_text("no folder")
    cache = open_cache()
    written = cache.write(key, table(1))
    assert not written.stored
    assert cache.read(key).value.equals(table(1))  # from memory
    assert cache.check_health().reasons


def test_pinned_entries_survive_the_way_there_and_back(config: Config, open_cache: Callable[..., Cache]):
    asset = EntryKey("asset:summary@2025", "summary", pinned=True)
    config.cache_dir.write_text("no folder")
    cache = open_cache()
    cache.write(asset, {"n": 1})
    config.cache_dir.unlink()
    wait_for(lambda: cache.check_health() == "healthy")
    cache.clear_memory()
    assert cache.read(asset, "json").value == {"n": 1}
    assert cache.info(asset).pinned
    shutil.rmtree(config.cache_fallback_dir)
    assert cache.read(asset, "json").value == {"n": 1}


def test_waiting_for_another_process_keeps_nobody_from_writing(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey
):
    config.cache_dir.write_text("no folder")
    first, second = open_cache(), open_cache()
    first.write(OTHER, table(0))
    fetching, go_on = threading.Event(), threading.Event()

    def slow(_: object) -> Fresh:
        fetching.set()
        assert go_on.wait(30)
        return Fresh(table(1))

    def waits() -> None:
        second.read_through(key, lambda _: Fresh(table(2)))

    threads = [threading.Thread(target=lambda: first.read_through(key, slow)), threading.Thread(target=waits)]
    threads[0].start()
    assert fetching.wait(10)
    threads[1].start()
    time.sleep(0.3)  # now it waits for the lease
    started = time.monotonic()
    assert second.write(OTHER, table(3)).stored
    assert second.read(OTHER).value.equals(table(3))
    assert time.monotonic() - started < 5
    go_on.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_two_caches_share_a_fallback_folder_and_nothing_else(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey, tmp_path: Path
):
    config.cache_dir.write_text("no folder")
    cache = open_cache()
    cache.write(key, table(1))
    other = Config(cache_dir=tmp_path / "other", cache_fallback_dir=config.cache_fallback_dir)
    assert open_cache(other).read(key) is None
    config.cache_dir.unlink()
    wait_for(lambda: cache.check_health() == "healthy")
    cache.clear_memory()
    assert cache.read(key).value.equals(table(1))


def test_a_removal_that_cannot_reach_the_file_says_so(config: Config, open_cache: Callable[..., Cache], key: EntryKey):
    cache = open_cache()
    cache.write(key, table(1))
    break_folder(config)
    cache.write(OTHER, table(2))
    for call in (lambda: cache.remove(OTHER), cache.clear, lambda: cache.invalidate_year(2025)):
        with pytest.raises(CacheError, match="repeat the call"):
            call()
    mend_folder(config)
    wait_for(lambda: cache.check_health() == "healthy")
    assert cache.clear() == 1


def test_nothing_of_what_was_moved_back_stays_in_the_fallback(config: Config, open_cache: Callable[..., Cache]):
    config.cache_dir.write_text("no folder")
    cache = open_cache()
    key = EntryKey("asset:secret", "secret")
    cache.write(key, {"word": "abracadabra-4711"})
    config.cache_dir.unlink()
    wait_for(lambda: cache.check_health() == "healthy")
    assert cache.read(key, "json")
    cache.close()
    content = b"".join(path.read_bytes() for path in config.cache_fallback_dir.iterdir())
    assert b"abracadabra" not in content
    assert b"asset:secret" not in content


def test_the_fallback_setting_may_be_removed_while_it_is_in_use(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey
):
    config.cache_dir.write_text("no folder")
    cache = open_cache()
    cache.write(key, table(1))
    cache.read(key)
    config.cache_fallback_dir = None
    assert not cache.write(OTHER, table(1)).stored
    cache.flush()
    cache.close()
