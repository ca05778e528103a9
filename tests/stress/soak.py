"""A season's week in minutes: the pipeline under its daemons, and what must not pile up while it is at work.

The time that `tif1-pipeline dev` takes to start, some 30 s, comes on top of that of the trial, as does the time until
what was requested last is done.
"""

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.alert_endpoint import Endpoint
from tests.stress.processes import Course, children_of, command_of, held
from tests.stress.trial import Plan, Row
from tests.weekend_pipeline import REPOSITORY, Pipeline, Run
from tif1_pipeline.cache.connection import JOURNAL_LIMIT
from tif1_pipeline.completion import NOMINAL_LENGTH
from tif1_pipeline.simulator import CdnServer, Season

AREA = "soak"
YEAR = datetime.now(UTC).year
TTL = 40
STUCK_SECONDS = 120.0
"""After which runs that are queued are so for good, if none has ended. How long a run takes depends on the machine."""
INVALIDATION_TAKES = 15.0
"""Seconds that the program that invalidates is given, from its start to its end."""
ROLES = {
    "webserver": ("dagster_webserver", "dagster-webserver"),
    "daemon": ("dagster._daemon", "dagster-daemon"),
    "code server": ("grpc", "code-server"),
}
_INVALIDATE = """
import sys, tif1_pipeline as tif1
print(tif1.get_cache().invalidate_session(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
"""
_DIFFERENT = """
import sys, tif1_pipeline as tif1
for name in sys.argv[2:]:
    event, _, kind = name.partition("/")
    both = [tif1.get_session(int(sys.argv[1]), event, kind, enable_cache=cached) for cached in (True, False)]
    for table in ("laps", "weather", "messages", "drivers_df"):
        kept, published = (getattr(it, table) for it in both)
        if not kept.equals(published):
            print(name, table)
"""


class BusyPipeline(Pipeline):
    """A pipeline that looks at everything every few seconds."""

    def write_settings(self, night: datetime) -> Path:
        """Write the settings file."""
        self.settings |= {"cache_ttl": TTL, "expiry_interval": 10, "monitoring_interval": 15}
        return super().write_settings(night)


@dataclass
class Watch:
    """What is sampled while the pipeline is at work."""

    home: Path
    pipeline: Pipeline
    course: Course = field(default_factory=Course)
    samples: int = 0
    leases: int = 0
    orphans: Counter[str] = field(default_factory=Counter)
    largest_log: int = 0
    largest_file: int = 0
    queued: list[int] = field(default_factory=list)
    databases: list[tuple[int, float]] = field(default_factory=list)

    def look(self) -> None:
        """Take one sample of all."""
        self.samples += 1
        for role, pids in self.processes().items():
            for which, pid in enumerate(pids):
                now = held(pid)
                if now:
                    self.course.note(f"memory of {role} {which}", now.resident / 2**20)
                    self.course.note(f"descriptors of {role} {which}", now.descriptors)
                    self.course.note(f"threads of {role} {which}", now.threads)
        file = self.home / "cache" / "tif1_cache.db"
        self.largest_file = max(self.largest_file, _size(file))
        self.largest_log = max(self.largest_log, _size(file.with_name(f"{file.name}-wal")))
        self._look_at_leases(file)
        if self.samples % 3 == 0:
            runs = self.pipeline.runs()
            self.queued.append(sum(run.status in {"QUEUED", "NOT_STARTED"} for run in runs))
            self.databases.append((len(runs), self.dagster_size() / 2**10))

    def processes(self) -> dict[str, list[int]]:
        """Return the pipeline's lasting processes by role, in the order in which they were started."""
        found: dict[str, list[int]] = {}
        for pid in sorted(children_of(os.getpid())):
            command = " ".join(command_of(pid))
            if "execute_run" in command or "execute_step" in command:
                continue
            for role, words in ROLES.items():
                if any(word in command for word in words):
                    found.setdefault(role, []).append(pid)
                    break
        return found

    def _look_at_leases(self, file: Path) -> None:
        # Renewed every few seconds: what has run out and is seen again later belongs to nobody.
        for key, expires_at in leases_in(file):
            self.leases += 1
            if expires_at < time.time() - 20:
                self.orphans[key] += 1

    def dagster_size(self) -> int:
        """Return the bytes of Dagster's own databases."""
        return sum(_size(path) for path in (self.home / "dagster").rglob("*.db*"))


