"""Inspection and maintenance, gathered: modules that a read does not load, each imported when it is first used.

Their calls, whose first argument is the cache, are made anew where a damaged row made them fail.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tif1_pipeline.cache import (  # noqa: F401 - what __getattr__ gives
        backup,
        cleanup,
        clearing,
        encryption,
        entries,
        expiry,
        export,
        health,
        integrity,
        sizes,
        stats,
        upkeep,
        versions,
    )


class _Healed:
    """A module whose calls get over damaged rows."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        from tif1_pipeline.cache.damage import healed

        return healed(getattr(self._module, name))


def __getattr__(name: str) -> _Healed:
    if name.startswith("_"):  # the import system and tools ask for some
        raise AttributeError(name)
    return _Healed(import_module(f"tif1_pipeline.cache.{name}"))
