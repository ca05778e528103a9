"""What is wrong with the cache, the settings and the way to the CDN, and what to do about it.

Nothing is changed: databases are opened read-only and in a way that leaves no file beside them, and the cache file is
never opened but through SQLite (a descriptor that Python closes would drop SQLite's locks of the whole process).
"""

from pathlib import Path
from typing import Literal

from tif1_pipeline.config import Config
from tif1_pipeline.doctor import database, network, places, process, settings, wholeness
from tif1_pipeline.doctor.base import Check, files_of, run
from tif1_pipeline.doctor.settings import load_settings

__all__ = ["Check", "diagnose", "load_settings"]


def diagnose(
    config: Config | None = None, *, cdn: bool = True, integrity: Literal["quick", "full"] = "quick"
) -> list[Check]:
    """Look for what is known to go wrong; never raises for what it finds and never changes anything.

    Args:
        config: Settings; those of this process by default, and what is usable of them if they cannot be loaded.
        cdn: Ask the mirrors too; that takes some ten seconds at most, if all of them hang.
        integrity: ``quick`` looks for a second or two a file, ``full`` reads and decodes everything.

    Returns:
        The checks by area: what is as it should be, too.
    """
    checks = run("versions", process.versions)
    if config is None:
        config, faults = load_settings()
        checks += faults
    checks += run("settings", lambda: settings.contradictions(config))
    checks += run("encryption", lambda: settings.encryption(config))
    checks += run("memory", lambda: process.memory(config))
    checks += run("cache directory", lambda: places.directory(config))
    checks += run("disk", lambda: places.disk(config))
    checks += run("file system", lambda: places.file_system(config.cache_dir))
    checks += run("permissions", lambda: places.permissions(config))
    checks += run("leftovers", lambda: places.leftovers(config))
    checks += run("fallback", lambda: settings.fallback(config))
    checks += run("audit log", lambda: settings.audit_log(config))
    checks += run("shards", lambda: database.shards(config))
    sources: list[tuple[int, str]] = []
    for path in _files(config):
        checks += run("cache file", lambda path=path: database.examine(config, path, integrity == "full", sources))
    if integrity == "full":
        checks += run("integrity", lambda: wholeness.verify_all(config))
    if cdn:
        checks += run("CDN", lambda: network.mirrors(config, sources))
    return checks


def _files(config: Config) -> list[Path]:
    """Return the files to examine; none if their folder cannot be looked into, which has its own check."""
    try:
        return list(files_of(config))
    except OSError:
        return []
