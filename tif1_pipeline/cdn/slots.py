"""The bound on requests under way at once."""

import asyncio
from collections import deque
from collections.abc import Callable


class RequestSlots:
    """Lets as many requests through as the setting says now, first come, first served.

    An asyncio.Semaphore cannot change its size, and settings are effective at once.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        if self._taken < self._limit():
            self._taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # cancelled in the moment its turn came: pass it on
                await self.__aexit__()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._taken -= 1
        # More than one place may be free: the limit may have been raised.
        while self._waiting and self._taken < self._limit():
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)
