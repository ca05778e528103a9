"""Try what the package must survive, and print the table: ``python -m tests.stress [--share 0.2] [--only crash ...]``.

Each trial is a process of its own. Some are at work at once: while one waits, another computes. The crowd begins, alone
as long as it computes without a pause; then those join it whose bounds bear that. The exit code is 1 if anything was
lost, wrong or leaked.
"""

import argparse
import json
import math
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.stress.crowd import HURRIED
from tests.stress.trial import Row

ROOT = Path(__file__).parents[2]
TRIALS = ("crash", "power", "disk", "corruption", "cdn", "hostile", "access", "crowd", "concurrency", "soak")
"""In the order of the table."""
ORDER = ("crowd", "soak", "corruption", "crash", "power", "access", "hostile", "cdn", "concurrency", "disk")
"""In which they begin: what takes longest first."""
BESIDE = {"soak": 0, "corruption": 19, "crash": 19, "power": 19, "access": 19}
"""What may begin while the crowd is at work, and how nice it is to it. The others tell how long something takes."""
LANES = 3 * max(2, os.cpu_count() or 1)
"""Trials at once: crash, power, disk and soak wait for a third to three quarters of their time; who is nice, longer."""
PAGE = ROOT / "docs" / "guides" / "survival.md"
BEGIN, END = "<!-- stress: written by make stress PUBLISH=1 -->", "<!-- /stress -->"


def main() -> int:
    """Try; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the full counts and times (default: 1)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="what chance follows from")
    parser.add_argument("--lanes", type=int, default=LANES, help=f"trials at once (default: {LANES})")
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS), help="trials")
    parser.add_argument(
        "--publish", action="store_true", help="write the last run of each trial into the documentation"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder that was worked in")
    arguments = parser.parse_args()
    if arguments.lanes < 1:
        parser.error("argument --lanes: at least one trial is at work")
    scratch = Path(tempfile.mkdtemp(prefix="tif1-stress-"))
    print(f"Seed {arguments.seed}, share {arguments.share:g}, in {scratch}", file=sys.stderr)
    started = time.monotonic()
    try:
        told = _try(scratch, arguments)
    finally:
        if arguments.keep:
            print(f"Kept: {scratch}", file=sys.stderr)
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    rows = [row for name in TRIALS if name in told for row in told[name][0]]
    print(f"\n{_table(rows)}\n\n{_sums(rows)} {time.monotonic() - started:.0f} s.")
    for row in rows:
        for failure in row.failures[:5]:
            print(f"{row.area}, {row.what}: {failure}", file=sys.stderr)
    kept = _keep(told, arguments)
    if arguments.publish and all(row.holds for row in rows):
        _publish(kept)
    return not all(row.holds for row in rows)


def _try(scratch: Path, arguments: argparse.Namespace) -> dict[str, tuple[list[Row], float]]:
    """Run the trials, as many at once as there are lanes; returns the rows of each and the seconds that it took."""
    waiting = [name for name in ORDER if name in arguments.only]
    told: dict[str, tuple[list[Row], float]] = {}
    running: dict[Future[tuple[list[Row], float]], str] = {}
    begun = time.monotonic()
    alone = HURRIED if arguments.share >= 1 else math.inf

    def next_one() -> str | None:
        crowded = "crowd" in running.values()
        if (crowded and time.monotonic() < begun + alone) or len(running) - crowded >= arguments.lanes:
            return None
        return next((name for name in waiting if not crowded or name in BESIDE), None)

    with ThreadPoolExecutor(arguments.lanes + 1) as pool:
        while waiting or running:
            while (name := next_one()) is not None:
                waiting.remove(name)
                niceness = BESIDE.get(name, 0) if "crowd" in running.values() else 0
                running[pool.submit(_run, name, scratch / name, arguments, niceness)] = name
            for done in wait(running, 1, return_when=FIRST_COMPLETED).done:
                told[running.pop(done)] = done.result()
    return told


def _run(name: str, folder: Path, arguments: argparse.Namespace, niceness: int) -> tuple[list[Row], float]:
    """Run one trial, and show its rows as they come."""
    folder.mkdir()
    begun = time.monotonic()
    given = (folder, arguments.share, arguments.seed, niceness)
    command = [sys.executable, "-m", "tests.stress.alone", name, *map(str, given)]
    rows: list[Row] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            rows.append(Row(**json.loads(line)))
            print(_line(rows[-1]), flush=True)
        # It tells what this process and those that it waited for have computed.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not rows:
        rows.append(Row(name, "the trial itself comes to its end", tried=1, wrong=1))
        rows[-1].say(f"it ended with exit code {process.returncode}")
    seconds = time.monotonic() - begun
    computed = used.ru_utime + used.ru_stime
    print(f"  {name}: {seconds:.0f} s, {computed:.0f} s of them computing", file=sys.stderr, flush=True)
    return rows, seconds


def _keep(told: dict[str, tuple[list[Row], float]], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Write down what came out; returns the last run of each trial."""
    file = ROOT / ".bench" / "stress.json"
    file.parent.mkdir(exist_ok=True)
    kept: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    run = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "share": arguments.share, "seed": arguments.seed}
    for name, (rows, seconds) in told.items():
        kept[name] = run | {"seconds": seconds, "rows": [asdict(row) for row in rows]}
    file.write_text(json.dumps(kept, indent=1))
    return kept


def _publish(kept: dict[str, dict[str, Any]]) -> None:
    """Write the last run of each trial into the documentation, unless one of them did not hold."""
    runs = [(name, kept[name]) for name in TRIALS if name in kept]
    rows = {name: [Row(**row) for row in run["rows"]] for name, run in runs}
    if failed := [name for name, _ in runs if not all(row.holds for row in rows[name])]:
        print(f"Not published: the last run of {', '.join(failed)} did not hold", file=sys.stderr)
        return
    told: dict[str, list[str]] = {}
    for name, run in runs:
        of_run = f"with share {run['share']:g} and seed {run['seed']} on {run['date']}"
        told.setdefault(of_run, []).append(f"{name} ({run['seconds']:.0f} s)")
    shown = [row for name, _ in runs for row in rows[name]]
    facts = "Tried " + "; ".join(f"{of_run}: {', '.join(names)}" for of_run, names in told.items()) + ". "
    facts += f"{_sums(shown)} {platform.system()}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}."
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{facts}\n\n{_table(shown)}\n\n{END}{after}")


def _sums(rows: list[Row]) -> str:
    lost, wrong, leaked = (sum(getattr(row, name) for row in rows) for name in ("lost", "wrong", "leaked"))
    return f"{sum(row.tried for row in rows):,} trials, {lost} lost, {wrong} wrong, {leaked} leaked."


def _line(row: Row) -> str:
    state = "held" if row.holds else "FAILED"
    counts = f"{row.tried:>7,} tried {row.lost:>4} lost {row.wrong:>4} wrong {row.leaked:>4} leaked"
    return f"{state:<7}{row.area:<12} {row.what:<70} {counts}  {row.remark}"


def _table(rows: list[Row]) -> str:
    lines = ["| trial | what was done | tried | lost | wrong | leaked | remark |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row.area} | {row.what} | {row.tried:,} | {row.lost} | {row.wrong} | {row.leaked} | {row.remark} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
