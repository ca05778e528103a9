"""The benchmarks' own parts: what a ratio is, what the server answers, and where the table is written."""

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from benchmarks import measure, report
from benchmarks.measure import Row, serving


def test_a_ratio_is_of_the_runs_that_followed_each_other():
    """The machine was three times as slow in the second pair, which says nothing about the sides."""
    row = Row("work", ours=[10, 30, 10], peer="peer", theirs=[40, 120, 50], target=4.0)
    assert row.ratio == 4
    assert row.met
    assert Row("work", [10], "peer", [39], target=4.0).met is False
    assert Row("work", [10]).ratio is None
    more = Row("more than without", [8.0, -1.0, 5.0], "at most", [25.0] * 3, target=1.0)
    assert (more.ratio, more.met) == (5, True)
    assert Row("more than without", [1.0, -1.0, -2.0], "at most", [25.0] * 3, target=1.0).met is None


def test_the_table_is_written_between_its_marks_and_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    (tmp_path / "docs" / "guides").mkdir(parents=True)
    pages = [tmp_path / "README.md", tmp_path / "docs" / "guides" / "benchmarks.md"]
    for page in pages:
        page.write_text(f"before\n\n{report._BEGIN}\n\nold\n\n{report._END}\n\nafter\n")
    rows = {"calls": [Row("with an aim", [1.0], "peer", [5.0], 4.0), Row("without", [2.0])]}
    found = report.Report(rows, "some files", 60)
    for _ in range(2):  # writing it again changes nothing
        found.publish()
    readme, guide = (page.read_text() for page in pages)
    for text in (readme, guide):
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "old" not in text
        assert "| with an aim | 1.00 ms | 5.00 ms, peer | 5.0 x |" in text
    assert "without" in guide
    assert "without" not in readme
    assert json.loads(found.json())["groups"]["calls"][0]["ratio"] == 5


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "Some Event").mkdir()
    (folder / "Some Event" / "x.json").write_text('{"a": [1, 2, 3]}')
    with serving(folder, tmp_path_factory.mktemp("server")) as url:
        yield url


def test_the_server_answers_as_a_cdn(served):
    with httpx.Client() as client:
        plain = client.get(f"{served}/0/Some%20Event/x.json", headers={"Accept-Encoding": "identity"})
        assert plain.json() == {"a": [1, 2, 3]}
        assert "content-encoding" not in plain.headers
        packed = client.get(f"{served}/0/Some%20Event/x.json")
        assert packed.json() == plain.json()
        assert packed.headers["content-encoding"] == "gzip"
        assert client.get(f"{served}/0/nothing.json").status_code == 404
        assert client.get(f"{served}/count").json() == 3
        started = time.monotonic()
        client.get(f"{served}/80/Some%20Event/x.json")
        assert time.monotonic() - started >= 0.08


def test_a_side_that_fails_is_named_with_its_error(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "SIDES", tmp_path)
    (tmp_path / "broken.py").write_text("raise ValueError('no such thing')")
    with pytest.raises(SystemExit, match=r"ours failed at \{'work': 'x'\}(.|\n)*no such thing"):
        measure.ask("ours", "broken.py", work="x")


@pytest.mark.slow
def test_the_benchmarks_of_calls_run(tmp_path):
    """End to end, on the group that takes least and needs no peer."""
    root = Path(__file__).parent.parent
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from benchmarks import calls; "
        "calls.SIZES = (20, 40); from benchmarks.calls import Calls; "
        "rows = [row for row in Calls('', Path(sys.argv[2]), 1)._calls()]; "
        "assert len(rows) == 3 and all(row.ratio for row in rows), rows"
    )
    command = [sys.executable, "-c", code, str(root), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
