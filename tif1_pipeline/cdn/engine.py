"""What runs in the client's loop thread: files, mirror after mirror, so many at once."""

import asyncio
import contextlib
import itertools
import logging
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

from tif1_pipeline import __version__
from tif1_pipeline.cdn.base import (
    CdnFile,
    CdnStats,
    Fetched,
    Outcome,
    Probed,
    ProbeOutcome,
    T,
    Timing,
    Validators,
    Version,
)
from tif1_pipeline.cdn.body import Inflater
from tif1_pipeline.cdn.faults import MirrorError, error_of
from tif1_pipeline.cdn.mirrors import Mirror
from tif1_pipeline.cdn.probe import compared, conditions
from tif1_pipeline.cdn.slots import RequestSlots
from tif1_pipeline.cdn.transport import Transport
from tif1_pipeline.cdn.visit import Limits, Tools, Visit
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import NetworkError, Tif1Error

logger = logging.getLogger(__name__)
Q = TypeVar("Q")


class Engine:
    """Connections, mirrors' health and the request bound of one client; everything here belongs to one event loop.

    Args:
        config: Read at each call.
        timing: How long to wait for what.
    """

    def __init__(self, config: Config, timing: Timing) -> None:
        self._config = config
        self._timing = timing
        self._mirrors: dict[str, Mirror] = {}
        self._tools = Tools(
            transport=Transport(),
            slots=RequestSlots(lambda: config.max_concurrent_requests),
            inflater=Inflater(),
            timing=timing,
            headers=(
                "Accept: application/json, */*;q=0.5\r\nAccept-Encoding: gzip\r\n"
                f"User-Agent: tif1_pipeline/{__version__}\r\n"
            ).encode("ascii"),
        )

    async def fetch(
        self,
        file: CdnFile,
        decode: Callable[[bytes], T],
        validators: Validators | None,
        counters: tuple[CdnStats, ...],
    ) -> Fetched[T]:
        """Fetch one file from the first mirror that gives it.

        Raises:
            DataNotFoundError: Every mirror says that it has no such file.
            NetworkError: A mirror that may have it could not be reached.
            InvalidDataError: A mirror sent something unusable, and none anything better.
        """
        limits = self._limits()
        return await self._from_a_mirror(
            file,
            lambda mirror, url: Visit(self._tools, mirror, url, decode, validators, limits, counters),
        )

    async def fetch_many(
        self,
        files: Iterable[CdnFile],
        decode: Callable[[CdnFile, bytes], T],
        counters: tuple[CdnStats, ...],
        on_done: Callable[[CdnFile], None] | None,
        follow: Callable[[CdnFile], Iterable[CdnFile]] | None,
    ) -> list[Outcome[T]]:
        """Fetch files and return what came of each, in their order; those that followed from others at the end."""
        queue = deque(enumerate(files))
        numbers = itertools.count(len(queue))
        outcomes: dict[int, Outcome[T]] = {}

        async def work(turn: tuple[int, CdnFile]) -> None:
            number, file = turn
            try:
                outcomes[number] = await self.fetch(file, lambda body: decode(file, body), None, counters)
                # What has come together is decoded together, before anything else takes its memory out of the caches.
                await asyncio.sleep(0)
            except Tif1Error as error:
                _clear_frames(error)
                outcomes[number] = error
            else:
                if follow is not None:
                    queue.extendleft((next(numbers), more) for more in follow(file))
            if on_done is not None:
                on_done(file)

        await self._each(queue, work)
        return [outcomes[number] for number in range(next(numbers))]

    async def probe(
        self, file: CdnFile, held: Version | None, limits: Limits, counters: tuple[CdnStats, ...]
    ) -> Probed:
        """Ask the mirrors for the version of a file that they have, the one that the held version is from first.

        Raises:
            Tif1Error: As :meth:`fetch`.
        """

        def visit(mirror: Mirror, url: str) -> Visit[None]:
            return Visit(self._tools, mirror, url, None, conditions(held, url), limits, counters)

        return compared(await self._from_a_mirror(file, visit, held.url if held else None), held)

    async def probe_many(
        self, files: Mapping[CdnFile, Version | None], seconds: float | None, counters: tuple[CdnStats, ...]
    ) -> dict[CdnFile, ProbeOutcome]:
        """Probe files and return what came of each; those without an answer in time count as not reached."""
        outcomes: dict[CdnFile, ProbeOutcome] = {}
        limits = self._limits()
        if seconds is not None:
            # A mirror that hangs must leave time for the others. Headers alone need no time for a body.
            share = seconds / max(len(self._config.cdn_urls), len(self._config.schedule_urls), 1)
            limits = Limits(min(limits.timeout, share / (1 + limits.retries)), limits.retries, timeouts_per_try=1)

        async def work(file: CdnFile) -> None:
            try:
                outcomes[file] = await self.probe(file, files[file], limits, counters)
            except Tif1Error as error:
                _clear_frames(error)
                outcomes[file] = error

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._each(deque(files), work)
        late = f"no answer within the {seconds:g} s that the question may take" if seconds else ""
        return {
            file: outcomes.get(file) or NetworkError(f"{file}: {late}", file=str(file), year=file.year)
            for file in files
        }

    async def _each(self, queue: deque[Q], work: Callable[[Q], Awaitable[None]]) -> None:
        """Do the work for each item, also those that it puts there, so many at once as there may be requests."""

        async def worker() -> None:
            while queue:
                await work(queue.popleft())

        # Not a task for each file: 1,400 waiting tasks cost more than the requests.
        workers = [asyncio.create_task(worker()) for _ in range(min(self._config.max_concurrent_requests, len(queue)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _from_a_mirror(
        self, file: CdnFile, visit: Callable[[Mirror, str], Visit[T]], ahead: str | None = None
    ) -> Fetched[T]:
        """Visit mirrors, that of the URL ``ahead`` before the others, until one has the file."""
        templates = self._config.schedule_urls if file.is_schedule else self._config.cdn_urls
        mirrors = [self._mirror(template) for template in templates]
        failed: list[tuple[str, str, MirrorError]] = []
        if ahead is not None:
            mirrors.sort(key=lambda mirror: mirror.url(file) != ahead)
        for mirror in mirrors:
            url = mirror.url(file)
            alone = all(other.is_set_aside for other in mirrors)
            try:
                return await visit(mirror, url).run(alone=alone)
            except MirrorError as fault:
                logger.debug("%s: mirror %s: %s", file, mirror.host, fault)
                _clear_frames(fault)
                failed.append((mirror.host, url, fault))
        raise error_of(file, failed)

    def _limits(self) -> Limits:
        return Limits(self._config.request_timeout.total_seconds(), self._config.max_retries)

    async def aclose(self) -> None:
        """Close the connections."""
        self._tools.inflater.close()
        await self._tools.transport.aclose()

    def _mirror(self, template: str) -> Mirror:
        mirror = self._mirrors.get(template)
        if mirror is None:
            mirror = self._mirrors[template] = Mirror(template, self._timing)
        return mirror


def _clear_frames(error: BaseException | None) -> None:
    # The frames of a traceback hold the bad body: while the next mirror is asked, and as long as somebody has the
    # error. A list of a thousand errors would hold a thousand of them.
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
