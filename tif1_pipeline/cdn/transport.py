"""Requests over connections that are kept.

A race is a thousand small files, so the cost of a request counts, and httpx's own pool costs the more the more requests
wait. This does what fetching published files takes and no more: HTTP/1.1, requests without a body, TLS, and the proxies
of the environment. URLs, certificates and errors are httpx's; what comes in is parsed by httptools.
"""

import asyncio
import base64
import ipaddress
import re
import socket
import ssl
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property, lru_cache
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
_LATE_SECONDS = 0.05
"""From which a loop counts as kept from looking: decoding a race's laps takes it 7 ms, 32 files of telemetry 22."""


def is_public(host: str) -> bool:
    """Whether the host may be one of the internet: no address or name of this machine or its network."""
    name = host.rstrip(".").lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        try:
            # The resolver takes 127.1, 0x7f.1 and 2130706433 for addresses, too.
            address = ipaddress.ip_address(socket.inet_aton(name))
        except (OSError, ValueError):
            return bool(name) and name != "localhost" and not name.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_global


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
    name: bytes
    """As in the header ``Host``."""


class Exchange:
    """A request whose answer has begun; to be closed."""

    def __init__(self, transport: "Transport", origin: Origin, connection: Connection, answer: Answer) -> None:
        self._transport, self._origin, self._connection, self._answer = transport, origin, connection, answer
        self.status = answer.status
        self.header = answer.header
        self._is_closed = False

    async def body(self) -> bytes:
        """Return the body as it is on the wire.

        Raises:
            httpx.TransportError: It ends too soon, or is longer than allowed (TooLargeError).
        """
        return await self._connection.body(self._answer)

    def close(self) -> None:
        """Let go of the connection, which is kept if the body was read to its end."""
        if not self._is_closed:
            self._is_closed = True
            self._transport.give_back(self._origin, self._connection)


@asynccontextmanager
async def _patient(seconds: float) -> AsyncIterator[None]:
    """Bound a block as ``asyncio.timeout`` does, without the time for which the loop was kept from looking.

    Connecting takes several turns of the loop. Where large files are decoded between them on a slow machine, the time
    is over without the server being to blame.
    """
    loop = asyncio.get_running_loop()

    def ring(due: float) -> None:
        nonlocal timer
        late = loop.time() - due
        if late > _LATE_SECONDS:
            timer = loop.call_later(late, ring, loop.time() + late)
        else:
            limit.reschedule(loop.time())

    async with asyncio.timeout(None) as limit:
        due = loop.time() + seconds
        timer = loop.call_at(due, ring, due)
        try:
            yield
        finally:
            timer.cancel()


class Transport:
    """Sends requests.

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

    async def send(self, method: str, url: str, headers: bytes, timeout: float) -> Exchange:
        """Send a request; returns when the headers of its answer are there.

        Args:
            method: GET or HEAD.
            url: Percent-encoded; it is sent as it is.
            headers: All but ``Host``, each line with its end.
            timeout: Seconds for connecting, and that the server may be silent.

        Raises:
            httpx.InvalidURL: It is none.
            httpx.TransportError: There is no answer.
        """
        origin, target = _split(url)
        kept = self._take(origin)
        connection = kept or await self._connected(origin, timeout)
        head = b"%b %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (method.encode("ascii"), target, origin.name, headers)
        try:
            answer = await connection.send(head, bodiless=method == "HEAD", timeout=timeout)
        except BaseException as error:  # also a cancelled task: what it asked for may still come in
            connection.finish()
            if kept and isinstance(error, httpx.TransportError):
                # The server does not keep connections as it says: a retry must not meet the next one that is dead.
                self._drop_idle(origin)
            raise
        return Exchange(self, origin, connection, answer)

    def _take(self, origin: Origin) -> Connection | None:
        oldest = asyncio.get_running_loop().time() - _KEEPALIVE_SECONDS
        idle = self._idle[origin]
        while idle:
            connection = idle.pop()  # the one used last: those that are not needed any more get old
            if connection.is_usable and connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    def _drop_idle(self, origin: Origin) -> None:
        for connection in self._idle.pop(origin, ()):
            connection.close()

    def give_back(self, origin: Origin, connection: Connection) -> None:
        """Take a connection back whose exchange is over, finished or not."""
        if connection.finish():
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle[origin].append(connection)

    async def _connected(self, origin: Origin, timeout: float) -> Connection:
        where = f"host {origin.host}:{origin.port}"
        try:
            async with _patient(timeout):
                proxy = self._proxy_of(origin)
                if proxy is None:
                    return await self._connect(origin)
                return await self._tunnel(origin, proxy, timeout)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"cannot connect to {where} within {timeout:g} s") from error
        except (OSError, ValueError, OverflowError) as error:
            # Refused, unknown, unreachable, or of another name than its certificate; or no host or port at all, which
            # the look-up says by an error of its own (UnicodeError, OverflowError).
            strerror = getattr(error, "strerror", None)
            message = strerror if strerror and not isinstance(error, ssl.SSLError) else str(error)
            raise httpx.ConnectError(f"cannot connect to {where} [{message}]") from error

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
            connection = await self._connect(Origin(parts.scheme, parts.hostname, port, b""))
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


_PLAIN = re.compile(r"(https?)://([\w.:\[\]-]+)((?:/(?!\.)[!-\"$-.0-~]*)+)", re.ASCII)
"""URLs that need no normalizing, which all are but those of odd settings and redirects."""


def _split(url: str) -> tuple[Origin, bytes]:
    plain = _PLAIN.fullmatch(url)
    if plain:  # parsing it costs more than sending it
        return _origin_of(f"{plain[1]}://{plain[2]}/"), plain[3].encode("ascii")
    parsed = httpx.URL(url)
    return _origin_of(str(parsed.copy_with(raw_path=b"/", fragment=None))), parsed.raw_path


@lru_cache(maxsize=64)
def _origin_of(root: str) -> Origin:
    url = httpx.URL(root)
    return Origin(url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80), url.netloc)
