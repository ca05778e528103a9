"""What the command line writes for Dagster and the demo is closed to others."""

import os
import stat
from pathlib import Path

import pytest

from tif1_pipeline.cli.home import Demo, provide_instance, use_cdn


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_folders_and_files_are_closed_to_others_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int
) -> None:
    monkeypatch.setenv("TIF1_CONFIG", "")
    former = os.umask(mask)
    try:
        made = Demo(None, 2025, 1)
        made.start(tmp_path / "demo")
        use_cdn(tmp_path / "demo", ("https://a.example/{year}",), ("https://a.example/{year}.json",))
        provide_instance(tmp_path / "home")
    finally:
        os.umask(former)
    modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {
        "demo": 0o750,
        "demo/demo.json": 0o640,
        "demo/settings.toml": 0o640,
        "home": 0o750,
        "home/dagster.yaml": 0o640,
    }
    assert Demo.read(tmp_path / "demo") == made
