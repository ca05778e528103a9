"""One file asked of one mirror: the first try and the retries."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal

import httpx
import stamina

from tif1_pipeline.cdn.base import CdnStats, Fetched, T, Timing, Validators
from tif1_pipeline.cdn.body import Inflater, check_json, read_wire
from tif1_pipeline.cdn.faults import MirrorError
from tif1_pipeline.cdn.mirrors import Mirror
from tif1_pipeline.cdn.retry import backoff, log_retries_quietly, parse_retry_after
from tif1_pipeline.cdn.slots import RequestSlots
from tif1_pipeline.cdn.transport import Exchange, Transport, is_public
from tif1_pipeline.exceptions import InvalidDataError

MISSING_STATUSES = frozenset({403, 404, 410})
MAX_REDIRECTS = 5
# One try may take as many request timeouts from the request to the last byte, however steadily bytes trickle in.
TIMEOUTS_PER_TRY = 4
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# The page that comes with a 404 is read so that the connection can be kept, if it is there at once.
_DRAIN_SECONDS = 0.5

# What a decoder raises on JSON of an unexpected shape. Anything else is a bug, and no reason to ask the next mirror.
BAD_BODY_ERRORS = (
    InvalidDataError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


@dataclass(frozen=True, slots=True)
class Tools:
    """What the visits of a client share."""

    transport: Transport
    slots: RequestSlots
    inflater: Inflater
    timing: Timing
    headers: bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings of one call.

    Attributes:
        timeout: Seconds for connecting and for each read.
        retries: Further tries at each mirror.
        timeouts_per_try: Longest time of one try, in timeouts.
    """

    timeout: float
    retries: int
    timeouts_per_try: int = TIMEOUTS_PER_TRY

    @property
    def try_seconds(self) -> float:
        """Longest time of one try."""
        return self.timeouts_per_try * self.timeout

    @property
    def visit_seconds(self) -> float:
        """Longest time of all tries at a mirror and the waits between: one slow download, or every try unanswered."""
        return self.try_seconds + self.retries * self.timeout


