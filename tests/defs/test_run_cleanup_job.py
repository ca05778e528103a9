"""Deleting old runs: on a real SQLite instance, whose word on partitions and checks must be the same afterwards."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.loader import LoadingContextForTest

from tif1_pipeline import api
from tif1_pipeline.defs.jobs.runs import run_cleanup_job, runs_in_use

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
KEYS = ("steady", "corrected", "reverted", "failed", "canceled", "once", "observed", "never")
PARTITIONS = dg.StaticPartitionsDefinition(KEYS)
FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


@dg.asset(partitions_def=PARTITIONS, check_specs=[dg.AssetCheckSpec("sound", asset="source")], code_version="1")
def source(context: dg.AssetExecutionContext):
    tags = context.run.tags
    if tags.get("fail"):
        raise dg.Failure("as told", allow_retries=False)
    print(f"{context.partition_key} is fetched")
    return dg.MaterializeResult(
        data_version=dg.DataVersion(tags["version"]),
        check_results=[dg.AssetCheckResult(passed=tags["version"] != "bad", metadata={"size": len(tags["version"])})],
    )


@dg.asset(partitions_def=PARTITIONS, deps=[source], code_version="1")
def derived() -> None: ...


@dg.asset
def whole() -> None: ...


ASSETS = (source, derived, whole)
DEFS = dg.Definitions(ASSETS, jobs=[run_cleanup_job], resources={"op_io_manager": dg.mem_io_manager})


JOB = DEFS.resolve_implicit_global_asset_job_def()


NO_LOGS = "compute_logs: {module: dagster._core.storage.noop_compute_log_manager, class: NoOpComputeLogManager}\n"


class Home:
    """A Dagster instance on SQLite; ``logs`` keeps what steps print, for which Dagster starts two processes a step."""

    def __init__(self, folder: Path, *, logs: bool = False) -> None:
        self.folder = folder
        (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n" + ("" if logs else NO_LOGS))
        self.instance = dg.DagsterInstance.from_config(str(folder))

    def run(self, asset: dg.AssetsDefinition, key: str | None = None, **tags: str) -> str:
        result = JOB.execute_in_process(
            instance=self.instance,
            asset_selection=[asset.key],
            partition_key=key,
            tags=tags,
            run_config=QUIET,
            raise_on_error=False,
        )
        assert result.success != bool(tags.get("fail"))
        return result.run_id

    def clean(self, **config):
        return DEFS.resolve_job_def("run_cleanup_job").execute_in_process(
            instance=self.instance, run_config={"ops": {"delete_old_runs": {"config": config}}, **QUIET}
        )

    def counts(self, **config) -> dict:
        return self.clean(**config).output_for_node("delete_old_runs")

    def said(self) -> dict:
        """What Dagster says now, worked out anew from what is stored."""
        graph = DEFS.resolve_asset_graph()
        instance = self.instance
        instance.wipe_asset_cached_status([asset.key for asset in ASSETS])
        stale = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
        said, runs = {}, self.runs() | {""}
        for asset in (source, derived):
            said[asset.key, "status"] = instance.get_status_by_partition(asset.key, KEYS, PARTITIONS)
            for key in KEYS:
                record = instance.get_latest_data_version_record(asset.key, partition_key=key)
                said[asset.key, key] = (
                    record and (record.storage_id, record.event_log_entry),
                    record and record.run_id in runs,
                    stale.get_status(asset.key, key),
                    [cause.reason for cause in stale.get_stale_causes(asset.key, key)],
                )
        said["observed"] = instance.fetch_observations(source.key, limit=1).records[0].event_log_entry
        whole_record = instance.get_latest_materialization_event(whole.key)
        said["whole"] = (whole_record, whole_record.run_id in runs)
        checks = instance.event_log_storage.get_asset_check_partition_info(list(graph.asset_check_keys))
        said["checks"] = {
            info.partition_key: (info.latest_execution_status, info.latest_check_event_storage_id, info.is_current)
            for info in checks
        }
        said["check"] = {
            key: (latest.id, latest.status, latest.run_id in runs)
            for key, latest in instance.event_log_storage.get_latest_asset_check_execution_by_key(
                list(graph.asset_check_keys)
            ).items()
        }
        return said

    def runs(self) -> set[str]:
        return set(self.instance.get_run_ids())

    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}

    def size(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: each run makes a database of its own, and waits for the disk."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def history(memory) -> tuple[Path, dict[str, list[str]]]:
    """An instance with a history, to be copied, and its runs by partition, the oldest first."""
    (memory / "history").mkdir()
    home = Home(memory / "history")
    runs: dict[str, list[str]] = {}

    def run(asset, key, **tags):
        runs.setdefault(key or "whole", []).append(home.run(asset, key, **tags))

    with home.instance:
        for version in "abc":
            run(source, "corrected", version=version)
            run(derived, "corrected") if version == "b" else None  # and is stale since
        run(source, "steady", version="a")
        run(derived, "steady")
        for _ in range(2):
            run(source, "steady", version="a")  # derived is fresh all the same
        for version in "aba":
            run(source, "reverted", version=version)
            run(derived, "reverted") if version == "b" else None
        run(source, "once", version="bad")
        run(source, "failed", version="a")
        run(source, "failed", fail="yes")
        run(source, "canceled", version="a")
        run(source, "canceled", fail="yes")
        canceled = home.run(source, "canceled", fail="yes")
        home.instance.report_run_canceled(home.instance.get_run_by_id(canceled))
        runs["canceled"].append(canceled)
        run(source, "observed", version="a")
        home.instance.report_runless_asset_event(dg.AssetObservation(source.key, partition="observed"))
        home.instance.report_runless_asset_event(
            dg.AssetMaterialization(derived.key, partition="observed", tags={"dagster/data_version": "z"})
        )
        run(whole, None)
        run(whole, None)
    return home.folder, runs


@pytest.fixture
def home(history, memory) -> Iterator[Home]:
    folder = shutil.copytree(history[0], memory / "home")
    home = Home(folder)
    with home.instance:
        yield home
    shutil.rmtree(folder)


@pytest.fixture
def runs(history) -> dict[str, list[str]]:
    return history[1]


@pytest.fixture(scope="module")
def before(history, memory) -> dict:
    """What Dagster says of the history."""
    folder = shutil.copytree(history[0], memory / "before")
    home = Home(folder)
    with home.instance:
        return home.said()


def test_what_dagster_says_is_the_same_afterwards(home, runs, before):
    size = home.size()
    counts = home.counts(older_than_days=0)
    assert home.said() == before
    assert counts["deleted"] == 5
    assert counts["examined"] == counts["deleted"] + counts["kept"]
    assert counts["freed_bytes"] > 5 * 100_000
    assert home.size() < size
    # And again, when nothing but what is needed is left.
    assert home.counts(older_than_days=0)["deleted"] <= 1
    assert home.said() == before


@pytest.mark.parametrize(
    ("key", "number"),
    [("steady", 0), ("corrected", 3), ("reverted", 1), ("failed", 1), ("canceled", 2), ("once", 0), ("whole", 1)],
)
def test_without_what_is_kept_it_would_not_be(home, runs, before, key, number):
    assert runs[key][number] in runs_in_use(home.instance)
    home.instance.delete_run(runs[key][number])
    assert home.said() != before


def test_it_deletes_what_nothing_rests_on(home, runs):
    home.counts(older_than_days=0)
    kept = home.runs()
    # Of equal versions the first and the last; what derived has seen in between is told by the first.
    assert [run in kept for run in runs["steady"]] == [True, True, False, True]
    # a, b, derived of b, c
    assert [run in kept for run in runs["corrected"]] == [False, False, True, True]
    assert [run in kept for run in runs["reverted"]] == [True] * 4
    assert [run in kept for run in runs["failed"]] == [True, True]
    assert [run in kept for run in runs["canceled"]] == [True, False, True]
    assert [run in kept for run in runs["whole"]] == [False, True]


def test_nothing_of_a_deleted_run_is_left_behind(home):
    home = Home(home.folder, logs=True)
    with home.instance:
        _, gone, _ = [home.run(source, "never", version="a") for _ in range(3)]
        assert [file for file in home.files() if gone in file and file.endswith(".out")]
        counts = home.counts(older_than_days=0)
        check_that_nothing_is_left(home, gone)
    assert counts["freed_bytes"] > 0


def check_that_nothing_is_left(home: Home, gone: str) -> None:
    assert gone not in home.runs()
    assert not any(gone in file for file in home.files())
    storage = home.instance.event_log_storage
    with storage.index_connection() as connection:
        for table in ("event_logs", "asset_check_executions"):
            ids = {row[0] for row in connection.exec_driver_sql(f"SELECT DISTINCT run_id FROM {table}")}
            assert ids - {""} <= home.runs(), table
    assert {path.stem for path in (home.folder / "history" / "runs").glob("*-*.db")} <= home.runs()
    assert {path.name for path in (home.folder / "storage").iterdir()} <= home.runs()


def test_files_of_runs_that_were_deleted_otherwise_are_removed(home, runs):
    gone = runs["steady"][2]
    home.instance.delete_run(gone)
    assert any(gone in file for file in home.files())
    (home.folder / "storage" / "somebody-else").mkdir(parents=True)
    # The events of no run, and what is not of a run, are not touched.
    runless = home.folder / "history" / "runs" / ".db"
    assert runless.exists()
    counts = home.counts(older_than_days=0, max_runs=1)
    assert counts["leftovers"] >= 1
    assert not any(gone in file for file in home.files())
    assert runless.exists()
    assert (home.folder / "storage" / "somebody-else").exists()


def test_a_dry_run_says_what_a_run_deletes(home, before):
    files, existing = home.files(), home.runs()
    counts = home.counts(older_than_days=0, dry_run=True)
    assert home.said() == before
    assert files <= home.files()
    assert existing <= home.runs()
    done = home.counts(older_than_days=0)
    # The run that looked is the last one of its job no more.
    assert done["deleted"] - counts["would_delete"] in {0, 1}
    assert counts["freed_bytes"] > 0
    assert "deleted" not in counts


def test_as_many_as_allowed_go_and_the_next_run_goes_on(home):
    existing = len(home.runs())
    assert home.counts(older_than_days=0, max_runs=2)["deleted"] == 2
    assert len(home.runs()) == existing - 2 + 1
    assert home.counts(older_than_days=0, max_runs=3)["deleted"] == 3


def test_the_log_tells_how_far_it_is(home, capfd):
    job = DEFS.resolve_job_def("run_cleanup_job")
    config = {"older_than_days": 0, "max_runs": 5, "batch": 2}
    job.execute_in_process(instance=home.instance, run_config={"ops": {"delete_old_runs": {"config": config}}})
    said = capfd.readouterr().err
    assert [f"{number} of 5 runs are deleted" in said for number in range(1, 6)] == [False, True, False, True, True]


def test_young_runs_stay_and_the_age_is_the_setting(home, monkeypatch):
    assert home.counts()["deleted"] == 0
    monkeypatch.setattr(api.get_config(), "run_retention", timedelta(milliseconds=1))
    assert home.counts()["deleted"] > 0


def test_runs_under_way_and_those_of_an_open_backfill_stay(home, runs):
    queued = home.instance.add_run(dg.DagsterRun("a_job", status=dg.DagsterRunStatus.STARTED))
    in_backfill = runs["steady"][2]
    home.instance.add_run_tags(in_backfill, {"dagster/backfill": "b"})
    backfill = PartitionBackfill("b", BulkActionStatus.REQUESTED, False, {}, 0.0, asset_selection=[source.key])
    home.instance.add_backfill(backfill)
    home.counts(older_than_days=0)
    assert {queued.run_id, in_backfill} <= home.runs()
    home.instance.update_backfill(backfill.with_status(BulkActionStatus.COMPLETED_SUCCESS))
    home.counts(older_than_days=0)
    assert queued.run_id in home.runs()
    assert in_backfill not in home.runs()


def test_the_run_that_others_execute_again_stays_until_they_are_gone(home, runs):
    root = runs["steady"][2]  # nothing else rests on it
    again = home.instance.add_run(
        dg.DagsterRun("a_job", root_run_id=root, parent_run_id=root, tags={"dagster/root_run_id": root})
    )
    home.counts(older_than_days=0)
    assert root in home.runs()
    assert {run.run_id for run in home.instance.get_run_group(again.run_id)[1]} == {root, again.run_id}
    home.instance.delete_run(again.run_id)
    home.counts(older_than_days=0)
    assert root not in home.runs()


STORING = """
import sys, pathlib
from test_run_cleanup_job import Home, source
home = Home(pathlib.Path(sys.argv[1]))
with home.instance:
    for number in range(4):
        print(home.run(source, "never", version=str(number)), file=sys.__stderr__, flush=True)
