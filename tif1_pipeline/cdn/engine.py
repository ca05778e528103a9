"""What runs in the client's loop thread: files, mirror after mirror, so many at once."""

import asyncio
import importlib.metadata
import logging
import traceback
from collections.abc import Callable, Iterable

import httpx

from tif1_pipeline.cdn.base import CdnFile, CdnStats, Fetched, Outcome, T, Timing, Validators
from tif1_pipeline.cdn.faults import MirrorError, error_of
from tif1_pipeline.cdn.mirrors import Mirror
from tif1_pipeline.cdn.slots import RequestSlots
from tif1_pipeline.cdn.transport import AiohttpTransport
from tif1_pipeline.cdn.visit import Limits, Tools, Visit
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import Tif1Error

logger = logging.getLogger(__name__)


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
            transport=AiohttpTransport(),
            slots=RequestSlots(lambda: config.max_concurrent_requests),
            timing=timing,
            headers=httpx.Headers(
                {"Accept": "application/json, */*;q=0.5", "Accept-Encoding": "gzip", "User-Agent": _user_agent()}
            ),
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
        config = self._config
        limits = Limits(config.request_timeout.total_seconds(), config.max_retries)
        templates = config.schedule_urls if file.is_schedule else config.cdn_urls
        mirrors = [self._mirror(template) for template in templates]
        failed: list[tuple[str, str, MirrorError]] = []
        for mirror in mirrors:
            url = mirror.url(file)
            alone = all(other.is_set_aside for other in mirrors)
            try:
                return await Visit(self._tools, mirror, url, decode, validators, limits, counters).run(alone=alone)
            except MirrorError as fault:
                logger.debug("%s: mirror %s: %s", file, mirror.host, fault)
                failed.append((mirror.host, url, fault))
        raise error_of(file, failed)

    async def fetch_many(
        self,
        files: Iterable[CdnFile],
        decode: Callable[[CdnFile, bytes], T],
        counters: tuple[CdnStats, ...],
        on_done: Callable[[CdnFile], None] | None,
    ) -> list[Outcome[T]]:
        """Fetch files and return, in their order, what came of each."""
        files = list(files)
        outcomes: dict[int, Outcome[T]] = {}
        queue = iter(enumerate(files))

        async def work() -> None:
            for number, file in queue:
                try:
                    outcomes[number] = await self.fetch(
                        file, lambda body, file=file: decode(file, body), None, counters
                    )
                except Tif1Error as error:
                    _clear_frames(error)
                    outcomes[number] = error
                if on_done is not None:
                    on_done(file)

        # Not a task for each file: 1,400 waiting tasks cost more than the requests.
        workers = [asyncio.create_task(work()) for _ in range(min(self._config.max_concurrent_requests, len(files)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return [outcomes[number] for number in range(len(files))]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._tools.transport.aclose()

    def _mirror(self, template: str) -> Mirror:
        mirror = self._mirrors.get(template)
        if mirror is None:
            mirror = self._mirrors[template] = Mirror(template, self._timing)
        return mirror


def _clear_frames(error: BaseException | None) -> None:
    # The frames of a traceback hold the bad body: a list of a thousand errors would hold a thousand of them.
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _user_agent() -> str:
    try:
        return f"tif1_pipeline/{importlib.metadata.version('tif1-pipeline')}"
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "tif1_pipeline/0"
