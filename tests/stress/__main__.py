"""Try what the package must survive, and print the table: ``python -m tests.stress [--share 0.2] [--only crash ...]``.

The exit code is 1 if anything was lost, wrong or leaked.
"""

import argparse
import importlib
import platform
import shutil
import sqlite3
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.stress.trial import Plan, Row, as_json

ROOT = Path(__file__).parents[2]
TRIALS = ("crash", "power", "disk", "corruption", "cdn", "hostile", "access", "concurrency", "soak")
PAGE = ROOT / "docs" / "guides" / "survival.md"
BEGIN, END = "<!-- stress: written by make stress PUBLISH=1 -->", "<!-- /stress -->"


def main() -> int:
    """Try; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the full counts and times (default: 1)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="what chance follows from")
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS), help="trials")
    parser.add_argument("--publish", action="store_true", help="write the table into the documentation")
    parser.add_argument("--keep", action="store_true", help="keep the folder that was worked in")
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="tif1-stress-"))
    print(f"Seed {arguments.seed}, share {arguments.share:g}, in {scratch}", file=sys.stderr)
    rows: list[Row] = []
    started = time.monotonic()
    try:
        for name in arguments.only:
            folder = scratch / name
            folder.mkdir()
            begun = time.monotonic()
            trial = importlib.import_module(f"tests.stress.{name}")
            for row in trial.rows(Plan(folder, arguments.share, arguments.seed)):
                print(_line(row), flush=True)
                rows.append(row)
            print(f"  {name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    finally:
        if arguments.keep:
            print(f"Kept: {scratch}", file=sys.stderr)
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    facts = (
        f"Tried on {datetime.now(UTC):%Y-%m-%d} with share {arguments.share:g} and seed {arguments.seed} in "
        f"{time.monotonic() - started:.0f} s: "
        f"{sum(row.tried for row in rows):,} trials, {sum(row.lost for row in rows)} lost, "
        f"{sum(row.wrong for row in rows)} wrong, {sum(row.leaked for row in rows)} leaked. "
        f"{platform.system()}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}."
    )
    print(f"\n{_table(rows)}\n\n{facts}")
    kept = ROOT / ".bench"
    kept.mkdir(exist_ok=True)
    (kept / "stress.json").write_text(as_json(rows))
    for row in rows:
        for failure in row.failures[:5]:
            print(f"{row.area}, {row.what}: {failure}", file=sys.stderr)
    failed = [row for row in rows if not row.holds]
    if arguments.publish and not failed:
        text = PAGE.read_text()
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n\n{facts}\n\n{_table(rows)}\n\n{END}{after}")
    return bool(failed)


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
