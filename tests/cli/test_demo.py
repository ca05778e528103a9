"""The demo of the README, as a new user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_shows_a_weekend_in_an_empty_folder(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER_", "TIF1_"))}
    command = [sys.executable, "-m", "tif1_pipeline.cli", "demo", "--home", str(tmp_path / "demo")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "event_summary" in done.stdout
    assert "Done in" in done.stdout
    assert (tmp_path / "demo/dagster/history/runs/index.db").exists()