def rows(plan: Plan) -> Iterator[Row]:
    """Run the week, then tell."""
    home = plan.scratch
    others = set(children_of(os.getpid()))  # of the trials before
    chance = plan.chance(AREA)
    season = Season(YEAR, events=2, size="tiny", seed=plan.seed)
    sessions = [(event.name, name) for event in season.events for name in event.session_types]
    sessions = sessions[: max(4, plan.count(len(sessions)))]
    cdn = CdnServer(season)
    pipeline = BusyPipeline(home, cdn)
    watch = Watch(home, pipeline)
    cdn.hide("*")
    told: dict[str, Any] = {}
    with _environment(), cdn, closing(Endpoint()) as alerts:
        _schedule(season, sessions)
        cdn.publish("*schedule_*")
        with pipeline.running(alerts.url):
            own = set()
            try:
                told["started"] = _until(lambda: pipeline.partitions() or None, 120) is not None
                if told["started"]:
                    told |= _work(plan, watch, cdn, sessions, chance)
            finally:
                own = set(children_of(os.getpid())) - others
                if not told.get("started"):
                    print(pipeline.log(), file=sys.stderr)
        _until(lambda: not [pid for pid in own if held(pid)], 30)
        left = [pid for pid in own if held(pid)]
    if not told["started"]:
        failed = Row(AREA, "the pipeline starts", 1)
        failed.say("the webserver did not answer within 120 s")
        yield failed
        return
    # In a short run the second quarter is still a beginning.
    memory, descriptors, threads = (48, 12, 8) if plan.share >= 1 else (128, 40, 16)
    yield _flat(watch, "memory", "MiB", lambda before: before * 1.2 + memory)
    yield _flat(watch, "descriptors", "open", lambda before: before * 1.2 + descriptors)
    yield _flat(watch, "threads", "running", lambda before: before * 1.2 + threads)
    yield _cache_size(watch, told["stored"])
    yield _leases(watch)
    yield _queue(watch, told, len(sessions))
    yield _failures(told)
    yield _storage(watch, told)
    yield _content(told, sessions)
    yield _remains(own, left)


def _schedule(season: Season, sessions: list[tuple[str, str]]) -> None:
    """Have the sessions end, one a few seconds after the other, and all others in a month."""
    for event in season.events:
        for number, name in enumerate(event.session_types):
            start = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30, hours=number)
            if (event.name, name) in sessions:
                start = datetime.now(UTC).replace(microsecond=0) - NOMINAL_LENGTH[name] + timedelta(seconds=20)
            season.reschedule(event.name, name, start)


def _work(
    plan: Plan, watch: Watch, cdn: CdnServer, sessions: list[tuple[str, str]], chance: random.Random
) -> dict[str, Any]:
    """Publish, correct and invalidate over and over, and look; then wait until all is done."""
    pipeline, home = watch.pipeline, watch.home
    until = time.monotonic() + max(40.0, plan.seconds(150) - 40)
    began = time.monotonic()
    hidden = list(sessions)
    published: list[tuple[str, str]] = []
    counts: Counter[str] = Counter()
    others: list[subprocess.Popen[str]] = []
    invalidated: defaultdict[str, list[float]] = defaultdict(list)
    next_change = began
    while time.monotonic() < until:
        if time.monotonic() >= next_change:
            next_change += 4
            if hidden and (len(published) <= counts["corrected"] or not published):
                event, name = hidden.pop(0)
                cdn.publish(f"*{event}/{name}/*")
                published.append((event, name))
                counts["published"] += 1
            elif chance.random() < 0.75:
                event, name = chance.choice(published)
                cdn.republish(f"*{event}/{name}/session_laptimes.json")
                cdn.republish(f"*{event}/{name}/weather.json")
                counts["corrected"] += 1
            elif not any(other.poll() is None for other in others):
                event, name = chance.choice(published)
                others.append(_program(_INVALIDATE, str(YEAR), event, name))
                invalidated[f"{YEAR} {event} {name}"].append(time.time())
                counts["invalidated"] += 1
        watch.look()
        time.sleep(1)
    for event, name in hidden:
        cdn.publish(f"*{event}/{name}/*")
        counts["published"] += 1
    problems = [_answer(other)[1] for other in others]
    changed = time.monotonic()

    ended, ended_at = 0, changed

    def how_it_ended() -> str | None:
        """Tell that there is nothing left to do, or that no run comes to its end any more."""
        nonlocal ended, ended_at
        watch.look()
        runs = pipeline.runs()
        if time.monotonic() - changed > TTL + 5 and not any(run.status in {"QUEUED", "NOT_STARTED"} for run in runs):
            return "drained"
        if (now_ended := sum(run.ended is not None for run in runs)) > ended:
            ended, ended_at = now_ended, time.monotonic()
        return "stuck" if time.monotonic() - ended_at > STUCK_SECONDS else None

    drained = _until(how_it_ended, 600, every=2) == "drained"
    seconds = time.monotonic() - changed
    stored = _stored(home / "cache" / "tif1_cache.db")
    different = _answer(_program(_DIFFERENT, str(YEAR), *(f"{event}/{name}" for event, name in sessions)))
    ticks, runs = pipeline.ticks(), pipeline.runs()
    return {
        "counts": counts,
        "invalidated": invalidated,
        "problems": [problem for problem in problems if problem],
        "drained": drained,
        "drain_seconds": seconds,
        "different": different,
        "ticks": ticks,
        "runs": runs,
        "stored": stored,
        "cleaned": _clean(watch, runs),
        "seconds": time.monotonic() - began,
    }


