"""One connection to a server: requests without a body, one after the other, each with its whole answer."""

import asyncio

import httptools
import httpx

MAX_WIRE_BYTES = 32 << 20
"""A longer body ends the connection. The largest published so far has 3 MB on the wire, 9 MB where nothing packs it."""
_MAX_HEAD_BYTES = 64 << 10
"""What is no body: headers, notes ahead of them, trailers, the lines between chunks."""


class TooLargeError(httpx.RemoteProtocolError):
    """More is sent than is allowed."""


class Answer:
    """The answer to one request, filled as it comes in.

    Attributes:
        status: 0 until the headers are complete.
        headers: Their values by name in lower case, each as it was sent.
        size: Bytes of the body that have come so far.
        complete: The body is there to its end.
        keeps_alive: The connection can be used again.
    """

    def __init__(self, *, bodiless: bool) -> None:
        self.status = 0
        self.headers: dict[bytes, list[bytes]] = {}
        self.size = 0
        self.complete = False
        self.keeps_alive = False
        self._bodiless = bodiless
        self._chunks: list[bytes] = []
        self._head_bytes = 0
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take bytes that have come in.

        Raises:
            httpx.RemoteProtocolError: They are not HTTP, or more than is allowed.
        """
        size = self.size
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self.complete:  # what follows a body is another answer, which nobody asked for
                self.keeps_alive = False
                return
            raise httpx.RemoteProtocolError(f"not HTTP ({str(error)[:200]})") from None
        except httptools.HttpParserUpgrade:
            raise httpx.RemoteProtocolError("another protocol than HTTP, which nobody asked for") from None
        # By the piece, because the parser does not tell what it took for what.
        self._head_bytes = self._head_bytes + len(data) if self.size == size and not self.complete else 0
        if self._head_bytes > _MAX_HEAD_BYTES:
            raise httpx.RemoteProtocolError(f"headers of more than {_MAX_HEAD_BYTES:,} bytes")
        if self.size > MAX_WIRE_BYTES:
            raise TooLargeError(f"a body of more than the {MAX_WIRE_BYTES:,} bytes allowed")

    def end(self) -> None:
        """Note that the server has closed the connection, which ends a body whose length was not told."""
        if self.status and not self.complete and self._is_open_ended():
            self.complete = True

    def _is_open_ended(self) -> bool:
        return self.headers.keys().isdisjoint((b"content-length", b"transfer-encoding"))

    def header(self, name: str) -> str | None:
        """Return a header by its lower-case name; several of one name as one list (RFC 9110)."""
        found = self.headers.get(name.encode("ascii"))
        return b", ".join(found).decode("latin-1").strip() if found else None

    def take(self) -> bytes:
        """Return the part of the body that has come, and keep it no longer."""
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        return body

    # ---- called by the parser

    def on_message_begin(self) -> None:
        """Note that an answer begins. Of a second one the rest could be taken for the answer to the next request."""
        if self.complete:
            self.keeps_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header; not the trailers of a chunked body, which say nothing about it any more."""
        if not self.status:
            self.headers.setdefault(name.lower(), []).append(value)

    def on_headers_complete(self) -> None:
        """Note that the body begins."""
        status = self._parser.get_status_code()
        if self.complete:
            return
        if 100 <= status < 200:  # a note ahead of the answer
            self.headers.clear()
            return
        self.status = status
        if self._bodiless:
            self.complete = True
            self.keeps_alive = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body."""
        if not self.complete:
            self._chunks.append(data)
            self.size += len(data)

    def on_message_complete(self) -> None:
        """Note the end of the body."""
        if self.status and not self.complete:
            self.complete = True
            self.keeps_alive = self._parser.should_keep_alive()


class Connection(asyncio.Protocol):
    """A connection, plain or encrypted.

    Args:
        register: Holds the connection as long as it is open.
    """

    def __init__(self, register: "set[Connection]") -> None:
        self._register = register
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timeout = 0.0
        self._heard_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._error: httpx.TransportError | None = None
        self.idle_since = 0.0

    @property
    def is_usable(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing() and self._answer is None

    async def send(self, head: bytes, *, bodiless: bool, timeout: float) -> Answer:
        """Send a request; returns its answer when the headers are there.

        Args:
            head: Request line and headers.
            bodiless: The answer will have no body, whatever its headers say.
            timeout: Seconds that the server may be silent.

        Raises:
            httpx.ReadTimeout: It was.
            httpx.ReadError: The connection was lost.
            httpx.RemoteProtocolError: It was closed, or what came is not HTTP.
        """
        assert self._transport is not None  # noqa: S101 - of a connection that is usable
        answer = self._answer = Answer(bodiless=bodiless)
        loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._heard_at = loop.time()
        due = self._heard_at + timeout
        if self._timer is None or self._timer.when() > due:
            self._stop_timer()
            self._timer = loop.call_at(due, self._look_at_clock)
        self._transport.write(head)
        while not answer.status:
            await self._wait()
        return answer

    async def body(self, answer: Answer) -> bytes:
        """Return the whole body. Errors as :meth:`send`."""
        while not answer.complete:
            await self._wait()
        return answer.take()

    def finish(self) -> bool:
        """End an exchange; tells whether the connection can be used again. An unfinished one closes it."""
        answer, self._answer = self._answer, None
        if answer is None or not (answer.complete and answer.keeps_alive and self._error is None and self.is_usable):
            self.close()
            return False
        return True

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Close it at once; what is still under way is lost."""
        if self._transport is not None:
            self._transport.abort()

    async def encrypt(self, context: "object", host: str) -> None:
        """Go on with TLS after an exchange with a proxy, which has connected us to the host.

        Raises:
            OSError: The certificate is not the host's, or the handshake failed.
        """
        assert self._transport is not None  # noqa: S101 - connected
        self._answer = None
        loop = asyncio.get_running_loop()
        self._transport = await loop.start_tls(self._transport, self, context, server_hostname=host)  # type: ignore[arg-type,assignment]

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: httpx.TransportError) -> None:
        if self._error is None:
            self._error = error
        if self._answer is not None:
            self._answer.take()  # nobody will, and the error may be kept for long
        self._wake()
        self.close()

    def _look_at_clock(self) -> None:
        # One timer for all exchanges, moved on when it rings: requests come far more often than it is needed.
        self._timer = None
        if self._answer is None:
            return
        loop = asyncio.get_running_loop()
        due = self._heard_at + self._timeout
        if loop.time() < due:
            self._timer = loop.call_at(due, self._look_at_clock)
        else:
            self._fail(httpx.ReadTimeout(f"silence for {self._timeout:g} s"))

    # ---- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._register.add(self)
        self._transport = transport  # type: ignore[assignment] - a stream's

    def data_received(self, data: bytes) -> None:
        """Pass on what came in; wake whoever waits for it."""
        answer = self._answer
        if answer is None:  # nothing was asked: it cannot be told what would be the answer to the next request
            self.close()
            return
        self._heard_at = asyncio.get_running_loop().time()
        had_headers = bool(answer.status)
        try:
            answer.feed(data)
        except httpx.RemoteProtocolError as error:
            self._fail(error)
            return
        if answer.complete or (answer.status and not had_headers):
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """End; what is under way is complete only if nothing was missing."""
        self._register.discard(self)
        self._stop_timer()
        answer = self._answer
        if answer is None:
            return
        if exc is None:
            answer.end()
        if answer.complete:
            self._wake()
        elif exc is not None:
            self._fail(httpx.ReadError(str(exc) or type(exc).__name__))
        elif answer.status:
            self._fail(httpx.RemoteProtocolError(f"the connection was closed after {answer.size:,} bytes of the body"))
        else:
            self._fail(httpx.RemoteProtocolError("the connection was closed without an answer"))
