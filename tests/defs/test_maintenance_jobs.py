"""The maintenance jobs: real corruption in a real file, found, repaired and reported by real runs."""

import hashlib
import logging
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey, SessionKey
from tif1_pipeline.simulator import Fault

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")  # as in definitions.py

RACE = SessionKey(2025, "Australian Grand Prix", "Race")
LAPS, TELEMETRY = RACE.entry("laps").text, RACE.entry("telemetry").text
FASTEST = f"asset:fastest_laps@{RACE.partition}"
QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}
DAILY = [
    "verify_integrity",
    "clear_corrupted",
    "refetch_corrupted",
    "cleanup",
    "backup",
    "statistics_report",
    "outcome",
]


class Project:
    """Assets and jobs over a cache that holds a race and what is made of it."""

    def __init__(self, tif1, instance):
        from tif1_pipeline.defs.assets.derived import derived_assets
        from tif1_pipeline.defs.assets.source import source_assets
        from tif1_pipeline.defs.io_manager import CacheIOManager
        from tif1_pipeline.defs.jobs import maintenance
        from tif1_pipeline.defs.resources import TimingDataResource

        self.tif1, self.instance, self.jobs = tif1, instance, maintenance
        self.cache = tif1.get_cache()
        self.resources = {
            "io_manager": CacheIOManager(),
            "timing_data": TimingDataResource(),
            "op_io_manager": dg.mem_io_manager,
        }
        self.assets = [*source_assets, *derived_assets]

    def materialize(self, *names):
        result = dg.materialize(
            self.assets,
            selection=dg.AssetSelection.assets(*names),
            instance=self.instance,
            resources=self.resources,
            partition_key=RACE.partition,
            run_config={"loggers": QUIET},
        )
        assert result.success

    def run(self, job, *, dry_run=False, success=True, **ops):
        """Run a job by its name, or one that a test has made; options are by op."""
        definition = getattr(self.jobs, job) if isinstance(job, str) else job
        names = [node.name for node in definition.nodes]
        rehearsed = {name: {"dry_run": True} for name in names} if dry_run else {}
        options = {name: {"config": rehearsed.get(name, {}) | ops.get(name, {})} for name in rehearsed.keys() | ops}
        defs = dg.Definitions(jobs=[definition], resources=self.resources)
        result = defs.get_job_def(definition.name).execute_in_process(
            run_config={"ops": options, "loggers": QUIET}, instance=self.instance, raise_on_error=False
        )
        errors = [event.step_failure_data.error.to_string() for event in result.all_events if event.is_step_failure]
        assert result.success is success, errors
        return result

    def versions(self, asset):
        """The data versions of all materializations of the race, the newest first."""
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[RACE.partition]), limit=10
        ).records
        return [(record.asset_materialization.tags or {}).get("dagster/data_version") for record in records]


@pytest.fixture(scope="module")
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Where the first test leaves a copy of its cache for the others."""
    return tmp_path_factory.mktemp("prepared") / "cache"


@pytest.fixture
def project(tif1, instance, prepared):
    """A project that has loaded after the calendar was stored, and whose cache holds a race."""
    config = tif1.get_config()
    before = config.to_dict()
    if prepared.exists():
        shutil.copytree(prepared, config.cache_dir)
        project = Project(tif1, instance)
    else:
        tif1.get_events(2025)
        for name in [name for name in sys.modules if name.startswith("tif1_pipeline.defs")]:
            del sys.modules[name]
        project = Project(tif1, instance)
        project.materialize("drivers", "laps", "telemetry", "fastest_laps")
        tif1.close()
        shutil.copytree(config.cache_dir, prepared)
    instance.wipe()
    yield project
    tif1.close()
    names = ("cache_enabled", "cache_readonly", "cache_fallback_dir", "backup_dir", "offline")
    config.update({name: before[name] for name in names})


def damage(cache, key, ordinal=1):
    """Overwrite the stored bytes of one part of an entry."""
    cache.flush()
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
        done = connection.execute(
            "UPDATE parts SET data = zeroblob(length(data)) WHERE ordinal = ? AND entry_id = "
            "(SELECT id FROM entries WHERE key = ?)",
            (ordinal, key),
        )
        assert done.rowcount == 1, key


def damage_three(cache):
    for key, ordinal in ((LAPS, 1), (TELEMETRY, 2), (FASTEST, 1)):
        damage(cache, key, ordinal)


def metadata_of(result, op):
    (event,) = [
        event
        for event in result.all_events
        if event.step_key == op and event.event_type == dg.DagsterEventType.STEP_OUTPUT
    ]
    return {name: value.value for name, value in event.event_specific_data.metadata.items()}


def failed_steps(result):
    return [event.step_key for event in result.all_events if event.is_step_failure]


def failure_of(result):
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event.step_failure_data.user_failure_data.description


def content(folder: Path):
    """Every file but an empty log and SQLite's shared index, in which readers leave their marks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.stat().st_size and not path.name.endswith("-shm")
    }


