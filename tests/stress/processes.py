"""What processes hold, told by the system, and scripts that run in processes of their own."""

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.stress.trial import Row

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds: open descriptors, resident bytes, threads."""

    descriptors: int
    resident: int
    threads: int


def held(pid: int | str = "self") -> Held | None:
    """Return what a process holds; None if it has ended."""
    folder = Path("/proc") / str(pid)
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        if "VmRSS" not in status:  # ended, and nobody has asked for its exit code
            return None
        return Held(len(list((folder / "fd").iterdir())), int(status["VmRSS"].split()[0]) << 10, int(status["Threads"]))
    except OSError:
        return None


@dataclass(slots=True)
class Course:
    """How what was sampled developed, one line of numbers by name."""

    samples: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def note(self, name: str, value: float) -> None:
        """Take a sample."""
        self.samples[name].append(value)

    def growth(self, name: str) -> tuple[float, float]:
        """Return the medians of the second and of the last quarter: what lies before is warm-up."""
        values = self.samples[name]
        quarter = max(1, len(values) // 4)
        return median(values[quarter : 2 * quarter] or values), median(values[-quarter:])


def judge(row: Row, course: Course, processes: int, spare_mb: float, holding: tuple[int, int] = (0, 0)) -> None:
    """Compare the second with the last quarter.

    Args:
        row: Where the verdict goes.
        course: What was sampled.
        processes: How many.
        spare_mb: MiB that memory may grow by; in a short run the allocators are not through with their own growth.
        holding: Descriptors and threads that a process has when all that it may hold is in use.
    """
    bounds: dict[str, Callable[[float], float]] = {
        "descriptors": lambda before: max(before + 4, holding[0]),
        "threads": lambda before: max(before + 2, holding[1]),
        "memory": lambda before: before * 1.15 + spare_mb,
    }
    row.tried = sum(map(len, course.samples.values()))
    told = []
    for kind, bound in bounds.items():
        growths = [course.growth(f"{kind} {which}") for which in range(processes) if course.samples[f"{kind} {which}"]]
        for which, (before, after) in enumerate(growths):
            if after > bound(before):
                row.leaked += 1
                row.say(f"{kind} of process {which} grew from {before:.0f} to {after:.0f}")
        if growths:
            before, after = max(growths, key=lambda growth: growth[1] - growth[0])
            told.append(f"{kind} {before:.0f} to {after:.0f}{' MiB' if kind == 'memory' else ''}")
    row.remark = "second to last quarter, the process that grew most: " + ", ".join(told)


def children_of(pid: int) -> list[int]:
    """Return a process's descendants."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError, ValueError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found, frontier = [], [pid]
    while frontier:
        parent = frontier.pop()
        below = [child for child, above in parents.items() if above == parent]
        found += below
        frontier += below
    return found


def command_of(pid: int) -> list[str]:
    """Return a process's command line; empty if it has ended."""
    with suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


def start(module: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a module of the tests in a process of its own."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )


def finish(process: subprocess.Popen[str], seconds: float) -> tuple[str, str | None]:
    """Wait for a process; returns what it printed, and what went wrong, if anything did."""
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        return output, f"not over within {seconds:.0f} s: {errors[-3000:]}"
    if process.returncode:
        return output, f"exit code {process.returncode}: {errors[-3000:]}"
    return output, None


def end_all(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Kill those that are still at work."""
    for process in processes:
        process.kill()
        process.communicate()
