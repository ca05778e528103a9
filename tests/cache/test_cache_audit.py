"""The audit log: one whole line for each operation, whoever writes at the same time."""

import json
import os
import pwd
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tif1_pipeline.cache import Cache, audit
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey


@pytest.fixture
def log(config: Config, tmp_path: Path) -> Path:
    config.cache_audit_log = tmp_path / "logs" / "audit.log"
    return config.cache_audit_log


def lines(*paths: Path) -> list[dict]:
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_says_who_did_what_when(config: Config, log: Path) -> None:
    before = datetime.now(UTC)
    audit.record(config, "remove", "2025_monaco_race_laps_pandas", number=3, path=log, tier="disk")
    (line,) = lines(log)
    assert before - timedelta(seconds=1) <= datetime.fromisoformat(line.pop("time")) <= datetime.now(UTC)
    assert line == {
        "pid": os.getpid(),
        "user": pwd.getpwuid(os.geteuid()).pw_name,
        "host": socket.gethostname(),
        "operation": "remove",
        "key": "2025_monaco_race_laps_pandas",
        "number": 3,
        "path": str(log),
        "tier": "disk",
    }


def test_files_and_folders_are_closed_to_others_whatever_the_umask(config: Config, log: Path) -> None:
    former = os.umask(0)
    try:
        audit.record(config, "clear")
    finally:
        os.umask(former)
    assert stat.S_IMODE(log.stat().st_mode) == 0o640
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o750


@pytest.mark.parametrize("key", ['a\n{"operation": "forged"}', 'a"}\r\n{"x": "', "\u2028\u2029\x85", "\ud800", "é"])
def test_a_name_cannot_forge_a_line(config: Config, log: Path, key: str) -> None:
    audit.record(config, "read", key, pid=-1, operation_="x", time="never", user="root", detail=key)
    assert len(log.read_bytes().splitlines()) == 1
    (line,) = lines(log)
    assert (line["key"], line["detail"], line["operation"]) == (key, key, "read")
    assert line["pid"] == os.getpid()
    assert line["time"] != "never"


def test_credentials_in_an_address_are_cut(config: Config, log: Path) -> None:
    audit.record(config, "write", "x", url="https://me:hunter2@host/path?token=hunter3#hunter4")
    assert "hunter" not in log.read_text()
    assert lines(log)[0]["url"] == "https://***@host/path"


def test_the_setting_counts_at_once(config: Config, log: Path, tmp_path: Path) -> None:
    audit.record(config, "one")
    config.cache_audit_log = None
    audit.record(config, "two")
    config.cache_audit_log = other = tmp_path / "other.log"
    audit.record(config, "three")
    config.cache_audit_log = log
    audit.record(config, "four")
    assert [line["operation"] for line in lines(log)] == ["one", "four"]
    assert [line["operation"] for line in lines(other)] == ["three"]


def test_many_logs_in_one_process(config: Config, tmp_path: Path) -> None:
    for _ in range(2):
        for number in range(7):
            config.cache_audit_log = tmp_path / f"{number}.log"
            audit.record(config, "write", str(number))
    assert [len(lines(tmp_path / f"{number}.log")) for number in range(7)] == [2] * 7


def test_a_log_that_cannot_be_written_breaks_nothing_and_is_reported_once(
    config: Config,
    cache: Cache,
    key: EntryKey,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "audit.log", tmp_path):
        config.cache_audit_log = path
        for _ in range(3):
            audit.record(config, "read")
            assert cache.write(key, {"a": 1}).stored
        assert len([record for record in caplog.records if str(path) == str((record.args or [""])[0])]) == 1
    assert capfd.readouterr().err == ""


