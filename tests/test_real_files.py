"""On the real 2025 Australian Grand Prix, where its files are: nothing lost, nothing changed, and the same as tif1."""

import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import peers
from tif1_pipeline.datasets import TELEMETRY

EVENT = "Australian Grand Prix"


@pytest.fixture
def session_folder(real_folder):
    return lambda name: real_folder / "TracingInsights" / "2025@main" / EVENT / name


def test_the_race_is_whole(real_tif1):
    race = real_tif1.get_session(2025, "Melbourne", "R")
    laps = race.laps
    assert len(laps) == 927
    assert len(race.drivers) == laps["Driver"].nunique() == 20
    assert laps["LapTime"].isna().sum() == 69
    assert laps["LapTimeSeconds"].isna().sum() == 69


def test_qualifying_has_telemetry_of_laps_that_the_table_lacks(real_tif1, session_folder):
    qualifying = real_tif1.get_session(2025, "Melbourne", "Q")
    assert len(qualifying.laps) == 203
    telemetry = qualifying.telemetry
    files = list(session_folder("Qualifying").glob("*/*_tel.json"))
    assert len(files) == 297
    found = telemetry.groupby(["Driver", "LapNumber"], observed=True).size()
    assert len(found) == 297


@pytest.mark.parametrize("name", ["Race", "Qualifying", "Practice 1"])
def test_each_telemetry_value_equals_the_json(real_tif1, session_folder, name):
    session = real_tif1.get_session(2025, "Melbourne", name)
    session.telemetry  # noqa: B018 - fetch and store
    real_tif1.get_cache().clear_memory()
    stored = session.telemetry
    groups = {key: rows for key, rows in stored.groupby(["Driver", "LapNumber"], observed=True)}  # noqa: C416
    files = sorted(session_folder(name).glob("*/*_tel.json"))
    assert len(groups) == len(files)
    values = 0
    for file in files:
        published = json.loads(file.read_bytes())["tel"]
        rows = groups.pop((file.parent.name, int(file.stem.removesuffix("_tel"))))
        for column in TELEMETRY.columns:
            if column.source is None:
                continue
            if column.source not in published:
                assert rows[column.name].isna().all(), (file, column.name)
                continue
            expected = published[column.source]
            assert len(expected) == len(rows)
            values += len(expected)
            if column.name == "Time":
                exact = np.array([round(value * 1e9) for value in expected], "timedelta64[ns]")
                np.testing.assert_array_equal(rows["Time"].to_numpy(), exact)
            elif column.name == "Brake":
                assert rows["Brake"].tolist() == [bool(value) for value in expected]
            else:
                number = np.array([math.nan if value == "None" else value for value in expected], np.float64)
                got = rows[column.name].to_numpy()
                np.testing.assert_array_equal(got, number.astype(got.dtype), err_msg=f"{file} {column.name}")
    assert values > 1_000_000


# ---- tif1


@pytest.fixture(scope="session")
def tif1_python() -> Path:
    """An interpreter with tif1 in it, installed by the first who asks."""
    try:
        return peers.python_of("tif1")
    except (SystemExit, subprocess.TimeoutExpired) as error:
        pytest.skip(f"tif1 could not be installed to compare with: {error}")


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_laps_equal_those_of_tif1(real_tif1, real_cdn, tif1_python, tmp_path):
    script = Path(__file__).parent / "peers" / "tif1_laps.py"
    sessions = ["Race", "Qualifying", "Practice 1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIF1_")}
    command = [str(tif1_python), str(script), real_cdn.url, str(tmp_path), *sessions]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100, env=environment)
    assert ran.returncode == 0, ran.stderr
    for name in sessions:
        theirs = pd.read_parquet(tmp_path / f"{name}.parquet")
        ours = real_tif1.get_session(2025, "Melbourne", name).laps
        # tif1 adds a row number and keeps two source columns under both names.
        assert set(theirs.columns) - set(ours.columns) == {"index", "drv", "team"}
        assert set(ours.columns) - set(theirs.columns) == set()
        assert len(ours) == len(theirs)
        for column in ours.columns:
            mine, other = ours[column], theirs[column]
            if column in {"IsPersonalBest", "FreshTyre", "FastF1Generated", "IsAccurate", "Rainfall"}:
                # tif1 turns a missing flag into False; here it stays missing, as in the file.
                assert mine[mine.notna()].tolist() == other[mine.notna()].tolist(), column
                assert not other[mine.isna()].any(), column
                continue
            if column == "DeletedReason":
                # The files say "" where no lap was deleted; tif1 makes that a missing value.
                mine = mine.replace("", None)
            missing = mine.isna()
            assert missing.tolist() == other.isna().tolist(), column
            assert [plain(value) for value in mine[~missing]] == [plain(value) for value in other[~missing]], column


def plain(value: object) -> object:
    return float(value) if isinstance(value, int | float | np.number) else value
