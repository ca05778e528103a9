"""An HTTP server on loopback that behaves like the CDN, and misbehaves like it when told to."""

import asyncio
import contextlib
import threading
from collections.abc import Iterable
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from aiohttp import web

from tif1_pipeline.exceptions import ConfigError
from tif1_pipeline.simulator.content import Body, Content, DirectorySource, SeasonSource
from tif1_pipeline.simulator.faults import Fault, FaultSet, Request, RequestLog
from tif1_pipeline.simulator.season import Season

_HTML = b"<!DOCTYPE html>\n<html><head><title>Error</title></head><body><h1>Something went wrong</h1></body></html>\n"
_CACHE_BYTES = 512 << 20


class CdnServer:
    """Serves seasons or a directory over HTTP, in a thread of its own.

    Example:
        >>> with CdnServer(Season(2025, events=1, size="tiny")) as server:
        ...     config.cdn_urls, config.schedule_urls = server.cdn_urls, server.schedule_urls

    Args:
        content: One season, several, or a directory laid out like the CDN.
        host: Address to listen on.
        port: Port, 0 for a free one.
        seed: Decides which requests the faults hit.
        faults: Faults in force from the start.
        cache_bytes: Bytes of files kept in memory.

    Attributes:
        faults: The faults in force.
        requests: What was asked.
    """

    def __init__(
        self,
        content: Season | Iterable[Season] | str | Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int = 0,
        faults: Iterable[Fault] = (),
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        if isinstance(content, str | Path):
            if not Path(content).is_dir():
                raise ConfigError(f"{content} is no directory to serve", path=str(content))
            source = DirectorySource(Path(content))
        else:
            source = SeasonSource([content] if isinstance(content, Season) else content)
        self._content = Content(source, cache_bytes)
        self._host, self._port = host, port
        self.faults = FaultSet(seed, faults)
        self.requests = RequestLog()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._failure: BaseException | None = None

    # ---- life

    def start(self) -> Self:
        """Listen; returns when requests are answered.

        Raises:
            OSError: The port is taken.
        """
        if self._thread is not None:
            return self
        ready = threading.Event()
        self._failure = None
        self._thread = threading.Thread(target=self._run, args=(ready,), name="simulated-cdn", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            self._thread.join()
            self._thread = None
            raise self._failure
        return self

    def stop(self) -> None:
        """Drop all connections and stop listening."""
        if self._thread is None or self._loop is None or self._stopping is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, ready: threading.Event) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._serve(ready))
        except BaseException as error:  # noqa: BLE001 - raised again by start(), which would wait for ever
            self._failure = error
        finally:
            ready.set()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        # The bare server: routing and middlewares would cost more than the answers.
        # A request whose client has given up is over, also while a fault makes it wait.
        server = web.Server(self._answer, access_log=None, handler_cancellation=True)
        runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, backlog=1024).start()
            self._port = runner.addresses[0][1]
            ready.set()
            await self._stopping.wait()
        finally:
            await runner.cleanup()

    # ---- where

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    @property
    def url(self) -> str:
        """Its root, without a slash at the end."""
        return f"http://{self._host}:{self._port}"

    @property
    def cdn_urls(self) -> tuple[str, ...]:
        """Value for the setting ``cdn_urls``: one mirror."""
        return self.mirror_urls(1)

    @property
    def schedule_urls(self) -> tuple[str, ...]:
        """Value for the setting ``schedule_urls``: one mirror."""
        return self.mirror_schedule_urls(1)

    def mirror_urls(self, count: int) -> tuple[str, ...]:
        """Return ``count`` mirrors for the setting ``cdn_urls``; faults can be aimed at one by its number, from 1."""
        return tuple(f"{self._mirror(number)}/TracingInsights/{{year}}@main" for number in range(1, count + 1))

    def mirror_schedule_urls(self, count: int) -> tuple[str, ...]:
        """Return ``count`` mirrors for the setting ``schedule_urls``."""
        path = "theOehrly/f1schedule@master/schedule_{year}.json"
        return tuple(f"{self._mirror(number)}/{path}" for number in range(1, count + 1))

    def _mirror(self, number: int) -> str:
        return self.url if number == 1 else f"{self.url}/mirror{number}"

    # ---- what changes

    def hide(self, pattern: str) -> None:
        """Answer 404 for the files that match a glob (see :class:`Fault`), as if not published yet."""
        self._content.show(pattern, visible=False)

    def publish(self, pattern: str = "*") -> None:
        """Publish hidden files that match a glob; their Last-Modified is this moment."""
        self._content.show(pattern, visible=True)

    def republish(self, pattern: str) -> None:
        """Change the files that match a glob: in lap tables the first lap time, a new ETag in all."""
        self._content.republish(pattern)

    # ---- answers

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        mirror, path = _split(request.rel_url.raw_path)
        conditional = "If-None-Match" in request.headers or "If-Modified-Since" in request.headers
        faults = self.faults.hitting(path, mirror)
        kinds = tuple(fault.kind for fault in faults)
        status, size = 0, 0
        self.requests.begin()
        try:
            response = await self._respond(request, path, faults)
            if not (request.transport is None or request.transport.is_closing()) or "truncate" in kinds:
                status, size = response.status, response.content_length or 0
            return response
        finally:
            self.requests.end(Request(request.method, path, mirror, status, conditional, kinds), size)

    async def _respond(self, request: web.BaseRequest, path: str, faults: list[Fault]) -> web.StreamResponse:
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        fault = None
        for hit in faults:
            if hit.kind == "latency":
                await asyncio.sleep(0.1 if hit.seconds is None else hit.seconds)
            else:
                fault = hit
        if fault is not None and (answer := await _misbehave(request, fault)) is not None:
            return answer
        compressed = "gzip" in request.headers.get("Accept-Encoding", "")
        found = self._content.get(path, compressed=compressed)
        if found is None:
            return web.Response(status=404, text="Couldn't find the requested file.\n")
        body, data = found
        headers = {
            "ETag": body.etag,
            "Last-Modified": formatdate(body.modified, usegmt=True),
            "Cache-Control": "public, max-age=43200",
            "Vary": "Accept-Encoding",
        }
        if _unchanged(request, body):
            return web.Response(status=304, headers=headers)
        if compressed:
            headers["Content-Encoding"] = "gzip"
        if fault is not None and fault.kind == "bad_json":
            headers.pop("Content-Encoding", None)
            data = body.plain[: len(body.plain) // 2]
        if fault is not None and fault.kind == "truncate":
            return await _truncate(request, headers, data)
        return web.Response(body=data, headers=headers, content_type="application/json", charset="utf-8")


def _split(raw_path: str) -> tuple[int, str]:
    """Return the mirror and the decoded path of a request."""
    path = unquote(raw_path).removeprefix("/")
    first, _, rest = path.partition("/")
    number = first.removeprefix("mirror")
    if number != first and number.isdecimal():
        return int(number), rest
    return 1, path


def _unchanged(request: web.BaseRequest, body: Body) -> bool:
    asked = request.headers.get("If-None-Match")
    if asked is not None:  # outranks the date
        tags = {tag.strip().removeprefix("W/") for tag in asked.split(",")}
        return body.etag.removeprefix("W/") in tags or "*" in tags
    since = request.headers.get("If-Modified-Since")
    if since is None:
        return False
    with contextlib.suppress(ValueError):
        return int(body.modified) <= parsedate_to_datetime(since).timestamp()
    return False


async def _misbehave(request: web.BaseRequest, fault: Fault) -> web.StreamResponse | None:
    """Answer badly; ``None`` for the faults that need the file."""
    retry = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
    match fault.kind:
        case "error":
            return web.Response(status=fault.status, headers=retry, body=_HTML, content_type="text/html")
        case "rate_limit":
            return web.Response(status=429, headers=retry, text="Too many requests\n")
        case "missing":
            return web.Response(status=404, text="Couldn't find the requested file.\n")
        case "forbidden":
            return web.Response(status=403, text="Package size exceeded the configured limit of 50 MB.\n")
        case "garbage":
            return web.Response(body=_HTML, content_type="text/html")
        case "hang" | "reset":
            if fault.kind == "hang":
                await asyncio.sleep(3600.0 if fault.seconds is None else fault.seconds)
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)  # nobody will read it
    return None


async def _truncate(request: web.BaseRequest, headers: dict[str, str], data: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers)
    response.content_type = "application/json"
    response.content_length = len(data)
    await response.prepare(request)
    if request.method == "GET":
        await response.write(data[: len(data) // 2])
        if request.transport is not None:
            request.transport.close()
    return response
