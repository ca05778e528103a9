"""Real instances, real runs, real cache files."""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import tif1_pipeline
from tif1_pipeline.api import get_cache
from tif1_pipeline.cache import Cache
from tif1_pipeline.defs.io_manager import CacheIOManager
from tif1_pipeline.simulator import CdnServer

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


@pytest.fixture
def sources_of(instance: dg.DagsterInstance) -> Iterator[Callable[[Any], "Sources"]]:
    """Load the source assets with their checks after the calendar was stored."""

    def load(tif1: Any) -> Sources:
        tif1.get_events(2025)
        _import_anew()
        return Sources(instance)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # as definitions.py does
        yield load


@pytest.fixture(scope="module")
def loaded(shared_cdn: CdnServer, tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    """The definitions as they load after the calendar was stored: once a module, as the partitions stay the same."""
    config = tif1_pipeline.get_config()
    names = ("cdn_urls", "schedule_urls", "cache_dir")
    before = {name: getattr(config, name) for name in names}
    folder = tmp_path_factory.mktemp("loaded")
    config.update({"cdn_urls": shared_cdn.cdn_urls, "schedule_urls": shared_cdn.schedule_urls, "cache_dir": folder})
    try:
        tif1_pipeline.get_events(2025)
        _import_anew()
        from tif1_pipeline.definitions import defs

        return defs
    finally:
        tif1_pipeline.close()
        config.update(before)


@pytest.fixture
def sources(tif1: Any, loaded: dg.Definitions, instance: dg.DagsterInstance) -> Iterator["Sources"]:
    """The source assets over the simulated CDN, with an empty cache but for the calendar."""
    tif1.get_events(2025)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        yield Sources(instance)


def _import_anew() -> None:
    """Forget the modules that are made from the stored calendars."""
    for name in [name for name in sys.modules if name.startswith(("tif1_pipeline.defs", "tif1_pipeline.definitions"))]:
        del sys.modules[name]
    from tif1_pipeline.defs import automation

    # The same tries, without the time between them.
    automation.NETWORK_RETRIES = dg.RetryPolicy(max_retries=automation.NETWORK_RETRIES.max_retries)


class Sources:
    """Runs source assets, and others beside them."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        from tif1_pipeline.defs.assets.source import source_assets
        from tif1_pipeline.defs.checks import source_checks
        from tif1_pipeline.defs.io_manager import CacheIOManager
        from tif1_pipeline.defs.resources import TimingDataResource

        self.instance = instance
        self.assets: list[dg.AssetsDefinition] = list(source_assets)
        self.checks = source_checks
        self.resources = {"io_manager": CacheIOManager(), "timing_data": TimingDataResource()}

    @property
    def defs(self) -> dg.Definitions:
        return dg.Definitions(self.assets, asset_checks=self.checks, resources=self.resources)

    def run(
        self, names: Sequence[str], first: str, last: str | None = None, selection: dg.AssetSelection | None = None
    ) -> dg.ExecuteInProcessResult:
        """Materialize assets by name, with their checks unless ``selection`` says otherwise."""
        tags = {RANGE_START: first, RANGE_END: last} if last else None
        return dg.materialize(
            [*self.assets, *self.checks],
            selection=selection or dg.AssetSelection.assets(*names),
            instance=self.instance,
            resources=self.resources,
            partition_key=None if last else first,
            tags=tags,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )

    def latest(self, asset: str, partition: str) -> dg.AssetMaterialization:
        """The latest materialization of a partition."""
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[partition]), limit=1
        ).records
        event = records[0].asset_materialization
        assert event is not None
        return event

    def version(self, asset: str, partition: str) -> str:
        """The data version that Dagster has of a partition."""
        return (self.latest(asset, partition).tags or {})["dagster/data_version"]

    def said(self, result: dg.ExecuteInProcessResult) -> str:
        """What the steps that failed said."""
        failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
        return "\n".join(str(failure.user_failure_data or failure.error) for failure in failures)