def _clean(watch: Watch, before: list[Run]) -> dict[str, Any]:
    """Have the old runs deleted, as the schedule of this job does; all that are over are old here."""
    runs = watch.home / "dagster" / "history" / "runs"
    files = len(list(runs.glob("*-*.db")))
    size = watch.dagster_size()
    answer = watch.pipeline.ask(
        """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
            ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
            ... on RunConfigValidationInvalid { errors { message } } } }""",
        params={
            "selector": REPOSITORY | {"jobName": "run_cleanup_job"},
            "runConfigData": json.dumps({"ops": {"delete_old_runs": {"config": {"older_than_days": 0.0}}}}),
            "mode": "default",
        },
    )
    launched = (answer or {}).get("launchRun", {})
    run_id = launched.get("run", {}).get("runId")
    found: dict[str, Any] = {"answer": launched, "status": None, "before": len(before), "files_before": files}

    def status() -> str | None:
        for run in watch.pipeline.runs("run_cleanup_job"):
            if run.id == run_id and run.status in {"SUCCESS", "FAILURE", "CANCELED"}:
                return run.status
        return None

    if run_id:
        found["status"] = _until(status, 180, every=2)
    after = watch.pipeline.runs()
    left = {run.id for run in after}
    return found | {
        "after": len(after),
        "deleted": sum(run.id not in left for run in before),
        "files_after": len(list(runs.glob("*-*.db"))),
        "files_of_deleted": [run.id for run in before if run.id not in left and (runs / f"{run.id}.db").exists()],
        "kib": (size / 2**10, watch.dagster_size() / 2**10),
    }


# ---- verdicts


def _flat(watch: Watch, kind: str, unit: str, bound: Callable[[float], float]) -> Row:
    row = Row(AREA, f"{kind} of webserver, daemon and code server stay flat")
    names = [name for name in watch.course.samples if name.startswith(kind)]
    told = []
    for name in names:
        if len(watch.course.samples[name]) < 8:
            continue  # started meanwhile
        row.tried += len(watch.course.samples[name])
        before, after = watch.course.growth(name)
        told.append(f"{name.removeprefix(f'{kind} of ')} {before:.0f} to {after:.0f}")
        if after > bound(before):
            row.leaked += 1
            row.say(f"{name} grew from {before:.0f} to {after:.0f}")
    for role in ROLES:
        if not any(f"of {role} " in name for name in names):
            row.say(f"no {role} was seen")
    row.remark = f"{unit}, second to last quarter: {', '.join(told)}"
    return row


def _cache_size(watch: Watch, stored: int) -> Row:
    row = Row(AREA, "the cache file and its log stay in proportion to what is stored", watch.samples)
    if watch.largest_file > 3 * stored + (8 << 20):
        row.leaked += 1
        row.say(f"the file grew to {watch.largest_file / 2**20:.1f} MiB")
    if watch.largest_log > 2 * JOURNAL_LIMIT:
        row.leaked += 1
        row.say(f"the log grew to {watch.largest_log / 2**20:.1f} MiB")
    row.remark = (
        f"{stored / 2**20:.1f} MiB are stored; the file was {watch.largest_file / 2**20:.1f} MiB at most, its log "
        f"{watch.largest_log / 2**20:.1f}"
    )
    return row


def _leases(watch: Watch) -> Row:
    row = Row(AREA, "leases are given back: none that ran out is left", watch.samples)
    left = leases_in(watch.home / "cache" / "tif1_cache.db")
    row.leaked += len(watch.orphans) + len(left)
    for key, times in watch.orphans.items():
        row.say(f"the lease on {key} had run out and was there, seen {times} times")
    for key, _ in left:
        row.say(f"the lease on {key} is there at the end")
    row.remark = f"{watch.leases} seen"
    return row


