"""The background thread of a client."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tif1_pipeline.cdn.base import Timing
from tif1_pipeline.cdn.engine import Engine
from tif1_pipeline.config import Config

R = TypeVar("R")

_STOP_SECONDS = 5.0


class Runner:
    """A thread with an event loop and the engine that runs there."""

    def __init__(self, config: Config, timing: Timing) -> None:
        self._engine = Engine(config, timing)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="tif1-cdn", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[Engine], Coroutine[Any, Any, R]]) -> concurrent.futures.Future[R]:
        """Start a call of the engine."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("a decoder or on_done callback cannot use the client that is waiting for it to return")
        return asyncio.run_coroutine_threadsafe(call(self._engine), self._loop)

    def stop(self) -> None:
        """Cancel what is under way, close the connections and end the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(_STOP_SECONDS)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._engine.aclose())
        finally:
            self._loop.close()
