"""Backup archives: a manifest and database files in a tar, compressed with zstd; and folders for work under way.

An archive may come from anywhere: only the members that its manifest names are read, in their order, and never more
bytes than it says.
"""

import hashlib
import io
import json
import os
import re
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tif1_pipeline.cache.connection import DIRECTORY_MODE, FILE_MODE, LAYOUT_VERSION, sync_folder
from tif1_pipeline.exceptions import CacheError, CacheVersionError, CorruptEntryError

FORMAT = 1
"""Raised when former versions cannot read the archive any more."""
MANIFEST = "manifest.json"
MAX_MANIFEST = 1 << 20
MAX_MEMBERS = 128
CHUNK = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
_MAX_WINDOW = 1 << 25
"""Memory that a zstd frame may ask for; 19, the highest level without long-distance matching, takes 8 MiB."""
_WORK = re.compile(r"\.tif1_cache-[0-9A-Za-z_]+\.partial")
_HASH = re.compile(r"[0-9a-f]{64}")

OnBytes = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Member:
    """One database file of an archive."""

    name: str
    size: int
    blake2b: str
    entries: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive holds.

    Attributes:
        created_at: Of the copy, ISO 8601 in UTC.
        library_version: Of the package that wrote it.
        layout: Of the databases.
        members: In the order of the cache's files.
    """

    created_at: str
    library_version: str
    layout: int
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Bytes of all databases."""
        return sum(member.size for member in self.members)


def member_name(number: int) -> str:
    """Return the name of the copy of the cache's file of this number."""
    return f"tif1_cache.{number}.db" if number else "tif1_cache.db"


def hash_file(path: Path, on_bytes: OnBytes) -> str:
    """Return the hash of a file that no SQLite connection of this process has open."""
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
            on_bytes(len(data))
    return digest.hexdigest()


# ---- writing


def write(path: Path, manifest: Manifest, folder: Path, on_bytes: OnBytes) -> None:
    """Write an archive of the files of a folder and sync it to disk; ``path`` must not exist."""
    import zstandard

    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), FILE_MODE)
        compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
        with (
            compressor.stream_writer(file, closefd=False) as stream,
            # GNU's headers hold any size without extra ones.
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as archive,
        ):
            text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1).encode()
            archive.addfile(_header(MANIFEST, len(text)), io.BytesIO(text))
            for member in manifest.members:
                with (folder / member.name).open("rb") as source:
                    archive.addfile(_header(member.name, member.size), _Counted(source, on_bytes))
        file.flush()
        os.fsync(file.fileno())


