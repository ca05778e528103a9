"""The repair sensor: what Dagster believes in and the cache has lost is requested again, once."""

import json
import uuid

import dagster as dg
import pandas as pd
import pytest

from tif1_pipeline import api
from tif1_pipeline.defs.io_manager import CacheIOManager
from tif1_pipeline.defs.resources import TimingDataResource
from tif1_pipeline.defs.sensors.repair import DERIVED, repair_sensor
from tif1_pipeline.keys import EntryKey

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

DAYS = dg.StaticPartitionsDefinition([f"day {number:03}" for number in range(120)])
NAMES = dg.StaticPartitionsDefinition(["a/b", "50%", "São Paulo", "x.y@z", "plain"])
OPTIONS = {"tags": {"tif1/source": "derived"}, "partitions_def": DAYS}
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def table_of(keys):
    return {key: pd.DataFrame({"n": [1, 2]}) for key in keys}


@dg.asset(**OPTIONS)
def first(context: dg.AssetExecutionContext):
    return table_of(context.partition_keys)


@dg.asset(**OPTIONS)
def second(context: dg.AssetExecutionContext):
    return table_of(context.partition_keys)


@dg.asset(**OPTIONS)
def made_of_first(context: dg.AssetExecutionContext, first: dict[str, pd.DataFrame]):
    return first


@dg.asset(**OPTIONS | {"partitions_def": NAMES})
def oddly_named(context: dg.AssetExecutionContext):
    return table_of(context.partition_keys)


@dg.asset(**OPTIONS | {"tags": {}})
def of_somebody_else(context: dg.AssetExecutionContext):
    return table_of(context.partition_keys)


ASSETS = [first, second, made_of_first, oddly_named, of_somebody_else]


class World:
    def __init__(self, instance, cache, cache_file, assets=ASSETS):
        self.instance, self.cache, self.cursor = instance, cache, None
        self.resources = {
            "io_manager": CacheIOManager(path=str(cache_file)),
            "timing_data": TimingDataResource(cache_path=str(cache_file)),
        }
        self.assets = assets
        self.repository = self.load(assets)

    def load(self, assets):
        return dg.Definitions(
            assets=assets, sensors=[repair_sensor], resources=self.resources, executor=dg.in_process_executor
        ).get_repository_def()

    def run(self, *assets, tags, success=True):
        result = dg.materialize(
            self.assets,
            selection=[*assets],
            instance=self.instance,
            resources=self.resources,
            tags=tags,
            run_config=QUIET,
            raise_on_error=False,
        )
        assert result.success is success

    def make(self, *assets, start, end):
        keys = (assets[0].partitions_def or DAYS).get_partition_keys()
        tags = {
            "dagster/asset_partition_range_start": keys[start],
            "dagster/asset_partition_range_end": keys[end - 1],
        }
        self.run(*assets, tags=tags)

    def lose(self, *assets, start, end):
        for asset in assets:
            for number in range(start, end):
                assert self.cache.remove(f"asset:{asset.key.path[-1]}@day {number:03}") == 1

    def tick(self):
        """Evaluate a tick; returns its requests and, if there are none, why."""
        context = dg.build_sensor_context(
            instance=self.instance, repository_def=self.repository, cursor=self.cursor, resources=self.resources
        )
        data = repair_sensor.evaluate_tick(context)
        self.cursor = data.cursor
        return data.run_requests or [], data.skip_message

    def serve(self, requests):
        for request in requests:
            self.run(*request.asset_selection, tags=request.tags | partition_tag(request))


def partition_tag(request):
    return {"dagster/partition": request.partition_key} if request.partition_key else {}


def partitions_of(request):
    if request.partition_key:
        return [request.partition_key]
    first, last = (request.tags[f"dagster/asset_partition_range_{end}"] for end in ("start", "end"))
    keys = DAYS.get_partition_keys()
    return list(keys[keys.index(first) : keys.index(last) + 1])


@pytest.fixture
def world(instance, cache, cache_file):
    return World(instance, cache, cache_file)


# ---- what is requested


