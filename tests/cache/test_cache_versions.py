"""Entries of other versions: what is readable, what an upgrade removes, and what belongs to somebody newer."""

from collections.abc import Callable
from itertools import product

import pytest

import tif1_pipeline
from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.codec import FORMAT_VERSION
from tif1_pipeline.config import Config
from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.keys import EntryKey, SessionKey

MAJOR = int(tif1_pipeline.__version__.split(".")[0])
KEY = SessionKey(2025, "Monaco Grand Prix", "Race").entry("laps")
ASSET = EntryKey("asset", "asset")
SCHEMA = DATASETS["laps"].schema_version


def change(cache: Cache, key: EntryKey, **values: object) -> None:
    with cache._tiered.file_of(key.text).database.raw(5) as connection:
        for name, value in values.items():
            connection.execute(f"UPDATE entries SET {name} = ? WHERE key = ?", (value, key.text))


@pytest.fixture(params=[1, 3], ids=["one file", "three files"])
def filled(request: pytest.FixtureRequest, config: Config, open_cache: Callable[..., Cache]) -> Cache:
    config.cache_shards = request.param
    cache = open_cache()
    cache.write(KEY, {"a": 1}, schema_version=SCHEMA)
    cache.write(ASSET, {"a": 1}, schema_version=17)
    return cache


def test_what_this_version_writes_is_compatible(filled: Cache) -> None:
    assert filled.check_version_compatibility()
    assert filled.upgrade_version() == 0


def test_an_empty_cache_is_compatible(cache: Cache) -> None:
    assert cache.check_version_compatibility()
    assert cache.upgrade_version() == 0
    assert not cache.get_cache_dir().exists()


@pytest.mark.parametrize(
    ("values", "removed"),
    [
        ({"format_version": FORMAT_VERSION - 1}, True),
        ({"format_version": FORMAT_VERSION + 1}, False),
        ({"library_version": f"{MAJOR + 1}.0.0"}, False),
        ({"library_version": f"{MAJOR + 10}.0.0"}, False),
        ({"library_version": "unknown"}, True),
        ({"library_version": ""}, True),
        ({"schema_version": SCHEMA - 1}, True),
        ({"schema_version": SCHEMA + 1}, False),
        # Older in one respect and newer in another: a newer version wrote it.
        ({"format_version": FORMAT_VERSION + 1, "schema_version": SCHEMA - 1}, False),
        ({"format_version": FORMAT_VERSION - 1, "library_version": f"{MAJOR + 1}.0"}, False),
    ],
)
def test_unreadable_entries_are_found_and_only_older_ones_are_removed(
    filled: Cache, values: dict[str, object], removed: bool
) -> None:
    change(filled, KEY, **values)
    assert not filled.check_version_compatibility()
    assert filled.read(KEY, "json", schema_version=SCHEMA) is None
    assert filled.upgrade_version() == int(removed)
    assert (filled.info(KEY) is None) == removed
    assert filled.check_version_compatibility() == removed
    assert filled.read(ASSET, "json").value == {"a": 1}


@pytest.mark.parametrize("version", [f"{MAJOR}.99.1", f"{MAJOR}", f"{MAJOR}.0.0rc1+local"])
def test_versions_of_the_same_major_are_readable(filled: Cache, version: str) -> None:
    change(filled, KEY, library_version=version)
    assert filled.check_version_compatibility()
    assert filled.upgrade_version() == 0
    assert filled.read(KEY, "json").value == {"a": 1}


def test_entries_of_an_older_major_are_removed_after_an_update(filled: Cache, run: Callable[..., str]) -> None:
    output = run(AFTER_AN_UPDATE, str(filled._tiered.config.cache_shards))
    assert output.strip() == "False 2 0"


AFTER_AN_UPDATE = """
for name in [name for name in sys.modules if name.startswith("tif1_pipeline")]:
    del sys.modules[name]
import tif1_pipeline
tif1_pipeline.__version__ = "3.1.0"
from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
config = Config(cache_dir=sys.argv[1], cache_shards=int(sys.argv[2]))
cache = Cache(config)
print(cache.check_version_compatibility(), cache.upgrade_version(), len(cache.get_entries()))
cache.close()
"""


def test_a_pinned_asset_called_like_a_table_has_no_schema_of_ours(filled: Cache) -> None:
    key = EntryKey("my/laps", "laps", pinned=True)
    filled.write(key, {"mine": 1})
    assert filled.check_version_compatibility()
    assert filled.upgrade_version() == 0
    change(filled, key, format_version=FORMAT_VERSION - 1)
    assert not filled.check_version_compatibility()


def test_the_answer_is_what_reading_every_entry_would_give(cache: Cache) -> None:
    """The comparison in the database and the one of a read agree on every combination."""
    readable = 0
    for number, (form, library, schema) in enumerate(
        product(
            (FORMAT_VERSION - 1, FORMAT_VERSION, FORMAT_VERSION + 1),
            (f"{MAJOR}.5", f"{MAJOR}", f"{MAJOR}1.0", f"{MAJOR + 1}.0", "x.0", f" {MAJOR}.1"),
            (SCHEMA - 1, SCHEMA, SCHEMA + 1),
        )
    ):
        cache.clear()
        key = EntryKey(f"key {number}", "laps")
        cache.write(key, {"a": number}, schema_version=SCHEMA)
        change(cache, key, format_version=form, library_version=library, schema_version=schema)
        found = cache.read(key, "json", schema_version=SCHEMA) is not None
        assert cache.check_version_compatibility() == found, (form, library, schema)
        readable += found
    assert readable == 2