def _queue(watch: Watch, told: dict[str, Any], sessions: int) -> Row:
    row = Row(AREA, "runs do not queue up, and what was requested is done in the end", len(told["runs"]))
    most = max(watch.queued, default=0)
    if most > 2 * sessions + 6:
        row.wrong += 1
        row.say(f"{most} runs were queued")
    left = "none" if told["drained"] else "some"
    if not told["drained"]:
        row.wrong += 1
        row.say(f"after {told['drain_seconds']:.0f} s without changes runs are still queued")
    row.remark = (
        f"{most} queued at most, {left} {told['drain_seconds']:.0f} s after the last change; "
        + ", ".join(f"{number} {kind}" for kind, number in told["counts"].items())
        + f" in {told['seconds']:.0f} s"
    )
    return row


def _failures(told: dict[str, Any]) -> Row:
    what = "ticks of sensors and schedules, and runs: none fails, unless what it has stored is invalidated meanwhile"
    row = Row(AREA, what, len(told["ticks"]) + len(told["runs"]))
    met = 0
    for tick in told["ticks"]:
        if tick.status == "FAILURE":
            row.wrong += 1
            row.say(f"{tick.name}: {tick.error}")
    for run in told["runs"]:
        if run.status == "FAILURE" and any(
            run.created <= at + INVALIDATION_TAKES and at <= (run.ended or at)
            for at in told["invalidated"].get(run.partition, ())
        ):
            met += 1  # its checks found nothing: that it is done after all is seen in what the cache has in the end
        elif run.status in {"FAILURE", "CANCELED"}:
            row.wrong += 1
            row.say(f"{run.job} {run.partition} {sorted(run.tables)}: {run.status}")
    row.remark = f"{len(told['ticks'])} ticks, {len(told['runs'])} runs, {met} of them met an invalidation and failed"
    return row


def _storage(watch: Watch, told: dict[str, Any]) -> Row:
    row = Row(AREA, "Dagster's databases grow with the runs alone, and the clean-up job deletes old ones")
    cleaned = told["cleaned"]
    row.tried = cleaned["before"]
    (first_runs, first), (last_runs, last) = watch.databases[0], watch.databases[-1]
    each = (last - first) / max(1, last_runs - first_runs)
    if each > 2048:
        row.leaked += 1
        row.say(f"{each:.0f} KiB a run")
    if cleaned["status"] != "SUCCESS":
        row.wrong += 1
        row.say(f"the clean-up job: {cleaned['status']}, {cleaned['answer']}")
    if not cleaned["deleted"]:
        row.leaked += 1
        row.say(f"no run of {cleaned['before']} was deleted")
    for run_id in cleaned["files_of_deleted"]:
        row.leaked += 1
        row.say(f"the events of the deleted run {run_id} are there")
    row.remark = (
        f"{each:.0f} KiB a run; of {cleaned['before']} runs {cleaned['deleted']} were deleted, on the others the "
        f"status of partitions rests; {cleaned['files_before']} files of events became {cleaned['files_after']}, "
        f"{cleaned['kib'][0] / 2**10:.1f} MiB {cleaned['kib'][1] / 2**10:.1f}"
    )
    return row


def _content(told: dict[str, Any], sessions: list[tuple[str, str]]) -> Row:
    row = Row(AREA, "after all corrections the cache has what is published", 4 * len(sessions))
    output, failure = told["different"]
    for problem in [*told["problems"], *([failure] if failure else [])]:
        row.wrong += 1
        row.say(problem)
    for line in output.splitlines():
        row.wrong += 1
        row.say(f"{line} differs")
    return row


def _remains(own: set[int], left: list[int]) -> Row:
    row = Row(AREA, "processes that are over when the pipeline has been stopped", len(own), leaked=len(left))
    for pid in left:
        row.say(f"{' '.join(command_of(pid))[:200]} is at work")
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
    return row


# ---- helpers


@contextmanager
def _environment() -> Iterator[None]:
    former = os.environ.get("TIF1_CONFIG")
    try:
        yield
    finally:
        os.environ.pop("TIF1_CONFIG", None)
        if former is not None:
            os.environ["TIF1_CONFIG"] = former


def _program(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _answer(process: subprocess.Popen[str]) -> tuple[str, str | None]:
    try:
        output, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "", "a program that uses the cache is not over within 120 s"
    return output.strip(), errors[-2000:] if process.returncode else None


def _until(seen: Callable[[], Any], seconds: float, every: float = 1) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := seen():
            return found
        time.sleep(every)
    return None


def leases_in(file: Path) -> list[tuple[str, float]]:
    """Return the leases of a cache file: key and when each runs out."""
    return _query(file, "SELECT key, expires_at FROM leases")


def _stored(file: Path) -> int:
    return _query(file, "SELECT coalesce(sum(compressed_size), 0) FROM entries")[0][0]


def _query(file: Path, query: str) -> list[Any]:
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        if file.exists():
            raise
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
