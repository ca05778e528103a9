"""The pipeline of the simulated weekend: `tif1-pipeline dev` in a process of its own, asked through GraphQL."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from tif1_pipeline.simulator import CdnServer

POLL = 10
"""Seconds between two looks of the completion sensor."""
COMPLETION = "race_completion_sensor"
KEY = "5ec2e7" + 58 * "0"
"""The cache is encrypted with it."""
REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": "tif1_pipeline.definitions"}


@dataclass(frozen=True)
class Run:
    """A run; times in seconds since 1970, None while it is not so far."""

    id: str
    job: str
    status: str
    created: float
    started: float | None
    ended: float | None
    tables: frozenset[str]
    tags: dict[str, str]

    @property
    def partition(self) -> str | None:
        return self.tags.get("dagster/partition")


@dataclass(frozen=True)
class Tick:
    """A tick of a sensor or schedule."""

    name: str
    status: str
    began: float
    ended: float
    said: str
    error: str | None
    run_keys: tuple[str, ...]
    runs: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Pipeline:
    """`tif1-pipeline dev` in a folder, against a CDN."""

    def __init__(self, home: Path, cdn: CdnServer) -> None:
        self.home = home
        self.cdn = cdn
        self.port = free_port()

    @contextmanager
    def running(self, alert_url: str) -> Iterator[None]:
        """Run until the block ends."""
        self.settings = {
            "cache_dir": str(self.home / "cache"),
            "backup_dir": str(self.home / "backups"),
            "cdn_urls": self.cdn.cdn_urls,
            "schedule_urls": self.cdn.schedule_urls,
            "max_retries": 0,
            "completion_interval": POLL,
            "calendar_interval": 15,
            "repair_interval": 60,
            "alert_urls": [alert_url],
            "cache_encryption_key": KEY,
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

    def log(self) -> str:
        """Return the end of what it has printed."""
        return (self.home / "dagster.log").read_text(errors="replace")[-15_000:]

    # ---- questions

    def answer(self, query: str, **variables: Any) -> Any:
        """Return all that the webserver answers, its errors too."""
        url, question = f"http://127.0.0.1:{self.port}/graphql", {"query": query, "variables": variables}
        return httpx.post(url, json=question, timeout=60).json()

    def ask(self, query: str, **variables: Any) -> Any:
        """Ask the webserver; None while it cannot answer."""
        try:
            answer = self.answer(query, **variables)
        except (httpx.HTTPError, ValueError):
            return None
        if answer.get("errors"):
            raise RuntimeError(answer["errors"][0]["message"])
        return answer["data"]

    def partitions(self, asset: str = "laps") -> set[str] | None:
        """Return an asset's partitions as the webserver knows them; None while it does not know the asset."""
        answer = self.ask(
            "query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode { partitionKeys } } }",
            key={"path": [asset]},
        )
        keys = (answer or {}).get("assetNodeOrError", {}).get("partitionKeys")
        return None if keys is None else set(keys)

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
                assetMaterializations(partitions: $partitions, limit: 20) { timestamp tags { key value } }
            } } }""",
            key={"path": [asset]},
            partitions=[partition],
        )
        found = (answer or {}).get("assetOrError", {}).get("assetMaterializations") or []
        return [
            {"at": float(item["timestamp"]) / 1000, "version": _tags(item).get("dagster/data_version")}
            for item in found
        ]

    def ticks(self, name: str | None = None) -> list[Tick]:
        """Return the ticks of all sensors and schedules, or of one."""
        state = "ticks(limit: 500) { status timestamp endTimestamp skipReason runKeys runIds error { message } }"
        answer = self.ask(
            f"""query($repository: RepositorySelector!) {{
                sensorsOrError(repositorySelector: $repository) {{ ... on Sensors {{
                    results {{ name state: sensorState {{ {state} }} }} }} }}
                schedulesOrError(repositorySelector: $repository) {{ ... on Schedules {{
                    results {{ name state: scheduleState {{ {state} }} }} }} }}
            }}""",
            repository=REPOSITORY,
        )
        found = [item for part in (answer or {}).values() for item in part["results"]]
        return [
            Tick(
                item["name"],
                tick["status"],
                tick["timestamp"],
                tick["endTimestamp"] or tick["timestamp"],
                tick["skipReason"] or "",
                (tick["error"] or {}).get("message"),
                tuple(tick["runKeys"] or ()),
                tuple(tick["runIds"] or ()),
            )
            for item in found
            if name in (None, item["name"])
            for tick in item["state"]["ticks"]
        ]

    def runs(self, job: str | None = None) -> list[Run]:
        """Return the runs, the latest first."""
        answer = self.ask(
            """query($filter: RunsFilter) { runsOrError(filter: $filter, limit: 500) { ... on Runs { results {
                runId jobName status creationTime startTime endTime assetSelection { path } tags { key value }
            } } } }""",
            filter={"pipelineName": job} if job else {},
        )
        return [
            Run(
                run["runId"],
                run["jobName"],
                run["status"],
                run["creationTime"],
                run["startTime"],
                run["endTime"],
                frozenset("/".join(key["path"]) for key in run["assetSelection"] or ()),
                _tags(run),
            )
            for run in (answer["runsOrError"]["results"] if answer else ())
        ]

    def why_failed(self, run: Run) -> list[str]:
        """Return what failed in a run, and why: its steps, and itself where no step did."""
        error = "error { message errorChain { error { message } } }"
        answer = self.ask(
            f"""query($id: ID!) {{ logsForRun(runId: $id) {{ ... on EventConnection {{ events {{
                ... on ExecutionStepFailureEvent {{ stepKey {error} }} ... on RunFailureEvent {{ message {error} }}
            }} }} }} }}""",
            id=run.id,
        )
        events = [event for event in (answer or {}).get("logsForRun", {}).get("events", ()) if event]
        steps = [event for event in events if "stepKey" in event]
        return [f"{event.get('stepKey') or event['message']}: {_causes(event['error'])}" for event in steps or events]

    # ---- orders

    def start_schedule(self, name: str) -> None:
        """Switch a schedule on."""
        self.ask(
            "mutation($selector: ScheduleSelector!) { startSchedule(scheduleSelector: $selector) { __typename } }",
            selector=REPOSITORY | {"scheduleName": name},
        )

    def switch_sensor(self, name: str, *, on: bool) -> None:
        """Switch a sensor on or off."""
        selector = REPOSITORY | {"sensorName": name}
        if on:
            self.ask(
                "mutation($selector: SensorSelector!) { startSensor(sensorSelector: $selector) { __typename } }",
                selector=selector,
            )
            return
        found = self.ask(
            """query($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) { ... on Sensor {
                sensorState { id } } } }""",
            selector=selector,
        )
        self.ask(
            "mutation($id: String!) { stopSensor(id: $id) { __typename } }",
            id=found["sensorOrError"]["sensorState"]["id"],
        )

    def reload(self) -> None:
        """Have the code read anew, with the settings."""
        self.ask(
            "mutation($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) { __typename } }",
            name=REPOSITORY["repositoryLocationName"],
        )


def _tags(item: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in item["tags"]}


def _causes(error: dict[str, Any] | None) -> str:
    chain = [error, *(link["error"] for link in error["errorChain"])] if error else []
    return " <- ".join(link["message"].strip() for link in chain)[:500]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
