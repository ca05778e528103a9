"""Measures this project beside its peers, and prints one table: ``make bench``.

    python -m benchmarks [--runs N] [--only GROUP ...] [--publish]

Takes some twenty minutes. The peers are installed into ``.peers`` the first time; what is measured on is kept in
``.bench``, with the results as JSON. ``--publish`` writes the table into the README and the documentation.
"""

import argparse
import compileall
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import files, report
from benchmarks.calls import Calls
from benchmarks.managers import Managers
from benchmarks.measure import SIDES, Row, serving
from benchmarks.runs import Runs
from benchmarks.sessions import Sessions

GROUPS = {"sessions": Sessions, "managers": Managers, "runs": Runs, "calls": Calls}
KEPT = files.ROOT / ".bench"


def main() -> int:
    """Measure; the exit code is 1 where a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="runs of each measurement (default: 5)")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups of rows")
    parser.add_argument("--publish", action="store_true", help="write the table into README.md and docs")
    arguments = parser.parse_args()
    KEPT.mkdir(exist_ok=True)
    folder, what = files.prepare(KEPT)
    print(f"Measured on {what}.", file=sys.stderr)
    # As when it is installed: the peers' code is compiled then, and PYTHONDONTWRITEBYTECODE may be set here.
    for code in (files.ROOT / "tif1_pipeline", SIDES):
        compileall.compile_dir(code, quiet=1)
    started = time.monotonic()
    rows: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(dir=KEPT) as scratch, serving(folder, Path(scratch)) as server:
        for group in GROUPS:
            if group in arguments.only:
                rows[group] = []
                for row in GROUPS[group](server, Path(scratch), arguments.runs).rows():
                    print(report.line(row), file=sys.stderr, flush=True)
                    rows[group].append(row)
    found = report.Report(rows, what, time.monotonic() - started)
    print(found.text())
    (KEPT / "results.json").write_text(found.json())
    if arguments.publish:
        found.publish()
    return any(row.met is False for of_group in rows.values() for row in of_group)


if __name__ == "__main__":
    shutil.rmtree(KEPT / "files-real.partial", ignore_errors=True)
    sys.exit(main())
