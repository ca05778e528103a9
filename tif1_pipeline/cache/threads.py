"""The threads that encode and decode; they stay, and so does the memory that Arrow keeps for each of them."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

NUMBER = os.cpu_count() or 1

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def submit(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Have something done on one of the threads, or at once where no thread is to be had any more."""
    global _pool
    try:
        with _lock:
            _pool = _pool or ThreadPoolExecutor(NUMBER, thread_name_prefix="tif1-codec")
        return _pool.submit(work, *arguments)
    except RuntimeError:  # the interpreter is about to end, or the system has no thread left
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments))
        except Exception as error:  # noqa: BLE001 - raised by result(), as that of a thread
            future.set_exception(error)
        return future


def each(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Return what is made of each item, in their order."""
    if len(items) < 2:
        return [work(item) for item in items]
    return [future.result() for future in [submit(work, item) for item in items]]


def _renew() -> None:
    """In a forked child: the threads are not there, and the lock may have been held by one."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew)