def test_nothing_is_requested_while_everything_is_there(world):
    assert world.tick() == ([], "all 0 materialized partitions of derived assets are stored")
    world.make(first, second, start=0, end=5)
    assert world.tick() == ([], "all 10 materialized partitions of derived assets are stored")


def test_what_is_lost_is_requested_and_then_there_again(world):
    world.make(first, start=0, end=5)
    world.lose(first, start=2, end=3)
    (request,), _ = world.tick()
    assert (request.partition_key, request.asset_selection) == ("day 002", [first.key])
    record = world.instance.fetch_materializations(
        dg.AssetRecordsFilter(first.key, asset_partitions=["day 002"]), limit=1
    ).records[0]
    assert f":{record.storage_id}:" in (request.run_key or "")
    world.serve([request])
    assert world.tick() == ([], "all 5 materialized partitions of derived assets are stored")


def later(world, hours):
    """Let so much time pass since the last request."""
    state = json.loads(world.cursor)
    for of_asset in state["asked"].values():
        for key, (tries, at) in of_asset.items():
            of_asset[key] = [tries, at - hours * 3600]
    world.cursor = json.dumps(state)


def test_a_loss_is_requested_once_and_the_next_one_again(world):
    world.make(first, start=0, end=3)
    world.lose(first, start=1, end=2)
    (once,), _ = world.tick()
    # Without its memory the sensor asks again, but by a key that Dagster knows.
    world.cursor = None
    (again,), _ = world.tick()
    assert again.run_key == once.run_key
    world.serve([again])
    assert not world.tick()[0]
    world.lose(first, start=1, end=2)
    (next_loss,), _ = world.tick()
    assert next_loss.run_key != once.run_key


def test_what_a_run_does_not_bring_back_is_requested_again_at_growing_distances_and_then_left(world):
    world.make(first, start=0, end=3)
    world.lose(first, start=1, end=2)
    run_keys = set()
    for hours in (1, 4, 16):
        (request,), _ = world.tick()
        run_keys.add(request.run_key)
        requests, said = world.tick()
        assert not requests
        assert "1 of first were requested before, and are again later (first day 001)" in said
        later(world, hours - 0.1)
        assert not world.tick()[0]
        later(world, 0.2)
    (request,), _ = world.tick()
    assert len({request.run_key, *run_keys}) == 4
    later(world, 1000)
    requests, said = world.tick()
    assert not requests
    assert "1 of first were requested 4 times, which did not bring them back (first day 001)" in said
    world.serve([request])
    assert "are stored" in world.tick()[1]
    world.lose(first, start=1, end=2)
    assert len(world.tick()[0]) == 1


def test_a_time_ahead_was_noted_by_a_clock_that_was_wrong(world):
    world.make(first, start=0, end=3)
    world.lose(first, start=1, end=2)
    world.tick()
    later(world, -100)
    assert len(world.tick()[0]) == 1


def test_a_cursor_that_cannot_be_read_is_an_empty_one(world):
    world.make(first, start=0, end=2)
    world.lose(first, start=0, end=1)
    rubbish = ["", "rubbish", "[]", '{"version": 1}', '{"version": 2, "asked": 3}', "null"]
    for cursor in [*rubbish, '{"version": 2, "asked": {"first": {"day 000": 7}}}']:
        world.cursor = cursor
        requests, _ = world.tick()
        assert len(requests) == 1, cursor


def test_what_follows_each_other_and_what_assets_have_lost_alike_goes_into_one_run(world):
    world.make(first, second, start=8, end=75)
    world.lose(first, second, start=10, end=40)
    world.lose(second, start=42, end=43)
    requests, _ = world.tick()
    found = [(partitions_of(request), len(request.asset_selection)) for request in requests]
    assert [(keys[0], len(keys), number) for keys, number in found] == [
        ("day 010", 25, 2),
        ("day 035", 5, 2),
        ("day 042", 1, 1),
    ]
    world.serve(requests)
    assert world.tick()[1] == "all 134 materialized partitions of derived assets are stored"


def test_a_great_loss_is_made_good_over_several_ticks(world):
    world.make(first, second, start=0, end=120)
    world.lose(first, start=0, end=110)
    seen = []
    for expected in (100, 10, 0):
        requests, _ = world.tick()
        keys = [key for request in requests for key in partitions_of(request)]
        assert len(keys) == expected
        seen += keys
    assert sorted(seen) == [f"day {number:03}" for number in range(110)]


