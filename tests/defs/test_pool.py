"""The pool ``cdn`` bounds the steps that fetch over all runs and processes of an instance."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tif1_pipeline.simulator import CdnServer, Fault

EVENT = "2025 Australian Grand Prix"
PARTITIONS = [f"{EVENT} Practice {number}" for number in (1, 2)]
ANSWER_SECONDS = 4.0
"""How long the CDN takes: much longer than a run needs to come to its step."""

RUN = """
import sys
import dagster as dg
from tif1_pipeline.definitions import defs
with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
    print("ready", flush=True)
    sys.stdin.readline()
    result = dg.materialize(
        list(defs.assets), selection=dg.AssetSelection.assets("weather"), instance=instance, partition_key=sys.argv[2],
        resources=dict(defs.resources), raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}})
    sys.exit(0 if result.success else 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2])
def test_two_runs_fetch_at_once_only_as_far_as_the_pool_allows(
    tif1: Any, cdn: CdnServer, tmp_path: Path, limit: int
) -> None:
    config = tif1.get_config()
    tif1.get_events(2025)
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text(
        f"telemetry: {{enabled: false}}\nstorage: {{sqlite: {{base_dir: {home}}}}}\n"
        f"concurrency: {{pools: {{default_limit: {limit}, granularity: op}}}}\n"
    )
    cdn.requests.clear()
    cdn.faults.add(Fault("latency", path="*/weather.json", seconds=ANSWER_SECONDS))
    with dg.DagsterInstance.from_config(str(home)) as instance:  # the processes would make its tables at once
        run_side_by_side(home, config, cdn)
        first, second = sorted(steps(instance))
    assert (second[0] < first[1]) == (limit == 2)
    assert cdn.requests.peak == limit


def run_side_by_side(home: Path, config: Any, cdn: CdnServer) -> None:
    """Run one partition, and the other while the CDN is answering the first.

    Not both at the same moment: Dagster looks for a free place in a pool and takes it in two statements, without a lock
    in SQLite, so two steps that do so within a few ms can get the same one.
    """
    environment = os.environ | {
        "TIF1_CDN_URLS": ",".join(config.cdn_urls),
        "TIF1_SCHEDULE_URLS": ",".join(config.schedule_urls),
        "TIF1_CACHE_DIR": str(config.cache_dir),
    }
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", RUN, str(home), partition],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for partition in PARTITIONS
        ]
        for process in processes:
            stack.callback(process.kill)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            deadline = time.monotonic() + 60
            while process is processes[0] and not cdn.requests.peak:
                assert process.poll() is None, "the first run is over and has asked for nothing"
                assert time.monotonic() < deadline, "the first run asks for nothing"
                time.sleep(0.02)
        assert [process.wait(60) for process in processes] == [0, 0]


def steps(instance: dg.DagsterInstance) -> list[tuple[float, float]]:
    """When the step of each run was started and over."""
    found = []
    for run in instance.get_runs():
        times = {
            entry.dagster_event.event_type_value: entry.timestamp
            for entry in instance.all_logs(run.run_id)
            if entry.dagster_event
        }
        found.append((times["STEP_START"], times["STEP_SUCCESS"]))
        assert found[-1][1] - found[-1][0] >= ANSWER_SECONDS
    assert len(found) == len(PARTITIONS)
    return found
