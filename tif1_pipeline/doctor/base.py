"""What a diagnosis is made of."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tif1_pipeline.cache.shards import shard_path
from tif1_pipeline.config import MIB, Config

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was found about one matter.

    Attributes:
        name: Of the matter; several checks may have one, such as those of each file.
        status: ``warning``: it works, and something is not as it should be; ``problem``: something does not work.
        finding: What was found, on what.
        remedy: What to do; empty if nothing.
    """

    name: str
    status: Status
    finding: str
    remedy: str = ""


def ok(name: str, finding: str) -> Check:
    """Note that a matter is as it should be."""
    return Check(name, "ok", finding)


def warning(name: str, finding: str, remedy: str) -> Check:
    """Note that something works and is not as it should be."""
    return Check(name, "warning", finding, remedy)


def problem(name: str, finding: str, remedy: str) -> Check:
    """Note that something does not work."""
    return Check(name, "problem", finding, remedy)


def run(name: str, look: Callable[[], Iterable[Check]]) -> list[Check]:
    """Collect what a group of checks says; a check that fails is a finding itself."""
    found: list[Check] = []
    try:
        found.extend(look())
    except Exception as error:  # noqa: BLE001 - a diagnosis goes on whatever it meets
        remedy = "What was found before this point stands. Mend that first, then run doctor again"
        kind = getattr(error, "sqlite_errorname", None) or type(error).__name__
        if isinstance(error, sqlite3.DatabaseError):
            remedy += "; if nothing else is named, restore a backup: tif1-pipeline restore"
        found.append(problem(name, f"could not be examined further: {kind}: {error}", remedy))
    return found


def in_mib(size: float) -> str:
    """Return a number of bytes for people."""
    return f"{size / MIB:,.1f} MiB"


def files_of(config: Config) -> Iterator[Path]:
    """The files of the cache as the settings are, and those that are there beyond."""
    index = 0
    while index < config.cache_shards or shard_path(config.cache_path, index).exists():
        yield shard_path(config.cache_path, index)
        index += 1


def beside(path: Path, suffix: str) -> Path:
    """Return the log (``-wal``), its index (``-shm``) or the journal (``-journal``) of a database file."""
    return path.with_name(path.name + suffix)


def size_of(path: Path) -> int | None:
    """Return the size of a file; None if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None
