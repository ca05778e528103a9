"""The storage of Dagster's events: the same is known as with Dagster's own, for fewer transactions."""

import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine, event

from tif1_pipeline.cli.home import provide_instance
from tif1_pipeline.defs.event_storage import BATCH_SIZE, BatchedEventLogStorage

KEYS = [f"p{number:02}" for number in range(12)]
PARTITIONS = dg.StaticPartitionsDefinition(KEYS)
ALL = {"dagster/asset_partition_range_start": KEYS[0], "dagster/asset_partition_range_end": KEYS[-1]}
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
EVENT_LOG = """
event_log_storage:
  module: tif1_pipeline.defs.event_storage
  class: BatchedEventLogStorage
"""


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=dg.BetaWarning)

    @dg.asset(partitions_def=PARTITIONS, backfill_policy=dg.BackfillPolicy.single_run(), code_version="1")
    def made(context: dg.AssetExecutionContext) -> dict[str, int]:
        for key in context.partition_keys:
            context.add_asset_metadata({"number": int(key[1:])}, partition_key=key)
        context.add_output_metadata({"of all": len(context.partition_keys)})
        context.set_data_version("made", dg.DataVersion("one"))
        return {key: int(key[1:]) for key in context.partition_keys}

    @dg.asset(partitions_def=PARTITIONS, backfill_policy=dg.BackfillPolicy.single_run(), code_version="1")
    def derived(context: dg.AssetExecutionContext, made: dict[str, int]) -> None:
        context.log.info("between the two outputs")
        if "fail" in context.run.tags:
            raise dg.Failure("asked to fail")


@dg.asset_check(asset=made, blocking=False)
def is_sound() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True, metadata={"seen": 1})


pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")


@pytest.fixture(autouse=True)
def _no_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BATCH_SIZE, raising=False)


@contextmanager
def opened(home: Path, *, batched: bool) -> Iterator[dg.DagsterInstance]:
    """An instance in a folder, as DAGSTER_HOME names it."""
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n" + (EVENT_LOG if batched else ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(home))
        if batched:
            patch.delenv(BATCH_SIZE, raising=False)
        else:
            patch.setenv(BATCH_SIZE, "0")
        with dg.DagsterInstance.get() as instance:
            assert is_batched(instance) == batched
            yield instance


def is_batched(instance: dg.DagsterInstance) -> bool:
    """Tell which storage of events an instance has; by its name, as other tests load the modules anew."""
    names = {"BatchedEventLogStorage": True, "SqliteEventLogStorage": False}
    return names[type(instance.event_log_storage).__name__]


def run(instance: dg.DagsterInstance, **tags: str) -> dg.ExecuteInProcessResult:
    assets: list[Any] = [made, derived, is_sound]
    resources = {"io_manager": dg.mem_io_manager}
    return dg.materialize(
        assets, instance=instance, tags=ALL | tags, resources=resources, run_config=QUIET, raise_on_error=False
    )


def known(instance: dg.DagsterInstance, run_id: str) -> dict[str, Any]:
    """All that an instance tells of a run and its assets, without times and ids."""
    log = instance.get_records_for_run(run_id, limit=10_000).records
    told: dict[str, Any] = {
        "log": Counter(
            (entry.dagster_event_type, entry.step_key, entry.get_dagster_event().partition)
            for record in log
            if (entry := record.event_log_entry).is_dagster_event
        ),
        "status": instance.get_run_by_id(run_id).status,
    }
    order = [record.storage_id for record in log]
    assert order == sorted(order)
    for asset in (made, derived):
        key = asset.key
        materializations = instance.fetch_materializations(key, limit=1000).records
        record = instance.get_asset_records([key])[0].asset_entry
        last = record.last_materialization_record
        told[key.to_user_string()] = {
            "materialized": instance.get_materialized_partitions(key),
            "of partitions": [
                (
                    found.partition_key,
                    {name: value.value for name, value in found.asset_materialization.metadata.items()},
                    {
                        name: value
                        for name, value in found.asset_materialization.tags.items()
                        if not name.startswith("dagster/input_event_pointer")
                    },
                )
                for found in materializations
            ],
            "order": sorted(
                (ids := instance.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION)),
                key=ids.__getitem__,
            ),
            "planned": [
                found.event_log_entry.get_dagster_event().partition
                for found in instance.event_log_storage.get_event_records(
                    dg.EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED, key), limit=1000
                )
            ],
            "tags": Counter(
                (name, value)
                for found in materializations
                for tags in instance.get_event_tags_for_asset(key, filter_event_id=found.storage_id)
                for name, value in tags.items()
                if not name.startswith("dagster/input_event_pointer")
            ),
            "last run": record.last_run_id == run_id,
            "last": last and last.event_log_entry.get_dagster_event().partition,
            "status": instance.get_status_by_partition(key, KEYS, PARTITIONS),
        }
    summary = instance.event_log_storage.get_asset_check_summary_records([is_sound.check_key])
    told["check"] = {str(check): bool(found.last_check_execution_record) for check, found in summary.items()}
    return told


