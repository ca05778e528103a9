"""The cache's folder, and the disk under it."""

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tif1_pipeline.cache.connection import DIRECTORY_MODE, FILE_MODE
from tif1_pipeline.config import Config
from tif1_pipeline.doctor.base import Check, beside, files_of, in_mib, ok, problem, size_of, warning

FULL_BYTES = 32 << 20
"""About what a race's tables take, stored."""
NEARLY_FULL = 0.10
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs", "vboxsf", "prl_fs"}
_NETWORK |= {"fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.glusterfs", "fuse.gcsfuse", "fuse.davfs2"}


def directory(config: Config) -> Iterator[Check]:
    """Whether the folder is there, or can be made, and can be written to."""
    folder = config.cache_dir
    try:
        status = folder.stat()
    except FileNotFoundError:
        yield _missing(folder, config)
        return
    except NotADirectoryError:
        yield _file_in_its_place(next(parent for parent in folder.parents if parent.is_file()), folder)
        return
    except OSError as error:
        yield problem(
            "cache directory",
            f"{folder} cannot be looked into by {_user()}: {error.strerror}",
            "Give this user access to it and every folder above it, or set cache_dir to another folder",
        )
        return
    if not stat.S_ISDIR(status.st_mode):
        yield _file_in_its_place(folder, folder)
        return
    yield ok("cache directory", f"{folder}")
    if not os.access(folder, os.R_OK | os.X_OK):
        yield problem(
            "cache directory",
            f"{folder} cannot be listed by {_user()} (mode {stat.S_IMODE(status.st_mode):o})",
            f"Give this user access: chmod u+rwx {folder}, or set cache_dir to another folder",
        )
    yield from _write_access(folder, config)
    yield from _file_access(config)


def _missing(folder: Path, config: Config) -> Check:
    above = next(parent for parent in folder.parents if parent.exists())
    if not above.is_dir():
        return _file_in_its_place(above, folder)
    if config.cache_readonly:
        return problem(
            "cache directory",
            f"{folder} does not exist, and nothing is made while cache_readonly is on",
            "Switch cache_readonly off, or set cache_dir to the folder of a cache",
        )
    error = try_write(above)
    if error is None:
        return warning(
            "cache directory",
            f"{folder} does not exist yet: nothing is stored",
            "Nothing, if this cache was never used: the first write makes the folder. Else set cache_dir to the "
            "folder that is meant",
        )
    return problem(
        "cache directory",
        f"{folder} does not exist, and {_user()} cannot make it in {above}: {error.strerror}",
        "Make it for this user, or set cache_dir to a folder where this user may write",
    )


def _file_in_its_place(file: Path, folder: Path) -> Check:
    place = "is a file, not a folder" if file == folder else f"cannot be a folder: {file} is a file"
    return problem(
        "cache directory",
        f"{folder} {place}",
        f"Move {file} away, or set cache_dir to another folder (cache_filename names the file in it)",
    )


def _write_access(folder: Path, config: Config) -> Iterator[Check]:
    if config.cache_readonly:
        yield ok("write access", f"not needed in {folder}: cache_readonly is on")
        return
    error = try_write(folder)
    if error is None:
        yield ok("write access", f"{_user()} may write in {folder}")
    elif error.errno in _NO_ROOM:
        yield problem(
            "disk",
            f"4 KiB could not be written in {folder}: {error.strerror}",
            "Delete what is not needed there, or have the user's quota raised; meanwhile cache_fallback_dir may name "
            "a folder of another disk",
        )
    else:
        yield problem(
            "write access",
            f"{_user()} may not write in {folder}: {error.strerror}. Entries are fetched anew in each process",
            f"chown or chmod {folder} for this user, remount a disk that is read-only, set cache_dir to another "
            "folder, or switch cache_readonly on to only read what is there",
        )


