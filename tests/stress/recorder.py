"""What a process writes and syncs, in its order, for :mod:`tests.stress.power`.

SQLite's calls are recorded between SQLite and its own file layer: a copy of the default VFS whose open, delete, write,
truncate and sync note what they do and then do it. What Python itself syncs, renames, removes and makes is noted by
functions put in place of those of :mod:`os`.
"""

import _sqlite3
import ctypes
import os
import pickle
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_CREATE, _MAIN_JOURNAL, _WAL = 0x4, 0x800, 0x80000
_P, _I = ctypes.c_void_p, ctypes.c_int
# Called with the interpreter's lock held, so that the order of the notes is that of the calls.
_Open = ctypes.PYFUNCTYPE(_I, _P, _P, _P, _I, _P)
_Delete = ctypes.PYFUNCTYPE(_I, _P, ctypes.c_char_p, _I)
_Write = ctypes.PYFUNCTYPE(_I, _P, _P, _I, ctypes.c_int64)
_Truncate = ctypes.PYFUNCTYPE(_I, _P, ctypes.c_int64)
_Sync = ctypes.PYFUNCTYPE(_I, _P, _I)


class Event(NamedTuple):
    """Something that happened.

    Attributes:
        kind: ``write``, ``truncate``, ``sync`` or ``delete`` by SQLite; ``fsync``, ``folder`` (synced), ``rename``,
            ``unlink``, ``mkdir`` or ``rmdir`` by Python; ``try`` and ``done`` by the trial itself.
        path: Of the file.
        offset: Where was written; the size after a truncation; whether the folder was synced with a sync or deletion.
        data: What was written or, of a ``fsync``, what is in the file; where a rename leads.
    """

    kind: str
    path: str
    offset: int = 0
    data: Any = None


class _Methods(ctypes.Structure):
    _fields_ = [("version", _I), *((f"x{number}", _P) for number in range(18))]


class _File(ctypes.Structure):
    _fields_ = [("methods", ctypes.POINTER(_Methods))]


_CLOSED = ("pNext", "zName", "pAppData", "xOpen", "xDelete", *(f"x{number}" for number in range(14)))


class _Vfs(ctypes.Structure):
    _fields_ = [("version", _I), ("size", _I), ("longest", _I), *((name, _P) for name in _CLOSED)]


def is_possible() -> bool:
    """Tell whether the SQLite of this interpreter can be reached: not where it is linked in and hidden."""
    try:
        return bool(_library().sqlite3_vfs_find)
    except (AttributeError, OSError):
        return False


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(getattr(_sqlite3, "__file__", None))


class Recorder:
    """Records until it is saved; for a process that has opened no database yet and ends afterwards."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._paths: dict[int, tuple[str, bool]] = {}
        self._kept: list[Any] = []
        self._methods: dict[int, Any] = {}
        self._wrap_sqlite()
        self._wrap_os()

    def note(self, kind: str, path: str = "", offset: int = 0, data: Any = None) -> None:
        """Note something."""
        self.events.append(Event(kind, path, offset, data))

    def save(self, path: Path) -> None:
        """Write down what was recorded."""
        path.write_bytes(pickle.dumps([tuple(event) for event in self.events]))

    # ---- SQLite

    def _wrap_sqlite(self) -> None:
        library = _library()
        library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        default = library.sqlite3_vfs_find(None).contents
        vfs = _Vfs.from_buffer_copy(default)
        really_open, really_delete = _Open(default.xOpen), _Delete(default.xDelete)

        def open_(me: int, name: int | None, file: int, flags: int, out: int) -> int:
            # The name as a pointer: SQLite keeps it, and more stands behind it.
            code = really_open(ctypes.addressof(default), name, file, flags, out)
            if code == 0 and name is not None:
                syncs_folder = bool(flags & _CREATE and flags & (_MAIN_JOURNAL | _WAL))
                self._paths[file] = os.fsdecode(ctypes.string_at(name)), syncs_folder
                opened = ctypes.cast(file, ctypes.POINTER(_File)).contents
                opened.methods = ctypes.pointer(self._wrapped(opened.methods.contents))
            return code

        def delete(me: int, name: bytes, syncs_folder: int) -> int:
            code = really_delete(ctypes.addressof(default), name, syncs_folder)
            if code == 0:
                self.note("delete", os.fsdecode(name), syncs_folder)
            return code

        callbacks = _Open(open_), _Delete(delete)
        vfs.xOpen, vfs.xDelete = (ctypes.cast(callback, _P).value for callback in callbacks)
        name = ctypes.create_string_buffer(b"recorder")
        vfs.zName = ctypes.addressof(name)
        self._kept += [default, vfs, callbacks, name]
        if code := library.sqlite3_vfs_register(ctypes.byref(vfs), 1):
            raise sqlite3.OperationalError(f"the recorder could not be put under SQLite: {code}")

    def _wrapped(self, methods: _Methods) -> _Methods:
        """Return SQLite's methods of a file with ours in place of three of them."""
        address = ctypes.addressof(methods)
        if address in self._methods:
            return self._methods[address]
        really_write, really_truncate, really_sync = _Write(methods.x2), _Truncate(methods.x3), _Sync(methods.x4)

        def write(file: int, data: int, size: int, offset: int) -> int:
            code = really_write(file, data, size, offset)
            self.note("write", self._paths[file][0], offset, ctypes.string_at(data, size))
            return code

        def truncate(file: int, size: int) -> int:
            code = really_truncate(file, size)
            self.note("truncate", self._paths[file][0], size)
            return code

        def sync(file: int, flags: int) -> int:
            code = really_sync(file, flags)
            self.note("sync", *self._paths[file])
            return code

        wrapped = _Methods.from_buffer_copy(methods)
        callbacks = _Write(write), _Truncate(truncate), _Sync(sync)
        wrapped.x2, wrapped.x3, wrapped.x4 = (ctypes.cast(callback, _P).value for callback in callbacks)
        self._kept.append(callbacks)
        self._methods[address] = wrapped
        return wrapped

    # ---- Python

    def _wrap_os(self) -> None:
        real_fsync = os.fsync

        def fsync(descriptor: int) -> None:
            real_fsync(descriptor)
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.is_dir():
                self.note("folder", str(path))
            else:
                self.note("fsync", str(path), 0, path.read_bytes())

        os.fsync = fsync
        for name, kind in (("rename", "rename"), ("replace", "rename"), ("unlink", "unlink"), ("remove", "unlink")):
            setattr(os, name, self._noting(getattr(os, name), kind))
        for name in ("mkdir", "rmdir"):
            setattr(os, name, self._noting(getattr(os, name), name))

    def _noting(self, real: Callable[..., None], kind: str) -> Callable[..., None]:
        def noting(path: Any, *arguments: Any, **options: Any) -> None:
            real(path, *arguments, **options)
            if options.get("dir_fd") is None:  # else in a folder for work under way, which is removed
                target = os.fspath(arguments[0]) if kind == "rename" else None
                self.note(kind, os.fspath(path), 0, target)

        return noting
