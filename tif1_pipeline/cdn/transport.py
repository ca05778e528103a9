"""httpx's transport interface over connections of our own.

A race is a thousand small files, so the cost of a request counts: httpx's own pool takes 3 to 5 ms of CPU each at 32
connections, aiohttp 0.5 ms, this a tenth of that. It does what fetching published files takes and no more: HTTP/1.1,
requests without a body, kept connections, TLS, and the proxies of the environment. What is read is parsed by httptools.
"""

import asyncio
import base64
import ipaddress
import socket
import ssl
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import aiohappyeyeballs
import httpx

from tif1_pipeline.cdn.connection import Answer, Connection

# Servers close idle connections after some time, jsDelivr after a minute or so; ours go first.
_KEEPALIVE_SECONDS = 30.0
# Of two addresses of a host the second is tried when the first has not answered for so long (RFC 8305).
_HAPPY_EYEBALLS_SECONDS = 0.25
_ADDRESS_SECONDS = 10.0
_TURNS_TO_CLOSE = 10


def is_loopback(host: str) -> bool:
    """Whether the host is this machine by name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Origin(NamedTuple):
    """Whom a connection leads to."""

    scheme: str
    host: str
    port: int


class Transport(httpx.AsyncBaseTransport):
    """Sends requests over connections that are kept; bodies come as they are on the wire.

    Errors are httpx's: ``TimeoutException`` and its kinds, ``ConnectError``, ``ProxyError``, ``ReadError``,
    ``RemoteProtocolError`` (which a body that ends too soon is, too). TLS certificates are verified. Nothing is sent
    twice. How many connections there are is up to the caller, who bounds the requests under way.
    """

    def __init__(self) -> None:
        self._idle: defaultdict[Origin, list[Connection]] = defaultdict(list)
        self._open: set[Connection] = set()
        self._addresses: dict[Origin, tuple[float, asyncio.Task[Any]]] = {}
        self._proxies: dict[Origin, str | None] = {}

    @cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        # Takes 30 ms to build, which plain http to a loopback server need not pay.
        context = httpx.create_ssl_context()
        context.set_alpn_protocols(["http/1.1"])
        return context

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return the response as soon as its headers are there."""
        timeout = request.extensions["timeout"]
        origin = _origin_of(request.url)
        connection = self._take(origin) or await self._connected(origin, timeout["connect"], request)
        try:
            answer = await connection.send(
                _head_of(request), bodiless=request.method == "HEAD", timeout=timeout["read"]
            )
        except BaseException as error:  # also a cancelled task: what it asked for may still come in
            connection.finish()
            if isinstance(error, httpx.TransportError):
                error.request = request
            raise
        stream = _Body(self, origin, connection, answer)
        return httpx.Response(answer.status, headers=answer.headers, stream=stream, request=request)

    def _take(self, origin: Origin) -> Connection | None:
        oldest = asyncio.get_running_loop().time() - _KEEPALIVE_SECONDS
        idle = self._idle[origin]
        while idle:
            connection = idle.pop()  # the one used last: those that are not needed any more get old
            if connection.is_usable and connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    def give_back(self, origin: Origin, connection: Connection) -> None:
        """Take a connection back whose exchange is over, finished or not."""
        if connection.finish():
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle[origin].append(connection)

    async def _connected(self, origin: Origin, timeout: float, request: httpx.Request) -> Connection:
        where = f"host {origin.host}:{origin.port}"
        try:
            async with asyncio.timeout(timeout):
                proxy = self._proxy_of(origin)
                if proxy is None:
                    return await self._connect(origin)
                return await self._tunnel(origin, proxy, timeout)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"cannot connect to {where} within {timeout:g} s", request=request) from error
        except OSError as error:  # refused, unknown, unreachable, or of another name than its certificate
            message = error.strerror if error.strerror and not isinstance(error, ssl.SSLError) else str(error)
            raise httpx.ConnectError(f"cannot connect to {where} [{message}]", request=request) from error

    async def _connect(self, origin: Origin) -> Connection:
        addresses = await self._addresses_of(origin)
        # Not create_connection with a host: it leaves a socket open when it is cancelled at the wrong moment.
        sock = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS_SECONDS)
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self._open),
                sock=sock,
                ssl=self._ssl_context if origin.scheme == "https" else None,
                server_hostname=origin.host if origin.scheme == "https" else None,
            )
        except BaseException:
            sock.close()
            raise
        return connection

    async def _addresses_of(self, origin: Origin) -> Any:
        """Look a host up, once for all the connections that are made at the same time."""
        loop = asyncio.get_running_loop()
        until, looking = self._addresses.get(origin, (0.0, None))
        has_failed = looking is not None and looking.done() and (looking.cancelled() or looking.exception())
        if looking is None or has_failed or loop.time() > until:
            looking = loop.create_task(loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM))
            self._addresses[origin] = loop.time() + _ADDRESS_SECONDS, looking
        # Shielded: one who gives up must not end it for the others.
        return await asyncio.shield(looking)

    async def _tunnel(self, origin: Origin, proxy: str, timeout: float) -> Connection:
        """Connect through a proxy of the environment."""
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}", scheme="http")
        name = f"the proxy {parts.hostname}:{parts.port}"  # its URL may hold a password
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise httpx.ProxyError(f"{name} is of a kind that is not supported: {parts.scheme}")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            connection = await self._connect(Origin(parts.scheme, parts.hostname, port))
        except OSError as error:
            raise httpx.ProxyError(f"cannot connect to {name} [{error.strerror or error}]") from error
        try:
            target = f"{f'[{origin.host}]' if ':' in origin.host else origin.host}:{origin.port}"
            head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
            if parts.username is not None:
                secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
                head += f"Proxy-Authorization: Basic {base64.b64encode(secret).decode()}\r\n"
            answer = await connection.send(f"{head}\r\n".encode(), bodiless=True, timeout=timeout)
            if answer.status != 200:
                raise httpx.ProxyError(f"{name} answers HTTP {answer.status} to being asked for {target}")  # noqa: TRY301
            await connection.encrypt(self._ssl_context, origin.host)
        except BaseException:
            connection.close()
            raise
        return connection

    def _proxy_of(self, origin: Origin) -> str | None:
        if origin not in self._proxies:
            # http is for loopback alone, so what goes through a proxy is https.
            bypassed = is_loopback(origin.host) or urllib.request.proxy_bypass(origin.host)
            self._proxies[origin] = None if bypassed else urllib.request.getproxies().get(origin.scheme)
        return self._proxies[origin]

    async def aclose(self) -> None:
        """Close all connections."""
        self._idle.clear()
        for connection in self._open:
            connection.close()
        for _ in range(_TURNS_TO_CLOSE):  # the loop lets go of them later
            if self._open:
                await asyncio.sleep(0)


class _Body(httpx.AsyncByteStream):
    """The body of a response, in one piece."""

    def __init__(self, transport: Transport, origin: Origin, connection: Connection, answer: Answer) -> None:
        self._transport, self._origin, self._connection, self._answer = transport, origin, connection, answer
        self._over = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield await self._connection.body(self._answer)

    async def aclose(self) -> None:
        if not self._over:
            self._over = True
            self._transport.give_back(self._origin, self._connection)


def _origin_of(url: httpx.URL) -> Origin:
    return Origin(url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))


def _head_of(request: httpx.Request) -> bytes:
    # The target as it is: encoding once more would change names with a percent sign or a slash in them.
    lines = [b"%b %b HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%b: %b" % header for header in request.headers.raw]
    return b"\r\n".join([*lines, b"", b""])