# ---- the daily job


def test_the_daily_job_finds_removes_fetches_again_backs_up_and_reports(project, tmp_path, caplog):
    cache, tif1 = project.cache, project.tif1
    session = tif1.get_session(2025, "Australia", "Race")
    laps, telemetry = session.laps.copy(), session.telemetry.copy()
    checksum = cache.info(LAPS).checksum
    tif1.get_config().backup_dir = tmp_path / "elsewhere"
    damage_three(cache)
    with caplog.at_level(logging.INFO, logger="tif1_pipeline.alerts"):
        result = project.run("daily_maintenance_job")

    verified = metadata_of(result, "verify_integrity")
    assert verified["corrupted_entries"] == 3
    assert type(verified["corrupted_entries"]) is int
    assert type(verified["integrity_pct"]) is float
    assert all(key.replace("_", "\\_") in verified["corrupted"] for key in (LAPS, TELEMETRY))
    assert metadata_of(result, "clear_corrupted")["removed"] == 3
    refetched = metadata_of(result, "refetch_corrupted")
    assert (refetched["refetched"], refetched["derived"], refetched["missing"]) == (2, 1, 0)
    assert "asset:fastest" in refetched["derived_list"]
    assert cache.verify_integrity()["integrity_pct"] == 100
    assert cache.info(FASTEST) is None
    session = tif1.get_session(2025, "Australia", "Race")
    pd.testing.assert_frame_equal(session.laps, laps)
    pd.testing.assert_frame_equal(session.telemetry, telemetry)

    # Dagster knows of the tables that were stored, and that they are what they were.
    assert project.versions("laps") == [checksum] == [cache.info(LAPS).checksum]
    assert project.versions("telemetry") == [cache.info(TELEMETRY).checksum]
    assert project.versions("drivers") == project.versions("fastest_laps") == []

    (alert,) = [record for record in caplog.records if record.name == "tif1_pipeline.alerts"]
    for word in ("3 faults", LAPS, TELEMETRY, "3 entries were removed, 2 fetched again", FASTEST):
        assert word in alert.getMessage()

    report = metadata_of(result, "statistics_report")
    assert report["entries"] == cache.get_stats()["total_entries"]
    assert report["telemetry_mb"] > report["laps_mb"] > 0
    assert 0 < report["free_disk_share"] < 1
    assert f"| {TELEMETRY}".replace("_", "\\_") in report["largest"]
    assert "data:image/png;base64," in report["cached_sessions"]

    backed_up = metadata_of(result, "backup")
    path = Path(backed_up["path"])
    assert path.parent == tmp_path / "elsewhere"
    assert backed_up["verified_entries"] == report["entries"]
    assert [found.name for found in path.parent.iterdir()] == [path.name], "the trial's folder is left behind"
    restored = Cache(Config(cache_dir=tmp_path / "empty"))
    restored.restore(path)
    assert restored.verify_integrity()["valid_entries"] == report["entries"]
    pd.testing.assert_frame_equal(restored.read(LAPS, "pandas").value, laps)
    restored.close()


def test_a_dry_run_says_all_of_it_and_changes_not_a_byte(project, cdn, caplog):
    damage_three(project.cache)
    folder = project.cache.get_cache_dir()
    before = content(folder)
    cdn.requests.clear()
    with caplog.at_level(logging.INFO, logger="tif1_pipeline.alerts"):
        result = project.run("daily_maintenance_job", dry_run=True)
    assert content(folder) == before
    assert cdn.requests.total == 0
    assert metadata_of(result, "clear_corrupted")["to_remove"] == 3
    assert metadata_of(result, "refetch_corrupted")["to_fetch"] == 2
    assert metadata_of(result, "cleanup")["to_remove"] == 0
    assert metadata_of(result, "backup")["to_copy_mb"] > 0
    assert not (folder / "backups").exists()
    assert all(metadata_of(result, op)["dry_run"] is True for op in DAILY[:-1])
    assert not [record for record in caplog.records if record.name == "tif1_pipeline.alerts"]
    assert project.versions("laps") == []


