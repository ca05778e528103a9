"""One bad partition fails alone, with its reason; Dagster never believes in what cannot be loaded."""

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from tif1_pipeline import CacheIOManager, NetworkError, PartitionOutput, get_config
from tif1_pipeline.cache.base import Fresh, Source
from tif1_pipeline.exceptions import DataNotFoundError

# 2026-11: dagster 1.13 prints this for every asset with a backfill policy, which has been the same since 1.5.
pytestmark = pytest.mark.filterwarnings("ignore:Parameter `backfill_policy`:dagster.BetaWarning")

SR = dg.BackfillPolicy.single_run()
LETTERS = dg.StaticPartitionsDefinition(["a", "b", "c"])
ALL = ("a", "c")
GRID = dg.MultiPartitionsDefinition({"letter": LETTERS, "number": dg.StaticPartitionsDefinition(["1", "2"])})


def frame(*values: int) -> pd.DataFrame:
    return pd.DataFrame({"n": list(values)})


class Pairs:
    """A stream of the pairs; an exception instead of a pair is raised."""

    def __init__(self, *pairs: Any) -> None:
        self.pairs = pairs

    def __iter__(self) -> Iterator[Any]:
        for pair in self.pairs:
            if isinstance(pair, Exception):
                raise pair
            yield pair


def asset_of(value: Any, partitions: dg.PartitionsDefinition = LETTERS, **options: Any) -> dg.AssetsDefinition:
    @dg.asset(partitions_def=partitions, backfill_policy=SR, **options)
    def letters():
        return value() if callable(value) else value

    return letters


def failure_of(result: dg.ExecuteInProcessResult, step: str = "letters") -> Any:
    data = result.failure_data_for_node(step)
    assert data is not None
    return data.user_failure_data or data.error


def statuses(
    instance: dg.DagsterInstance, asset: dg.AssetsDefinition, partitions: dg.PartitionsDefinition = LETTERS
) -> dict[str, str]:
    keys = partitions.get_partition_keys()
    found = instance.get_status_by_partition(asset.key, keys, partitions)
    assert found is not None
    return {str(key): status.name.lower() for key, status in found.items() if status is not None}


# ---- several partitions


@pytest.mark.parametrize(
    ("delivered", "reason"),
    [
        ({"a": frame(1), "c": frame(3)}, "does not hold this partition"),
        ({"a": frame(1), "b": DataNotFoundError("the CDN has no laps"), "c": frame(3)}, "the CDN has no laps"),
        ({"a": frame(1), "b": {1, 2}, "c": frame(3)}, "builtins.set"),
        ({"a": frame(1), "b": PartitionOutput(object()), "c": frame(3)}, "builtins.object"),
        ({"a": frame(1), "b": Fresh(None, not_modified=True), "c": frame(3)}, "nothing is stored"),
        ({"a": frame(1), "b": PartitionOutput(frame(2), metadata={"bad": frame(2)}), "c": frame(3)}, "bad"),
        (Pairs(("c", frame(3)), ("a", frame(1)), OSError("line cut")), "OSError: line cut"),
        (Pairs(("c", frame(3)), ("a", frame(1)), ("b", ValueError("odd"))), "ValueError: odd"),
        (Pairs(("c", frame(3)), ("a", frame(1)), "b"), "it gave a str"),
    ],
    ids=[
        "missing",
        "exception",
        "set",
        "object",
        "not modified",
        "metadata",
        "raises",
        "stream of an exception",
        "no pair",
    ],
)
def test_the_others_are_stored_and_marked(run, load, instance, delivered, reason):
    letters = asset_of(lambda: delivered)
    result = run(letters, keys=ALL, raise_on_error=False)
    failure = failure_of(result)
    assert failure.metadata["stored"].value == 2
    assert list(failure.metadata["not_stored"].value) == ["b"]
    assert reason in failure.metadata["not_stored"].value["b"]
    assert reason in failure.description
    assert "asset letters: 2 of 3 partitions were stored" in failure.description
    assert statuses(instance, letters) == {"a": "materialized", "b": "failed", "c": "materialized"}
    assert load(letters, pd.DataFrame, key="c")["n"].tolist() == [3]
    events = instance.fetch_materializations(letters.key, limit=10).records
    assert {event.partition_key for event in events} == {"a", "c"}
    assert all(event.asset_materialization.metadata["dagster/partition_row_count"].value == 1 for event in events)