"""


@pytest.mark.slow
def test_another_process_goes_on_storing_meanwhile(home, before):
    made = []
    with subprocess.Popen(
        [sys.executable, "-c", STORING, str(home.folder)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        stderr=subprocess.PIPE,
        text=True,
    ) as storing:
        made.append(storing.stderr.readline().strip())
        assert home.counts(older_than_days=0, max_runs=4)["deleted"] == 4
        made += storing.stderr.read().split()
    assert len(made) == 4, made
    after = home.said()
    assert after[source.key, "never"][0][1].run_id == made[-1]
    untouched = [(asset.key, key) for asset in (source, derived) for key in KEYS if key != "never"]
    assert {about: after[about] for about in untouched} == {about: before[about] for about in untouched}
    statuses = after[source.key, "status"]
    assert before[source.key, "status"] == statuses | {"never": None}
    assert statuses["never"] is not None


def test_events_in_another_database_than_sqlite_are_left_alone(home, monkeypatch):
    monkeypatch.setattr("sqlalchemy.dialects.sqlite.base.SQLiteDialect.name", "postgresql")
    with pytest.raises(dg.Failure, match="deleted from SQLite alone"):
        runs_in_use(home.instance)


def test_the_metadata_are_numbers(home):
    result = home.clean(older_than_days=0)
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    metadata = {name: value.value for name, value in event.event_specific_data.metadata.items()}
    assert metadata.items() <= result.output_for_node("delete_old_runs").items()
    assert {type(value) for value in metadata.values()} == {int, float}


def test_an_instance_in_memory_is_cleaned_too(instance):
    for _ in range(3):
        result = dg.materialize([whole], instance=instance, run_config=QUIET)
    job = DEFS.resolve_job_def("run_cleanup_job")
    config = {"ops": {"delete_old_runs": {"config": {"older_than_days": 0}}}, **QUIET}
    assert (
        job.execute_in_process(instance=instance, run_config=config).output_for_node("delete_old_runs")["deleted"] == 2
    )
    assert instance.get_latest_materialization_event(whole.key).run_id == result.run_id