def test_a_sound_cache_is_backed_up_without_a_word(project, cdn, caplog):
    cdn.requests.clear()
    with caplog.at_level(logging.INFO, logger="tif1_pipeline.alerts"):
        result = project.run("daily_maintenance_job")
    assert metadata_of(result, "verify_integrity")["integrity_pct"] == 100
    assert metadata_of(result, "clear_corrupted")["removed"] == 0
    assert metadata_of(result, "backup")["kept"] == 1
    assert metadata_of(result, "outcome") == {"faults": 0, "problems": 0}
    assert cdn.requests.total == 0
    assert not caplog.records


def test_while_the_cdn_is_down_the_rest_is_done_and_the_run_fails_at_its_end(project, cdn):
    damage_three(project.cache)
    cdn.faults.add(Fault("error"))
    result = project.run("daily_maintenance_job", success=False, refetch_corrupted={"retry_seconds": 0})
    assert failed_steps(result) == ["outcome"]
    assert "2 tables that were corrupt could not be fetched again" in failure_of(result)
    restarts = [event for event in result.all_events if event.event_type == dg.DagsterEventType.STEP_RESTARTED]
    assert [event.step_key for event in restarts] == ["refetch_corrupted"] * 2
    assert metadata_of(result, "refetch_corrupted")["missing"] == 2
    assert metadata_of(result, "backup")["corrupted_entries"] == 0
    # Gone is gone, the next run has nothing to find; readers fetch what they need.
    cdn.faults.clear()
    project.tif1.close()  # the client, too, which has set the mirror aside for a minute
    project.run("daily_maintenance_job")
    assert len(project.tif1.get_session(2025, "Australia", "Race").laps)


def test_a_retry_that_succeeds_is_a_success(project, cdn):
    damage(project.cache, LAPS)
    cdn.faults.add(Fault("error", path="*laptimes.json", times=2))
    result = project.run("daily_maintenance_job", refetch_corrupted={"retries": 5, "retry_seconds": 0})
    assert metadata_of(result, "refetch_corrupted")["refetched"] == 1


def test_a_table_that_the_cdn_no_longer_has_is_not_tried_again(project, cdn):
    damage(project.cache, LAPS)
    cdn.hide("Race/*laptimes.json")
    result = project.run("daily_maintenance_job", success=False)
    assert not [event for event in result.all_events if event.event_type == dg.DagsterEventType.STEP_RESTARTED]
    assert "an older backup may hold" in failure_of(result)
    assert metadata_of(result, "backup")["kept"] == 1


def test_a_calendar_and_a_part_of_a_table_are_fetched_again_too(project, cdn):
    alone = SessionKey(2025, "Australian Grand Prix", "Qualifying").entry("telemetry")
    session = project.tif1.get_session(2025, "Australia", "Qualifying")
    driver = session.drivers[0]
    session.get_driver_telemetry(driver)
    part = alone.of_part(driver).text
    damage(project.cache, part)
    damage(project.cache, "2025_schedule")
    damage(project.cache, LAPS)
    result = project.run("daily_maintenance_job")
    assert metadata_of(result, "refetch_corrupted")["refetched"] == 3
    assert all(project.cache.verify_entry(key) for key in (part, "2025_schedule", LAPS))


