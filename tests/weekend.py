"""A race weekend in minutes: the pipeline under `tif1-pipeline dev`, with its daemons, against a simulated CDN.

    python tests/weekend.py [--home FOLDER] [--hold] [--pages N]

Sessions end, their files appear one by one, a correction comes, the CDN dies for a while, entries rot on disk, the
nightly jobs run. Nothing is launched by hand: schedules, sensors and automation do it all. What came of it is read
through GraphQL and from the cache; where the extra `browser` and Chromium are installed, the pages of the UI are looked
at in a browser, too. The exit code is the number of expectations that did not hold.

Of each session it is told how long its tables took from publication to the request and to the materialization. The
request must be made within two polls of the completion sensor, and the time that the tick takes, after it can be: a
session has one run at a time, and the files of telemetry are found by its drivers and laps. What runs take is not
compressed: the materialization must be there within two polls as they are by default.

Time is compressed by the calendar: the sessions are scheduled so that they end a few seconds from now. `--hold` leaves
the UI open at the end, until Ctrl-C.
"""

import argparse
import json
import signal
import sqlite3
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pages_shown
import webserver_told
import weekend_cache
from alert_endpoint import PASSWORD, SECRET, Endpoint
from weekend_pipeline import COMPLETION, KEY, POLL, REPOSITORY, Pipeline, Run

from tif1_pipeline.completion import NOMINAL_LENGTH
from tif1_pipeline.config import Config
from tif1_pipeline.simulator import CdnServer, Fault, Season

NOW = datetime.now(UTC)
YEAR = NOW.year
SOURCE = ("session_info", "drivers", "laps", "telemetry", "weather", "messages", "corners")
BY_SESSION = ("fastest_laps", "stints", "race_pace", "driver_telemetry_summary")
FILES = {
    "drivers": "drivers",
    "laps": "session_laptimes",
    "weather": "weather",
    "messages": "rcm",
    "corners": "corners",
}
"""The files of a session by table, without its telemetry, in the order in which those of the first session appear."""
TWO_POLLS = 2 * Config().completion_interval.total_seconds()
LOOKED_AFTER = 420
"""Seconds within which a session of which everything is published is looked at again, and a run is over."""
RUN_ENDS = 15
"""Seconds that a run whose last request has failed takes to end."""


