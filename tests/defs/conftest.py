"""Real instances, real runs, real cache files."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tif1_pipeline.api import get_cache
from tif1_pipeline.cache import Cache
from tif1_pipeline.defs.io_manager import CacheIOManager

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"


@pytest.fixture(scope="session")
def shared_instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def instance(shared_instance: dg.DagsterInstance) -> dg.DagsterInstance:
    """An instance that knows of nothing: wiped, because making one takes as long as three runs."""
    shared_instance.wipe()
    return shared_instance


@pytest.fixture
def cache_file(tmp_path: Path) -> Path:
    return tmp_path / "cache.db"


@pytest.fixture
def cache(cache_file: Path) -> Iterator[Cache]:
    """The cache that the IO manager uses, too."""
    cache = get_cache(cache_file)
    yield cache
    cache.close()


@pytest.fixture
def io_manager(cache: Cache, cache_file: Path) -> CacheIOManager:
    return CacheIOManager(path=str(cache_file))


@pytest.fixture
def run(io_manager: CacheIOManager, instance: dg.DagsterInstance) -> Callable[..., dg.ExecuteInProcessResult]:
    """Materialize assets: ``run(a, b, key="x")``, ``run(a, keys=("first", "last"))``; those of ``known`` exist only."""

    def run(
        *assets: dg.AssetsDefinition,
        known: Sequence[dg.AssetsDefinition] = (),
        key: str | None = None,
        keys: tuple[str, str] | None = None,
        raise_on_error: bool = True,
        **options: Any,
    ) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            [*assets, *known],
            selection=list(assets),
            resources={"io_manager": io_manager},
            instance=instance,
            partition_key=key,
            tags={RANGE_START: keys[0], RANGE_END: keys[1]} if keys else None,
            raise_on_error=raise_on_error,
            # Writing every event to the console takes as long as half the run.
            run_config={"loggers": {"console": {"config": {"log_level": "WARNING"}}}},
            **options,
        )

    return run


@pytest.fixture
def load(io_manager: CacheIOManager, instance: dg.DagsterInstance) -> Callable[..., Any]:
    """Load a value outside of runs, as ``defs.load_asset_value`` does."""

    def load(asset: dg.AssetsDefinition, as_: Any = None, key: str | None = None, **metadata: Any) -> Any:
        defs = dg.Definitions([asset], resources={"io_manager": io_manager})
        with defs.get_asset_value_loader(instance) as loader:
            return loader.load_asset_value(
                asset.key, python_type=as_, partition_key=key, input_definition_metadata=metadata
            )

    return load