def test_a_run_of_many_partitions_is_known_as_with_dagsters_own_storage(tmp_path: Path) -> None:
    told = {}
    for batched in (True, False):
        with opened(tmp_path / str(batched), batched=batched) as instance:
            result = run(instance)
            assert result.success
            told[batched] = known(instance, result.run_id)
    assert told[True] == told[False]
    assert told[True]["made"]["materialized"] == set(KEYS)
    assert len(told[True]["derived"]["planned"]) == len(KEYS)
    assert told[True]["made"]["of partitions"][0][1] == {
        "number": int(told[True]["made"]["of partitions"][0][0][1:]),
        "of all": 12,
    }


def test_a_run_that_fails_leaves_what_it_had_planned(tmp_path: Path) -> None:
    told = {}
    for batched in (True, False):
        with opened(tmp_path / str(batched), batched=batched) as instance:
            result = run(instance, fail="yes")
            assert not result.success
            told[batched] = known(instance, result.run_id)
    assert told[True] == told[False]
    assert set(told[True]["derived"]["status"].values()) == {dg.AssetPartitionStatus.FAILED}
    assert not told[True]["derived"]["materialized"]


def test_a_partition_and_asset_more_takes_no_transaction_more(tmp_path: Path) -> None:
    commits: Counter[bool] = Counter()
    for batched in (True, False):
        with opened(tmp_path / str(batched), batched=batched) as instance:
            run(instance)

            def note(_: object, batched: bool = batched) -> None:
                commits[batched] += 1

            event.listen(Engine, "commit", note)
            try:
                run(instance)
            finally:
                event.remove(Engine, "commit", note)
    # Dagster's own takes two for each event, one a file; a partition has two events of each asset.
    assert commits[False] - commits[True] > 7 * len(KEYS), commits


def test_an_instance_can_be_switched_to_it_and_back(tmp_path: Path) -> None:
    runs = []
    for batched in (False, True, False):
        with opened(tmp_path / "home", batched=batched) as instance:
            runs.append(run(instance).run_id)
            found = instance.fetch_materializations(made.key, limit=1000).records
            assert Counter(record.run_id for record in found) == {run_id: len(KEYS) for run_id in runs}
    assert (tmp_path / "home/history/runs/index.db").exists()


def test_processes_that_run_at_once_lose_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "home", batched=True):
        pass  # else they would make its tables at once
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import dagster as dg, test_event_storage as it
with dg.DagsterInstance.get() as instance:
    for _ in range(2):
        assert it.run(instance).success
"""
    environment = os.environ | {"DAGSTER_HOME": str(tmp_path / "home")}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    with opened(tmp_path / "home", batched=True) as instance:
        for asset in (made, derived):
            found = instance.fetch_materializations(asset.key, limit=1000).records
            of_run = Counter(record.run_id for record in found)
            assert len(of_run) == 4
            assert set(of_run.values()) == {len(KEYS)}
            assert len({record.storage_id for record in found}) == 4 * len(KEYS)


def test_the_instance_that_comes_along_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(provide_instance(tmp_path / "home")))
    with dg.DagsterInstance.get() as instance:
        assert is_batched(instance)
        assert os.environ[BATCH_SIZE] == "500"
        # What starts further processes for the instance finds it again.
        again = dg.DagsterInstance.from_ref(instance.get_ref())
        assert is_batched(again)
        again.dispose()
    assert (tmp_path / "home/history/runs/index.db").exists()


def test_the_environment_says_how_many_events_come_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BATCH_SIZE, "7")
    BatchedEventLogStorage(str(tmp_path))
    assert os.environ[BATCH_SIZE] == "7"


def test_a_folder_that_nothing_names_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    (tmp_path / "dagster.yaml").write_text(EVENT_LOG)
    with pytest.raises(dg.DagsterInvariantViolationError, match="set DAGSTER_HOME, or give it a base_dir"):
        dg.DagsterInstance.from_config(str(tmp_path)).event_log_storage.get_all_run_ids()
    (tmp_path / "dagster.yaml").write_text(EVENT_LOG + f"  config:\n    base_dir: {tmp_path / 'events'}\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert is_batched(instance)
    assert (tmp_path / "events/index.db").exists()