def test_what_breaks_or_heals_between_the_check_and_the_repair_is_seen(project):
    """The entry that was named is sound again and stays; the one that broke since then goes, and is fetched again."""
    jobs, cache = project.jobs, project.cache
    damage(cache, LAPS)
    damage(cache, FASTEST)

    @dg.op(out=dg.Out(dict, io_manager_key="op_io_manager"))
    def meanwhile(context: dg.OpExecutionContext, config: jobs.OpConfig, verified: dict) -> dict:
        project.tif1.get_session(2025, "Australia", "Race").laps  # noqa: B018 - finds it corrupt, fetches it again
        cache.clear_memory()
        damage(cache, TELEMETRY, 2)
        return verified

    @dg.job
    def interrupted_job():
        jobs.refetch_corrupted(jobs.clear_corrupted(meanwhile(jobs.verify_integrity())))

    generations = {key: cache.info(key).generation for key in (LAPS, TELEMETRY)}
    cache.clear_memory()
    result = project.run(interrupted_job)
    assert metadata_of(result, "verify_integrity")["corrupted_entries"] == 2
    assert metadata_of(result, "clear_corrupted")["removed"] == 2
    refetched = metadata_of(result, "refetch_corrupted")
    assert (refetched["refetched"], refetched["derived"]) == (1, 1)
    assert cache.info(TELEMETRY).generation != generations[TELEMETRY]
    assert cache.verify_integrity()["integrity_pct"] == 100
    assert project.versions("laps") == [], "the run did not fetch it"


def test_entries_whose_rows_cannot_be_read_are_repaired_too(project):
    broken = {
        LAPS: "created_at = 'never'",
        TELEMETRY: "parts = 'no list'",
        RACE.entry("drivers").text: "accessed_at = 'never', access_count = 'often'",
    }
    with closing(sqlite3.connect(project.cache.get_cache_file(), isolation_level=None)) as connection:
        for key, values in broken.items():
            connection.execute(f"UPDATE entries SET {values} WHERE key = ?", (key,))
    project.cache.clear_memory()
    result = project.run("daily_maintenance_job")
    assert metadata_of(result, "refetch_corrupted")["refetched"] == 3
    assert all(project.cache.verify_entry(key) for key in broken)


# ---- caches that must not be changed


def test_a_read_only_cache_is_checked_and_backed_up_and_nothing_is_repaired(project, tmp_path):
    damage_three(project.cache)
    project.cache.close()
    project.tif1.get_config().update({"cache_readonly": True, "backup_dir": tmp_path / "elsewhere"})
    folder = project.cache.get_cache_dir()
    before = content(folder)
    result = project.run("daily_maintenance_job", success=False)
    assert metadata_of(result, "verify_integrity")["corrupted_entries"] == 3
    for op in ("clear_corrupted", "cleanup"):
        assert "cache_readonly" in metadata_of(result, op)["reason"]
    assert "holds 3 faults" in failure_of(result)
    assert content(folder) == before
    for job in ("weekly_maintenance_job", "cleanup_job"):
        skipped = project.run(job)
        assert all("cache_readonly" in metadata_of(skipped, node.name)["reason"] for node in skipped.job_def.nodes)
    assert content(folder) == before


def test_a_cache_that_is_off_is_left_alone(project):
    damage_three(project.cache)
    project.tif1.get_config().cache_enabled = False
    before = content(project.cache.get_cache_dir())
    for job in ("daily_maintenance_job", "weekly_maintenance_job", "cleanup_job"):
        result = project.run(job)
        ops = [node.name for node in result.job_def.nodes if node.name not in ("outcome", "refetch_corrupted")]
        assert all("cache_enabled" in metadata_of(result, op)["reason"] for op in ops if op != "clear_corrupted"), (
            metadata_of(result, ops[0])
        )
    assert content(project.cache.get_cache_dir()) == before


def test_while_a_fallback_stands_in_nothing_is_changed_and_the_missing_backup_fails_the_run(project, tmp_path):
    config = project.tif1.get_config()
    project.tif1.close()
    file = config.cache_path
    aside = file.with_name("aside.db")
    file.rename(aside)
    file.mkdir()  # whoever runs the tests may open any file, but not a folder as one
    config.cache_fallback_dir = tmp_path / "fallback"
    project.tif1.get_session(2025, "Australia", "Race").laps  # noqa: B018 - stored in the fallback
    stored = project.cache.info(LAPS)
    assert stored is not None
    result = project.run("daily_maintenance_job", success=False)
    assert failed_steps(result) == ["outcome"]
    assert "no backup was made" in failure_of(result)
    assert "fallback folder stands in" in metadata_of(result, "cleanup")["reason"]
    weekly = project.run("weekly_maintenance_job")
    assert "fallback folder stands in" in metadata_of(weekly, "vacuum")["reason"]
    assert project.cache.info(LAPS) == stored


