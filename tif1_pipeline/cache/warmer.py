"""What a cache needs of whoever fetches for it: the contract of warming, which is done above this layer."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from tif1_pipeline.exceptions import CacheError

Report = dict[str, Any]
"""``succeeded``, ``skipped`` (numbers), ``failed`` (dicts with ``error``), ``seconds``, ``requests``, ``bytes``."""


_STOP_SECONDS = 5.0


class Warmer(Protocol):
    """Fetches what is missing or expired; the arguments are those of the calls of the cache."""

    def season(self, year: int, *, data_types: Sequence[str] | None, max_workers: int) -> Report: ...  # noqa: D102

    def event(  # noqa: D102
        self, year: int, event: Any, *, data_types: Sequence[str] | None, max_workers: int
    ) -> Report: ...

    def types(self, data_types: Sequence[str], year: int, event: Any, *, max_workers: int) -> Report: ...  # noqa: D102

    def drivers(  # noqa: D102
        self, drivers: Sequence[str], year: int, event: Any, session_type: str | None, *, max_workers: int
    ) -> Report: ...

    def frequent(self, min_access_count: int, *, max_workers: int) -> Report: ...  # noqa: D102

    def stop(self) -> None: ...  # noqa: D102


def no_warmer() -> Warmer:
    """Refuse to warm a cache that was made by hand.

    Raises:
        CacheError: Always.
    """
    raise CacheError("this cache was made without a source to fetch from: use the one of tif1_pipeline.get_cache()")


async def in_thread(warmer: Warmer, call: Callable[[], Report]) -> Report:
    """Run a warming call in a thread, so that the event loop goes on; cancelling the coroutine stops the warmer."""
    import asyncio  # not at the top: no reader of a cache waits for sockets and TLS to be imported

    loop = asyncio.get_running_loop()
    done: asyncio.Future[Report] = loop.create_future()

    def settle(set_it: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            set_it(value)

    def work() -> None:
        try:
            settled = done.set_result, call()
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            settled = done.set_exception, error
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, *settled)

    # Not in the loop's executor, whose threads asyncio.run and the interpreter wait for.
    threading.Thread(target=work, daemon=True, name="tif1-warming").start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        warmer.stop()
        # Until it has let go of what it was fetching, so that whoever warms next does not wait for it.
        await asyncio.wait([done], timeout=_STOP_SECONDS)
        if done.done():
            done.exception()  # asked for, or asyncio says that nobody did
        raise
