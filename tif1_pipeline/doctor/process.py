"""This process and its machine: versions and memory; and the processes that have a cache file open."""

import os
import platform
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from tif1_pipeline import __version__
from tif1_pipeline.config import MIB, Config
from tif1_pipeline.doctor.base import Check, beside, ok, problem, warning

_PROC = Path("/proc")
_OLDEST_SQLITE = (3, 35, 0)  # INSERT … RETURNING
_WRITE_LOCK = 120
"""Byte of the log's index that a writer locks."""
_PENDING = 0x40000000
"""First of the bytes of the file itself that are locked; writers lock them without a log."""
_HELD_SECONDS = 1.0
_POLL_SECONDS = 0.02
_LOCK = re.compile(r"\d+: POSIX +\S+ +(READ|WRITE) +(-?\d+) +([0-9a-f]+):([0-9a-f]+):(\d+) +(\d+) +(\d+|EOF)")


def versions() -> Iterator[Check]:
    """The versions of what the package stands on."""
    found = [f"tif1_pipeline {__version__}", f"Python {platform.python_version()}", f"SQLite {sqlite3.sqlite_version}"]
    for name in ("pandas", "pyarrow", "SQLAlchemy", "dagster"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            yield problem("versions", f"the package {name} is not installed", f"Install it: pip install {name}")
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        least = ".".join(map(str, _OLDEST_SQLITE))
        yield problem(
            "versions",
            f"SQLite {sqlite3.sqlite_version} is too old: {least} is needed",
            "Use a Python that is built with a newer SQLite",
        )
    yield ok("versions", ", ".join(found))


def memory(config: Config) -> Iterator[Check]:
    """Whether there is room for what the settings let the memory tier take."""
    available = _available_mib()
    wanted = config.memory_cache_max_mb
    if available is None:
        yield ok("memory", f"memory_cache_max_mb is {wanted:,}; what is free cannot be told on this system")
    elif config.memory_cache_enabled and wanted > available:
        yield warning(
            "memory",
            f"memory_cache_max_mb is {wanted:,}, and {available:,} MiB of memory are free",
            f"Set memory_cache_max_mb to {max(1, available // 2):,} or less, or end other programs",
        )
    else:
        yield ok("memory", f"{available:,} MiB are free, of which the memory tier takes {wanted:,} at most")


def _available_mib() -> int | None:
    sizes = []
    with suppress(OSError):
        found = re.search(r"MemAvailable: +(\d+) kB", (_PROC / "meminfo").read_text())
        if found:
            sizes.append(int(found[1]) // 1024)
    # A container's limit; "max" where there is none.
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            sizes.append(int(Path(path).read_text()) // MIB)
    return min(sizes) if sizes else None


# ---- who has a file open


class Process(NamedTuple):
    """A process, as far as it can be told."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})" + (", which is this one" if self.pid == os.getpid() else "")


def holders(path: Path) -> list[Process] | None:
    """Return the processes that have a database file, its log or the log's index open; None if nobody can tell.

    Processes of other users do not show what they have open, but the locks that SQLite holds while a log is in use do.
    """
    if not (_PROC / "locks").exists():
        return None
    targets = _targets(path)
    pids = {lock.pid for lock in _locks(targets)}
    names = {target.name for target in targets.values()}
    for folder in _PROC.iterdir():
        if folder.name.isdecimal() and _has_open(folder / "fd", names, targets):
            pids.add(int(folder.name))
    return [_process(pid) for pid in sorted(pids)]


def writers(path: Path) -> list[Process] | None:
    """Return the processes that keep the write lock for a second without a pause; None if nobody can tell."""
    if not (_PROC / "locks").exists():
        return None
    deadline = time.monotonic() + _HELD_SECONDS
    pids = _writing(path)
    while pids and time.monotonic() < deadline:  # a healthy writer has it for milliseconds
        time.sleep(_POLL_SECONDS)
        pids &= _writing(path)
    return [_process(pid) for pid in sorted(pids)]


class _Held(NamedTuple):
    path: Path
    pid: int
    exclusive: bool
    start: int
    end: int


def _writing(path: Path) -> set[int]:
    index = beside(path, "-shm")
    return {
        lock.pid
        for lock in _locks(_targets(path))
        if lock.exclusive
        and (
            lock.start <= _WRITE_LOCK <= lock.end if lock.path == index else lock.path == path and lock.end >= _PENDING
        )
    }


def _targets(path: Path) -> dict[tuple[int, int], Path]:
    """Return a database's files by device and inode."""
    found = {}
    for each in (path, beside(path, "-wal"), beside(path, "-shm")):
        with suppress(OSError):
            status = each.stat()
            found[status.st_dev, status.st_ino] = each
    return found


def _locks(targets: dict[tuple[int, int], Path]) -> Iterator[_Held]:
    with suppress(OSError):
        for kind, pid, major, minor, inode, start, end in _LOCK.findall((_PROC / "locks").read_text()):
            target = targets.get((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
            if target is not None:
                last = (1 << 63) - 1 if end == "EOF" else int(end)
                yield _Held(target, int(pid), kind == "WRITE", int(start), last)


def _has_open(folder: Path, names: Iterable[str], targets: dict[tuple[int, int], Path]) -> bool:
    with suppress(OSError):  # it ended, or is somebody else's
        for link in folder.iterdir():
            with suppress(OSError):
                # By name first: asking about any other file could hang, on a network that is gone.
                if os.path.basename(os.readlink(link)) in names:  # noqa: PTH115, PTH119 - a thousand times
                    status = link.stat()
                    if (status.st_dev, status.st_ino) in targets:
                        return True
    return False


def _process(pid: int) -> Process:
    command = b""
    with suppress(OSError):
        command = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").strip()
    text = " ".join(command.decode("utf-8", "replace").split())
    return Process(pid, (text if len(text) <= 100 else f"{text[:99]}…") or "its command is not shown")
