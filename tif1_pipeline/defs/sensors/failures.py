"""Alerts when runs fail, once when that starts and once when it is over.

What fails is an asset's partition, or a job of ops: it has failed until a run of it succeeds, whichever run that is.
Dagster's own sensors for failures know nothing of this: they speak of each run, and of each in a message of its own.

All runs of the instance are looked at, those of backfills too. A canceled run is neither a failure nor a success:
somebody wanted it to end. (Dagster's own end to a run that takes too long is a failure.) One that Dagster is about to
retry by itself is not reported; its retry is.
"""

import json
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from tif1_pipeline import api
from tif1_pipeline.alerts import Alert, Outbox
from tif1_pipeline.defs.reload import without_user
from tif1_pipeline.defs.sensors.run_log import RunLog, Thing

_VERSION = 1
_INTERVAL_SECONDS = 30
_PAUSE = timedelta(minutes=10)
"""Between two messages: a backfill in which everything fails is a message every ten minutes, not one a run."""
_OVERLAP_SECONDS = 300.0
"""How much later than its end a run may appear in the storage, by waits for locks and clocks that disagree."""
_PAGE = 100
_RUNS_A_TICK = 200
_TICK_SECONDS = 20.0
"""After which the rest waits for the next tick: Dagster gives a tick 60 s, and alerts want some of them."""
_OPEN = 300
_NAMED = 5
_LONGEST_ERROR = 300