def test_no_more_runs_than_a_tick_may_request(world):
    world.make(first, start=0, end=46)
    for number in range(0, 46, 2):
        world.lose(first, start=number, end=number + 1)
    asked = []
    for _ in range(3):
        requests, _ = world.tick()
        assert len(requests) <= 20
        asked += [request.partition_key for request in requests]
    assert sorted(asked) == [f"day {number:03}" for number in range(0, 46, 2)]


def test_where_most_is_gone_at_once_it_waits_and_says_so(world, cache_file):
    """As after a mount was lost and something else was stored where it had been."""
    world.make(first, start=0, end=30)
    world.cache.close()
    aside = cache_file.with_name("aside.db")
    cache_file.rename(aside)
    for exists in (False, True):
        requests, said = world.tick()
        assert not requests
        assert ("there is no cache file" in said) is not exists
        assert ("those are most of them" in said) is exists
        assert f"is {cache_file} the right one" in said
        world.cache.write(EntryKey("other", "x"), {"a": 1})
    world.make(first, start=0, end=15)  # by hand; what is then left is no more than half
    (request,), _ = world.tick()
    assert partitions_of(request)[0] == "day 015"
    world.cache.close()
    aside.replace(cache_file)
    assert world.tick() == ([], "all 30 materialized partitions of derived assets are stored")


def test_few_are_requested_whatever_their_share(world):
    world.make(first, start=0, end=1)
    world.lose(first, start=0, end=1)
    assert len(world.tick()[0]) == 1


def test_keys_of_any_kind_are_recognised(world):
    world.make(oddly_named, start=0, end=5)
    assert world.tick()[1] == "all 5 materialized partitions of derived assets are stored"
    assert world.cache.clear_pattern("asset:oddly_named@*") == 5
    (request,), _ = world.tick()
    world.serve([request])
    assert world.tick()[1] == "all 5 materialized partitions of derived assets are stored"


# ---- what is not requested


def test_what_a_run_is_about_already_is_not_requested(world):
    world.make(first, start=0, end=5)
    world.lose(first, start=2, end=3)
    one = {"dagster/partition": "day 002"}
    several = {"dagster/asset_partition_range_start": "day 001", "dagster/asset_partition_range_end": "day 003"}
    for status, tags, selection in (
        (dg.DagsterRunStatus.STARTING, one, frozenset({first.key})),
        (dg.DagsterRunStatus.STARTED, several, frozenset({first.key})),
        (dg.DagsterRunStatus.CANCELING, several, None),
    ):
        run = dg.DagsterRun(
            job_name="__ASSET_JOB", run_id=str(uuid.uuid4()), status=status, tags=tags, asset_selection=selection
        )
        world.instance.add_run(run)
        requests, said = world.tick()
        assert not requests
        assert "1 of first are under way" in said
        world.instance.delete_run(run.run_id)  # it was of no use
    assert len(world.tick()[0]) == 1


def test_a_run_of_other_assets_or_partitions_is_no_reason_to_wait(world):
    world.make(first, start=0, end=5)
    world.lose(first, start=2, end=3)
    for tags, selection in (
        ({"dagster/partition": "day 002"}, frozenset({second.key})),
        ({"dagster/partition": "day 001"}, frozenset({first.key})),
        ({}, frozenset({first.key})),
    ):
        world.instance.add_run(
            dg.DagsterRun(
                job_name="__ASSET_JOB",
                run_id=str(uuid.uuid4()),
                status=dg.DagsterRunStatus.STARTED,
                tags=tags,
                asset_selection=selection,
            )
        )
    assert len(world.tick()[0]) == 1


def test_what_is_made_of_something_lost_waits_for_it(world):
    world.make(first, start=0, end=5)
    world.make(made_of_first, start=0, end=5)
    world.lose(first, made_of_first, start=1, end=2)
    requests, _ = world.tick()
    assert [request.asset_selection for request in requests] == [[first.key]]
    world.serve(requests)
    requests, _ = world.tick()
    assert [request.asset_selection for request in requests] == [[made_of_first.key]]
    world.serve(requests)
    assert "are stored" in world.tick()[1]


