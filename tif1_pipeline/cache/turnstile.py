"""Whose turn it is among the processes that write to one file."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_AVOIDED_SECONDS = 30.0


class Turnstile:
    """A place for one writer of all processes; who is in it is next, and alone in asking for SQLite's lock.

    The others wait in the kernel, in about the order in which they came. When each asked over and over until it met
    with luck, 16 processes of 8 threads came to 200 calls a second instead of 320, and some waited twice as long.

    It is a lock on the file's folder, which leaves nothing behind and ends with its process; backups and exports take
    the same for a moment. Nothing but the order depends on it: who cannot have it, or not in time, goes on without.

    Args:
        folder: Of the file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        # The thread that waits, its lock, and the descriptor with which it may go on.
        self._is_waiting = False
        self._called: threading.Lock | None = None
        self._granted: int | None = None
        self._avoid_until = 0.0

    @contextmanager
    def passing(self, seconds: float) -> Iterator[bool]:
        """Be in it, or without it if it is not free within some seconds; says which."""
        descriptor = self._enter(seconds)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                _leave(descriptor)

    def _enter(self, seconds: float) -> int | None:
        if fcntl is None or time.monotonic() < self._avoid_until:
            return None
        with self._lock:
            if self._called is not None:  # another thread of this process is next
                return None
            if not self._is_waiting:
                descriptor, is_free = _open(self._folder)
                if descriptor is None or is_free:
                    return descriptor
                # Nobody can give up waiting in the kernel, so a thread of its own does it.
                thread = threading.Thread(target=self._wait, args=(descriptor,), name="tif1-turnstile", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads can be started, or the interpreter is ending
                    os.close(descriptor)
                    return None
                self._is_waiting = True
            self._called = called = threading.Lock()
            called.acquire()
        is_over = False
        try:
            called.acquire(timeout=seconds)
            is_over = True
        finally:
            with self._lock:
                self._called = None
                descriptor, self._granted = self._granted, None
            if descriptor is not None and not is_over:  # Ctrl-C
                _leave(descriptor)
        if descriptor is None:
            # Who is in it may have been stopped: not everybody is to wait for that each time.
            self._avoid_until = time.monotonic() + _AVOIDED_SECONDS
        return descriptor

    def _wait(self, descriptor: int) -> None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with self._lock:
            self._is_waiting = False
            if self._called is None:  # it has given up
                _leave(descriptor)
            else:
                self._granted = descriptor
                self._called.release()


def _open(folder: Path) -> tuple[int | None, bool]:
    """Return a descriptor of the folder, None if it cannot be locked, and whether it has been locked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None, False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return descriptor, False
    except OSError:  # a file system without
        os.close(descriptor)
        return None, False
    return descriptor, True


def _leave(descriptor: int) -> None:
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing would not do: a forked child may have it, too
    os.close(descriptor)
