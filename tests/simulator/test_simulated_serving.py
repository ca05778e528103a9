"""The command: start, be found, be told to stop."""

import io
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from tif1_pipeline.exceptions import ConfigError
from tif1_pipeline.simulator.faults import Fault
from tif1_pipeline.simulator.serving import parse_fault, serve

_COMMAND = """
import sys
from tif1_pipeline.simulator import serve
serve(years=[2025], events=1, size="tiny", faults=["missing=0"], ready_file=sys.argv[1])
"""


def _wait_for(path: Path) -> str:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return path.read_text().strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_where_it_is_and_ends_on_a_signal(tmp_path, number):
    ready = tmp_path / "port"
    command = [sys.executable, "-W", "error", "-c", _COMMAND, str(ready)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        port = _wait_for(ready)
        address = f"http://127.0.0.1:{port}/theOehrly/f1schedule@master/schedule_2025.json"
        assert httpx.get(address, trust_env=False).status_code == 200
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert f"TIF1_CDN_URLS='http://127.0.0.1:{port}/TracingInsights/{{year}}@main'" in out
    assert f"TIF1_SCHEDULE_URLS='http://127.0.0.1:{port}/theOehrly/f1schedule@master/schedule_{{year}}.json'" in out
    assert "Answered 1 requests." in out
    assert not ready.exists()


def test_a_directory_can_be_served_from_a_thread(tmp_path):
    (tmp_path / "2025@main").mkdir()
    (tmp_path / "2025@main" / "x.json").write_text("[]")
    ready, stop, out = tmp_path / "ready", threading.Event(), io.StringIO()
    thread = threading.Thread(target=serve, args=(tmp_path,), kwargs={"ready_file": ready, "stop": stop, "output": out})
    thread.start()
    try:
        port = _wait_for(ready)
        answer = httpx.get(f"http://127.0.0.1:{port}/TracingInsights/2025@main/x.json", trust_env=False)
    finally:
        stop.set()
        thread.join()
    assert answer.json() == []
    assert "Simulated CDN at" in out.getvalue()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("error=0.05", Fault("error", 0.05)),
        ("hang", Fault("hang")),
        ("latency=1:0.2", Fault("latency", 1.0, seconds=0.2)),
        ("rate_limit=0.1:2", Fault("rate_limit", 0.1, retry_after=2.0)),
        ("error=0.5:500", Fault("error", 0.5, status=500)),
    ],
)
def test_faults_on_the_command_line(text, fault):
    assert parse_fault(text) == fault


@pytest.mark.parametrize("text", ["nothing=1", "error=often", "error=2", "latency=1:soon", ""])
def test_bad_faults_on_the_command_line(text):
    with pytest.raises(ConfigError):
        parse_fault(text)
