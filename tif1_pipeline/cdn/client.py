"""The CDN client: files by name, from whichever mirror has them."""

import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError, wait
from typing import TYPE_CHECKING, Any, TypeVar

from tif1_pipeline.cdn.base import (
    CdnFile,
    CdnStats,
    Fetched,
    Outcome,
    ProbeOutcome,
    T,
    Timing,
    Validators,
    Version,
)
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import NetworkError

if TYPE_CHECKING:
    from tif1_pipeline.cdn.engine import Engine
    from tif1_pipeline.cdn.runner import Runner

R = TypeVar("R")

# A wait without end is not interrupted by Ctrl-C on Windows, nor anywhere by one that comes just before it begins.
_INTERRUPT_SECONDS = 0.2


class CdnClient:
    """Fetches files of the CDN: mirrors in order, retries, a bound on requests under way.

    The calls are synchronous and may come from any thread, also one that runs an event loop, and from a forked process.
    The requests themselves run in one background thread, which the first call starts; decoders run there too.

    Args:
        config: Its CDN settings are read at each call.
        timing: Waits that are no settings; tests shorten them.
    """

    def __init__(self, config: Config, timing: Timing | None = None) -> None:
        self._config = config
        self._timing = timing or Timing()
        self._totals = CdnStats()
        self._lock = threading.Lock()
        self._runner: Runner | None = None
        self._finalizer: weakref.finalize[..., CdnClient] | None = None
        _clients.add(self)

    def fetch(
        self,
        file: CdnFile,
        decode: Callable[[bytes], T],
        *,
        validators: Validators | None = None,
        stats: CdnStats | None = None,
    ) -> Fetched[T]:
        """Fetch one file.

        Args:
            file: Which file.
            decode: Makes the value of the inflated body, in the client's thread. InvalidDataError, ValueError,
                LookupError, TypeError, AttributeError, ArithmeticError or RecursionError from it mean that the body is
                bad, and the next mirror is asked; any other exception is raised as it is.
            validators: Of the version that the caller holds: asks whether there is another one.
            stats: Counters to add to.

        Raises:
            DataNotFoundError: Every mirror says that it has no such file.
            NetworkError: A mirror that may have it could not be reached, or the setting ``offline`` forbids to try.
            InvalidDataError: A mirror sent something unusable, and none anything better.
        """
        if self._config.offline:
            raise _offline_error(file)
        counters = self._counters(stats)
        return self._run(lambda engine: engine.fetch(file, decode, validators, counters), counters)

    def fetch_many(
        self,
        files: Iterable[CdnFile],
        decode: Callable[[CdnFile, bytes], T],
        *,
        stats: CdnStats | None = None,
        on_done: Callable[[CdnFile], None] | None = None,
        follow: Callable[[CdnFile], Iterable[CdnFile]] | None = None,
    ) -> list[Outcome[T]]:
        """Fetch files concurrently.

        Args:
            files: Which files.
            decode: As for :meth:`fetch`, with the file as first argument.
            stats: Counters to add to.
            on_done: Called with each file when it is done, well or not, in the client's thread.
            follow: Called with each file that came, before ``on_done`` and as that: which files to fetch next.

        Returns:
            In the order of the files, what :meth:`fetch` would have returned or raised; then, in the order in which
            they were named, of those that followed.
        """
        files = list(files)  # here, because a generator's code belongs to the caller's thread
        if self._config.offline:
            if on_done is not None:
                for file in files:
                    on_done(file)
            return [_offline_error(file) for file in files]
        counters = self._counters(stats)
        return self._run(lambda engine: engine.fetch_many(files, decode, counters, on_done, follow), counters)

    def probe_many(
        self,
        files: Mapping[CdnFile, Version | None],
        *,
        seconds: float | None = None,
        stats: CdnStats | None = None,
    ) -> dict[CdnFile, ProbeOutcome]:
        """Ask whether files have changed, by conditional requests without bodies.

        The mirror that a version came from is asked first, because an ETag says nothing at another mirror. An answer of
        another one is compared by Last-Modified, where both have it.

        Args:
            files: Which files, each with the version that the caller holds; None if it holds none.
            seconds: Files without an answer after so long count as not reached.
            stats: Counters to add to.

        Returns:
            For each file what a mirror says, or the error that :meth:`fetch` would have raised: DataNotFoundError where
            no mirror has it.
        """
        files = dict(files)
        if self._config.offline:
            return {file: _offline_error(file) for file in files}
        counters = self._counters(stats)
        return self._run(lambda engine: engine.probe_many(files, seconds, counters), counters)

    @property
    def totals(self) -> CdnStats:
        """Counters of all calls."""
        return self._totals

    def close(self) -> None:
        """End the background thread, calls under way and connections; a later call starts them anew."""
        with self._lock:
            runner, self._runner = self._runner, None
            if self._finalizer is not None:
                self._finalizer.detach()
        if runner is not None:
            runner.stop()

    def _counters(self, stats: CdnStats | None) -> tuple[CdnStats, ...]:
        return (self._totals,) if stats is None else (self._totals, stats)

    def _run(self, call: Callable[["Engine"], Coroutine[Any, Any, R]], counters: tuple[CdnStats, ...]) -> R:
        started = time.perf_counter()
        with self._lock:  # close() takes it too: nothing is submitted to a loop that is being stopped
            if self._runner is None:
                # Imported by the first request: httpx takes long to import, which a process that
                # finds everything in the cache need not spend.
                from tif1_pipeline.cdn.runner import Runner

                self._runner = Runner(self._config, self._timing)
                # At the end of the client or of the interpreter, whichever is sooner; it must not hold the client.
                self._finalizer = weakref.finalize(self, self._runner.stop)
            future = self._runner.submit(call)
        try:
            while not wait([future], _INTERRUPT_SECONDS).done:
                pass
            return future.result()
        except CancelledError:
            raise NetworkError("the client was closed while a call was under way; call again") from None
        except BaseException:  # KeyboardInterrupt above all
            future.cancel()
            raise
        finally:
            for stats in counters:
                stats.add(seconds=time.perf_counter() - started)

    def _forget_after_fork(self) -> None:
        # Only the forking thread lives on in the child, and locks stay as they were. The parent's loop must not be
        # closed or collected here: that would write farewells to the parent's connections and take them out of its
        # epoll. It is not, because the frames of its thread, which never return, hold it.
        self._lock = threading.Lock()
        self._runner = None
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None
        totals = self._totals
        self._totals = CdnStats(totals.requests, totals.bytes, totals.retries, totals.seconds)


_clients: "weakref.WeakSet[CdnClient]" = weakref.WeakSet()


def _forget_all_after_fork() -> None:
    for client in _clients:
        client._forget_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all_after_fork)


def _offline_error(file: CdnFile) -> NetworkError:
    return NetworkError(
        f"{file} is not fetched because the setting offline is on; set it to False to allow requests to the CDN",
        file=str(file),
        year=file.year,
        setting="offline",
    )
