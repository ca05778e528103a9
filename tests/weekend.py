"""A race weekend in minutes: the pipeline under `tif1-pipeline dev`, with its daemons, against a simulated CDN.

    python tests/weekend.py [--home FOLDER] [--hold]

Sessions end, their files appear one by one, a correction comes, the CDN dies for a while, entries rot on disk, the
nightly jobs run. Nothing is launched by hand: schedules, sensors and automation do it all. What came of it is read
through GraphQL and from the cache. The exit code is the number of expectations that did not hold.

Time is compressed by the calendar: the sessions are scheduled so that they end a few seconds from now. `--hold` leaves
the UI open at the end, until Ctrl-C.
"""

import argparse
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from tif1_pipeline.completion import NOMINAL_LENGTH
from tif1_pipeline.simulator import CdnServer, Fault, Season

NOW = datetime.now(UTC)
YEAR = NOW.year
POLL = 10
"""Seconds between two looks of the completion sensor."""
SOURCE = ("session_info", "drivers", "laps", "telemetry", "weather", "messages", "corners")
BY_SESSION = ("fastest_laps", "stints", "race_pace", "driver_telemetry_summary")
FILES = ("drivers", "session_laptimes", "weather", "rcm", "corners")
REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": "tif1_pipeline.definitions"}
LOOKED_AFTER = 420
"""Seconds within which a session of which everything is published is looked at again, and a run is over."""