def test_a_log_that_is_full_breaks_nothing(config: Config, tmp_path: Path) -> None:
    script = """
import logging, resource, sys
from pathlib import Path
from tif1_pipeline.cache import audit
from tif1_pipeline.config import Config
logging.basicConfig(format="%(message).40s", level=logging.ERROR)
logging.getLogger().handlers[0].formatter.formatException = lambda _: "trace"
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
config = Config(cache_audit_log=sys.argv[1])
for number in range(40):
    audit.record(config, "read", str(number))
print("done")
"""
    log = tmp_path / "audit.log"
    ran = subprocess.run(
        [sys.executable, "-c", script, str(log)], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout == "done\n"
    assert ran.stderr.count("the audit log") == 1
    assert 0 < log.stat().st_size <= 1000


def test_a_removed_log_is_started_anew(config: Config, log: Path) -> None:
    audit.record(config, "one")
    log.unlink()
    audit.record(config, "two")
    assert [line["operation"] for line in lines(log)] == ["two"]


WRITER = """
import sys
from tif1_pipeline.cache import audit
from tif1_pipeline.config import Config
audit.MAX_BYTES = int(sys.argv[2])
config = Config(cache_audit_log=sys.argv[1])
audit.record(config, "begin")
import os, threading
def work(name):
    for number in range(150):
        audit.record(config, "write", f"{name} {number}", text="x" * 50)
children = []
for child in range(2):
    pid = os.fork()
    if pid == 0:
        work(f"{sys.argv[3]} child {child}")
        os._exit(0)
    children.append(pid)
threads = [threading.Thread(target=work, args=(f"{sys.argv[3]} thread {number}",)) for number in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.parametrize("max_bytes", [10 << 20, 70_000])
def test_processes_threads_and_forks_write_whole_lines_and_lose_none(tmp_path: Path, max_bytes: int) -> None:
    log = tmp_path / "audit.log"
    command = [sys.executable, "-W", "error", "-c", WRITER, str(log), str(max_bytes)]
    processes = [
        subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True) for name in ("one", "two", "three")
    ]
    for process in processes:
        assert process.communicate(timeout=90)[1] == ""
        assert process.returncode == 0
    files = [path for path in (log, *(Path(f"{log}.{number}") for number in range(1, 6))) if path.exists()]
    written = lines(*files)
    assert len(written) == 3 * (4 * 150 + 1)
    keys = [line["key"] for line in written if line["key"]]
    assert len(set(keys)) == len(keys) == 3 * 4 * 150
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}
    assert (len(files) > 2) == (max_bytes < 1 << 20)
    assert all(path.stat().st_size < max_bytes + 1000 for path in files)


def test_the_oldest_lines_go_when_all_files_are_full(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    script = WRITER[: WRITER.index("import os, threading")] + "for n in range(400): audit.record(config, 'w', str(n))"
    subprocess.run([sys.executable, "-c", script, str(log), "3000"], check=True, timeout=60)
    files = [log, *(Path(f"{log}.{number}") for number in range(1, 6))]
    assert sorted(path for path in tmp_path.iterdir() if not path.name.startswith(".")) == sorted(files)
    keys = [line["key"] for path in reversed(files) for line in lines(path)]
    assert keys == [str(number) for number in range(400 - len(keys), 400)]


def test_a_fork_while_threads_write_does_not_hang(log: Path) -> None:
    script = """
import os, sys, threading
from tif1_pipeline.cache import audit
from tif1_pipeline.config import Config
config = Config(cache_audit_log=sys.argv[1])
stop = threading.Event()
def work():
    while not stop.is_set():
        audit.record(config, "parent")
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
for number in range(30):
    pid = os.fork()
    if pid == 0:
        audit.record(config, "child", str(number))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
for thread in threads: thread.join()
"""
    subprocess.run([sys.executable, "-c", script, str(log)], check=True, timeout=60)
    files = [path for path in log.parent.iterdir() if not path.name.startswith(".")]
    assert sorted(int(line["key"]) for line in lines(*files) if line["operation"] == "child") == list(range(30))


def test_without_a_log_the_library_is_not_loaded(run: Callable[..., str]) -> None:
    script = """
    cache.write(key, {"a": 1})
    cache.read(key, "json")
    print("concurrent_log_handler" in sys.modules, "prometheus_client" in sys.modules, "cryptography" in sys.modules)
    """
    assert run(script) == "False False False\n"


def test_the_cache_writes_what_it_does(config: Config, cache: Cache, key: EntryKey, log: Path) -> None:
    cache.read(key, "json")
    cache.write(key, {"a": 1})
    cache.read(key, "json")
    cache.remove(key)
    written = [(line["operation"], line["key"]) for line in lines(log)]
    assert ("read", key.text) in written
    assert ("write", key.text) in written
