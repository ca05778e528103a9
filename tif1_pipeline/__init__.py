"""Formula 1 timing data as Dagster assets, over a cache that is also the IO manager and a Python API.

import tif1_pipeline as tif1

laps = tif1.get_session(2025, "Monaco", "Race").laps
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tif1_pipeline.api import (
        close,
        get_cache,
        get_config,
        get_events,
        get_next_event,
        get_session,
        get_sessions,
    )
    from tif1_pipeline.defs.io_manager import CacheIOManager, PartitionOutput
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
        "close",
        "get_cache",
        "get_config",
        "get_events",
        "get_next_event",
        "get_session",
        "get_sessions",
    ),
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
    "CacheError",
    "CacheIOManager",
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
    "PartitionOutput",
    "Session",
    "SessionNotFoundError",
    "Tif1Error",
    "__version__",
    "close",
    "generate_cache_key",
    "get_cache",
    "get_config",
    "get_events",
    "get_next_event",
    "get_session",
    "get_sessions",
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