def _header(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, FILE_MODE
    return info


class _Counted:
    """A file that tells how much of it is read."""

    def __init__(self, file: BinaryIO, on_bytes: OnBytes) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._on_bytes(len(data))
        return data


# ---- reading


class _Source:
    """The file under the decompressor, which itself says nothing when its input ends early."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self.ended = False

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        self.ended = self.ended or not data
        return data


def _unreadable(path: Path, error: OSError) -> CacheError:
    return CacheError(f"the backup {path} cannot be read: {error}", path=str(path))


@contextmanager
def reading(path: Path) -> Iterator["Reader"]:
    """Open an archive and read its manifest.

    Raises:
        CorruptEntryError: It is no backup, or damaged.
        CacheVersionError: It is of a newer version.
        CacheError: It cannot be read.
    """
    try:
        # Not blocking: a named pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(path, error) from error
    # Errors of what the caller does with it are not of the backup.
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CacheError(f"{path} is no file: name a backup", path=str(path))
    with os.fdopen(descriptor, "rb") as file:
        yield Reader(path, file)


class Reader:
    """An archive, read from its beginning to its end, once.

    Attributes:
        manifest: What it holds.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        import zstandard

        self._path = path
        self._source = _Source(path, file)
        self._stream = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(self._source)  # pyright: ignore[reportArgumentType] - anything with read()
        self.manifest = self._read_manifest()

    def read_members(self, folder: Path | None, on_bytes: OnBytes) -> None:
        """Read all members and compare their hashes.

        Args:
            folder: Where to write them; None to check them only.
            on_bytes: Told how many were read.

        Raises:
            CorruptEntryError: They are not those that were written.
        """
        for member in self.manifest.members:
            if self._next_header(member.name) != member.size:
                raise self._damaged(f"{member.name} is not as large as the manifest says")
            with nullcontext() if folder is None else (folder / member.name).open("xb") as file:
                digest = self._copy(member.size, file, on_bytes)
            if digest != member.blake2b:
                raise self._damaged(f"{member.name} does not have the hash that the manifest says")
        # One read beyond the end makes the decompressor check the checksum of the whole.
        tail = self._read(2 * tarfile.RECORDSIZE)
        if self._source.ended or not 2 * _BLOCK <= len(tail) < 2 * tarfile.RECORDSIZE or tail.strip(b"\0"):
            raise self._damaged("it does not end as a backup does")

    def _copy(self, size: int, file: BinaryIO | None, on_bytes: OnBytes) -> str:
        digest, left = hashlib.blake2b(digest_size=32), size
        while left:
            data = self._exactly(min(left, CHUNK))
            left -= len(data)
            digest.update(data)
            if file is not None:
                file.write(data)
            on_bytes(len(data))
        self._exactly(-size % _BLOCK)
        return digest.hexdigest()

    def _read_manifest(self) -> Manifest:
        size = self._next_header(MANIFEST)
        if size > MAX_MANIFEST:
            raise self._damaged("its manifest is too large")
        text = self._exactly(size)
        self._exactly(-size % _BLOCK)
        try:
            content = json.loads(text)
            return self._checked(content)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damaged(f"its manifest cannot be understood ({error!r})") from error

    def _checked(self, content: dict[str, Any]) -> Manifest:
        for name, known in (("format", FORMAT), ("layout", LAYOUT_VERSION)):
            value = content[name]
            if type(value) is not int or value < 1:
                raise ValueError(name)
            if value > known:
                raise CacheVersionError(
                    f"{self._path} has {name} {value}, this version of tif1_pipeline knows 1 to {known}; nothing was "
                    "changed. Update tif1_pipeline",
                    path=str(self._path),
                    layout=value,
                )
        if not all(isinstance(content[name], str) for name in ("created_at", "library_version")):
            raise ValueError("created_at, library_version")
        members = tuple(Member(**member) for member in content["members"])
        if not 1 <= len(members) <= MAX_MEMBERS:
            raise ValueError("members")
        for number, member in enumerate(members):
            if (
                member.name != member_name(number)
                or type(member.size) is not int
                or type(member.entries) is not int
                or not 0 < member.size < 1 << 50
                or not _HASH.fullmatch(member.blake2b)
            ):
                raise ValueError("members")
        return Manifest(content["created_at"], content["library_version"], content["layout"], members)

    def _next_header(self, name: str) -> int:
        """Read the header of a member that must be a plain file of this name; returns its size."""
        try:
            header = tarfile.TarInfo.frombuf(self._exactly(_BLOCK), "utf-8", "strict")  # pyright: ignore[reportArgumentType] - bytes it takes
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise self._damaged(f"{name} is not where it should be") from error
        # tarfile itself would follow headers of any size that say more on the member: long names, links, holes.
        if header.type != tarfile.REGTYPE or header.name != name or header.size < 0:
            raise self._damaged(f"{header.name!r} stands where {name} should be")
        return header.size

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._read(size - len(data))
            if not more:
                raise self._damaged("it ends early")
            data = data + more if data else more
        return data

    def _read(self, size: int) -> bytes:
        import zstandard

        try:
            return self._stream.read(size)
        except zstandard.ZstdError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, what: str) -> CorruptEntryError:
        return CorruptEntryError(
            f"{self._path} is no backup of this package, or damaged: {what}. Nothing was changed; try another one",
            path=str(self._path),
        )


# ---- folders for work under way


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, closed to others whatever the umask."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with suppress(FileExistsError):  # another process was quicker
            folder.mkdir()
            folder.chmod(DIRECTORY_MODE)
        sync_folder(folder.parent)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes and threads that do the same."""
    import fcntl  # not at the top: Windows has none, and would lose all of maintenance

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """Make a folder that is gone afterwards; those that killed processes left are removed."""
    import fcntl

    with locked(parent):  # nobody may take the new folder for an abandoned one before it is locked
        for left in parent.iterdir():
            if _WORK.fullmatch(left.name):
                _remove_if_abandoned(left)
        folder = Path(tempfile.mkdtemp(prefix=".tif1_cache-", suffix=".partial", dir=parent))
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _remove_if_abandoned(folder: Path) -> None:
    import fcntl

    with suppress(OSError):  # it is locked: its maker is at work; or it is gone
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def require_room(folder: Path, needed: int, what: str) -> None:
    """Refuse work that the disk cannot hold.

    Raises:
        CacheError: With what is needed and what is free, in bytes.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CacheError(
            f"{what} takes {needed:,} bytes in {folder}, where {free:,} are free: free some, or name another folder",
            path=str(folder),
            needed=needed,
            free=free,
        )