class Visit(Generic[T]):
    """Asks one mirror for one file.

    Args:
        tools: What the visits of a client share.
        mirror: Whom to ask.
        url: Where the mirror has the file.
        decode: Makes the value of the body; without one the body is not asked for.
        validators: What the caller holds already, to ask for something newer.
        limits: The settings of the call.
        counters: To add to.
    """

    def __init__(
        self,
        tools: Tools,
        mirror: Mirror,
        url: str,
        decode: Callable[[bytes], T] | None,
        validators: Validators | None,
        limits: Limits,
        counters: tuple[CdnStats, ...],
    ) -> None:
        self._tools = tools
        self._mirror = mirror
        self._url = url
        self._decode = decode
        self._validators = validators
        self._limits = limits
        self._counters = counters
        self._tries = 0
        self._has_retry_turn = False
        # Time for waiting in line for a free request is not taken from it: a long line is no fault of the mirror.
        self._seconds_left = limits.visit_seconds

    async def run(self, *, alone: bool) -> Fetched[T]:
        """Ask, and ask again after passing faults.

        Args:
            alone: No other mirror is left.

        Raises:
            MirrorError: The mirror did not give the file.
        """
        probing = self._mirror.enter(alone=alone)
        try:
            try:
                return await self._try()
            except MirrorError as fault:
                if not fault.retryable:
                    raise
                first = fault
            return await self._retry(first)
        except MirrorError as fault:
            fault.tries = max(1, self._tries)
            if fault.blames_mirror:
                self._mirror.failed(str(fault))
            raise
        finally:
            self._mirror.leave(probing=probing, retrying=self._has_retry_turn)

    async def _retry(self, first: MirrorError) -> Fetched[T]:
        # Only now, because stamina costs a tenth of a millisecond and nearly all files come at the first try. Its first
        # attempt is the one already made.
        log_retries_quietly()
        done: MirrorError | None = first
        async for attempt in stamina.retry_context(
            on=self._wait_before_retry, attempts=1 + self._limits.retries, timeout=None
        ):
            with attempt:
                if done is not None:
                    fault, done = done, None
                    raise fault
                await self._take_retry_turn()
                return await self._try()
        raise AssertionError("stamina raises the last fault")

    def _wait_before_retry(self, error: Exception) -> bool | float:
        if not isinstance(error, MirrorError) or not error.retryable:
            return False
        if self._mirror.is_set_aside:  # meanwhile, by other files; or all along, and this was the probe
            return False
        wait = backoff(self._tries, self._tools.timing) if error.retry_after is None else error.retry_after
        if error.retry_after is not None and wait > self._tools.timing.retry_after_max:
            return False
        self._seconds_left -= wait
        return wait if self._seconds_left > 0 else False

    async def _take_retry_turn(self) -> None:
        if self._has_retry_turn:
            return
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds_left):
                await self._mirror.take_retry_turn()
        except TimeoutError:
            raise MirrorError("network", "no time left for a retry", blames_mirror=False) from None
        finally:
            self._seconds_left -= time.monotonic() - started
        self._has_retry_turn = True

    async def _try(self) -> Fetched[T]:
        answer = await self._answer()
        if answer.value is None or self._decode is None:
            return Fetched(None, answer.validators, answer.url, not_modified=answer.not_modified)
        try:
            value = self._decode(answer.value)
        except BAD_BODY_ERRORS as error:
            raise MirrorError("invalid", f"{type(error).__name__}: {str(error)[:300]}", blames_mirror=False) from error
        return Fetched(value, answer.validators, answer.url, answer.size_bytes)

    async def _answer(self) -> Fetched[bytes]:
        async with self._tools.slots:
            self._tries += 1
            if self._tries > 1:
                self._count(retries=1)
            seconds = min(self._limits.try_seconds, self._seconds_left)
            started = time.monotonic()
            try:
                async with asyncio.timeout(seconds):
                    answer, exchange = await self._ask()
                return answer if answer.value is None else await self._unpacked(answer, exchange)
            except TimeoutError:
                fault = MirrorError("network", f"not complete within {seconds:.3g} s", retryable=True)
            except httpx.TimeoutException as error:
                what = "no connection" if isinstance(error, httpx.ConnectTimeout) else "silence"
                fault = MirrorError("network", f"{what} for {self._limits.timeout:g} s", retryable=True)
            except httpx.TransportError as error:
                fault = MirrorError("network", f"{type(error).__name__}: {error}", retryable=True)
            except MirrorError as error:
                fault = error
            finally:
                self._seconds_left -= time.monotonic() - started
            if fault.blames_mirror:
                self._mirror.stumbled()
            raise fault

    async def _unpacked(self, answer: Fetched[bytes], exchange: Exchange) -> Fetched[bytes]:
        assert answer.value is not None  # noqa: S101 - it came with a body
        body = await self._tools.inflater.inflate(answer.value, exchange.header("content-encoding") or "")
        check_json(exchange, body)
        self._mirror.answered()
        return Fetched(body, answer.validators, answer.url, len(body))

    async def _ask(self) -> tuple[Fetched[bytes], Exchange]:
        """Return the answer, with the body as it is on the wire."""
        exchange, url = await self._send("GET" if self._decode else "HEAD")
        try:
            if self._decode is None and self._refuses_head(exchange.status, url):
                exchange.close()
                exchange, _ = await self._send("GET")
            status = exchange.status
            if status in MISSING_STATUSES:
                self._mirror.answered()
                await _drain(exchange)
                raise MirrorError("missing", f"HTTP {status}", blames_mirror=False)
            if status == 304:
                return self._not_modified(exchange), exchange
            if status != 200:
                await _drain(exchange)
                raise MirrorError(
                    "network",
                    f"HTTP {status}",
                    retryable=status == 429 or status >= 500,
                    retry_after=parse_retry_after(exchange.header("retry-after")),
                )
            if self._decode is None:
                return self._found(exchange), exchange
            return Fetched(await self._read(exchange), _validators_of(exchange), self._url), exchange
        finally:
            exchange.close()

    async def _read(self, exchange: Exchange) -> bytes:
        try:
            wire = await read_wire(exchange)
        except httpx.TimeoutException:
            raise
        except httpx.TransportError as error:
            raise MirrorError("invalid", f"an incomplete body ({error})", retryable=True) from error
        self._count(bytes=len(wire))
        return wire

    def _found(self, exchange: Exchange) -> Fetched[bytes]:
        if "html" in (exchange.header("content-type") or "").lower():
            raise MirrorError("invalid", "an HTML page instead of JSON")
        self._mirror.answered()
        return Fetched(None, _validators_of(exchange), self._url)

    def _not_modified(self, exchange: Exchange) -> Fetched[bytes]:
        if self._validators is None or self._validators == Validators():
            raise MirrorError("invalid", "HTTP 304 to a request without conditions")
        self._mirror.answered()
        # What is held stays under its own validators: under those of a version that 304 was said to by mistake, the
        # mistake would never show (RFC 9111, 4.3.4).
        return Fetched(None, self._validators, self._url, not_modified=True)

    def _refuses_head(self, status: int, url: str) -> bool:
        """Whether only the method was refused: a signed URL, where a redirect may lead, holds for GET alone."""
        return (status == 403 and url != self._url) or status in {405, 501}

    async def _send(self, method: Literal["GET", "HEAD"]) -> tuple[Exchange, str]:
        """Send the request and follow redirects; returns the answer and where it came from."""
        url = self._url
        for _ in range(1 + MAX_REDIRECTS):
            self._count(requests=1)
            exchange = await self._tools.transport.send(method, url, self._headers(), self._limits.timeout)
            location = exchange.header("location") if exchange.status in _REDIRECTS else None
            if location is None:
                return exchange, url
            try:
                await _drain(exchange)
            finally:
                exchange.close()
            url = self._redirect_target(url, location)
        raise MirrorError("network", f"more than {MAX_REDIRECTS} redirects")

    def _redirect_target(self, url: str, location: str) -> str:
        try:
            target = httpx.URL(url).join(location)
            host = target.host
        except (httpx.InvalidURL, ValueError):  # ValueError: a host that IDNA does not know how to spell
            raise MirrorError("network", f"a redirect to no URL ({location[:80]!r})") from None
        mirror = httpx.URL(self._url)
        # A mirror on loopback leads where it is itself; no other leads there, or into the network around us.
        if (target.scheme, host, target.port) == (mirror.scheme, mirror.host, mirror.port):
            return str(target)
        if target.scheme != "https":
            raise MirrorError("network", f"a redirect to {target.scheme}://{host}, and only https is followed")
        if not is_public(host):
            raise MirrorError("network", f"a redirect to {host}, which is no host of the internet")
        return str(target)

    def _headers(self) -> bytes:
        if self._validators is None:
            return self._tools.headers
        lines = self._tools.headers
        for name, value in (
            ("If-None-Match", self._validators.etag),
            ("If-Modified-Since", self._validators.last_modified),
        ):
            # They come from servers, and from cache files of strangers: a line break in one would begin a header.
            if value and value.isprintable() and value.isascii():
                lines += f"{name}: {value}\r\n".encode()
        return lines

    def _count(self, *, requests: int = 0, bytes: int = 0, retries: int = 0) -> None:
        for stats in self._counters:
            stats.add(requests=requests, bytes=bytes, retries=retries)


def _validators_of(exchange: Exchange) -> Validators:
    return Validators(exchange.header("etag"), exchange.header("last-modified"))


async def _drain(exchange: Exchange) -> None:
    with contextlib.suppress(httpx.TransportError, TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            await exchange.body()