def test_where_nothing_is_stored_yet_nothing_is_made(project):
    project.tif1.close()
    shutil.rmtree(project.cache.get_cache_dir())
    for job in ("daily_maintenance_job", "weekly_maintenance_job", "cleanup_job"):
        for dry_run in (True, False):
            project.run(job, dry_run=dry_run)
    assert not project.cache.get_cache_file().exists()


# ---- the weekly job, and the cleanup by itself


def test_the_weekly_job_gives_space_back_and_says_how_much(project):
    project.cache.remove(TELEMETRY)
    before = content(project.cache.get_cache_dir())
    dry = project.run("weekly_maintenance_job", dry_run=True)
    assert content(project.cache.get_cache_dir()) == before
    assert metadata_of(dry, "vacuum")["size_bytes"] > 0
    result = project.run("weekly_maintenance_job")
    vacuumed = metadata_of(result, "vacuum")
    assert vacuumed["freed_bytes"] > 0
    assert vacuumed["size_bytes_before"] > vacuumed["size_bytes"] > 0
    assert all(metadata_of(result, op)["seconds"] >= 0 for op in ("rebuild_indexes", "optimize", "vacuum"))
    assert project.cache.verify_integrity()["integrity_pct"] == 100


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here: only root may")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_a_failure_that_says_so(project, small_disk, monkeypatch):
    monkeypatch.setenv("SQLITE_TMPDIR", str(small_disk))  # the copy and the way back take the room twice
    project.cache.remove(TELEMETRY)
    config = project.tif1.get_config()
    project.tif1.close()
    config.cache_dir = shutil.copytree(config.cache_dir, small_disk / "cache")
    room = shutil.disk_usage(small_disk).free - project.cache.get_cache_file().stat().st_size
    (small_disk / "somebody-elses").write_bytes(bytes(room))
    result = project.run("weekly_maintenance_job", success=False)
    assert failed_steps(result) == ["vacuum"]
    assert "could not vacuum" in failure_of(result)
    assert "MiB are free" in failure_of(result)
    # The day's job goes on without its backup, and its last op says so.
    daily = project.run("daily_maintenance_job", success=False)
    assert failed_steps(daily) == ["outcome"]
    assert "backup: the backup takes" in failure_of(daily)
    project.tif1.close()


@pytest.fixture
def large(project):
    """More than the least threshold, 1 MiB, of which two entries are old and one is pinned."""
    config = project.tif1.get_config()
    names = ["cache_cleanup_threshold_mb", "cache_cleanup_target_mb"]
    before = {name: getattr(config, name) for name in names}
    config.update(dict.fromkeys(names, 1))
    for name in ("old", "older", "kept"):
        cells = pa.table({"n": pa.array(range(200_000))})
        project.cache.write(EntryKey(name, "x", pinned=name == "kept"), cells)
    with closing(sqlite3.connect(project.cache.get_cache_file(), isolation_level=None)) as connection:
        connection.execute("UPDATE entries SET compressed_size = 1 << 20 WHERE data_type = 'x'")
        connection.execute("UPDATE entries SET created_at = ? WHERE data_type = 'x'", (time.time() - 1e7,))
    yield project
    config.update(before)


def test_the_cleanup_job_does_what_its_dry_run_says(large):
    dry = metadata_of(large.run("cleanup_job", dry_run=True), "cleanup")
    assert (dry["to_remove"], dry["to_free_bytes"]) == (2, 2 << 20)
    assert large.cache.info("old") is not None
    done = metadata_of(large.run("cleanup_job"), "cleanup")
    assert (done["removed"], done["freed_bytes"]) == (2, 2 << 20)
    assert done["entries_list"] == dry["entries_list"]
    assert large.cache.info("old") is None
    assert large.cache.info("kept") is not None


def test_an_op_that_fails_fails_its_own_step_where_no_outcome_follows(large):
    large.tif1.get_config().cache_lock_timeout = 0.2
    try:
        with closing(sqlite3.connect(large.cache.get_cache_file(), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            result = large.run("cleanup_job", success=False)
            assert failed_steps(result) == ["cleanup"]
            daily = large.run("daily_maintenance_job", success=False)
        assert failed_steps(daily) == ["outcome"]
        assert metadata_of(daily, "backup")["kept"] == 1
    finally:
        large.tif1.get_config().cache_lock_timeout = 30
