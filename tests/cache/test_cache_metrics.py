"""Metrics as files beside the cache file and over HTTP; the counters that they and the statistics rest on."""

import gc
import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import prometheus_client
import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tif1_pipeline.cache import Cache, metrics, usage
from tif1_pipeline.cache.metrics import CacheCollector
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey, SessionKey

SESSION = SessionKey(2025, "Monaco Grand Prix", "Race")
LAPS, WEATHER = SESSION.entry("laps"), SESSION.entry("weather")
TABLE = pa.table({"n": list(range(1000))})


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def writers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tif1-metrics"]


@pytest.fixture
def on(config: Config) -> Path:
    """Metrics switched on; the file that they are written to."""
    config.update({"cache_enable_metrics": True, "cache_metrics_interval": 0.05})
    return config.cache_dir / "tif1_cache.db.metrics.json"


def use(cache: Cache) -> None:
    cache.write(LAPS, TABLE)
    for _ in range(3):
        cache.read(LAPS)
    cache.read(WEATHER)


# ---- the collector


def test_a_scrape_over_http(cache: Cache) -> None:
    use(cache)
    cache.evict_memory(LAPS)
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    registry.register(CacheCollector(cache))
    server, thread = prometheus_client.start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as response:
            first = response.read().decode()
        cache.read(LAPS)
        with urllib.request.urlopen(url, timeout=30) as response:
            second = samples(response.read().decode())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    found = samples(first)
    info = cache.info(LAPS)
    assert found["tif1_cache_entries",] == 1
    assert found["tif1_cache_stored_bytes",] == info.compressed_size
    assert found["tif1_cache_uncompressed_bytes",] == info.size_bytes
    assert found["tif1_cache_disk_bytes",] > info.compressed_size
    assert found["tif1_cache_memory_entries",] == found["tif1_cache_memory_bytes",] == 0
    assert found["tif1_cache_hits_total", "laps"] == 3
    assert found["tif1_cache_misses_total", "weather"] == 1
    assert 0 < found["tif1_cache_access_seconds_total", "laps"] < 60
    assert second["tif1_cache_hits_total", "laps"] == 4
    assert second["tif1_cache_memory_entries",] == 1
    lines = first.splitlines()
    helped = {line.split()[2] for line in lines if line.startswith("# HELP") and len(line.split()) > 4}
    assert {line.split()[2] for line in lines if line.startswith("# TYPE")} == helped


def test_failures_of_the_disk_are_counted_by_cause(config: Config, cache: Cache) -> None:
    config.cache_lock_timeout = 0.1
    cache.write(LAPS, TABLE)
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        cache.write(LAPS, TABLE)
    registry = prometheus_client.CollectorRegistry()
    registry.register(CacheCollector(cache))
    found = samples(prometheus_client.generate_latest(registry).decode())
    assert found["tif1_cache_degraded_total", "write: locked"] == 1


# ---- the files


def test_the_files_are_written_and_renewed(config: Config, cache: Cache, on: Path) -> None:
    former = os.umask(0)
    try:
        use(cache)
        until(on.exists, "the first metrics")
        cache.read(LAPS)
        until(lambda: json.loads(on.read_text())["total_hits"] == 4, "metrics of the last read")
    finally:
        os.umask(former)
    content = json.loads(on.read_text())
    assert content.keys() >= cache.get_stats().keys()
    assert content["by_type"]["laps"]["hits"] == 4
    assert content["by_type"]["weather"] == {"hits": 0, "misses": 1, "seconds": 0}
    assert content["pid"] == os.getpid()
    prom = config.cache_dir / "tif1_cache.db.prom"
    until(lambda: samples(prom.read_text())["tif1_cache_hits_total", "laps"] == 4, "the same for Prometheus")
    assert stat.S_IMODE(on.stat().st_mode) == stat.S_IMODE(prom.stat().st_mode) == 0o640
    cache.close()
    assert sorted(path.name for path in config.cache_dir.iterdir()) == [
        "tif1_cache.db",
        "tif1_cache.db.metrics.json",
        "tif1_cache.db.prom",
    ]


def test_a_reader_of_the_files_never_sees_half_of_one(cache: Cache, on: Path) -> None:
    use(cache)
    until(on.exists, "the first metrics")
    seen = set()
    deadline = time.monotonic() + 30
    while len(seen) < 4:
        seen.add(json.loads(on.read_text())["time"])
        assert time.monotonic() < deadline


