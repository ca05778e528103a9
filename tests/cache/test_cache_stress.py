"""Eight processes of eight threads on one cache: no error, nothing lost, nothing torn; also while they are killed.

``STRESS_SECONDS`` in the environment is the length of each run, 20 by default, 60 in CI; ``-s`` shows what was done.
"""

import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import stress_worker as stress

from tif1_pipeline.cache import Cache, Fresh
from tif1_pipeline.cache.flight import LEASE_SECONDS

SECONDS = float(os.environ.get("STRESS_SECONDS", "20"))
KILL_SECONDS = 1.0
LONGEST_WAIT = 30.0
"""Seconds; the default of ``cache_lock_timeout``: whoever waited longer would have got an error."""


class Crowd:
    """The processes at work."""

    def __init__(self, folder: Path, until: float) -> None:
        self.folder, self.until = folder, until
        self.killed = 0
        self.largest_log = 0
        self.processes = [self.start(number) for number in range(stress.PROCESSES)]

    def start(self, number: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", stress.__file__, str(self.folder), str(number), str(self.until)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def kill_one(self, chance: random.Random) -> None:
        number = chance.randrange(len(self.processes))
        self.processes[number].kill()
        self.processes[number].communicate()
        self.killed += 1
        self.processes[number] = self.start(number)

    def look(self) -> None:
        with suppress(FileNotFoundError):
            self.largest_log = max(self.largest_log, (self.folder / "cache" / "tif1_cache.db-wal").stat().st_size)

    def end(self) -> None:
        for process in self.processes:
            output, errors = process.communicate(timeout=150)
            assert process.returncode == 0, errors
            assert not output + errors, output + errors


def show(board: stress.Board, crowd: Crowd, cache: Cache) -> None:
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
@pytest.mark.parametrize("kills", [False, True], ids=["undisturbed", "one killed a second"])
def test_many_processes_and_threads_lose_and_tear_nothing(tmp_path: Path, kills: bool) -> None:
    board = stress.Board(tmp_path)
    chance = random.Random(11)
    crowd = Crowd(tmp_path, time.time() + SECONDS)
    try:
        next_kill = time.time() + 4 * KILL_SECONDS  # when they have begun to work
        while time.time() < crowd.until:
            time.sleep(0.05)
            crowd.look()
            if kills and time.time() > next_kill and time.time() < crowd.until - 2:
                crowd.kill_one(chance)
                next_kill += KILL_SECONDS
        crowd.end()
    finally:
        for process in crowd.processes:
            process.kill()
            process.communicate()

    cache = Cache(stress.settings(tmp_path))
    show(board, crowd, cache)
    complaints = "\n".join(path.read_text() for path in sorted(tmp_path.glob("errors-*.txt")))
    assert not complaints, complaints[:20_000]
    report = cache.verify_integrity()
    assert report["corrupted_list"] == [], report

    lost, ghosts = [], []
    for number, (state, tried) in enumerate(zip(board.state.tolist(), board.tried.tolist(), strict=True)):
        key = stress.key_of(number)
        hit = cache.read(key, "json" if key.data_type == "asset" else "arrow")
        version = stress.version_in(number, hit.value) if hit else 0
        if state > 0 and not state <= version <= tried:
            lost.append((key.text, version, state, tried))
        if state == stress.ABSENT and version:
            ghosts.append((key.text, version, tried))
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
