"""New events become partitions without a restart: a real webserver, daemon and code server, from an empty instance."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import httpx
import pytest

from tif1_pipeline.simulator import CdnServer, Season

YEAR = datetime.now(UTC).year
# Bounds, not expectations: nothing else may take the machine's cores meanwhile for a daemon to be prompt.
_START_SECONDS = 180
_RELOAD_SECONDS = 180

PARTITIONS = """query { assetNodeOrError(assetKey: {path: ["laps"]}) { ... on AssetNode { partitionKeys } } }"""


class Dagster:
    """``dagster dev`` on an instance of its own."""

    def __init__(self, folder: Path, cdn: CdnServer) -> None:
        self.cdn = cdn
        self.home = folder / "home"
        self.home.mkdir()
        (self.home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        settings = {
            "CACHE_DIR": str(folder / "cache"),
            "CDN_URLS": ",".join(cdn.cdn_urls),
            "SCHEDULE_URLS": ",".join(cdn.schedule_urls),
            "CALENDAR_INTERVAL": "5",
            "WEBSERVER_URL": self.url,
        }
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TIF1_")},
            **{f"TIF1_{name}": value for name, value in settings.items()},
            "DAGSTER_HOME": str(self.home),
        }
        with dg.DagsterInstance.from_config(str(self.home)):
            pass  # its processes would make its tables at once, and stumble over each other
        self.log = folder / "log.txt"
        command = [sys.executable, "-m", "dagster", "dev", "-m", "tif1_pipeline.definitions", "-p", str(self.port)]
        # Started in the background, it would never see SIGINT, which ends it.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with self.log.open("w") as log:
                self.process = subprocess.Popen(
                    command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
                )
        finally:
            signal.signal(signal.SIGINT, before)

    def sessions(self) -> list[str] | None:
        """The partitions of laps as the webserver has them; None while it cannot say."""
        try:
            data = httpx.post(f"{self.url}/graphql", json={"query": PARTITIONS}, timeout=10).json()["data"]
            return data["assetNodeOrError"].get("partitionKeys")
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None

    def wait(self, what: str, condition, seconds: float) -> float:
        started = time.monotonic()
        while not condition():
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() - started < seconds, (
                f"{what}: not within {seconds} s\n{self.log.read_text()[-4000:]}"
            )
            time.sleep(0.5)
        return time.monotonic() - started

    def ticks(self):
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            (state,) = [s for s in instance.all_instigator_state() if s.instigator_name == "calendar_sensor"]
            return instance.get_ticks(state.instigator_origin_id, state.selector_id)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture
def season():
    return Season(YEAR, seed=7, events=3, size="tiny")


@pytest.fixture
def dagster(season, tmp_path):
    with CdnServer(season) as cdn:
        cdn.hide("*")
        dagster = Dagster(tmp_path, cdn)
        try:
            yield dagster
        finally:
            dagster.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_events_become_and_cease_to_be_partitions_of_a_running_dagster(dagster, season):
    dagster.wait("the webserver", lambda: dagster.sessions() is not None, _START_SECONDS)
    assert dagster.sessions() == []

    dagster.cdn.publish()
    expected = [key.partition for key in season.sessions()]
    took = dagster.wait("sessions", lambda: dagster.sessions() == expected, _RELOAD_SECONDS)
    print(f"from the publication of the calendar to its partitions: {took:.1f} s")

    gone = season.events[-1].name
    season.cancel(gone)
    dagster.cdn.republish(f"schedule_{YEAR}.json")
    left = [key for key in expected if f" {gone} " not in key]
    took = dagster.wait("fewer sessions", lambda: dagster.sessions() == left, _RELOAD_SECONDS)
    print(f"from the cancellation to the partitions without it: {took:.1f} s")

    # The daemon's own code server, which runs the sensors, has them too.
    dagster.wait(
        "a quiet tick",
        lambda: any("loaded as partitions" in (tick.skip_reason or "") for tick in dagster.ticks()[:1]),
        _RELOAD_SECONDS,
    )
    ticks = dagster.ticks()
    assert not [tick.error for tick in ticks if tick.error]
    assert sum("the code location was reloaded" in (tick.skip_reason or "") for tick in ticks) == 2
