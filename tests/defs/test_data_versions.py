"""Data versions come from the content: a refetch without change leaves what follows fresh, a correction does not."""

import os

import dagster as dg
import pandas as pd
import pytest
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from tif1_pipeline.simulator import Fault

EVENT = "2025 Australian Grand Prix"
PRACTICE, QUALIFYING, RACE = (f"{EVENT} {name}" for name in ("Practice 3", "Qualifying", "Race"))
LETTERS = dg.StaticPartitionsDefinition(["a", "b", "c"])
SR = dg.BackfillPolicy.single_run()

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")


def status(instance, assets, asset, partition=None):
    resolver = CachingStaleStatusResolver(instance, AssetGraph.from_assets(assets), LoadingContextForTest(instance))
    return resolver.get_status(dg.AssetKey(asset), partition)


def version(instance, asset, partition=None):
    record = instance.get_latest_data_version_record(dg.AssetKey(asset), partition_key=partition)
    return record.asset_materialization.tags["dagster/data_version"]


def letters_of(values):
    @dg.asset(partitions_def=LETTERS, backfill_policy=SR, code_version="1")
    def letters(context: dg.AssetExecutionContext):
        return {key: pd.DataFrame({"n": [values[key]]}) for key in context.partition_keys}

    @dg.asset(partitions_def=LETTERS, backfill_policy=SR, code_version="1")
    def follower(letters: dict[str, pd.DataFrame]):
        return {key: frame.assign(twice=2 * frame["n"]) for key, frame in letters.items()}

    return letters, follower


def statuses(instance, assets):
    return "".join("F" if status(instance, assets, "follower", key) is StaleStatus.FRESH else "s" for key in "abc")


def test_one_partition_has_the_version_of_its_content(run, instance, cache):
    values = {"a": 1, "b": 2, "c": 3}
    assets = letters_of(values)
    run(assets[0], key="a")
    first = version(instance, "letters", "a")
    assert first == cache.info("asset:letters@a").checksum
    values["a"] = 5
    run(assets[0], key="a")
    assert version(instance, "letters", "a") != first
    values["a"] = 1
    run(assets[0], key="a")
    assert version(instance, "letters", "a") == first


def test_assets_without_partitions_have_content_versions_too(run, instance, cache):
    content = {"x": 1}

    @dg.asset
    def plain() -> dict:
        return content

    @dg.asset
    def follower(plain: dict) -> int:
        return plain["x"] * 0

    run(plain, follower)
    first = version(instance, "follower")
    assert first == cache.info("asset:follower").checksum
    run(plain, known=[follower])
    assert status(instance, [plain, follower], "follower") is StaleStatus.FRESH
    content["x"] = 2
    run(plain, known=[follower])
    assert status(instance, [plain, follower], "follower") is StaleStatus.STALE
    run(follower, known=[plain])
    assert status(instance, [plain, follower], "follower") is StaleStatus.FRESH
    assert version(instance, "follower") == first


@pytest.mark.parametrize("again", [("a", "c"), "b", ("a", "b")], ids=["range", "one", "part"])
def test_a_range_stored_again_without_change_leaves_followers_fresh(run, instance, again):
    assets = letters_of({"a": 1, "b": 2, "c": 3})
    run(*assets, keys=("a", "c"))
    assert statuses(instance, assets) == "FFF"
    where = {"keys": again} if isinstance(again, tuple) else {"key": again}
    run(assets[0], known=assets[1:], **where)
    assert statuses(instance, assets) == "FFF"


@pytest.mark.parametrize("where", [{"keys": ("a", "c")}, {"key": "b"}, {"keys": ("b", "c")}], ids=["range", "one", "p"])
@pytest.mark.parametrize("one_by_one", [False, True], ids=["from a range", "from single runs"])
def test_a_correction_is_never_hidden(run, instance, one_by_one, where):
    values = {"a": 1, "b": 2, "c": 3}
    assets = letters_of(values)
    for keys in [{"key": key} for key in "abc"] if one_by_one else [{"keys": ("a", "c")}]:
        run(*assets, **keys)
    assert statuses(instance, assets) == "FFF"
    values["b"] = 7
    run(assets[0], known=assets[1:], **where)
    assert statuses(instance, assets)[1] == "s"
    if "key" in where:
        assert statuses(instance, assets) == "FsF"
    run(assets[1], known=assets[:1], keys=("a", "c"))
    assert statuses(instance, assets) == "FFF"


def test_partitions_of_a_run_that_failed_have_exact_versions(run, instance, cache):
    fail = {"b"}

    @dg.asset(partitions_def=LETTERS, backfill_policy=SR, code_version="1")
    def letters(context: dg.AssetExecutionContext):
        return {
            key: ValueError("no") if key in fail else pd.DataFrame({"n": [ord(key)]}) for key in context.partition_keys
        }

    assert not run(letters, keys=("a", "c"), raise_on_error=False).success
    for key in "ac":
        assert version(instance, "letters", key) == cache.info(f"asset:letters@{key}").checksum
    run(letters, key="a")
    assert version(instance, "letters", "a") == cache.info("asset:letters@a").checksum


def test_a_version_that_the_asset_gives_itself_stays(run, instance):
    @dg.asset
    def mine(context: dg.AssetExecutionContext):
        context.set_data_version(dg.AssetKey("mine"), dg.DataVersion("of mine"))
        return 1

    run(mine)
    assert version(instance, "mine") == "of mine"


def test_the_same_files_make_the_same_version(sources, tif1, cdn):
    """Also fetched in another order, encrypted, and into another cache file."""
    from tif1_pipeline.defs.io_metadata import data_version_of

    names = [asset.key.to_user_string() for asset in sources.assets if asset.key.to_user_string() != "schedule"]
    result = sources.run(names, QUALIFYING)
    assert result.success, sources.said(result)
    first = {name: sources.version(name, QUALIFYING) for name in names}
    assert len(set(first.values())) == len(names)
    config = tif1.get_config()
    config.cache_dir = config.cache_dir / "other"
    config.cache_encryption_key = os.urandom(32).hex()
    try:
        cdn.faults.add(Fault("latency", rate=0.4, seconds=0.03))
        assert sources.run(names, QUALIFYING).success
        assert {name: sources.version(name, QUALIFYING) for name in names} == first
        from tif1_pipeline.keys import SessionKey

        info = tif1.get_cache().info(SessionKey.parse(QUALIFYING).entry("telemetry"))
        assert info.encryption
        assert data_version_of(info) == first["telemetry"]
    finally:
        config.cache_encryption_key = None


def test_source_tables_refetched_and_corrected(sources, cdn):
    source = next(asset for asset in sources.assets if asset.key == dg.AssetKey("laps"))

    @dg.asset(partitions_def=source.partitions_def, backfill_policy=source.backfill_policy)
    def pace(laps: dict[str, pd.DataFrame]) -> dict[str, float]:
        return {key: float(table["LapTimeSeconds"].min()) for key, table in laps.items()}

    sources.assets.append(pace)
    result = sources.run(["laps", "pace"], PRACTICE, RACE)
    assert result.success, sources.said(result)
    assert sources.run(["laps"], RACE).success
    assert status(sources.instance, sources.assets, "pace", RACE) is StaleStatus.FRESH
    cdn.republish("Race/session_laptimes.json")
    assert sources.run(["laps"], RACE).success
    assert status(sources.instance, sources.assets, "pace", RACE) is StaleStatus.STALE
    assert status(sources.instance, sources.assets, "pace", QUALIFYING) is StaleStatus.FRESH