class Weekend:
    """The pipeline, the CDN and the endpoint of the alerts, and what was expected of them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.started = time.monotonic()
        self.failures: list[str] = []
        self.alerts: list[dict[str, Any]] = []
        self.season = Season(YEAR, events=2, size="tiny", seed=11)
        first, second = self.season.events
        self.event, self.other = first.name, second.name
        self.types = first.session_types
        self.server = CdnServer(self.season)
        self.port = free_port()

    # ---- telling

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.started:6.0f} s  {text}", flush=True)

    def expect(self, what: str, holds: object, seen: object = "") -> None:
        """Note whether something holds."""
        self.say(f"{'ok   ' if holds else 'WRONG'} {what}{f': {seen}' if seen != '' else ''}")
        if not holds:
            self.failures.append(what)

    def wait(self, what: str, until: Callable[[], Any], seconds: float) -> Any:
        """Wait for something to come true; note whether it did, and after how long."""
        started = time.monotonic()
        seen: Any = None
        while time.monotonic() - started < seconds:
            seen = until()
            if seen:
                self.expect(what, True, f"after {time.monotonic() - started:.0f} s")
                return seen
            time.sleep(1)
        self.expect(what, False, f"not within {seconds:.0f} s")
        return None

    # ---- the pipeline

    @contextmanager
    def running(self, alert_port: int) -> Iterator[None]:
        """Run ``tif1-pipeline dev`` until the block ends."""
        self.settings = {
            "cache_dir": str(self.home / "cache"),
            "backup_dir": str(self.home / "backups"),
            "cdn_urls": self.server.cdn_urls,
            "schedule_urls": self.server.schedule_urls,
            "max_retries": 0,
            "completion_interval": POLL,
            "calendar_interval": 15,
            "alert_urls": [f"json://127.0.0.1:{alert_port}"],
        }
        path = self.write_settings(night=datetime.now(UTC) + timedelta(hours=12))
        os.environ["TIF1_CONFIG"] = str(path)
        command = [sys.executable, "-m", "tif1_pipeline.cli", "dev", "--home", str(self.home / "dagster")]
        with (self.home / "dagster.log").open("wb") as log:
            process = subprocess.Popen([*command, "--port", str(self.port)], stdout=log, stderr=log)
            try:
                yield
            finally:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    process.kill()

    def write_settings(self, night: datetime) -> Path:
        """Write the settings file, with the nightly jobs at this minute and the next."""
        crons = {"nightly_warm_cron": 0, "daily_maintenance_cron": 0, "weekly_maintenance_cron": 1}
        times = {name: night + timedelta(minutes=later) for name, later in crons.items()}
        settings = self.settings | {name: f"{at.minute} {at.hour} * * *" for name, at in times.items()}
        path = self.home / "settings.toml"
        path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
        return path

    def ask(self, query: str, **variables: Any) -> Any:
        """Ask the webserver; None while it cannot answer."""
        try:
            answer = httpx.post(
                f"http://127.0.0.1:{self.port}/graphql", json={"query": query, "variables": variables}, timeout=30
            ).json()
        except (httpx.HTTPError, ValueError):
            return None
        if answer.get("errors"):
            raise RuntimeError(answer["errors"][0]["message"])
        return answer["data"]

    def partitions(self, asset: str = "laps") -> list[str]:
        """Return an asset's partitions as the webserver knows them."""
        answer = self.ask(
            "query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode { partitionKeys } } }",
            key={"path": [asset]},
        )
        return (answer or {}).get("assetNodeOrError", {}).get("partitionKeys") or []

    def status(self, asset: str) -> dict[str, set[str]]:
        """Return an asset's materialized and failed partitions."""
        answer = self.ask(
            """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
                assetPartitionStatuses { ... on DefaultPartitionStatuses { materializedPartitions failedPartitions } }
            } } }""",
            key={"path": [asset]},
        )
        found = (answer or {}).get("assetNodeOrError", {}).get("assetPartitionStatuses") or {}
        return {
            "materialized": set(found.get("materializedPartitions", ())),
            "failed": set(found.get("failedPartitions", ())),
        }

    def materializations(self, asset: str, partition: str) -> list[dict[str, Any]]:
        """Return the materializations of a partition, the latest first: time and data version."""
        answer = self.ask(
            """query($key: AssetKeyInput!, $partitions: [String!]) { assetOrError(assetKey: $key) { ... on Asset {
                assetMaterializations(partitions: $partitions, limit: 20) { timestamp runId tags { key value } }
            } } }""",
            key={"path": [asset]},
            partitions=[partition],
        )
        found = (answer or {}).get("assetOrError", {}).get("assetMaterializations") or []
        return [
            {
                "at": float(item["timestamp"]) / 1000,
                "run": item["runId"],
                "version": {tag["key"]: tag["value"] for tag in item["tags"]}.get("dagster/data_version"),
            }
            for item in found
        ]

    def ticks(self) -> list[dict[str, Any]]:
        """Return the ticks of all sensors and schedules."""
        answer = self.ask(
            """query($repository: RepositorySelector!) {
                sensorsOrError(repositorySelector: $repository) { ... on Sensors { results { name sensorState {
                    status ticks(limit: 500) { status timestamp skipReason runKeys error { message } } } } } }
                schedulesOrError(repositorySelector: $repository) { ... on Schedules { results { name scheduleState {
                    status ticks(limit: 500) { status timestamp skipReason runKeys error { message } } } } } }
            }""",
            repository=REPOSITORY,
        )
        found = [(item["name"], item["sensorState"]) for item in answer["sensorsOrError"]["results"]]
        found += [(item["name"], item["scheduleState"]) for item in answer["schedulesOrError"]["results"]]
        return [{"name": name, "on": state["status"], **tick} for name, state in found for tick in state["ticks"]]

    def runs(self, job: str | None = None) -> list[dict[str, Any]]:
        """Return the runs, the latest first."""
        answer = self.ask(
            """query($filter: RunsFilter) { runsOrError(filter: $filter, limit: 500) { ... on Runs { results {
                runId jobName status creationTime startTime endTime tags { key value } } } } }""",
            filter={"pipelineName": job} if job else {},
        )
        return answer["runsOrError"]["results"] if answer else []

    def key(self, session_type: str, event: str | None = None) -> str:
        """Return the partition of a session."""
        return f"{YEAR} {event or self.event} {session_type}"

    def folder(self, session_type: str, event: str | None = None) -> str:
        """Return the glob of a session's files."""
        return f"*{event or self.event}/{session_type}/*"

    # ---- the story

    def run(self) -> None:
        """Let the weekend happen."""
        self.appears()
        self.sessions_end()
        self.derived_assets_follow()
        self.correction()
        self.outage()
        self.night()
        self.nothing_went_wrong()

    def appears(self) -> None:
        """An empty instance: the calendar is published after the pipeline was started."""
        self.wait("the webserver answers", lambda: self.ask("{ version }"), 90)
        self.expect("an empty instance has no sessions", not self.partitions(), len(self.partitions()))
        ends = datetime.now(UTC) + timedelta(seconds=70)
        for number, name in enumerate(self.types):
            # Two at once, then one after another.
            end = ends + timedelta(seconds=20 * max(0, number - 1))
            self.season.reschedule(self.event, name, end - NOMINAL_LENGTH[name])
        self.ends = ends
        for name in self.season.events[1].session_types:
            self.season.reschedule(self.other, name, NOW + timedelta(days=30))
        self.server.publish("*schedule_*")
        self.wait("the calendar's sessions are partitions, without a restart", self.partitions, 150)

    def sessions_end(self) -> None:
        """The first session's files appear one by one, the others' at once."""
        first, others = self.types[0], self.types[1:]
        while datetime.now(UTC) < self.ends:
            time.sleep(1)
        for name in FILES:
            self.server.publish(f"*{self.event}/{first}/{name}.json")
            time.sleep(3)
        published = {first: time.time()}
        for name in others:
            self.server.publish(self.folder(name))
            published[name] = time.time()
        self.server.publish(self.folder(first))  # its telemetry
        sessions = {self.key(name) for name in self.types}
        for asset in SOURCE:
            self.wait(
                f"{asset} of all {len(sessions)} sessions is materialized",
                lambda asset=asset: sessions <= self.status(asset)["materialized"],
                240,
            )
        requested = {
            tag["value"]: run["creationTime"]
            for run in self.runs()  # the latest first: the first request of a session stays
            for tag in run["tags"]
            if tag["key"] == "dagster/partition" and run["creationTime"] > self.ends.timestamp()
        }
        for name in others:
            end = (self.ends + timedelta(seconds=20 * max(0, self.types.index(name) - 1))).timestamp()
            late = requested.get(self.key(name), float("inf")) - max(published[name], end)
            # The daemon looks at its sensors every five seconds, one after another.
            self.expect(f"{name} was requested within two polls", late <= 2 * POLL + 10, f"{late:.0f} s")

    def derived_assets_follow(self) -> None:
        """Automation makes them, level after level."""
        sessions = {self.key(name) for name in self.types}
        for asset in BY_SESSION:
            self.wait(
                f"{asset} follows by itself",
                lambda asset=asset: sessions <= self.status(asset)["materialized"],
                240,
            )
        self.wait(
            "event_summary follows", lambda: f"{YEAR} {self.event}" in self.status("event_summary")["materialized"], 120
        )
        self.wait("season_summary follows", lambda: str(YEAR) in self.status("season_summary")["materialized"], 120)

    def correction(self) -> None:
        """Lap times of the race are corrected; its weather is published again without a change."""
        race = self.key("Race")
        before = {asset: self.materializations(asset, race) for asset in ("laps", "weather", "fastest_laps")}
        first_time = self.first_lap_time()
        self.server.republish(f"*{self.event}/Race/session_laptimes.json")
        self.server.republish(f"*{self.event}/Race/weather.json")
        changed = self.wait(
            "the correction is materialized",
            lambda: len(self.materializations("laps", race)) > len(before["laps"]),
            LOOKED_AFTER,
        )
        if not changed:
            return
        after = self.materializations("laps", race)
        self.expect("the laps have another data version", after[0]["version"] != before["laps"][0]["version"])
        self.expect(
            "the cache has the corrected time",
            self.first_lap_time() == first_time + 0.001,
            f"{first_time} -> {self.first_lap_time()}",
        )
        self.wait(
            "what is derived from the laps follows",
            lambda: len(self.materializations("fastest_laps", race)) > len(before["fastest_laps"]),
            120,
        )
        self.wait(
            "the weather was fetched again",
            lambda: len(self.materializations("weather", race)) > len(before["weather"]),
            60,
        )
        weather = self.materializations("weather", race)
        self.expect("and keeps its data version", weather[0]["version"] == before["weather"][0]["version"])

    def outage(self) -> None:
        """The CDN fails while something is corrected; it is picked up when the CDN is back."""
        qualifying = self.key("Qualifying")
        before = len(self.materializations("laps", qualifying))
        self.server.faults.set(Fault("error"))
        self.server.republish(f"*{self.event}/Qualifying/session_laptimes.json")
        time.sleep(4 * POLL)
        self.expect("while the CDN is down every table can still be read", *self.readable())
        self.server.faults.clear()
        self.wait(
            "what changed while it was down is fetched when it is back",
            lambda: len(self.materializations("laps", qualifying)) > before,
            LOOKED_AFTER,
        )

    def night(self) -> None:
        """Three entries rot on disk; the nightly jobs find and mend them, and the day's backup is sound."""
        keys = self.rot()
        self.say(f"rotten: {', '.join(keys)}")
        self.ask(
            "mutation($selector: ScheduleSelector!) { startSchedule(scheduleSelector: $selector) { __typename } }",
            selector=REPOSITORY | {"scheduleName": "weekly_maintenance_schedule"},
        )
        self.write_settings(night=datetime.now(UTC) + timedelta(seconds=90))
        self.ask(
            "mutation($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) { __typename } }",
            name=REPOSITORY["repositoryLocationName"],
        )
        for job in ("nightly_warm_job", "daily_maintenance_job", "weekly_maintenance_job"):
            self.wait(
                f"{job} runs by its schedule and succeeds",
                lambda job=job: any(run["status"] == "SUCCESS" for run in self.runs(job)),
                420,
            )
        # The repair sensor looks every ten minutes for derived tables that are gone.
        self.wait("the rotten entries are back and sound", lambda: all(self.is_sound(key) for key in keys), 720)
        self.expect(
            "an alert told of the corruption",
            any(any(key in json.dumps(alert, ensure_ascii=False) for key in keys) for alert in self.alerts),
            f"{len(self.alerts)} alerts: {[alert.get('title') for alert in self.alerts]}",
        )
        backups = sorted((self.home / "backups").glob("*"))
        self.expect("there is a backup of the day", backups, [path.name for path in backups])
        if backups:
            self.expect("it restores into an empty folder and verifies", *self.restored(backups[-1]))

    def nothing_went_wrong(self) -> None:
        """No tick failed, no run failed but for the CDN, every tick that did nothing said why."""
        ticks = self.ticks()
        bad = [(tick["name"], (tick["error"] or {}).get("message")) for tick in ticks if tick["status"] == "FAILURE"]
        self.expect("no tick failed", not bad, bad[:3] or f"{len(ticks)} ticks")
        silent = {tick["name"] for tick in ticks if tick["status"] == "SKIPPED" and not tick["skipReason"]}
        self.expect("every tick that skipped said why", not silent - {"automation_sensor"}, silent)
        keys = [key for tick in ticks if tick["name"] == "race_completion_sensor" for key in tick["runKeys"] or ()]
        self.expect("no change was requested twice", len(keys) == len(set(keys)), f"{len(keys)} requests")
        runs = self.runs()
        failed = [run for run in runs if run["status"] == "FAILURE"]
        self.expect(
            "all runs succeeded but those that the outage hit", len(failed) <= 2, f"{len(failed)} of {len(runs)}"
        )

    # ---- the cache, from a process of its own: it belongs to the pipeline's

    def python(self, code: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return done.stdout.strip()

    def first_lap_time(self) -> float:
        code = (
            "import sys, tif1_pipeline as tif1\n"
            "tif1.get_config().offline = True\n"
            "times = tif1.get_session(int(sys.argv[1]), sys.argv[2], 'R').laps['LapTimeSeconds'].dropna()\n"
            "print(round(float(times.iloc[0]), 3))"
        )
        return float(self.python(code, str(YEAR), self.event))

    def readable(self) -> tuple[bool, str]:
        code = (
            "import sys, tif1_pipeline as tif1\n"
            "tif1.get_config().max_retries = 0\n"
            "for name in sys.argv[3:]:\n"
            "    session = tif1.get_session(int(sys.argv[1]), sys.argv[2], name)\n"
            "    print(len(session.laps), len(session.weather), len(session.telemetry))"
        )
        try:
            return True, ", ".join(self.python(code, str(YEAR), self.event, *self.types).splitlines())
        except RuntimeError as error:
            return False, str(error)[-300:]

    def rot(self) -> list[str]:
        """Flip bytes of a source table, of a part of the telemetry and of a derived table."""
        file = self.home / "cache" / "tif1_cache.db"
        wanted = ("%race_laps_pandas", "%qualifying_telemetry_pandas", "asset:stints@%")
        keys = []
        with sqlite3.connect(file, timeout=30) as connection:
            for pattern in wanted:
                entry, key = connection.execute(
                    "SELECT id, key FROM entries WHERE key LIKE ? ORDER BY key LIMIT 1", (pattern,)
                ).fetchone()
                part, data = connection.execute(
                    "SELECT id, data FROM parts WHERE entry_id = ? ORDER BY ordinal DESC LIMIT 1", (entry,)
                ).fetchone()
                middle = len(data) // 2
                rotten = data[:middle] + bytes(255 - byte for byte in data[middle : middle + 16]) + data[middle + 16 :]
                connection.execute("UPDATE parts SET data = ? WHERE id = ?", (rotten, part))
                keys.append(key)
        connection.close()
        return keys

    def is_sound(self, key: str) -> bool:
        code = "import sys, tif1_pipeline as tif1; print(tif1.get_cache().verify_entry(sys.argv[1]))"
        try:
            return self.python(code, key) == "True"
        except RuntimeError:  # it is not there at the moment
            return False

    def restored(self, backup: Path) -> tuple[bool, str]:
        code = (
            "import sys, json, tif1_pipeline as tif1\n"
            "tif1.get_config().cache_dir = sys.argv[2]\n"
            "cache = tif1.get_cache(); cache.restore(sys.argv[1]); print(json.dumps(cache.verify_integrity()))"
        )
        with tempfile.TemporaryDirectory() as folder:
            found = json.loads(self.python(code, str(backup), folder).splitlines()[-1])
        return (
            found["total_entries"] > 0 and found["valid_entries"] == found["total_entries"],
            f"{found['valid_entries']} of {found['total_entries']} entries sound",
        )


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def alert_endpoint(alerts: list[dict[str, Any]]) -> Iterator[int]:
    """Collect what is posted; gives the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            alerts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def main(arguments: Sequence[str]) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="an empty folder for everything; a temporary one by default")
    parser.add_argument("--hold", action="store_true", help="leave the UI open at the end, until Ctrl-C")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="weekend-", ignore_cleanup_errors=True) as temporary:
        home = (options.home or Path(temporary)).absolute()
        home.mkdir(parents=True, exist_ok=True)
        weekend = Weekend(home)
        weekend.server.hide("*")
        with weekend.server, alert_endpoint(weekend.alerts) as alert_port, weekend.running(alert_port):
            weekend.say(f"Dagster UI: http://127.0.0.1:{weekend.port}, all files in {home}")
            try:
                weekend.run()
            finally:
                if weekend.failures:
                    print((home / "dagster.log").read_text(errors="replace")[-15_000:])
            if options.hold:
                weekend.say("holding; Ctrl-C ends it")
                signal.pause()
    print(f"{len(weekend.failures)} expectations did not hold: {weekend.failures}" if weekend.failures else "all held")
    return min(len(weekend.failures), 100)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