def test_settings_that_change_count_soon(config: Config, cache: Cache, on: Path) -> None:
    config.cache_metrics_interval = 3600
    use(cache)
    until(on.exists, "the first metrics")
    config.cache_metrics_interval = 0.05
    first = on.read_text()
    until(lambda: on.read_text() != first, "metrics at the new interval")
    config.cache_enable_metrics = False
    until(lambda: not writers(), "the end of the writing")
    last = on.read_text()
    cache.read(LAPS)
    assert not writers()
    assert on.read_text() == last
    config.cache_enable_metrics = True
    cache.read(LAPS)
    until(lambda: on.read_text() != last, "metrics switched on again")


def test_a_cache_that_is_closed_writes_no_metrics_until_its_next_use(cache: Cache, on: Path) -> None:
    use(cache)
    until(on.exists, "the first metrics")
    cache.close()
    assert not writers()
    last = on.read_text()
    cache.read(LAPS)
    until(lambda: on.read_text() != last, "metrics after the next use")


def test_a_cache_that_nobody_uses_any_more_is_not_kept_by_its_metrics(config: Config, on: Path) -> None:
    cache = Cache(config)
    use(cache)
    until(on.exists, "the first metrics")
    cache.flush()
    del cache
    until(lambda: gc.collect() >= 0 and not writers(), "the end of the writing")


def test_one_of_several_processes_writes(config: Config, on: Path, start: Callable[..., subprocess.Popen]) -> None:
    script = """
    config.update({"cache_enable_metrics": True, "cache_metrics_interval": 3600})
    cache.write(EntryKey(str(os.getpid()), "x"), {"a": 1})
    cache.read(str(os.getpid()), "json")
    file = config.cache_dir / "tif1_cache.db.metrics.json"
    while not file.exists(): time.sleep(0.01)
    print(os.getpid(), flush=True)
    sys.stdin.read()
    """
    first = start(script)
    pid = int(first.stdout.readline())
    written = on.read_text()
    others = [start(script) for _ in range(2)]
    for other in others:
        other.stdout.readline()
    time.sleep(1.5)  # longer than a process looks away
    assert on.read_text() == written
    assert json.loads(written)["pid"] == pid


def test_a_forked_child_writes_nothing_by_itself_and_can_still_use_the_cache(
    config: Config, run: Callable[..., str]
) -> None:
    script = """
    config.update({"cache_enable_metrics": True, "cache_metrics_interval": 3600})
    cache.write(key, {"a": 1})
    file = config.cache_dir / "tif1_cache.db.metrics.json"
    cache.read(key, "json")
    while not file.exists(): time.sleep(0.01)
    names = lambda: [thread.name for thread in threading.enumerate() if "metrics" in thread.name]
    assert names() == ["tif1-metrics"]
    pid = os.fork()
    if pid == 0:
        assert names() == []
        cache.read(key, "json")
        assert names() == ["tif1-metrics"]
        time.sleep(1.2)
        import json
        assert json.loads(file.read_text())["pid"] == os.getppid()
        cache.close()
        assert names() == []
        os._exit(0)
    print(os.waitpid(pid, 0)[1], names())
    """
    assert run(script) == "0 ['tif1-metrics']\n"


def test_without_the_library_there_is_json_and_one_warning(
    config: Config, start: Callable[..., subprocess.Popen]
) -> None:
    script = """
    sys.modules["prometheus_client"] = None  # as if it were not installed
    logging.basicConfig(format="%(message)s")
    config.update({"cache_enable_metrics": True, "cache_metrics_interval": 0.05})
    cache.write(key, {"a": 1})
    cache.read(key, "json")
    file = config.cache_dir / "tif1_cache.db.metrics.json"
    while not file.exists(): time.sleep(0.01)
    first = file.read_text()
    while file.read_text() == first: time.sleep(0.01)
    cache.close()
    """
    process = start(script)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors.splitlines() == ["metrics are written as JSON alone: for Prometheus, install prometheus_client"]
    assert not (config.cache_dir / "tif1_cache.db.prom").exists()


