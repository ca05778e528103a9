"""Inspection and maintenance, gathered: modules that a read does not load, each imported when it is first used."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

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


def __getattr__(name: str) -> ModuleType:
    if name.startswith("_"):  # the import system and tools ask for some
        raise AttributeError(name)
    return import_module(f"tif1_pipeline.cache.{name}")
