"""What all sides share: one request on the command line, one answer on the last line. Standard library alone."""

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LATER = 7
"""Reads after the first whose median is taken."""
_FREE, _FREE_FOR_SESSIONS = 512 << 20, 2 << 30
"""Bytes of memory that are made sure of: more than a reading takes, and than five sessions take on either side."""


def request() -> dict[str, Any]:
    """Return what this process is asked to do, once there is memory for it."""
    asked = json.loads(sys.argv[1])
    if asked.get("phase") != "process":  # of which the imports, and all else, are measured
        _have_free_memory(_FREE_FOR_SESSIONS if asked.get("work") == "sessions" else _FREE)
    return asked


def import_all(names: str) -> None:
    """Import what will be needed, before the clock starts: modules by their names, with blanks between."""
    for name in names.split():
        importlib.import_module(name)


def answer(**figures: Any) -> None:
    """Print what was measured, with the most memory that this process ever had."""
    print(json.dumps(figures | {"peak_mb": peak_mb()}))


def peak_mb() -> float:
    """Return the most memory that this process had, in MB; what was its parent's before it began does not count."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS, the only other place
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Run something; returns the milliseconds it took, and its result."""
    started = time.perf_counter()
    result = work()
    return (time.perf_counter() - started) * 1000, result


def _have_free_memory(size: int) -> None:
    """Have the machine's free memory backed, by another process, shortly before something is measured.

    A hypervisor takes back what has been free for two seconds. Touching it costs ten times as much then, which is no
    matter of who is measured, and more than some of what is: 50 MB took 10 ms or 50 to 110. The imports come after
    this, so that what is measured finds the processor's caches as any process does.
    """
    take = f"import mmap; m = mmap.mmap(-1, {size}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); "
    take += "hasattr(mmap, 'MADV_HUGEPAGE') and m.madvise(mmap.MADV_HUGEPAGE); m[::4096] = bytes(len(m) // 4096)"
    subprocess.run([sys.executable, "-S", "-E", "-c", take], check=True)


def by_phase(work: Callable[[], Any], phase: str, between: Callable[[], None] = lambda: None) -> None:
    """Measure a read by phase and answer.

    ``cold`` and ``first`` are the first one of the process; ``later`` and ``hot`` the median of those that follow, with
    something done before each that is not measured.
    """
    milliseconds, result = timed(work)
    if phase in ("later", "hot"):
        times = []
        for _ in range(LATER):
            result = None
            between()
            taken, result = timed(work)
            times.append(taken)
        milliseconds = statistics.median(times)
    answer(ms=milliseconds, size=len(result))
