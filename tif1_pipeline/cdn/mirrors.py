"""Mirrors: where a file is on each, and which of them are worth asking now."""

import asyncio
import logging
import time
from functools import lru_cache
from urllib.parse import urlsplit

from tif1_pipeline.cdn.base import CdnFile, Timing
from tif1_pipeline.cdn.faults import MirrorError
from tif1_pipeline.keys import path_segment

logger = logging.getLogger(__name__)

# As many files must fail in a row, each after its retries, before a mirror is set aside. While it gives nothing but
# failures, no more than these retry; the others wait for what becomes of them. So a dead mirror gets one request of
# each worker and the retries of five files, not the retries of all.
FAILURES_IN_A_ROW = 5

# Three of the four names in a telemetry file's path are those of the file before.
_segment = lru_cache(maxsize=4096)(path_segment)


class Mirror:
    """One mirror and its health: a circuit breaker. Used by the client's loop thread only, hence without locks.

    Libraries were looked at: pybreaker does asyncio through tornado only; aiobreaker has had no release since 2021;
    purgatory and circuitbreaker let every waiting request through at once after the pause. None holds back retries.
    """

    def __init__(self, template: str, timing: Timing) -> None:
        self.template = template
        self.host = urlsplit(template.replace("{year}", "0")).netloc
        self._timing = timing
        self._failures = 0
        self._last_failure = 0.0
        self._last_reason = ""
        self._probing = False
        self._troubled = False
        self._retrying = 0
        self._waiting: list[asyncio.Future[None]] = []

    def url(self, file: CdnFile) -> str:
        """Return where this mirror has the file.

        Raises:
            InvalidDataError: A name of the file cannot be part of a URL.
        """
        return "/".join([self.template.replace("{year}", str(file.year)), *map(_segment, file.names)])

    @property
    def is_set_aside(self) -> bool:
        """Whether the mirror failed so often in a row that it is left alone."""
        return self._failures >= FAILURES_IN_A_ROW

    def enter(self, *, alone: bool) -> bool:
        """Ask to send a request; tell whether it is the probe of a mirror that was set aside.

        Args:
            alone: No other mirror is left: probe sooner.

        Raises:
            MirrorError: The mirror is set aside, and it is not time to probe it.
        """
        if not self.is_set_aside:
            return False
        pause = self._timing.set_aside_alone if alone else self._timing.set_aside
        if self._probing or time.monotonic() < self._last_failure + pause:
            raise self._set_aside_fault()
        self._probing = True
        return True

    def leave(self, *, probing: bool, retrying: bool) -> None:
        """End what :meth:`enter` and :meth:`take_retry_turn` began, whatever came of it."""
        self._probing = self._probing and not probing
        self._retrying -= retrying
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            if not change.done():
                change.set_result(None)

    def answered(self) -> None:
        """Note that the mirror did its work, be it by saying that it has no such file."""
        if self.is_set_aside:
            logger.warning("mirror %s answers again and is used again", self.host)
        self._failures = 0
        self._troubled = False

    def stumbled(self) -> None:
        """Note that a request failed, which a retry may mend."""
        self._troubled = True

    def failed(self, reason: str) -> None:
        """Note that a file could not be had in spite of its retries."""
        was_set_aside = self.is_set_aside
        self._failures += 1
        self._last_failure = time.monotonic()
        self._last_reason = reason
        if self.is_set_aside and not was_set_aside:
            logger.warning(
                "mirror %s is set aside for %g s after %d failures in a row, the last: %s",
                *(self.host, self._timing.set_aside, self._failures, reason),
            )

    async def take_retry_turn(self) -> None:
        """Wait until a retry may be sent.

        Raises:
            MirrorError: The mirror was set aside meanwhile.
        """
        while self._troubled and not self.is_set_aside and self._failures + self._retrying >= FAILURES_IN_A_ROW:
            change = asyncio.get_running_loop().create_future()
            self._waiting.append(change)
            await change
        if self.is_set_aside:
            raise self._set_aside_fault()
        self._retrying += 1

    def _set_aside_fault(self) -> MirrorError:
        return MirrorError(
            "network", f"set aside after failures in a row, the last: {self._last_reason}", blames_mirror=False
        )
