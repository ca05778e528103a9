"""Eight processes of eight threads on one cache, one killed a second: no error, nothing lost, nothing torn.

``STRESS_SECONDS`` in the environment is how long, 20 by default, 40 in CI; ``-s`` shows what was done. The trial
``crowd`` of ``make stress`` has a larger crowd that nobody kills.
"""

import os
import random
import time
from pathlib import Path

import pytest
import stress_worker as stress

from tif1_pipeline.cache import Cache, Fresh
from tif1_pipeline.cache.flight import LEASE_SECONDS

SECONDS = float(os.environ.get("STRESS_SECONDS", "20"))
KILL_SECONDS = 1.0
LONGEST_WAIT = 30.0
"""Seconds; the default of ``cache_lock_timeout``: whoever waited longer would have got an error."""


def show(board: stress.Board, crowd: stress.Crowd, cache: Cache) -> None:
    print(f"\n{crowd.killed} processes killed in {SECONDS:g} s")
    print(f"{'operation':<22}{'number':>10}{'mean ms':>10}{'longest ms':>12}")
    for number, kind in enumerate(stress.KINDS):
        rows = board.timings[:, :, number]
        count = rows[..., 0].sum()
        mean = 1000 * rows[..., 1].sum() / count if count else 0.0
        print(f"{kind:<22}{count:>10,.0f}{mean:>10.2f}{1000 * rows[..., 2].max():>12.1f}")
    print(f"{'all':<22}{board.timings[..., 0].sum():>10,.0f}{'':>10}{1000 * board.timings[..., 2].max():>12.1f}")
    info = cache.get_size_info()
    print(
        f"{info['total_entries']} entries, {info['compressed_mb']:.1f} MiB stored, {info['disk_mb']:.1f} MiB on disk; "
        f"the log was {crowd.largest_log / 2**20:.1f} MiB at most"
    )


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 240)
def test_many_processes_and_threads_lose_and_tear_nothing_while_they_are_killed(tmp_path: Path) -> None:
    board = stress.Board(tmp_path)
    chance = random.Random(11)
    crowd = stress.Crowd(tmp_path, board, time.time() + SECONDS)
    try:
        next_kill = time.time() + 4 * KILL_SECONDS  # when they have begun to work
        while time.time() < crowd.until:
            time.sleep(0.05)
            crowd.look()
            if time.time() > next_kill and time.time() < crowd.until - 2:
                crowd.kill_one(chance)
                next_kill += KILL_SECONDS
        said = crowd.end()
    finally:
        crowd.kill()
    assert not said, said[:3]

    cache = Cache(stress.settings(tmp_path))
    show(board, crowd, cache)
    complaints = "\n".join(crowd.complaints())
    assert not complaints, complaints[:20_000]
    report = cache.verify_integrity()
    assert report["corrupted_list"] == [], report

    lost, ghosts = stress.losses_and_ghosts(board, cache)
    assert lost == []
    assert ghosts == []
    assert (board.state > 0).sum() > len(board.state) / 3  # else nothing was shown

    # Leases of the killed do not keep anybody waiting for longer than a lease lasts.
    started = time.monotonic()
    for number in range(stress.FILLERS):
        hit = cache.read_through(
            stress.filler(number), lambda _, number=number: Fresh(stress.content(10_000 + number, 1))
        )
        stress.version_in(10_000 + number, hit.value)
    assert time.monotonic() - started < LEASE_SECONDS + 20

    assert cache.get_degraded() == {}
    cache.checkpoint()
    cache.close()
    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert left <= {"tif1_cache.db", "tif1_cache.db-wal", "tif1_cache.db-shm"}, left
    backups = list((tmp_path / "backups").iterdir())
    restored = Cache(stress.settings(tmp_path / "restored"))
    restored.restore(max(path for path in backups if not path.name.startswith(".")))
    assert restored.verify_integrity()["corrupted_list"] == []
    assert restored.get_stats()["total_entries"] > 0
    restored.close()
    assert board.timings[..., 2].max() < LONGEST_WAIT
    assert (board.timings[..., 0].sum(axis=(0, 1)) > 0).sum() >= len(stress.KINDS) - 3
