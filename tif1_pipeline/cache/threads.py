"""The threads that encode and decode; they stay, and so does the memory that Arrow keeps for each of them.

They are as many as there are cores beside the one of the thread that needs what they do, which takes part in it: one
more than there are cores, and all wait longer for the interpreter's lock.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")

NUMBER = max(1, (os.cpu_count() or 1) - 1)

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


class Task(Generic[T]):
    """Something to be done once, by one of the threads or by whoever needs it sooner.

    Args:
        work: What is to be done.
        arguments: For it.
    """

    def __init__(self, work: Callable[..., T], *arguments: Any) -> None:
        self._work: Callable[[], T] | None = partial(work, *arguments)
        self._turn = threading.Lock()
        self._future: Future[T] = Future()

    def run(self) -> None:
        """Do it now, unless somebody has begun with it; what it raises is raised by :meth:`result`."""
        if not self._turn.acquire(blocking=False):
            return
        work, self._work = self._work, None  # what it was given is not kept for longer than it takes
        assert work is not None  # noqa: S101 - only the first has the turn
        try:
            self._future.set_result(work())
        except Exception as error:  # noqa: BLE001 - raised by result()
            self._future.set_exception(error)
        except BaseException as error:
            self._future.set_exception(error)
            raise

    def result(self) -> T:
        """Return what came of it, doing it first if nobody has begun."""
        self.run()
        return self._future.result()

    def cancel(self) -> None:
        """Have it not done, unless somebody has begun with it."""
        if self._turn.acquire(blocking=False):
            self._work = None
            self._future.cancel()

    def when_done(self, call: Callable[[], object]) -> None:
        """Have something called when it is done."""
        self._future.add_done_callback(lambda _: call())


def submit(work: Callable[..., T], *arguments: Any) -> Task[T]:
    """Have something done on one of the threads, or when its result is asked for if none has come to it before."""
    global _pool
    task = Task(work, *arguments)
    with suppress(RuntimeError):  # the interpreter is about to end, or the system has no thread left
        with _lock:
            _pool = _pool or ThreadPoolExecutor(NUMBER, thread_name_prefix="tif1-codec")
        _pool.submit(task.run)
    return task


def each(work: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """Return what is made of each item, in their order."""
    if len(items) < 2:
        return [work(item) for item in items]
    tasks = [submit(work, item) for item in items]
    for task in reversed(tasks):  # the threads come from the other end
        task.run()
    return [task.result() for task in tasks]


def _renew() -> None:
    """In a forked child: the threads are not there, and the lock may have been held by one."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew)
