"""The whole command line as processes: what starts quickly, how it ends, what a terminal and a pipe get."""

import importlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import click
import pytest

from tif1_pipeline.cli import SECTIONS, cli
from tif1_pipeline.simulator import Fault

VERBS = cli.list_commands(click.Context(cli))
LAPS = "2025_monaco_race_laps_pandas"


def finished(process):
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def test_the_help_has_one_line_a_verb(invoke):
    shown = invoke("--help").stdout
    for verbs in SECTIONS.values():
        for name, verb in verbs.items():
            assert f"  {name.ljust(10)}  {verb.summary}\n" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_there_and_explains_itself(invoke, name):
    module, _, attribute = cli.verbs[name].home.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert command.name == name
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert len(command.help.partition("\n")[0]) > 20
    if "cache" in {parameter.name for parameter in command.params}:
        assert f"    tif1-pipeline {name}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "never"),
    [
        (["--help"], {"dagster", "pandas", "numpy", "pyarrow", "sqlalchemy", "rich", "httpx"}),
        (["ls", "--help"], {"dagster", "pandas", "numpy", "pyarrow", "sqlalchemy", "rich", "httpx"}),
        (["ls"], {"dagster", "pandas", "polars", "rich", "httpx", "httptools"}),
        (["stats", "--json"], {"dagster", "pandas", "polars", "rich", "httpx", "httptools"}),
        (["config"], {"dagster", "pandas", "polars", "rich", "httpx", "httptools", "sqlalchemy"}),
    ],
)
def test_a_verb_imports_no_more_than_it_needs(filled, arguments, never):
    script = f"""
import sys
from tif1_pipeline.cli import cli
assert not cli.main({arguments!r}, standalone_mode=False)
print("IMPORTED", *sys.modules)
"""
    environment = os.environ | {"TIF1_CACHE_DIR": str(filled.get_cache_dir())}
    output = subprocess.check_output([sys.executable, "-c", script], text=True, env=environment, timeout=60)
    assert not never & set(output.partition("IMPORTED")[2].split())


def test_exit_codes(start, filled, damage):
    assert finished(start("ls"))[0] == 0
    damage(filled, LAPS)
    code, output, errors = finished(start("verify", "--json"))
    assert (code, errors) == (1, "")
    assert json.loads(output)["corrupted_entries"] == 1
    code, output, errors = finished(start("clear"))
    assert (code, output) == (2, "")
    assert "say what to remove" in errors
    code, output, errors = finished(start("rotate-key"))
    assert (code, output) == (1, "")
    assert errors.startswith("error: there is no key")
    assert errors.count("\n") == 1
    code, output, errors = finished(start("ls", TIF1_CACHE_SHARDS="many"))
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    code, output, errors = finished(start("verify", "nothing"))
    assert (code, output) == (1, "")
    assert errors.startswith("error: there is no entry nothing")


def test_json_alone_is_on_stdout(start, filled):
    for arguments in (["ls"], ["ls", "--entries"], ["search", "*"], ["stats"], ["config"], ["expire", "--dry-run"]):
        code, output, errors = finished(start(*arguments, "--json"))
        assert (code, errors) == (0, "")
        json.loads(output)


def test_a_reader_that_goes_away_is_no_traceback(filled, start):
    process = start("ls", "--entries")
    process.stdout.close()
    process.wait(timeout=60)
    assert process.stderr.read() == ""


def test_warm_ends_with_1_when_something_failed(start, cdn):
    cdn.hide("Race/weather.json")
    code, output, _ = finished(start("warm", "2025", "1", "R", "--json"))
    assert code == 1
    assert [item["data_type"] for item in json.loads(output)["failed"]] == ["weather"]
    assert finished(start("warm", "2025", "1", "R", "--types", "laps"))[0] == 0


def test_warm_ends_with_130_on_ctrl_c(start, cdn, tif1):
    cdn.faults.add(Fault("latency", path="weather.json", seconds=50))
    process = start("warm", "2025", "1", "R", TIF1_REQUEST_TIMEOUT="60")
    until = time.monotonic() + 30
    while not tif1.get_cache().get_by_type("laps"):  # stored beside the request that hangs
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, output, errors = finished(process)
    assert (code, output) == (130, "")
    assert errors.startswith("interrupted")


def in_terminal(folder, *arguments, columns=80, answer=b""):
    """Run on a terminal of so many columns; returns the exit code and the lines shown."""
    leader, follower = pty.openpty()
    environment = os.environ | {"TIF1_CACHE_DIR": str(folder), "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tif1_pipeline.cli", *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
    )
    os.close(follower)
    os.write(leader, answer)
    shown = b""
    try:
        while select.select([leader], [], [], 60)[0]:
            try:
                data = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            shown += data
    finally:
        os.close(leader)
    return process.wait(timeout=60), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", shown.decode()).splitlines()


@pytest.mark.parametrize("columns", [80, 200])
def test_tables_fit_the_terminal_and_hide_no_key(filled, columns):
    keys = {row["key"] for row in filled.get_entries()}
    for arguments in (["ls"], ["ls", "--entries"], ["stats"], ["search", "*"], ["config"], ["expire", "--dry-run"]):
        code, lines = in_terminal(filled.get_cache_dir(), *arguments, columns=columns)
        assert code == 0
        assert max(len(line) for line in lines if not line.startswith("Cache ")) <= columns  # a path is not cut
        assert not any("…" in line for line in lines)
        if "--entries" in arguments:
            assert keys <= {line.split()[0] for line in lines}
            assert any(" ago" in line for line in lines)
            assert ("Reads" in lines[0]) == (columns == 200)


def test_clearing_all_asks_on_a_terminal(filled):
    code, lines = in_terminal(filled.get_cache_dir(), "clear", "--all", answer=b"n\n")
    assert code == 130
    assert any("Remove all 6 entries" in line for line in lines)
    assert len(filled.get_entries()) == 6
    code, lines = in_terminal(filled.get_cache_dir(), "clear", "--all", answer=b"y\n")
    assert code == 0
    assert filled.get_entries() == []