class Weekend:
    """What happens, and what is expected of the pipeline."""

    def __init__(self, home: Path, pages: int) -> None:
        self.home = home
        self.pages = pages
        self.began = time.monotonic()
        self.failures: list[str] = []
        self.season = Season(YEAR, events=2, size="tiny", seed=11)
        first, second = self.season.events
        self.event, self.other = first.name, second.name
        self.types = first.session_types
        self.cdn = CdnServer(self.season)
        self.pipeline = Pipeline(home, self.cdn)
        self.alerts = Endpoint()
        self.published: dict[tuple[str, str], float] = {}
        """By session type and table: when its file, or the first of them, was to be had."""

    # ---- telling

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {text}", flush=True)

    def expect(self, what: str, holds: object, seen: object = "") -> None:
        """Note whether something holds."""
        self.say(f"{'ok   ' if holds else 'WRONG'} {what}{f': {seen}' if seen != '' else ''}")
        if not holds:
            self.failures.append(what)

    def wait(self, what: str, until: Callable[[], Any], seconds: float, every: float = 1) -> Any:
        """Wait for something to come true; note whether it did, and after how long."""
        started = time.monotonic()
        seen: Any = None
        while time.monotonic() - started < seconds:
            seen = until()
            if seen:
                self.expect(what, True, f"after {time.monotonic() - started:.0f} s")
                return seen
            time.sleep(every)
        self.expect(what, False, f"not within {seconds:.0f} s")
        return None

    def key(self, session_type: str, event: str | None = None) -> str:
        """Return the partition of a session."""
        return f"{YEAR} {event or self.event} {session_type}"

    # ---- the story

    def run(self) -> None:
        """Let the weekend happen."""
        self.appears()
        self.sessions_end()
        self.derived_assets_follow()
        rotten = self.night()
        self.correction()
        self.outage()
        self.is_mended(rotten)
        self.nothing_went_wrong()
        self.nothing_secret_is_told()

    def appears(self) -> None:
        """An empty instance: the calendar is published after the pipeline was started."""
        self.wait("the webserver knows the assets", lambda: self.pipeline.partitions() is not None, 180)
        self.expect("an empty instance has no sessions", self.pipeline.partitions() == set())
        ends = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=70)
        self.ends: dict[str, float] = {}
        for number, name in enumerate(self.types):
            # Two at once, then one after another.
            end = ends + timedelta(seconds=20 * max(0, number - 1))
            self.season.reschedule(self.event, name, end - NOMINAL_LENGTH[name])
            self.ends[name] = end.timestamp()
        for name in self.season.events[1].session_types:
            self.season.reschedule(self.other, name, NOW + timedelta(days=30))
        self.cdn.publish("*schedule_*")
        every = {self.key(name, event.name) for event in self.season.events for name in event.session_types}
        self.wait(
            f"the calendar's {len(every)} sessions are partitions, without a restart",
            lambda: self.pipeline.partitions() == every,
            150,
        )

    def sessions_end(self) -> None:
        """The files of each session appear with its end: the first one's one by one, the others' at once."""
        first, *others = self.types
        appear = [(self.ends[name], name, SOURCE, "*") for name in others]
        for number, (table, file) in enumerate(FILES.items()):
            # What is made of no file comes with the first one.
            tables = (table, "session_info") if number == 0 else (table,)
            appear.append((self.ends[first] + number * POLL / 2, first, tables, f"{file}.json"))
        appear.append((self.ends[first] + len(FILES) * POLL / 2, first, ("telemetry",), "*"))
        for moment, name, tables, files in sorted(appear):
            time.sleep(max(0.0, moment - time.time()))
            self.published |= {(name, table): time.time() for table in tables}
            self.cdn.publish(f"*{self.event}/{name}/{files}")
        sessions = {self.key(name) for name in self.types}
        for asset in SOURCE:
            self.wait(
                f"{asset} of all {len(sessions)} sessions is materialized",
                lambda asset=asset: sessions <= self.pipeline.status(asset)["materialized"],
                240,
            )
        runs = [run for run in reversed(self.pipeline.runs()) if "tif1/requested_for" in run.tags]
        ticks = {run: tick for tick in self.pipeline.ticks(COMPLETION) for run in tick.runs}
        for name in self.types:
            own = [run for run in runs if run.partition == self.key(name)]
            requested = Counter(table for run in own for table in run.tables)
            told = "; ".join(", ".join(sorted(run.tables)) for run in own)
            # What the summary of the event reads it fetches, where the sensor has not been quicker.
            once = {"laps", *requested} == set(SOURCE) and set(requested.values()) == {1}
            self.expect(f"{name}: each table was requested once", once, told)
            if once:
                self.was_prompt(name, own, {run.id: ticks[run.id].seconds for run in own})

    def was_prompt(self, name: str, own: list[Run], tick_seconds: dict[str, float]) -> None:
        """Expect that each table of a session was requested when it could be, and tell when it was there."""
        waited, total, there = {}, {}, {}
        asked = {table: run for run in own for table in run.tables}
        for table, request in asked.items():
            could = since = self.published[name, table]
            for run in own:
                # One run of a session at a time, and the files of telemetry are found by drivers and laps.
                is_awaited = run.created <= could or (table == "telemetry" and run.tables & {"drivers", "laps"})
                if run is not request and is_awaited and run.ended is not None:
                    could = max(could, run.ended)
            waited[table] = request.created - could
            total[table] = request.created - since
        for table in SOURCE:
            materialized = self.pipeline.materializations(table, self.key(name))[-1]["at"]
            there[table] = materialized - self.published[name, table]
        self.expect(
            f"{name}: each table was requested within two polls ({2 * POLL} s) and the time of the tick",
            all(0 <= waited[table] <= 2 * POLL + tick_seconds[run.id] for table, run in asked.items()),
            f"{_range(waited)} after it could be, by ticks of up to {max(tick_seconds.values()):.0f} s; "
            f"{_range(total)} after its publication",
        )
        self.expect(
            f"{name}: each table was materialized within two polls as they are by default ({TWO_POLLS:.0f} s)",
            max(there.values()) <= TWO_POLLS,
            f"{_range(there)} after its publication",
        )

    def derived_assets_follow(self) -> None:
        """Automation makes them, level after level."""
        sessions = {self.key(name) for name in self.types}
        for asset in BY_SESSION:
            self.wait(
                f"{asset} follows by itself",
                lambda asset=asset: sessions <= self.pipeline.status(asset)["materialized"],
                240,
            )
        for asset, partition in (("event_summary", f"{YEAR} {self.event}"), ("season_summary", str(YEAR))):
            self.wait(
                f"{asset} follows",
                lambda asset=asset, partition=partition: partition in self.pipeline.status(asset)["materialized"],
                120,
            )

    def correction(self) -> None:
        """Lap times of the race are corrected; its weather is published again without a change."""
        race = self.key("Race")
        before = {asset: self.pipeline.materializations(asset, race) for asset in ("laps", "weather", "fastest_laps")}

        def is_new(asset: str) -> bool:
            return len(self.pipeline.materializations(asset, race)) > len(before[asset])

        first_time = weekend_cache.first_lap_time(YEAR, self.event)
        self.cdn.republish(f"*{self.event}/Race/session_laptimes.json")
        self.cdn.republish(f"*{self.event}/Race/weather.json")
        if not self.wait("the correction is materialized", lambda: is_new("laps"), LOOKED_AFTER):
            return
        laps = self.pipeline.materializations("laps", race)
        self.expect("the laps have another data version", laps[0]["version"] != before["laps"][0]["version"])
        corrected = weekend_cache.first_lap_time(YEAR, self.event)
        self.expect(
            "the cache has the corrected time",
            corrected == round(first_time + 0.001, 3),
            f"{first_time} -> {corrected}",
        )
        self.wait("what is derived from the laps follows", lambda: is_new("fastest_laps"), 120)
        self.wait("the weather was fetched again", lambda: is_new("weather"), 60)
        weather = self.pipeline.materializations("weather", race)
        self.expect("and keeps its data version", weather[0]["version"] == before["weather"][0]["version"])

    def outage(self) -> None:
        """The CDN dies between the request of a corrected table and its fetch; all is fetched when it is back."""
        race = self.key("Race")
        before = len(self.pipeline.materializations("laps", race))
        known = {run.id for run in self.pipeline.runs()}

        def of_race(*status: str) -> list[Run]:
            runs = (run for run in self.pipeline.runs() if run.id not in known and run.partition == race)
            return [run for run in runs if "laps" in run.tables and (not status or run.status in status)]

        self.cdn.republish(f"*{self.event}/Race/session_laptimes.json")
        self.wait("another correction is requested", of_race, LOOKED_AFTER, every=0.5)
        down = time.time()
        self.cdn.faults.set(Fault("error"))
        self.wait("the CDN is down: the run fails", lambda: of_race("FAILURE"), 120)
        self.wait(
            "the completion sensor says why it does nothing",
            lambda: any(
                "the CDN could not be asked" in tick.said
                for tick in self.pipeline.ticks(COMPLETION)
                if tick.began > down
            ),
            120,
        )
        readable = weekend_cache.readable(YEAR, self.event, self.types)
        self.expect("every table can still be read", *readable)
        self.cdn.faults.clear()
        self.down = down, time.time()
        self.say(f"the CDN is back after {self.down[1] - down:.0f} s")
        self.wait(
            "what changed is fetched",
            lambda: len(self.pipeline.materializations("laps", race)) > before,
            LOOKED_AFTER,
        )

    def night(self) -> list[str]:
        """Three entries rot on disk, and the nightly jobs run; returns the keys of the entries.

        The completion sensor is off meanwhile: at night no session is so young that it reads what is stored of it, and
        whoever reads a rotten entry first mends it. What is derived the repair sensor mends: see :meth:`is_mended`.
        """
        self.pipeline.switch_sensor(COMPLETION, on=False)
        self.wait("all runs are over", lambda: all(run.ended for run in self.pipeline.runs()), 120)
        keys = weekend_cache.rot(self.home / "cache" / "tif1_cache.db")
        self.expect("three entries are rotten", not weekend_cache.sound(keys), ", ".join(keys))
        self.pipeline.start_schedule("weekly_maintenance_schedule")
        self.pipeline.write_settings(night=datetime.now(UTC) + timedelta(seconds=90))
        self.pipeline.reload()
        for job in ("nightly_warm_job", "daily_maintenance_job", "weekly_maintenance_job"):
            self.wait(
                f"{job} runs by its schedule and succeeds",
                lambda job=job: any(run.status == "SUCCESS" for run in self.pipeline.runs(job)),
                420,
            )
        self.pipeline.switch_sensor(COMPLETION, on=True)
        return keys

    def is_mended(self, keys: list[str]) -> None:
        """What was rotten is sound again, the alert tells of it, and so is the day's backup."""
        self.wait("the rotten entries are back and sound", lambda: weekend_cache.sound(keys) == keys, 240, every=5)
        told = [
            json.dumps(alert, ensure_ascii=False)
            for alert in self.alerts.received
            if "faults were found" in alert["title"]
        ]
        self.expect(
            "an alert of the corruption names all three",
            any(all(key in alert for key in keys) for alert in told),
            f"{[alert['title'] for alert in self.alerts.received]}",
        )
        backups = sorted((self.home / "backups").glob("*"))
        self.expect("there is a backup of the day", backups, [path.name for path in backups])
        if backups:
            mended = [key for key in keys if not key.startswith("asset:")]  # the derived one came after the backup
            restored = weekend_cache.restored(backups[-1], mended)
            self.expect("it restores into an empty folder and verifies, with what was mended", *restored)

    def nothing_went_wrong(self) -> None:
        """No tick failed, no run failed but for the CDN, every tick that did nothing said why."""
        ticks = self.pipeline.ticks()
        bad = [(tick.name, tick.error) for tick in ticks if tick.status == "FAILURE"]
        self.expect("no tick failed", ticks and not bad, bad[:3] or f"{len(ticks)} ticks")
        silent = {tick.name for tick in ticks if tick.status == "SKIPPED" and not tick.said}
        self.expect("every tick that skipped said why", not silent - {"automation_sensor"}, silent)
        runs = self.pipeline.runs()
        failed = [run for run in runs if run.status not in {"SUCCESS", "QUEUED", "STARTING", "STARTED"}]
        hit = [run for run in failed if self.was_hit(run)]
        self.expect(
            "all runs succeeded but those within the outage",
            runs and failed == hit,
            f"{len(failed)} of {len(runs)} failed",
        )
        for run in failed:
            started, ended = (at and f"{at - self.down[0]:+.0f} s" for at in (run.started, run.ended))
            self.say(f"  {run.job} of {run.partition}, begun {started} and ended {ended} after the CDN was down")
            for reason in self.pipeline.why_failed(run):
                self.say(f"    {reason}")

        def alerts_of_failures() -> list[dict[str, Any]]:
            # Several alerts that come together are one message, each of them a line that begins with its kind.
            return [
                alert
                for alert in self.alerts.received
                if any(
                    "failed" in line
                    for line in (alert["title"], *alert["message"].splitlines())
                    if line == alert["title"] or line.startswith("[started]")
                )
            ]

        # Its sensor ticks every 30 s.
        failures = self.wait("an alert tells of the failed run", alerts_of_failures, 120) or []
        self.expect(
            "one alert told of the failed run",
            len(failures) == 1 and self.key("Race") in failures[0]["message"],
            [alert["title"] for alert in self.alerts.received],
        )
        left = {asset: self.pipeline.status(asset)["failed"] for asset in (*SOURCE, *BY_SESSION)}
        self.expect("no partition is left failed", not any(left.values()), {k: v for k, v in left.items() if v} or "")
        # A further try has the key of the first and a number.
        again = {run.tags.get("dagster/run_key") for run in hit}
        keys = [key for tick in ticks if tick.name == COMPLETION for key in tick.run_keys]
        changes = Counter(":".join(key.split(":")[:2]) for key in keys if key not in again)
        twice = [change for change, times in changes.items() if times > 1]
        self.expect(
            "no change was requested twice, but where the outage hit the run",
            keys and not twice,
            twice or f"{len(keys)} requests, of which the outage hit {len(again)}",
        )

    def nothing_secret_is_told(self) -> None:
        """Neither by the webserver, asked and looked at in a browser, nor by a file but that of the settings."""
        told = dict(webserver_told.everything(self.pipeline.answer, REPOSITORY))
        for path in self.home.rglob("*"):
            if path.is_file() and path.name != "settings.toml":
                told[str(path.relative_to(self.home))] = path.read_bytes().decode("latin-1")
        told["snapshots"] = _unpacked(self.home / "dagster/history/runs.db")
        # What is no secret and must be found, else nothing was asked.
        known = {"runsOrError": COMPLETION, "assetNodes": "dagster/data_version", "sensorsOrError": "looked at again"}
        known |= {"snapshots": "fastest_laps"}
        pages: dict[str, str] = {}
        if missing := pages_shown.missing():
            self.say(f"SKIPPED what pages show in a browser: {missing}")
        elif self.pages:
            pages = dict(pages_shown.everything(f"http://127.0.0.1:{self.pipeline.port}", self.pages))
            known |= {
                "/assets": "fastest_laps",
                "/runs": COMPLETION,
                "/config": "telemetry",
                "/overview/resources": "CacheIOManager",
            }
        told |= pages
        secrets = {"password": PASSWORD, "token": SECRET, "key": KEY}
        shown = [f"{name} in {where}" for where, text in told.items() for name in secrets if secrets[name] in text]
        missed = [where for where, text in known.items() if text not in told.get(where, "")]
        self.expect(
            "the webserver, its pages and the files tell nothing secret",
            not shown and not missed,
            f"{len(told) - len(pages)} answers and files, {len(pages)} pages in a browser, "
            f"{sum(map(len, told.values())) / 2**20:.0f} MiB; {shown}; missed: {missed}",
        )

    def was_hit(self, run: Run) -> bool:
        """Tell whether a run met the outage: one that had begun before may read what is rotten, and fetch it."""
        down, up = self.down
        if run.started is None or run.ended is None:
            return False
        return run.started <= up and down <= run.ended <= up + RUN_ENDS


