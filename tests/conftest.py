"""A simulated CDN on loopback, and the package pointed at it with a cache of its own."""

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

import tif1_pipeline
from tif1_pipeline.config import Config
from tif1_pipeline.simulator import CdnServer, Season

REAL_FILES = Path(__file__).parent.parent.parent / "shared" / "data" / "cdn-2025-australian-gp.tar.zst"
YEAR = 2025


@pytest.fixture(scope="session")
def season() -> Season:
    """A season of two weekends, a few laps a session."""
    return Season(YEAR, seed=7, events=2, size="tiny")


@pytest.fixture(scope="module")
def shared_cdn(season: Season) -> Iterator[CdnServer]:
    with CdnServer(season) as server:
        yield server


@pytest.fixture
def cdn(shared_cdn: CdnServer) -> Iterator[CdnServer]:
    """The simulated CDN without faults and with an empty request log."""
    shared_cdn.requests.clear()
    yield shared_cdn
    shared_cdn.faults.clear()
    shared_cdn.publish()


@pytest.fixture
def tif1(cdn: CdnServer, tmp_path: Path) -> Iterator[object]:
    """The package, reading from the simulated CDN into an empty cache."""
    yield from _pointed_at(cdn, tmp_path)


@pytest.fixture(scope="session")
def real_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real files, unpacked; tests that need them are skipped where they are not."""
    if not REAL_FILES.exists():
        pytest.skip(f"the real files are not here ({REAL_FILES.name} in ../shared/data)")
    # A folder that all test processes share, unpacked by the first.
    folder = tmp_path_factory.getbasetemp().parent / "tif1-real-files"
    done = folder / ".done"
    if not done.exists():
        partial = tmp_path_factory.mktemp("unpacking")
        with (
            REAL_FILES.open("rb") as packed,
            zstandard.ZstdDecompressor().stream_reader(packed) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            archive.extractall(partial, filter="data")
        (partial / ".done").touch()
        if not folder.exists():
            try:
                partial.rename(folder)
            except OSError:  # another process was first
                shutil.rmtree(partial, ignore_errors=True)
    return folder


@pytest.fixture(scope="module")
def real_cdn(real_folder: Path) -> Iterator[CdnServer]:
    with CdnServer(real_folder) as server:
        yield server


@pytest.fixture
def real_tif1(real_cdn: CdnServer, tmp_path: Path) -> Iterator[object]:
    """The package, reading the real files from loopback into an empty cache."""
    yield from _pointed_at(real_cdn, tmp_path)


def _pointed_at(server: CdnServer, folder: Path) -> Iterator[object]:
    config = tif1_pipeline.get_config()
    before = config.to_dict()
    config.update(
        {
            "cdn_urls": server.cdn_urls,
            "schedule_urls": server.schedule_urls,
            "cache_dir": folder / "cache",
            "max_retries": 1,
            "request_timeout": 5,
        }
    )
    try:
        yield tif1_pipeline
    finally:
        tif1_pipeline.close()
        config.update(
            {name: value for name, value in before.items() if name != "cache_dir"} | {"cache_dir": before["cache_dir"]}
        )
        assert config.to_dict() == Config(**before).to_dict()
