"""Checks of the source assets: what a run has stored is whole, unique and plausible, else they say which rows are not.

They read the partitions of their run straight from the cache, of each table the columns they need. What fails with
ERROR is blocking: what is derived from it in that run is skipped. That alone would not keep bad rows out: Dagster has
one status for all partitions of a check, which the next partition that passes turns green, and much is stored outside
of runs with checks. So whatever is derived from a table applies the same rules to the rows it has loaded, by
:func:`require_sound`.

Dagster writes four rows of its event log for each check of a run, which cost more than the check itself: the small
tables have two checks, of which each says several things.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import pandas as pd

from tif1_pipeline.analysis.clean import SHORTEST_LAP
from tif1_pipeline.cache import Cache
from tif1_pipeline.datasets import DATASETS, Dataset
from tif1_pipeline.defs.io_metadata import cell
from tif1_pipeline.defs.resources import TimingDataResource
from tif1_pipeline.exceptions import InvalidDataError
from tif1_pipeline.keys import SessionKey, schedule_entry

_LARGE = {"laps", "telemetry"}
"""Tables whose checks stand alone."""

_ROWS_SHOWN = 20
_WIDTH = 80
"""Rows shown and characters a cell. The event log keeps them for ever: enough to find the fault."""
_ROWS_NAMED = 3
"""Rows that the text of an error names."""

_UNIQUE = {
    "session_info": ["Year", "EventName", "SessionType"],
    "drivers": ["Driver"],
    "laps": ["Driver", "LapNumber"],
    "telemetry": ["Driver", "LapNumber", "Time"],
    "weather": ["Time"],
    "messages": ["Time", "Category", "Message"],
    "corners": ["CornerNumber", "X", "Y"],
    "schedule": ["EventName"],
}
"""What tells rows apart."""

_MAY_COINCIDE = {"weather", "messages"}
"""Tables whose rows only their moment tells apart, which two may share: a duplicate stops nothing."""

_NUMBERED = {"laps": "LapNumber", "telemetry": "LapNumber", "corners": "CornerNumber"}
"""Columns that count from 1, for each driver where there are drivers."""

_ALL_LAPS_PUBLISHED = {"Race", "Sprint"}
"""Of other sessions only timed laps are: those through the pits are missing by design."""


def _seconds(low: float, high: float) -> tuple[pd.Timedelta, pd.Timedelta]:
    return pd.Timedelta(seconds=low), pd.Timedelta(seconds=high)


# Counted from the start of the recording; what began before that is negative.
_SESSION_TIME = _seconds(-3600, 12 * 3600)
_PLAUSIBLE: dict[str, Mapping[str, tuple[Any, Any]]] = {
    # A stopped race counts its interruption into the lap.
    "laps": {"LapTime": _seconds(SHORTEST_LAP, 4 * 3600), "Time": _SESSION_TIME, "LapStartTime": _SESSION_TIME},
    "telemetry": {"Time": _seconds(0, 12 * 3600)},
    "weather": {"Time": _SESSION_TIME, "AirTemp": (-10, 60), "TrackTemp": (-10, 90), "Humidity": (0, 100)},
    "corners": {"Distance": (0, 10_000)},
}
"""Lowest and highest value of a column."""

_DATES = {"messages": "Time", "session_info": "StartDate", "schedule": "EventDate"}
"""Dates that lie in the season's year."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """What is stored of one partition.

    Attributes:
        partition: Its key.
        dataset: What it is.
        year: Its season.
        session_type: Of its session, if it is of one.
        table: The columns that are checked; None where nothing is stored.
        is_intact: Tells whether its bytes pass their checksums. It reads all of them.
    """

    partition: str
    dataset: Dataset
    year: int
    session_type: str | None
    table: pd.DataFrame | None
    is_intact: Callable[[], bool]


_Find = Callable[[_Stored, pd.DataFrame], "pd.DataFrame | str | None"]
"""Returns the rows at fault with a column ``fault``, or what is wrong with all of them; None where nothing is."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """One check.

    Attributes:
        name: Of the check.
        description: What holds where it passes.
        finds: Each finds what is at fault; not asked where nothing is stored.
        blocking: Whether nothing may be derived from what fails it.
    """

    name: str
    description: str
    finds: tuple[_Find, ...]
    blocking: bool = True


# ---- rules


def _no_rows(stored: _Stored, table: pd.DataFrame) -> str | None:
    return None if len(table) else "the table is empty"


def _unsound(stored: _Stored, table: pd.DataFrame) -> str | None:
    return None if stored.is_intact() else "the stored entry does not pass its checksum"


def _duplicates(stored: _Stored, table: pd.DataFrame) -> pd.DataFrame:
    columns = _UNIQUE[stored.dataset.name]
    again = table.duplicated(columns, keep=False)
    if not again.any():
        return table[again]
    counted = table[again].groupby(columns, observed=True, dropna=False, sort=False).size()
    return counted.rename("fault").reset_index().assign(fault=lambda rows: rows["fault"].map("{} times".format))


def _nulls(stored: _Stored, table: pd.DataFrame) -> pd.DataFrame:
    return _joined(
        table[table[name].isna()].assign(fault=f"{name} is null") for name in stored.dataset.required if len(table)
    )


def _gaps(stored: _Stored, table: pd.DataFrame) -> pd.DataFrame | None:
    number = _NUMBERED[stored.dataset.name]
    by = ["Driver"] if "Driver" in table else []
    if by and stored.session_type not in _ALL_LAPS_PUBLISHED:
        return None
    found = table[[*by, number]].dropna().drop_duplicates().sort_values([*by, number], ignore_index=True)
    before = (found.groupby("Driver", observed=True)[number] if by else found[number]).shift(fill_value=0)
    after_gap = found[number] - before != 1
    missing = before[after_gap].map("{:g} is followed by ".format) + found[number][after_gap].map("{:g}".format)
    return found[after_gap].assign(fault=missing)


def _implausible(stored: _Stored, table: pd.DataFrame) -> pd.DataFrame:
    bounds = dict(_PLAUSIBLE.get(stored.dataset.name, {}))
    if date := _DATES.get(stored.dataset.name):
        zone = table[date].dt.tz
        bounds[date] = pd.Timestamp(stored.year, 1, 1, tz=zone), pd.Timestamp(stored.year + 1, 1, 1, tz=zone)
    outside = []
    for name, (low, high) in bounds.items():
        rows = table[(table[name] < low) | (table[name] > high)]
        outside.append(rows.assign(fault=[f"{name} is {_text(value)}" for value in rows[name]]))
    if stored.dataset.name == "drivers":
        rows = table[~table["Driver"].fillna("AAA").str.fullmatch("[A-Z]{3}")]
        outside.append(rows.assign(fault="no code of three letters"))
    return _joined(outside)


def _joined(found: Iterator[pd.DataFrame] | list[pd.DataFrame]) -> pd.DataFrame:
    tables = [table for table in found if len(table)]
    return pd.concat(tables) if tables else pd.DataFrame()


def _rules_of(dataset: Dataset) -> list[_Rule]:
    unique, required = ", ".join(_UNIQUE[dataset.name]), ", ".join(dataset.required)
    sound = [
        _Rule("rows_present", "The table has rows.", (_no_rows,)),
        _Rule("no_duplicates", f"No two rows have the same {unique}.", (_duplicates,)),
        _Rule("required_not_null", f"No row lacks one of {required}.", (_nulls,)),
        _Rule("entry_sound", "What is stored passes its checksums and decodes.", (_unsound,)),
    ]
    likely = [_Rule("plausible", "Times, dates and numbers are such as occur.", (_implausible,), blocking=False)]
    if number := _NUMBERED.get(dataset.name):
        where = " of each driver in a race or sprint" if "Driver" in dataset.schema.names else ""
        likely.append(_Rule("contiguous", f"{number}{where} counts from 1 without a gap.", (_gaps,), blocking=False))
    if dataset.name in _LARGE:
        return [*sound, *likely]
    if dataset.name in _MAY_COINCIDE:
        likely.append(sound.pop(1))
    return [_together("sound", sound), _together("plausible", likely)]


def _together(name: str, rules: Sequence[_Rule]) -> _Rule:
    """Return several rules as one."""
    finds = tuple(find for rule in rules for find in rule.finds)
    return _Rule(name, " ".join(rule.description for rule in rules), finds, rules[0].blocking)


# ---- findings


@dataclass(slots=True)
class _Findings:
    """What a check found over the partitions of a run."""

    rows: int = 0
    faults: int = 0
    partitions: list[str] = field(default_factory=list)
    shown: list[dict[Any, Any]] = field(default_factory=list)

    def add(self, partition: str, found: pd.DataFrame | str | None, columns: Sequence[str]) -> None:
        if found is None or not len(found):
            return
        rows = pd.DataFrame({"fault": [found]}) if isinstance(found, str) else found
        self.faults += len(rows)
        if partition not in self.partitions:
            self.partitions.append(partition)
        names = [name for name in columns if name in rows]
        for row in rows[[*names, "fault"]].head(_ROWS_SHOWN - len(self.shown)).to_dict("records"):
            self.shown.append({"partition": partition, **row})

    def result(self, rule: _Rule, asset: str, checked: int) -> dg.AssetCheckResult:
        metadata: dict[str, Any] = {"partitions_checked": checked, "rows_checked": self.rows, "faults": self.faults}
        text = None
        if self.faults:
            text = f"{self.faults} faults in {len(self.partitions)} of {checked} partitions, first {self.partitions[0]}"
            metadata["partitions_at_fault"] = len(self.partitions)
            metadata["rows_at_fault"] = dg.MetadataValue.md(self._table())
        return dg.AssetCheckResult(
            passed=not self.faults,
            asset_key=asset,
            check_name=rule.name,
            severity=dg.AssetCheckSeverity.ERROR if rule.blocking else dg.AssetCheckSeverity.WARN,
            metadata=metadata,
            description=text,
        )

    def named(self) -> str:
        """The first faults, in one line."""
        rows = [
            ", ".join(f"{name} {_cell(value)}" for name, value in row.items() if name not in ("partition", "fault"))
            + f": {row['fault']}"
            for row in self.shown[:_ROWS_NAMED]
        ]
        more = f"; … and {self.faults - len(rows)} more" if self.faults > len(rows) else ""
        return "; ".join(row.removeprefix(": ") for row in rows) + more

    def _table(self) -> str:
        names = [*dict.fromkeys(name for row in self.shown for name in row if name != "fault"), "fault"]
        lines = [names, ["---"] * len(names)] + [[_cell(row.get(name)) for name in names] for row in self.shown]
        more = f"\n\n… and {self.faults - len(self.shown)} more" if self.faults > len(self.shown) else ""
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + more


def _cell(value: Any) -> str:
    return "" if pd.isna(value) else cell(_text(value), _WIDTH)


def _text(value: Any) -> str:
    if isinstance(value, pd.Timedelta):
        return f"{value.total_seconds():g} s"
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---- checks


def _checks_of(dataset: Dataset) -> dg.AssetChecksDefinition:
    rules = _rules_of(dataset)

    @dg.multi_asset_check(
        name=f"{dataset.name}_checks",
        specs=[
            dg.AssetCheckSpec(rule.name, asset=dataset.name, blocking=rule.blocking, description=rule.description)
            for rule in rules
        ],
    )
    def checks(context: dg.AssetCheckExecutionContext, timing_data: TimingDataResource):
        partitions = _partitions(context, dataset)
        # One table in memory at a time.
        yield from _results(dataset, rules, (_stored(timing_data.cache, dataset, one) for one in partitions))

    return checks


def check_stored(cache: Cache, dataset: str, partition: str) -> list[dg.AssetCheckResult]:
    """Return what the checks of an asset say of one partition, for whoever stored it outside of its runs.

    Args:
        cache: Where it is.
        dataset: Name of the dataset, which is that of its asset.
        partition: Session, or season of a ``schedule``.

    Returns:
        A result a check; none if the table cannot be read at the moment.
    """
    described = DATASETS[dataset]
    stored = _stored(cache, described, partition)
    return [] if stored.table is None else list(_results(described, _rules_of(described), [stored]))


def _results(dataset: Dataset, rules: Sequence[_Rule], tables: Iterable[_Stored]) -> Iterator[dg.AssetCheckResult]:
    findings = {rule.name: _Findings() for rule in rules}
    checked = 0
    for stored in tables:
        checked += 1
        if stored.table is None:
            findings[rules[0].name].add(stored.partition, "nothing is stored, or not any more: materialize it", ())
            continue
        for rule in rules:
            findings[rule.name].rows += len(stored.table)
            for find in rule.finds:
                findings[rule.name].add(stored.partition, find(stored, stored.table), _UNIQUE[dataset.name])
    for rule in rules:
        yield findings[rule.name].result(rule, dataset.name, checked)


def _partitions(context: dg.AssetCheckExecutionContext, dataset: Dataset) -> Sequence[str]:
    """Return the partitions of the run; of a run without any, as the UI starts for checks alone, the latest stored."""
    operation = context.op_execution_context
    if operation.has_partition_key or operation.has_partition_key_range:
        return list(operation.partition_keys)
    latest = context.instance.get_latest_materialization_event(dg.AssetKey(dataset.name))
    partition = latest and latest.asset_materialization and latest.asset_materialization.partition
    return [partition] if partition else []


def _stored(cache: Cache, dataset: Dataset, partition: str) -> _Stored:
    names = {*dataset.required, *_UNIQUE[dataset.name], *_PLAUSIBLE.get(dataset.name, ())}
    names |= {name for name in (_DATES.get(dataset.name), _NUMBERED.get(dataset.name)) if name}
    columns = [name for name in dataset.schema.names if name in names]
    session = SessionKey.parse(partition) if dataset.level == "session" else None
    entry = session.entry(dataset.name) if session else schedule_entry(int(partition))
    hit = cache.read(entry, "pandas", columns=columns, schema_version=dataset.schema_version)
    return _of_partition(dataset, partition, hit and hit.value, lambda: cache.verify_entry(entry))


def _of_partition(
    dataset: Dataset, partition: str, table: pd.DataFrame | None, is_intact: Callable[[], bool]
) -> _Stored:
    if dataset.level == "season":
        return _Stored(partition, dataset, int(partition), None, table, is_intact)
    session = SessionKey.parse(partition)
    return _Stored(partition, dataset, session.year, session.session_type, table, is_intact)


# ---- where tables are used


def required_columns(dataset: str) -> tuple[str, ...]:
    """Return the columns of a dataset that :func:`require_sound` looks at."""
    unique = () if dataset in _MAY_COINCIDE else _UNIQUE[dataset]
    return tuple(dict.fromkeys((*DATASETS[dataset].required, *unique)))


def require_sound(table: pd.DataFrame, dataset: str, partition: str) -> pd.DataFrame:
    """Return a table as it is, if its rows pass the blocking checks of its asset.

    The stored bytes are not verified again: that takes as long as all rules on rows together, and what is damaged does
    not decode, or is found by the nightly verification.

    Args:
        table: As loaded, with :func:`required_columns`, and any others.
        dataset: Name of the source asset.
        partition: Its partition key.

    Raises:
        InvalidDataError: Rows are at fault, of which it names the first, or a column is not there.
    """
    if missing := [name for name in required_columns(dataset) if name not in table]:
        raise InvalidDataError(
            f"{dataset} of {partition} cannot be checked without {', '.join(missing)}: add them to the columns that "
            "are loaded (input metadata 'columns')",
            partition=partition,
        )
    loaded = _of_partition(DATASETS[dataset], partition, table, lambda: True)
    for rule in _rules_of(loaded.dataset):
        findings = _Findings()
        for find in rule.finds if rule.blocking else ():
            findings.add(partition, find(loaded, table), _UNIQUE[dataset])
        if findings.faults:
            raise InvalidDataError(
                f"nothing is derived from {dataset} of {partition}, because the check "
                f"{rule.name} fails: {findings.named()}. Materialize {dataset} again when it is published correctly",
                partition=partition,
                check=rule.name,
                faults=findings.faults,
            )
    return table


source_checks = [_checks_of(dataset) for dataset in DATASETS.values()]