def _unpacked(runs: Path) -> str:
    """Return what Dagster keeps compressed: jobs and plans as they were at their runs."""
    with closing(sqlite3.connect(runs)) as connection:
        rows = connection.execute("SELECT snapshot_body FROM snapshots").fetchall()
    return "\n".join(zlib.decompress(body).decode() for (body,) in rows)


def _range(seconds: dict[str, float]) -> str:
    return f"{min(seconds.values()):.0f} to {max(seconds.values()):.0f} s"


def main(arguments: Sequence[str]) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="an empty folder for everything; a temporary one by default")
    parser.add_argument("--hold", action="store_true", help="leave the UI open at the end, until Ctrl-C")
    parser.add_argument(
        "--pages", type=int, default=120, help="pages of the UI to look at in a browser; 120 by default"
    )
    options = parser.parse_args(arguments)
    # Whoever ends this ends the daemons, too; in the background of a shell the first of these is ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="weekend-", ignore_cleanup_errors=True) as temporary:
        home = (options.home or Path(temporary)).absolute()
        home.mkdir(parents=True, exist_ok=True)
        weekend = Weekend(home, options.pages)
        weekend.cdn.hide("*")
        with weekend.cdn, closing(weekend.alerts), weekend.pipeline.running(weekend.alerts.url):
            weekend.say(f"Dagster UI: http://127.0.0.1:{weekend.pipeline.port}, all files in {home}")
            try:
                weekend.run()
            finally:
                if weekend.failures:
                    print(weekend.pipeline.log())
            if options.hold:
                weekend.say("holding; Ctrl-C ends it")
                with suppress(KeyboardInterrupt):
                    signal.pause()
    print(f"{len(weekend.failures)} expectations did not hold: {weekend.failures}" if weekend.failures else "all held")
    return min(len(weekend.failures), 100)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
