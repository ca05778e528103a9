"""The audit log: JSON lines that say who did what to which entry, and when.

One file may be written by many processes: concurrent-log-handler takes a lock on a file beside it for each line and
renames the file under that lock when it is full. A line is one JSON object, so no name can forge another.
"""

import functools
import json
import logging
import os
import re
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from tif1_pipeline.cache.connection import FILE_MODE, create_file
from tif1_pipeline.config import Config

if TYPE_CHECKING:
    from concurrent_log_handler import ConcurrentRotatingFileHandler

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")

MAX_BYTES = 10 << 20
FILES = 5
"""Former files that are kept, as ``<name>.1`` (the latest) to ``<name>.5``."""
_OPEN_LOGS = 4
"""Logs of one process that stay open, where its caches have several."""

_lock = threading.RLock()
_handlers: "dict[Path, ConcurrentRotatingFileHandler]" = {}
_failed: set[str] = set()


def audited(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """Have a call of the cache leave one line: its name, what it was given, and what became of it."""

    @functools.wraps(call)
    def audited_call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        config: Config = args[0]._tiered.config  # type: ignore[attr-defined] - the cache
        if config.cache_audit_log is None:
            return call(*args, **kwargs)
        name = call.__name__.rstrip("_")
        given = [str(value) for value in (*args[1:], *kwargs.values())]
        try:
            result = call(*args, **kwargs)
        except BaseException as error:
            record(config, name, arguments=given, error=str(error) or type(error).__name__)
            raise
        record(config, name, arguments=given, result=result if isinstance(result, int | float) else None)
        return result

    return audited_call


def record(config: Config, operation: str, key: str | None = None, **details: Any) -> None:
    """Write one line, if ``cache_audit_log`` is set; a log that cannot be written is reported once and skipped.

    Args:
        config: Settings.
        operation: What was done: ``read``, ``write``, ``remove``, ``clear`` …
        key: To which entry.
        **details: What else is worth knowing: numbers, sizes, tiers, paths; never a secret.
    """
    path = config.cache_audit_log
    if path is None:
        return
    try:
        line = json.dumps(
            {name: _clean(value) for name, value in details.items()}
            | {"time": datetime.now(UTC).isoformat(), "pid": os.getpid()}
            | _who()
            | {"operation": operation, "key": key},
            default=str,
        )
        with _lock:
            _handler(path).handle(logging.LogRecord(__name__, logging.INFO, "", 0, line, None, None))
    except Exception as error:  # noqa: BLE001 - the log must not break what it tells of
        _fail(path, error)


def _clean(value: Any) -> Any:
    """Cut what may carry credentials from a URL: user and password, query and fragment."""
    if isinstance(value, str) and "://" in value:
        return re.sub(r"[?#].*", "", re.sub(r"//[^/\s]*@", "//***@", value), flags=re.DOTALL)
    return [_clean(item) for item in value] if isinstance(value, list) else value


@functools.lru_cache(maxsize=1)
def _who() -> dict[str, str]:
    try:
        import pwd  # not on Windows

        user = pwd.getpwuid(os.geteuid()).pw_name  # the environment's word for it is anybody's to change
    except ImportError:
        user = os.environ.get("USERNAME", "")
    except KeyError:  # a container's user without a name
        user = str(os.geteuid())
    return {"user": user, "host": socket.gethostname()}


def _handler(path: Path) -> "ConcurrentRotatingFileHandler":
    handler = _handlers.get(path)
    if handler is None:
        # Not at the top: the import is of no use to the many who keep no log.
        from concurrent_log_handler import ConcurrentRotatingFileHandler

        create_file(path)  # with its folder, whatever the umask
        handler = ConcurrentRotatingFileHandler(
            path, maxBytes=MAX_BYTES, backupCount=FILES, encoding="utf-8", chmod=FILE_MODE
        )
        # Called within the handling of what went wrong; the library's own prints to stderr, at every line.
        handler.handleError = lambda record: _fail(path, None)  # pyright: ignore[reportAttributeAccessIssue]
        while len(_handlers) >= _OPEN_LOGS:
            _handlers.pop(next(iter(_handlers))).close()
        _handlers[path] = handler
    return handler


def _fail(path: Path, error: Exception | None) -> None:
    if str(path) not in _failed:
        _failed.add(str(path))
        _log.error(
            "the audit log %s cannot be written, operations go on without it: check folder, permissions and disk "
            "space, and that concurrent-log-handler is installed, or set cache_audit_log to another file",
            path,
            exc_info=error if error is not None else True,
        )


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    # A fork in the middle of a line would leave its first half in the buffer of both processes.
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
