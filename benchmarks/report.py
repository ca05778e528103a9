"""The table: as text, as JSON, and in the README and the documentation."""

import json
import platform
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks import peers
from benchmarks.files import ROOT
from benchmarks.measure import Row

TITLES = {
    "sessions": "Sessions, beside tif1",
    "managers": "IO managers of Dagster, one frame",
    "runs": "Dagster runs of many partitions",
    "calls": "The cache's own calls, and readers at the same time",
}
_OURS = ("pandas", "pyarrow", "dagster", "httpx", "sqlalchemy")
_BEGIN, _END = "<!-- benchmarks: written by make bench PUBLISH=1 -->", "<!-- /benchmarks -->"


def line(row: Row) -> str:
    """Return a row as a line of text."""
    cells = [f"{row.work:88}", f"{_figure(row.ours, row.unit):>22}"]
    if row.theirs:
        cells += [f"{_figure(row.theirs, row.unit):>24}", f"{_ratio(row):>8}", f"{row.peer}"]
    if row.target is not None:
        cells.append(f"(target {row.target:g} x: {'reached' if row.met else 'MISSED'})")
    return "  ".join(cells) + (f"  [{row.note}]" if row.note else "")


def _figure(values: list[float], unit: str) -> str:
    middle = statistics.median(values)
    text = _number(middle)
    return f"{text} {unit}" if len(values) == 1 else f"{text} ({_number(min(values))}–{_number(max(values))}) {unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(row: Row) -> str:
    return "" if row.ratio is None else f"{row.ratio:.1f} x" if row.ratio < 100 else f"{row.ratio:.0f} x"


@dataclass
class Report:
    """What was measured.

    Attributes:
        rows: By group.
        what: What it was measured on.
        seconds: How long it took.
    """

    rows: dict[str, list[Row]]
    what: str
    seconds: float

    def facts(self) -> str:
        """Return when, where and with which versions it was measured."""
        ours = ", ".join(f"{package} {version(package)}" for package in _OURS)
        theirs = [peers.versions_of("tif1", "tif1", "pandas")] if "sessions" in self.rows else []
        if "managers" in self.rows:
            theirs += [
                peers.versions_of("polars", "dagster-polars", "polars"),
                peers.versions_of("deltalake", "dagster-deltalake-pandas", "deltalake", "pandas"),
                peers.versions_of("duckdb", "dagster-duckdb-pandas", "duckdb", "pandas"),
            ]
        return (
            f"Measured on {datetime.now(UTC):%Y-%m-%d} on {self.what}. {_machine()}; "
            f"Python {platform.python_version()}, {ours}. Peers: {'; '.join(theirs)}. Each figure is the median of its "
            "runs (least to most), each run a new process, the sides in turns; a ratio is the median over the pairs of "
            "runs that followed each other."
        )

    def text(self) -> str:
        """Return the table as text."""
        parts = [self.facts()]
        for group, rows in self.rows.items():
            parts += ["", TITLES[group], *map(line, rows)]
        return "\n".join([*parts, "", f"{self.seconds / 60:.0f} minutes"])

    def json(self) -> str:
        """Return everything as JSON."""
        groups = {group: [row.as_dict() for row in rows] for group, rows in self.rows.items()}
        return json.dumps({"facts": self.facts(), "groups": groups}, indent=1, ensure_ascii=False)

    def publish(self) -> None:
        """Write the rows with a target into the README, and all rows into the documentation."""
        targets = [row for rows in self.rows.values() for row in rows if row.target is not None]
        _put(ROOT / "README.md", f"{_table(targets)}\n\n{self.facts()}")
        tables = [f"## {TITLES[group]}\n\n{_table(rows)}" for group, rows in self.rows.items()]
        _put(ROOT / "docs" / "guides" / "benchmarks.md", "\n\n".join([self.facts(), *tables]))


def _table(rows: list[Row]) -> str:
    lines = ["| work | here | peer | ratio |", "|---|---|---|---|"]
    for row in rows:
        work = f"{row.work} ({row.note})" if row.note else row.work
        theirs = f"{_figure(row.theirs, row.unit)}, {row.peer}" if row.theirs else ""
        ratio = _ratio(row) if row.met is not False else f"{_ratio(row)} (aim: {row.target:g} x)"
        lines.append(f"| {work} | {_figure(row.ours, row.unit)} | {theirs} | {ratio} |")
    return "\n".join(lines)


def _put(path: Path, text: str) -> None:
    content = path.read_text(encoding="utf-8")
    before, _, rest = content.partition(_BEGIN)
    _, found, after = rest.partition(_END)
    if not found:
        raise SystemExit(f"{path} has no place for the table: {_BEGIN} … {_END}")
    path.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}", encoding="utf-8")


def _machine() -> str:
    import os

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{os.cpu_count()} cores ({model}), {platform.system()}"