@dg.sensor(
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        f"Every {_INTERVAL_SECONDS} s: runs that finished since the last look. Alerts to the log and to alert_urls, "
        "once when an asset's partition or a job starts to fail, with step, error and a link to the run, and once when "
        "it has succeeded again. Running by default, for it is silent as long as nothing fails; its switch in the UI "
        "stops it."
    ),
)
def run_failure_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Alert about what started to fail and what succeeded again, in the runs that finished since the last tick."""
    cursor = _Cursor.read(context.cursor)
    outbox = Outbox(cursor.outbox, context.log)
    config = api.get_config()
    if cursor.is_new:
        for record in _finished(context.instance, cursor):
            cursor.note(record)
        said = "the first look: runs that finish from now on are looked at"
    else:
        said = _look(context, cursor, outbox)
    outbox.deliver(config, _PAUSE)
    if len(outbox):
        said += f"; {len(outbox)} alert(s) still to be delivered"
    cursor.outbox = outbox.state
    return dg.SensorResult(skip_reason=dg.SkipReason(said), cursor=cursor.text)


def _look(context: dg.SensorEvaluationContext, cursor: "_Cursor", outbox: Outbox) -> str:
    """Look at the runs that have finished; returns what was seen."""
    found = _Found()
    known = {(name, partition) for name, partitions in cursor.open.items() for partition in partitions}
    finished = failed = 0
    started = time.monotonic()
    for record in _finished(context.instance, cursor):
        run = record.dagster_run
        finished += 1
        failed += run.status == dg.DagsterRunStatus.FAILURE
        if run.status == dg.DagsterRunStatus.FAILURE or (run.status == dg.DagsterRunStatus.SUCCESS and cursor.open):
            now = _look_at(context, RunLog.read(context.instance, run), cursor, known)
            found.failures += now.failures
            found.recovered += now.recovered
        cursor.note(record)
        if finished == _RUNS_A_TICK or time.monotonic() > started + _TICK_SECONDS:
            break  # the cursor knows where to go on
    found.recovered = [thing for thing in dict.fromkeys(found.recovered) if not cursor.is_open(thing)]
    outbox.post(_alerts(found, without_user(api.get_config().webserver_url).rstrip("/")))
    still = sum(map(len, cursor.open.values()))
    named = f": {', '.join(list(cursor.open)[:_NAMED])}" if still else ""
    return f"{finished} run(s) have finished, {failed} failed; {still} partition(s) or job(s) are failing{named}"


# ---- what is remembered


@dataclass
class _Cursor:
    """What one tick leaves to the next.

    Attributes:
        until: End of the latest run that was looked at (seconds since 1970).
        seen: Runs that were looked at and ended not long before that, with their ends.
        open: What fails: partitions by asset, ``[None]`` for a job and for an asset without partitions.
        outbox: Alerts on their way.
        is_new: Whether there was no former tick.
    """

    until: float = field(default_factory=time.time)
    seen: dict[str, float] = field(default_factory=dict)
    open: dict[str, list[str | None]] = field(default_factory=dict)
    outbox: Any = None
    is_new: bool = True

    @classmethod
    def read(cls, text: str | None) -> "_Cursor":
        """Read what :attr:`text` was; anything else is taken for a first tick."""
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            state = json.loads(text or "")
            if state["version"] == _VERSION:
                seen = {str(run): float(end) for run, end in state["seen"].items()}
                opened = {str(name): list(partitions) for name, partitions in state["open"].items()}
                # One ahead was written by a clock that was wrong, and would hide what finishes until then.
                return cls(min(float(state["until"]), time.time()), seen, opened, state["outbox"], is_new=False)
        return cls()

    @property
    def text(self) -> str:
        """The same as text; of bounded size."""
        self.seen = {run: end for run, end in self.seen.items() if end > self.until - _OVERLAP_SECONDS}
        too_many = sum(map(len, self.open.values())) - _OPEN
        while too_many > 0:  # what failed first is forgotten first; it alerts anew if it goes on failing
            name = next(iter(self.open))
            del self.open[name][:too_many]
            too_many = sum(map(len, self.open.values())) - _OPEN
            if not self.open[name]:
                del self.open[name]
        return json.dumps(
            {
                "version": _VERSION,
                "until": self.until,
                "seen": self.seen,
                "open": self.open,
                "outbox": self.outbox,
            }
        )

    def note(self, record: dg.RunRecord) -> None:
        """Remember that a run was looked at."""
        self.seen[_short(record.dagster_run.run_id)] = _end(record)
        # A clock that goes ahead must not hide what others finish meanwhile.
        self.until = max(self.until, min(_end(record), time.time()))

    def opens(self, thing: Thing) -> bool:
        """Remember that something fails; returns whether it did not before."""
        if self.is_open(thing):
            return False
        self.open.setdefault(thing[0], []).append(thing[1])
        return True

    def is_open(self, thing: Thing) -> bool:
        """Whether something fails."""
        return thing[1] in self.open.get(thing[0], ())

    def close(self, things: Iterable[Thing]) -> list[Thing]:
        """Remember that things succeeded; returns those of them that failed before."""
        closed = [thing for thing in dict.fromkeys(things) if self.is_open(thing)]
        for name, partition in closed:
            self.open[name].remove(partition)
            if not self.open[name]:
                del self.open[name]
        return closed


def _short(run_id: str) -> str:
    return run_id.partition("-")[0] + run_id[-4:]


def _end(record: dg.RunRecord) -> float:
    return record.end_time or record.update_timestamp.timestamp()


# ---- the runs


def _finished(instance: dg.DagsterInstance, cursor: _Cursor) -> Iterator[dg.RunRecord]:
    """Return the runs that have finished and were not looked at, in the order of their last change.

    Runs finish in any order and are written down a little later, so each tick looks some way back behind the last one.
    """
    after = cursor.until - _OVERLAP_SECONDS
    oldest, page = after, []
    while True:
        former = {record.dagster_run.run_id for record in page}
        page = instance.get_run_records(
            dg.RunsFilter(
                statuses=[dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED],
                updated_after=datetime.fromtimestamp(after, UTC),
            ),
            limit=_PAGE,
            order_by="update_timestamp",
            ascending=True,
        )
        for record in page:
            run = record.dagster_run
            is_seen = run.run_id in former or _short(run.run_id) in cursor.seen
            # One that ended long ago was changed now, by a tag for instance.
            if not is_seen and _end(record) > oldest and run.tags.get("dagster/will_retry") != "true":
                yield record
        if len(page) < _PAGE or {record.dagster_run.run_id for record in page} == former:
            return
        after = page[-1].update_timestamp.timestamp() - 1e-6


@dataclass
class _Failure:
    """What is new in a run that failed."""

    log: RunLog
    reasons: dict[Thing, str]


@dataclass
class _Found:
    """What a tick found: failures that are new, by run, and what succeeded again."""

    failures: list[_Failure] = field(default_factory=list)
    recovered: list[Thing] = field(default_factory=list)


def _look_at(context: dg.SensorEvaluationContext, log: RunLog, cursor: _Cursor, known: set[Thing]) -> _Found:
    """Bring the cursor up to a run; returns what changed by it, but for what was ``known`` to fail when it began."""
    found = _Found()
    found.recovered = cursor.close(log.made())
    for step, error in log.errors.items():
        context.log.info("run %s failed%s: %s", log.run.run_id, f" at step {step}" if step else "", error)
    failed = log.failed()
    new = {thing: reason for thing, reason in failed.items() if cursor.opens(thing) and thing not in known}
    known.update(new)
    if new:
        found.failures.append(_Failure(log, new))
    return found


# ---- what is said


def _alerts(found: _Found, webserver_url: str) -> list[Alert]:
    """Return an alert of all that failed, and one of all that succeeded again."""
    alerts = []
    if found.failures:
        texts = [_text(failure, webserver_url) for failure in found.failures[:_NAMED]]
        if more := len(found.failures) - len(texts):
            texts.append(f"… and {more} more, see {webserver_url}/runs")
        lines = [_summary("failed", failure.reasons) for failure in found.failures]
        alerts.append(
            Alert("run_failure", lines[0] if len(lines) == 1 else f"{len(lines)} runs failed", "\n\n".join(texts))
        )
    if found.recovered:
        by_name: dict[str, list[Thing]] = {}
        for thing in found.recovered:
            by_name.setdefault(thing[0], []).append(thing)
        lines = [_summary("succeeded again", things) for things in by_name.values()]
        title = lines[0] if len(lines) == 1 else f"{len(lines)} assets or jobs succeeded again"
        alerts.append(Alert("run_failure", title, "\n".join(lines), "over"))
    return alerts


def _text(failure: _Failure, webserver_url: str) -> str:
    run_id, errors = failure.log.run.run_id, failure.log.errors
    lines = [_summary("failed", failure.reasons)]
    lines += [f"Step: {_some(steps)}"] if (steps := [step for step in errors if step]) else []
    reasons = {partition: reason for (_, partition), reason in failure.reasons.items() if reason}
    lines += [f"{partition}: {_shortened(reason)}" for partition, reason in list(reasons.items())[:_NAMED]]
    if len(reasons) < len(failure.reasons):
        lines += [
            _shortened(error) for step, error in list(errors.items())[:_NAMED] if not failure.log.not_stored.get(step)
        ]
    return "\n".join([*lines, f"Run {run_id}", f"{webserver_url}/runs/{run_id}"])


def _summary(what: str, things: Collection[Thing]) -> str:
    names = dict.fromkeys(name for name, _ in things)
    partitions = dict.fromkeys(partition for _, partition in things if partition is not None)
    return f"{_some(names)} {what}" + (f": {_some(partitions)}" if partitions else "")


def _some(texts: Iterable[str]) -> str:
    texts = list(texts)
    more = len(texts) - _NAMED
    return ", ".join(texts[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _shortened(text: str) -> str:
    first = " ".join(line.strip() for line in text.splitlines()[:3])
    return first if len(first) <= _LONGEST_ERROR else first[: _LONGEST_ERROR - 1] + "…"