def test_statuses_are_exact_on_a_stored_instance_and_for_multi_partitions(io_manager):
    grid = asset_of(lambda: {"a|1": frame(1), "b|1": OSError("gone"), "b|2": frame(2)}, GRID)
    with dg.DagsterInstance.local_temp() as instance:
        dg.materialize(
            [grid],
            resources={"io_manager": io_manager},
            instance=instance,
            raise_on_error=False,
            tags={"dagster/asset_partition_range_start": "a|1", "dagster/asset_partition_range_end": "b|2"},
        )
        found = statuses(instance, grid, GRID)
        assert found == {"a|1": "materialized", "a|2": "failed", "b|1": "failed", "b|2": "materialized"}
        event = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=grid.key, asset_partitions=["b|2"]), limit=1
        ).records[0]
        assert event.asset_materialization is not None
        assert event.asset_materialization.partition == dg.MultiPartitionKey({"letter": "b", "number": "2"})


def test_a_retry_of_the_failed_partition_completes_the_asset(run, instance):
    failing = asset_of(lambda: {"a": frame(1), "b": OSError("gone"), "c": frame(3)})
    run(failing, keys=ALL, raise_on_error=False)
    whole = asset_of(lambda: {"b": frame(2)})
    run(whole, keys=("b", "b"))
    assert statuses(instance, whole) == dict.fromkeys("abc", "materialized")


def test_partitions_nobody_asked_for_are_refused(run, load, instance, cache):
    letters = asset_of(lambda: {"a": frame(1), "b": frame(2), "z": frame(9), 3: frame(3)})
    result = run(letters, keys=("a", "b"), raise_on_error=False)
    refused = failure_of(result).metadata["not_stored"].value
    assert set(refused) == {"z", "3"}
    assert "not about this partition" in refused["z"]
    assert statuses(instance, letters) == {"a": "materialized", "b": "materialized"}
    assert cache.info("asset:letters@z") is None


def test_an_output_that_breaks_after_the_last_partition_fails_the_step(run, instance):
    letters = asset_of(lambda: Pairs(("a", frame(1)), ("b", frame(2)), OSError("afterwards")))
    result = run(letters, keys=("a", "b"), raise_on_error=False)
    assert "all 2 partitions were stored, then the output broke: OSError: afterwards" in failure_of(result).description
    assert statuses(instance, letters) == {"a": "materialized", "b": "materialized"}


@pytest.mark.parametrize(
    "value",
    [frame(1), [1, 2, 3], None, "text", [("a", 1), ("b", 2), ("c", 3)], 5],
    ids=lambda value: type(value).__name__,
)
def test_one_value_for_several_partitions_is_a_clear_error(run, instance, value):
    letters = asset_of(lambda: value)
    result = run(letters, keys=ALL, raise_on_error=False)
    description = failure_of(result).description
    assert f"the run is about 3 partitions, the output is one {type(value).__name__}" in description
    assert "return {partition key: value}" in description
    assert statuses(instance, letters) == dict.fromkeys("abc", "failed")


def test_many_reasons_are_shortened_in_the_text_only(run):
    parts = dg.StaticPartitionsDefinition([f"p{number}" for number in range(20)])
    result = run(asset_of(dict, parts), keys=("p0", "p19"), raise_on_error=False)
    failure = failure_of(result)
    assert "… and 15 more" in failure.description
    assert len(failure.metadata["not_stored"].value) == 20


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_a_range_that_ends_before_it_starts_is_a_failure(run, instance, kind):
    instance.add_dynamic_partitions("late", ["a", "b", "c"])
    parts = LETTERS if kind == "static" else dg.DynamicPartitionsDefinition(name="late")
    letters = asset_of(dict, parts)
    result = run(letters, keys=("c", "a"), raise_on_error=False)
    assert "the run's range holds no partition" in failure_of(result).description
    assert instance.get_materialized_partitions(letters.key) == set()
    assert instance.get_latest_materialization_event(letters.key) is None


def test_an_empty_dict_is_a_missing_partition_where_dicts_are_by_partition(run, instance):
    letters = asset_of(dict)
    assert not run(letters, key="a", raise_on_error=False).success
    assert statuses(instance, letters) == {"a": "failed"}


# ---- retries


