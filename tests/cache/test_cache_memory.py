"""The memory tier: what callers do to what they got never reaches it, and it keeps to its limits."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey


def mutate_pandas(frame: pd.DataFrame) -> None:
    def attempt(change: Callable[[], Any]) -> None:
        with suppress(ValueError, TypeError, KeyError):  # read-only memory is as good a protection as a copy
            change()

    attempt(lambda: frame.loc.__setitem__((0, "f"), -1.0))
    attempt(lambda: frame.iloc.__setitem__((1, 0), -1.0))
    attempt(lambda: frame["f"].to_numpy().__setitem__(2, -1.0))
    attempt(lambda: frame["f"].to_numpy().setflags(write=True))
    attempt(lambda: frame.to_numpy().__setitem__((0, 0), -1.0))
    attempt(lambda: frame["c"].values.__setitem__(0, "b"))
    attempt(lambda: frame["c"].array.__setitem__(0, "b"))
    attempt(lambda: frame["b"].values.__setitem__(0, False))
    attempt(lambda: frame["b"].array._data.__setitem__(1, False))
    attempt(lambda: frame["s"].array.__setitem__(0, "changed"))
    attempt(lambda: frame.index.values.__setitem__(0, 99))
    attempt(lambda: frame["o"].iloc[0].append("changed"))
    attempt(lambda: frame["d"].iloc[0].update(changed=1))
    frame.attrs["changed"] = True
    frame.attrs["nested"].append("changed")
    frame.index.name = frame.columns.name = "changed"
    attempt(lambda: frame.update(pd.DataFrame({"g": [-7.0]})))
    frame["g"] += 1
    del frame["c"]
    frame.insert(0, "new", 1)
    frame.columns = [f"x{number}" for number in range(frame.shape[1])]


@pytest.mark.parametrize("rows", [3, 60_000], ids=["copied", "copied on write"])
def test_a_callers_changes_never_reach_the_cache(cache: Cache, key: EntryKey, rows: int) -> None:
    numbers = np.arange(float(rows))
    frame = pd.DataFrame(
        {
            "f": numbers,
            "g": numbers + 1,
            "c": pd.Categorical((["a", "b", "a"] * rows)[:rows]),
            "b": pd.array(([True, None, True] * rows)[:rows], dtype="boolean"),
            "s": [str(number) for number in range(rows)],
        }
    )
    frame.attrs = {"nested": ["a"]}
    objects = frame.iloc[:3].assign(o=[[1]] * 3, d=[{"a": 1}] * 3)
    for given in (frame, objects):
        expected = given.copy()
        cache.write(key, given)
        given.loc[0, "f"] = -5.0  # the writer's own frame, too
        given["f"].array[1] = -5.0
        for _ in range(4):
            got = cache.read(key, "pandas").value
            pd.testing.assert_frame_equal(got, expected)
            assert got.attrs == {"nested": ["a"]}
            assert got.index.name is got.columns.name is None
            mutate_pandas(got)
        cache.clear_memory()
        pd.testing.assert_frame_equal(cache.read(key, "pandas").value, expected)


def test_a_large_frame_may_be_changed_when_memory_has_dropped_it(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey
) -> None:
    for memory in (True, False):
        config.memory_cache_enabled = memory
        cache = open_cache()
        cache.write(key, pa.table({"f": np.arange(300_000.0), "t": pa.array(range(300_000), pa.duration("ns"))}))
        for _ in range(2):
            frame = cache.read(key, "pandas").value
            cache.clear_memory()
            frame.loc[0, "f"] = 5.0
            frame.loc[0, "t"] = pd.Timedelta("1s")
            assert frame.loc[0].tolist() == [5.0, pd.Timedelta("1s")]


def test_changes_to_numpy_polars_arrow_and_json_values_never_reach_the_cache(cache: Cache, key: EntryKey) -> None:
    numbers = np.arange(5.0)
    cache.write(key, pa.table({"a": numbers}))
    numbers[0] = 99
    for _ in range(2):
        assert cache.read(key).value["a"].to_pylist()[0] == 0
        polars = cache.read(key, "polars").value
        polars[0, "a"] = 99.0
        polars.insert_column(0, pl.Series("new", [1] * 5))
        assert cache.read(key, "polars").value.to_dict(as_series=False) == {"a": [0, 1, 2, 3, 4]}
    value = {"a": [1, {"b": 2}]}
    cache.write(key, value)
    value["a"].append(3)
    for _ in range(3):
        got = cache.read(key, "json").value
        assert got == {"a": [1, {"b": 2}]}
        got["a"][1]["b"] = 5


# ---- limits of the memory tier


def test_memory_drops_the_least_recently_used(config: Config, cache: Cache) -> None:
    config.memory_cache_size = 3
    keys = [EntryKey(str(number), "x") for number in range(4)]
    for key in keys[:3]:
        cache.write(key, {"a": 1})
    cache.read(keys[0], "json")
    cache.write(keys[3], {"a": 1})
    assert [cache.read(key, "json").tier for key in (keys[0], keys[2], keys[3])] == ["memory"] * 3
    assert cache.read(keys[1], "json").tier == "disk"
    stats = cache.get_memory_stats()
    assert stats.pop("size_mb") == pytest.approx(3 * len('{"a":1}') / (1 << 20), rel=2)  # counted twice: text and view
    assert stats == {"items": 3, "hit_rate": 4 / 5, "evictions": 2, "hits": 4, "misses": 1}
    assert cache.clear_memory() == 3
    assert cache.get_memory_stats()["items"] == 0


def test_memory_is_limited_by_type(config: Config, cache: Cache) -> None:
    config.memory_cache_laps_size = 2
    for number in range(4):
        cache.write(EntryKey(f"laps{number}", "laps"), {"a": 1})
        cache.write(EntryKey(f"other{number}", "other"), {"a": 1})
    tiers = {name: cache.read(f"{name}{number}", "json").tier for name in ("laps", "other") for number in (0,)}
    assert tiers == {"laps": "disk", "other": "memory"}
    assert cache.get_memory_stats()["items"] == 6


def test_memory_is_limited_by_bytes(config: Config, cache: Cache) -> None:
    config.memory_cache_max_mb = 3
    table = pa.table({"a": np.random.default_rng(1).random(130_000)})  # one MiB, nearly
    for number in range(4):
        cache.write(EntryKey(str(number), "x"), table)
    assert cache.get_memory_stats()["items"] == 3
    assert cache.get_memory_stats()["size_mb"] <= 3
    cache.read("3", "pandas")
    cache.read("3", "polars")
    assert cache.get_memory_stats() | {"items": 1} == cache.get_memory_stats()
    assert cache.get_memory_stats()["size_mb"] <= 3
    cache.write(EntryKey("large", "x"), pa.table({"a": np.zeros(500_000)}))
    assert cache.read("large").tier == "disk"
    assert cache.get_memory_stats()["size_mb"] <= 3


def test_views_of_an_entry_die_with_its_generation(open_cache: Callable[..., Cache], key: EntryKey) -> None:
    one, other = open_cache(), open_cache()
    views: list[tuple[str, Any]] = [("arrow", None), ("pandas", None), ("polars", ["a"]), ("pandas", ["a"])]
    for number in range(3):
        (one if number % 2 else other).write(key, pa.table({"a": [number], "b": [number]}))
        for cache in (one, other):
            for backend, columns in views:
                value = cache.read(key, backend, columns=columns).value
                assert (value["a"][0].as_py() if backend == "arrow" else value["a"][0]) == number
            assert cache.get_memory_stats()["items"] == 1
    one.remove(key)
    assert one.read(key) is None
    assert other.read(key) is None
    assert other.get_memory_stats()["items"] == 0