def test_metrics_that_cannot_be_written_are_reported_once(
    config: Config, cache: Cache, on: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_RETRY_SECONDS", 0.05)
    config.cache_dir.mkdir()
    on.mkdir()
    (on / "file").touch()
    use(cache)
    until(lambda: "could not be written" in caplog.text, "a warning")
    (on / "file").unlink()
    on.rmdir()
    until(on.is_file, "metrics once they can be written")
    assert caplog.text.count("could not be written") == 1
    assert not [path for path in config.cache_dir.iterdir() if path.name.startswith(".")]


def test_a_read_only_cache_writes_no_metrics(config: Config, open_cache: Callable[..., Cache], on: Path) -> None:
    config.cache_enable_metrics = False
    open_cache().write(LAPS, TABLE)
    config.update({"cache_enable_metrics": True, "cache_readonly": True})
    cache = open_cache()
    cache.read(LAPS)
    until(writers, "the thread")
    time.sleep(0.3)
    assert not on.exists()


# ---- the counters


def test_counters_are_those_of_all_processes(config: Config, cache: Cache, run: Callable[..., str]) -> None:
    use(cache)
    script = """
    cache.read(key); cache.read(key); cache.read(EntryKey("none", "weather"))
    print(cache.get_stats()["total_hits"])
    """
    assert cache.flush()
    assert run(script) == "5\n"
    assert run(script) == "7\n"
    stats = cache.get_stats()
    assert (stats["total_hits"], stats["total_misses"]) == (7, 3)
    assert cache.info(LAPS).access_count == 7


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_a_process_of_multiprocessing_writes_its_counts_at_its_end(
    config: Config, cache: Cache, method: str, tmp_path: Path
) -> None:
    cache.write(LAPS, TABLE)
    cache.close()
    script = tmp_path / "work.py"
    script.write_text(f"""
import multiprocessing, sys
from pathlib import Path
from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
cache = Cache(Config(cache_dir=Path({str(config.cache_dir)!r})))
def work():
    for _ in range(5):
        assert cache.read({LAPS.text!r}) is not None
if __name__ == "__main__":
    work()
    context = multiprocessing.get_context({method!r})
    for _ in range(2):
        process = context.Process(target=work)
        process.start()
        process.join()
        assert process.exitcode == 0
""")
    subprocess.run([sys.executable, str(script)], check=True, timeout=90)
    assert cache.get_stats()["total_hits"] == 15
    assert cache.info(LAPS).access_count == 15


def test_misses_before_the_first_write_count(cache: Cache) -> None:
    for _ in range(3):
        cache.read(WEATHER)
    assert cache.flush()
    assert cache.get_stats()["total_misses"] == 3
    cache.write(LAPS, TABLE)
    assert cache.flush()
    cache.close()
    assert cache.get_stats()["total_misses"] == 3


def test_counts_that_could_not_be_written_stay_and_are_tried_again_without_a_read(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(cache)
    monkeypatch.setattr(usage, "FLUSH_SECONDS", 0.2)
    stored = "SELECT value FROM cache_metadata WHERE key = 'hits:laps'"
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert not cache.flush()
        assert cache.get_stats()["total_hits"] == 3
        other.execute("ROLLBACK")
        until(lambda: other.execute(stored).fetchone(), "the second try")
        assert float(other.execute(stored).fetchone()[0]) == 3


def test_no_read_of_the_counters_misses_what_is_being_written(cache: Cache) -> None:
    cache.write(LAPS, TABLE)
    done = threading.Event()
    wrong = []

    def look() -> None:
        last = 0
        while not done.is_set():
            now = cache.get_stats()["total_hits"]
            if now < last:
                wrong.append((last, now))
            last = now

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(150):
        cache.read(LAPS)
        cache.flush()
    done.set()
    thread.join()
    assert not wrong


def test_read_only_counts_are_shown_and_take_no_room(config: Config, open_cache: Callable[..., Cache]) -> None:
    cache = open_cache()
    for number in range(50):
        cache.write(EntryKey(f"{number}", "x"), {"a": 1})
    cache.close()
    before = {path: path.stat().st_mtime_ns for path in config.cache_dir.iterdir()}
    running = set(threading.enumerate())  # of other caches of this process
    config.cache_readonly = True
    cache = open_cache()
    for number in range(50):
        assert cache.read(f"{number}", "json") is not None
    assert cache.flush()
    assert cache.get_stats()["total_hits"] == 50
    assert not cache._tiered.files()[0].usage._accesses
    assert not [thread for thread in threading.enumerate() if thread not in running and thread.name == "tif1-usage"]
    cache.close()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    config.cache_readonly = False
    assert cache.flush()
    assert open_cache().get_stats()["total_hits"] == 50


def test_a_read_never_writes(cache: Cache) -> None:
    use(cache)
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as other:
        version = other.execute("PRAGMA data_version").fetchone()
        cache.evict_memory(LAPS)
        for _ in range(100):
            cache.read(LAPS)
        assert other.execute("PRAGMA data_version").fetchone() == version
