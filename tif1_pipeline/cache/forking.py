"""Forks: SQLite keeps what it knows of a file's locks once a process, and a forked child would inherit it.

Such a child takes the parent's locks for its own and asks the system for none: nobody respects what it reads and
writes, and the parent, when it closes the file, deletes the log that the child is writing to. So a fork waits until no
connection is in use, and closes them all; both sides open new ones when they need them.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tif1_pipeline.exceptions import CacheError

_log = logging.getLogger(__name__)

WAIT_SECONDS = 10.0
"""For connections that are in use; a fork does not wait for ever."""


class _Depth(threading.local):
    number = 0


class Gate:
    """Keeps forks and connections apart: those that are in use hold up a fork, and a fork those that would be used."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._depth = _Depth()
        self._users = 0
        self._forks = 0
        self._is_late = False
        self._is_cut_off = False

    @contextmanager
    def using(self) -> Iterator[None]:
        """Use a connection; may be nested.

        Raises:
            CacheError: This process was forked while a connection of its parent was in use.
        """
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        """Begin to use a connection.

        Raises:
            CacheError: This process was forked while a connection of its parent was in use.
        """
        depth = self._depth
        if not depth.number:
            with self._changed:
                while self._forks:
                    self._changed.wait()
                self._users += 1
            if self._is_cut_off:
                self._leave_outermost()
                raise CacheError(
                    "this process was forked while its parent was in the middle of reading or writing the cache, and "
                    "cannot use the file safely: fork while no thread uses the cache, or start the process by spawn",
                    cause="forked",
                )
        depth.number += 1

    def leave(self) -> None:
        """Have used it."""
        depth = self._depth
        if depth.number:  # else forked from within
            depth.number -= 1
            if not depth.number:
                self._leave_outermost()

    def _leave_outermost(self) -> None:
        with self._changed:
            self._users -= 1
            if self._forks:
                self._changed.notify_all()

    def admit(self) -> None:
        """Let in a thread that this one, which is in, is about to start; it must call :meth:`leave` in the end.

        It could not enter by itself: a fork may wait for this thread by then, and this thread for that one.
        """
        with self._changed:
            self._users += 1

    def dismiss(self) -> None:
        """Not let it in after all."""
        self._leave_outermost()

    def arrive(self) -> None:
        """Be the thread that was admitted."""
        self._depth.number = 1

    # ---- around a fork

    def shut(self) -> bool:
        """Keep everybody out; False if somebody could not be waited for."""
        own = int(self._depth.number > 0)  # a fork from within cannot wait for itself
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: self._users == own, WAIT_SECONDS)
            self._is_late = self._users > 0
        if self._is_late:
            _log.warning("a process is forked in the middle of reading or writing the cache: it cannot use the file")
        return not self._is_late

    def open(self) -> None:
        """In the parent: go on."""
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()

    def renew(self) -> None:
        """In the child: nobody is in, and if a connection was open nobody comes in."""
        self._changed = threading.Condition(threading.Lock())
        self._depth = _Depth()
        self._users = 0
        self._forks = 0
        self._is_cut_off = self._is_cut_off or self._is_late


gate = Gate()
