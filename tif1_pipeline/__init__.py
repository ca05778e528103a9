"""Formula 1 timing data as Dagster assets, over a cache that is also the IO manager and a Python API.

import tif1_pipeline as tif1

laps = tif1.get_session(2025, "Monaco", "Race").laps
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tif1_pipeline.api import (
        check_cache_health,
        close,
        get_cache,
        get_config,
        get_events,
        get_next_event,
        get_session,
        get_sessions,
    )
    from tif1_pipeline.cache.cache import Cache
    from tif1_pipeline.cache.health import CacheHealth
    from tif1_pipeline.cache.metrics import CacheCollector
    from tif1_pipeline.cache.monitor import CacheMonitor
    from tif1_pipeline.config import Config
    from tif1_pipeline.defs.io_manager import CacheIOManager, PartitionOutput
    from tif1_pipeline.events import on_library_update, on_race_complete, on_schedule_update
    from tif1_pipeline.exceptions import (
        CacheError,
        CacheLockedError,
        CacheReadOnlyError,
        CacheVersionError,
        ConfigError,
        CorruptEntryError,
        DataNotFoundError,
        DriverNotFoundError,
        EventNotFoundError,
        InvalidDataError,
        NetworkError,
        SessionNotFoundError,
        Tif1Error,
    )
    from tif1_pipeline.keys import generate_cache_key
    from tif1_pipeline.session import Session

_HOMES = {
    "tif1_pipeline.api": (
        "check_cache_health",
        "close",
        "get_cache",
        "get_config",
        "get_events",
        "get_next_event",
        "get_session",
        "get_sessions",
    ),
    "tif1_pipeline.cache.cache": ("Cache",),
    "tif1_pipeline.cache.health": ("CacheHealth",),
    "tif1_pipeline.cache.metrics": ("CacheCollector",),
    "tif1_pipeline.cache.monitor": ("CacheMonitor",),
    "tif1_pipeline.config": ("Config",),
    "tif1_pipeline.events": ("on_library_update", "on_race_complete", "on_schedule_update"),
    "tif1_pipeline.defs.io_manager": ("CacheIOManager", "PartitionOutput"),
    "tif1_pipeline.exceptions": (
        "CacheError",
        "CacheLockedError",
        "CacheReadOnlyError",
        "CacheVersionError",
        "ConfigError",
        "CorruptEntryError",
        "DataNotFoundError",
        "DriverNotFoundError",
        "EventNotFoundError",
        "InvalidDataError",
        "NetworkError",
        "SessionNotFoundError",
        "Tif1Error",
    ),
    "tif1_pipeline.keys": ("generate_cache_key",),
    "tif1_pipeline.session": ("Session",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Cache",
    "CacheCollector",
    "CacheError",
    "CacheHealth",
    "CacheIOManager",
    "CacheLockedError",
    "CacheMonitor",
    "CacheReadOnlyError",
    "CacheVersionError",
    "Config",
    "ConfigError",
    "CorruptEntryError",
    "DataNotFoundError",
    "DriverNotFoundError",
    "EventNotFoundError",
    "InvalidDataError",
    "NetworkError",
    "PartitionOutput",
    "Session",
    "SessionNotFoundError",
    "Tif1Error",
    "__version__",
    "check_cache_health",
    "close",
    "generate_cache_key",
    "get_cache",
    "get_config",
    "get_events",
    "get_next_event",
    "get_session",
    "get_sessions",
    "on_library_update",
    "on_race_complete",
    "on_schedule_update",
]


def __getattr__(name: str) -> Any:
    # Names are imported at first use: a notebook that loads laps must not wait for Dagster, nor Dagster for pandas.
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