def attempts_of(run: Callable[..., Any], error: Exception, key: str | None = None, keys: Any = None) -> int:
    tried = []

    def deliver() -> dict[str, Any]:
        tried.append(1)
        return {"a": error} | ({"b": frame(1), "c": DataNotFoundError("no data")} if keys else {})

    letters = asset_of(deliver, retry_policy=dg.RetryPolicy(max_retries=1))
    assert not run(letters, key=key, keys=keys, raise_on_error=False).success
    return len(tried)


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (NetworkError("line down"), 2),
        (OSError("line down"), 2),
        (DataNotFoundError("not published"), 1),
        (dg.Failure("no", allow_retries=False), 1),
        (dg.Failure("later", allow_retries=True), 2),
    ],
    ids=repr,
)
def test_only_what_may_pass_is_tried_again(run, error, attempts):
    assert attempts_of(run, error, key="a") == attempts
    assert attempts_of(run, error, keys=ALL) == attempts


def test_values_that_can_never_be_stored_are_not_tried_again(run):
    tried = []

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=2))
    def bad():
        tried.append(1)
        return {1, 2}

    assert not run(bad, raise_on_error=False).success
    assert len(tried) == 1


# ---- single values


class Figure:
    """Stands for what plotting libraries return."""


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        Figure(),
        Figure,
        np.float64(1),
        np.array([1, 2]),
        pd.Series([1]),
        (1, 2),
        {1: "x"},
        float("nan"),
        b"x",
        1j,
    ],
    ids=lambda value: type(value).__name__,
)
def test_unsupported_values_say_what_is_supported(run, instance, value):
    # With a partition, what can be iterated could be a stream; without one it cannot.
    partitioned = not isinstance(value, Figure | type)

    @dg.asset(partitions_def=LETTERS if partitioned else None)
    def letters():
        return value

    result = run(letters, key="a" if partitioned else None, raise_on_error=False)
    description = failure_of(result).description
    assert "asset letters" in description
    assert any(word in description for word in ("DataFrame", "Storable are", "use text", "JSON cannot say")), (
        description
    )
    assert instance.get_latest_materialization_event(letters.key) is None


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda: pd.DataFrame([[1, 2]], columns=["x", "x"]), "x"),
        (lambda: pd.DataFrame({"o": [object()]}), "o"),
        (lambda: pd.DataFrame({"o": [{1}, {2}]}), "o"),
    ],
    ids=["duplicate columns", "objects", "sets"],
)
def test_frames_that_would_come_back_changed_are_refused(run, instance, bad, words):
    @dg.asset
    def letters():
        return bad()

    assert words in failure_of(run(letters, raise_on_error=False)).description
    assert instance.get_latest_materialization_event(letters.key) is None


def test_a_value_that_is_an_exception_fails_the_step_with_it(run):
    @dg.asset
    def letters():
        return DataNotFoundError("not published yet")

    assert (
        failure_of(run(letters, raise_on_error=False)).description == "asset letters was not stored: not published yet"
    )


def test_what_the_cache_does_not_store_is_no_materialization(run, instance, cache, cache_file):
    get_config().cache_enabled = False
    try:
        letters = asset_of(lambda: {"a": frame(1), "b": frame(2), "c": frame(3)})
        result = run(letters, keys=ALL, raise_on_error=False)
    finally:
        get_config().cache_enabled = True
    assert "cache_enabled is off" in failure_of(result).description
    assert statuses(instance, letters) == dict.fromkeys("abc", "failed")


def test_a_cache_file_that_cannot_be_written_is_no_materialization(instance, tmp_path):
    (tmp_path / "folder.db").mkdir()
    letters = asset_of(lambda: {"a": frame(1)})
    result = dg.materialize(
        [letters],
        resources={"io_manager": CacheIOManager(path=str(tmp_path / "folder.db"))},
        instance=instance,
        partition_key="a",
        raise_on_error=False,
    )
    assert "folder.db" in failure_of(result).description
    assert statuses(instance, letters) == {"a": "failed"}


def test_not_modified_keeps_what_is_stored_and_counts_as_materialized(run, load, instance):
    run(asset_of(lambda: {"a": Fresh(frame(1), Source(etag="one"))}), key="a")
    letters = asset_of(lambda: Pairs(("a", Fresh(None, not_modified=True))))
    run(letters, key="a")
    assert load(letters, pd.DataFrame, key="a")["n"].tolist() == [1]
    event = instance.get_latest_materialization_event(letters.key)
    assert event is not None
    assert event.asset_materialization.metadata["etag"].value == "one"
    assert event.asset_materialization.metadata["dagster/partition_row_count"].value == 1