def try_write(folder: Path) -> OSError | None:
    """Write a temporary file in a folder and remove it: what may be written is not told by the permissions alone."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    try:
        descriptor, name = tempfile.mkstemp(prefix=".tif1-doctor-", dir=folder)
    except OSError as error:
        return error
    try:
        os.write(descriptor, bytes(4096))  # a full disk may have room for a name
        os.fsync(descriptor)
    except OSError as error:
        return error
    finally:
        with suppress(OSError):
            os.close(descriptor)
        with suppress(OSError):
            Path(name).unlink()
    return None


def _file_access(config: Config) -> Iterator[Check]:
    wanted = os.R_OK if config.cache_readonly else os.R_OK | os.W_OK
    doing = "read" if config.cache_readonly else "read and write"
    for path in files_of(config):
        for each in (path, beside(path, "-wal"), beside(path, "-shm")):
            if each.exists() and not os.access(each, wanted):
                owner = each.stat()
                yield problem(
                    "write access",
                    f"{_user()} may not {doing} {each} (owner {owner.st_uid}, mode {stat.S_IMODE(owner.st_mode):o})",
                    f"chown {each} to the user that runs this, or put both users into one group",
                )


def disk(config: Config, threshold: float = NEARLY_FULL) -> Iterator[Check]:
    """Whether there is room on the disk.

    Args:
        config: Settings.
        threshold: Share of free space below which the disk counts as nearly full.
    """
    folder = next(each for each in (config.cache_dir, *config.cache_dir.parents) if each.is_dir())
    usage = shutil.disk_usage(folder)
    # A vacuum makes a copy and writes it back through the log.
    needed = 2 * max((size_of(path) or 0 for path in files_of(config)), default=0)
    found = f"{in_mib(usage.free)} of {in_mib(usage.total)} are free under {folder}"
    remedy = (
        "Delete what is not needed on that disk, remove what is not used from the cache (tif1-pipeline clean), or set "
        "cache_dir to a folder of another disk"
    )
    if usage.free < FULL_BYTES:
        yield problem("disk", f"the disk is full: {found}", remedy)
    elif usage.free < threshold * usage.total:
        yield warning("disk", f"the disk is nearly full: {found}, less than {threshold:.0%}", remedy)
    elif usage.free < 2 * needed:
        yield warning(
            "disk", f"there is little room: {found}, and a vacuum of the cache takes up to {in_mib(needed)}", remedy
        )
    else:
        yield ok("disk", found)
    if hasattr(os, "statvfs"):
        files = os.statvfs(folder)
        if files.f_files and files.f_favail < 100:
            yield problem(
                "disk", f"{files.f_favail} more files can be made under {folder}: its inodes are used up", remedy
            )


def file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> Iterator[Check]:
    """Whether the cache lies on this machine: SQLite's log needs memory that all its users share.

    Args:
        folder: Of the cache.
        mounts: What is mounted where.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        yield ok("file system", f"what {folder} lies on cannot be told on this system")
        return
    real, best = folder.resolve(), (Path("/"), "unknown", "")
    for line in lines:
        source, point, kind, *_ = line.split()
        place = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), point))
        # The later of two mounts on one place is the one that is seen.
        if real.is_relative_to(place) and len(place.parts) >= len(best[0].parts):
            best = place, kind, source
    place, kind, source = best
    if kind in _NETWORK:
        yield problem(
            "file system",
            f"{folder} lies on a network file system ({kind}, {source} at {place}): SQLite's write-ahead log does not "
            "work there, and its locks may not, which damages files",
            "Set cache_dir to a folder on a disk of this machine; backups may go to the network (tif1-pipeline backup)",
        )
    else:
        yield ok("file system", f"{kind} at {place}")


def permissions(config: Config) -> Iterator[Check]:
    """Whether others than the owner and the group can get at the cache."""
    wide = []
    for path, allowed in [(config.cache_dir, DIRECTORY_MODE)] + [
        (beside(path, suffix), FILE_MODE) for path in files_of(config) for suffix in ("", "-wal", "-shm")
    ]:
        with suppress(OSError):
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & ~allowed & 0o777:
                wide.append((path, mode, allowed))
    for path, mode, allowed in wide:
        yield warning(
            "permissions",
            f"{path} has mode {mode:04o}, wider than {allowed:04o}: others on this machine may get at it",
            f"chmod {allowed:04o} {path}",
        )
    if not wide:
        yield ok("permissions", f"no wider than {DIRECTORY_MODE:04o} and {FILE_MODE:04o}")


def leftovers(config: Config) -> Iterator[Check]:
    """What damage and interrupted work left behind."""
    folder = config.cache_dir
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return
    aside = sorted(path for path in folder.glob("*.damaged-*") if not path.name.endswith(("-wal", "-journal")))
    if aside:
        size = sum(size_of(path) or 0 for path in folder.glob("*.damaged-*"))
        yield warning(
            "leftovers",
            f"{len(aside)} damaged file(s) were set aside in {folder}, {in_mib(size)}: {_some(aside)}",
            "Delete them once nothing in them is missed: what is asked for is fetched again. If it happens again, "
            "look at the disk and the memory of this machine",
        )
    partial = [
        path
        for place in (folder, folder / "backups")
        for path in sorted(place.glob("*.partial"))
        if _is_abandoned(path)
    ]
    if partial:
        yield warning(
            "leftovers",
            f"{len(partial)} unfinished backup(s) or export(s), of processes that were killed: {_some(partial)}",
            "Delete them: they are no backups. The next backup to the same folder removes them too",
        )
    if not aside and not partial:
        yield ok("leftovers", f"none in {folder}")


def _is_abandoned(path: Path) -> bool:
    """Tell whether no process works on it: it is locked as long as one does."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _some(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:3]) + (" …" if len(paths) > 3 else "")


def _user() -> str:
    try:
        import pwd

        return f"the user {pwd.getpwuid(os.geteuid()).pw_name}"
    except (ImportError, KeyError):
        return f"the user {os.geteuid()}" if hasattr(os, "geteuid") else "this user"