def test_assets_of_others_are_none_of_its_business(world):
    world.make(of_somebody_else, start=0, end=3)
    world.lose(of_somebody_else, start=0, end=3)
    assert world.tick() == ([], "all 0 materialized partitions of derived assets are stored")


def test_partitions_that_the_definitions_no_longer_have_are_not_requested(world):
    world.make(first, start=0, end=5)
    world.lose(first, start=1, end=3)
    fewer = dg.StaticPartitionsDefinition(["day 000", "day 001"])

    @dg.asset(name="first", **OPTIONS | {"partitions_def": fewer})
    def first_of_fewer(context: dg.AssetExecutionContext):
        return table_of(context.partition_keys)

    world.repository = world.load([first_of_fewer])
    (request,), _ = world.tick()
    assert request.partition_key == "day 001"


@pytest.mark.parametrize(
    ("settings", "reason"), [({"cache_enabled": False}, "cache_enabled"), ({"cache_readonly": True}, "cache_readonly")]
)
def test_nothing_is_requested_that_could_not_be_stored(world, settings, reason):
    world.make(first, start=0, end=2)
    world.lose(first, start=0, end=1)
    config = api.get_config()
    before = {name: getattr(config, name) for name in settings}
    config.update(settings)
    try:
        requests, said = world.tick()
    finally:
        config.update(before)
    assert not requests
    assert reason in said
    assert len(world.tick()[0]) == 1, "it was not forgotten"


def test_nothing_is_requested_while_a_fallback_stands_in_for_the_cache(world, cache_file, tmp_path):
    world.make(first, start=0, end=2)
    world.cache.close()
    aside = cache_file.with_name("aside.db")
    cache_file.rename(aside)
    cache_file.mkdir()  # whoever runs the tests may open any file, but not a folder as one
    config = api.get_config()
    config.cache_fallback_dir = tmp_path / "fallback"
    try:
        requests, said = world.tick()
        assert not requests
        assert "fallback folder stands in" in said
    finally:
        world.cache.close()
        config.cache_fallback_dir = None
    cache_file.rmdir()
    aside.rename(cache_file)
    assert world.tick() == ([], "all 2 materialized partitions of derived assets are stored")


def test_a_cache_that_cannot_be_read_has_lost_nothing(world, cache_file):
    world.make(first, start=0, end=2)
    world.cache.close()
    aside = cache_file.with_name("aside.db")
    cache_file.rename(aside)
    cache_file.mkdir()
    requests, said = world.tick()
    assert not requests
    assert "what is stored cannot be told" in said
    cache_file.rmdir()
    aside.rename(cache_file)
    assert world.tick() == ([], "all 2 materialized partitions of derived assets are stored")


# ---- the project's own


def test_it_runs_in_a_fresh_installation_every_ten_minutes():
    assert repair_sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert repair_sensor.minimum_interval_seconds == 600


def test_it_is_about_all_derived_assets_of_the_project_and_no_other():
    from tif1_pipeline.defs.assets.derived import derived_assets
    from tif1_pipeline.defs.assets.source import source_assets

    resources = {"timing_data": TimingDataResource()}
    graph = dg.Definitions(assets=[*source_assets, *derived_assets], resources=resources).resolve_asset_graph()
    assert DERIVED.resolve(graph) == {key for asset in derived_assets for key in asset.keys}
    assert len(derived_assets) >= 2


def test_a_backup_that_is_older_than_an_asset_brings_it_back_by_a_run(world, tmp_path):
    world.make(first, start=0, end=2)
    backup = world.cache.backup(tmp_path / "backups")
    world.make(first, start=2, end=4)
    world.cache.write(EntryKey("other", "x"), {"a": 1})
    world.cache.restore(backup)
    (request,), _ = world.tick()
    assert partitions_of(request) == ["day 002", "day 003"]
    world.serve([request])
    assert json.loads(world.cursor)["asked"]["first"].keys() == {"day 002", "day 003"}
    world.tick()
    assert json.loads(world.cursor)["asked"] == {}
