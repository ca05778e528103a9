"""The command `warm`: what is asked of it, what it prints, how it ends."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner, Result

from tif1_pipeline import api
from tif1_pipeline.cli.warm import warm
from tif1_pipeline.simulator import Fault

EVENT = "Australian Grand Prix"
COMMAND = [sys.executable, "-W", "error", "-c", "from tif1_pipeline.cli.warm import warm; warm()"]


@pytest.fixture
def run(tif1):
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(warm, arguments)

    return invoke


def test_a_season_then_nothing_is_left_to_do(run, cdn):
    first = run("2025", "--json")
    assert first.exit_code == 0
    report = json.loads(first.stdout)
    assert (report["succeeded"], report["skipped"], report["failed"]) == (40, 0, [])
    assert set(report) == {"succeeded", "skipped", "failed", "seconds", "requests", "bytes"}
    asked = cdn.requests.total
    again = run("2025")
    assert again.exit_code == 0
    assert {tuple(line.rsplit(maxsplit=1)) for line in again.stdout.splitlines()} >= {
        ("fetched", "0"),
        ("stored already", "40"),
        ("failed", "0"),
        ("requests", "0"),
    }
    assert cdn.requests.total == asked


@pytest.mark.parametrize(
    ("arguments", "fetched"),
    [
        (["2025", "Melbourne"], 20),
        (["2025", "1", "--types", "weather, corners", "--workers", "2"], 10),
        (["2025", "Australia", "R"], 4),
        (["2025", EVENT, "fp1", "--types", "laps"], 1),
        (["2025", EVENT, "Race", "--drivers", "ver,NOR"], 2),
    ],
)
def test_what_is_named_is_fetched(run, arguments, fetched):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["succeeded"] == fetched


def test_frequent_completes_what_is_used(run, tif1):
    for _ in range(3):
        tif1.get_session(2025, EVENT, "Race").laps  # noqa: B018
    assert json.loads(run("--frequent", "2", "--json").stdout)["succeeded"] == 3
    assert "nothing to warm" in run("--frequent", "100000").stdout


def test_what_failed_is_said_and_ends_with_1(run, cdn):
    cdn.hide("Race/weather.json")
    result = run("2025", EVENT, "R")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert ["failed", "1"] in [line.split() for line in lines]
    assert "  2025 Australian Grand Prix Race, weather" in lines
    assert "weather.json" in result.stdout
    assert max(map(len, lines)) <= 80 or any("http" in line for line in lines if len(line) > 80)
    as_json = run("2025", EVENT, "R", "--json")
    assert as_json.exit_code == 1
    assert [item["data_type"] for item in json.loads(as_json.stdout)["failed"]] == ["weather"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--frequent", "3", "2025"], "leave YEAR"),
        (["--frequent", "3", "--types", "laps"], "leave YEAR"),
        (["--frequent", "0"], "--frequent"),
        (["2025", EVENT, "--drivers", "VER", "--types", "laps"], "leave --types out"),
        (["2025", "--drivers", "VER"], "an EVENT"),
        (["2025", EVENT, "--drivers", " , "], "at least one"),
        (["2025", "--types", "laps,lap"], "there is no lap; choose from session_info"),
        (["2025", "--types", "schedule"], "there is no schedule"),
        (["2025", "--workers", "0"], "--workers"),
        (["Monaco"], "not a valid integer"),
        (["2025", EVENT, "Race", "more"], "unexpected extra argument"),
    ],
)
def test_contradictions_are_usage_errors(run, cdn, arguments, reason):
    result = run(*arguments)
    assert result.exit_code == 2
    assert reason in result.stderr
    assert cdn.requests.total == 0


def test_names_that_do_not_exist_are_errors_of_the_package(run, tif1):
    assert isinstance(run("2025", "Mars").exception, tif1.EventNotFoundError)
    assert isinstance(run("2025", EVENT, "Sprint").exception, tif1.SessionNotFoundError)


def test_help_shows_examples_as_they_are_written(run):
    result = run("--help")
    assert result.exit_code == 0
    assert "  tif1-pipeline warm 2025 Monaco Q --drivers VER,NOR\n" in result.stdout
    assert "[default: drivers,laps,weather,messages]" in " ".join(result.stdout.split())


@pytest.fixture
def start(tif1, cdn, tmp_path):
    started = []

    def popen(*arguments: str) -> subprocess.Popen[str]:
        environment = os.environ | {
            "TIF1_CDN_URLS": ",".join(cdn.cdn_urls),
            "TIF1_SCHEDULE_URLS": ",".join(cdn.schedule_urls),
            "TIF1_CACHE_DIR": str(tmp_path / "cache"),
            "TIF1_REQUEST_TIMEOUT": "60",
        }
        started.append(
            subprocess.Popen(
                [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )
        )
        return started[-1]

    yield popen
    for process in started:
        process.kill()
        process.communicate()


def test_a_process_of_its_own(start):
    process = start("2025", EVENT, "--types", "telemetry", "--json")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert json.loads(output)["succeeded"] == 5
    assert len(api.get_cache().get_by_type("telemetry")) == 5


def test_ctrl_c_says_how_to_go_on(start, cdn):
    cdn.faults.add(Fault("latency", path="weather.json", seconds=50))
    process = start("2025", EVENT)
    until = time.monotonic() + 30
    while not (api.get_cache().get_by_type("laps") and cdn.requests.count("session_laptimes.json") == 4):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=15)
    assert (process.returncode, output) == (130, "")
    assert errors == "interrupted; what was fetched is kept, run again to go on\n"
    assert api.get_cache().get_by_type("laps")
