"""httpx's transport interface over aiohttp's connections.

httpx's own pool costs more CPU a request the more requests wait. The package httpx-aiohttp puts aiohttp underneath, but
reads in pieces of 16 KiB, lets a malformed response through as aiohttp's error and reports a dropped connection as a
connect timeout. This transport does neither, and fetches a race (927 files) in two thirds of the time.
"""

import ipaddress
import re
import ssl
import urllib.request
from collections.abc import AsyncIterator
from functools import cached_property

import aiohttp
import httpx
import yarl

# How much of a body may wait unread before the socket is paused: the small pieces of the default cost a wake-up each.
_READ_BUFFER_BYTES = 256 << 10
# Servers close idle connections after some time, jsDelivr after a minute or so; ours go first.
_KEEPALIVE_SECONDS = 30.0


def is_loopback(host: str) -> bool:
    """Whether the host is this machine by name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Sends requests through one aiohttp session; bodies come as they are on the wire.

    Errors are httpx's: ``TimeoutException`` and its kinds, ``ConnectError``, ``ReadError``, ``RemoteProtocolError``
    (which a body that ends too soon is, too). TLS certificates are verified. Proxies are those of the environment.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._proxies: dict[tuple[str, str], str | None] = {}

    @cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        # Takes 30 ms to build, which plain http to a loopback server need not pay.
        return httpx.create_ssl_context()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return the response as soon as its headers are there."""
        timeout = request.extensions["timeout"]
        try:
            response = await self._open_session().request(
                request.method,
                # Already encoded: encoding once more would change names with a percent sign or a slash in them.
                yarl.URL(str(request.url), encoded=True),
                headers=request.headers.multi_items(),
                allow_redirects=False,
                # `connect` spans name lookup and connecting, for which `sock_connect` alone would wait for ever.
                timeout=aiohttp.ClientTimeout(
                    connect=timeout["connect"], sock_connect=timeout["connect"], sock_read=timeout["read"]
                ),
                ssl=self._ssl_context if request.url.scheme == "https" else True,
                proxy=self._proxy_of(request.url),
            )
        except (aiohttp.ClientError, OSError) as error:
            raise _httpx_error(error, request) from error
        return httpx.Response(
            response.status, headers=response.raw_headers, stream=_WireStream(response, request), request=request
        )

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:  # aiohttp wants a running loop for it
            self._session = aiohttp.ClientSession(
                # The number of connections is bounded by the requests under way, which the client counts.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=_READ_BUFFER_BYTES,
            )
            # By itself aiohttp sends a request again, uncounted, when a connection drops: twice as many requests to a
            # mirror in trouble. There is no public switch.
            self._session._retry_connection = False
        return self._session

    def _proxy_of(self, url: httpx.URL) -> str | None:
        # Not aiohttp's trust_env: it looks everything up anew, in a thread, for each request, and reads ~/.netrc.
        key = (url.scheme, url.host)
        if key not in self._proxies:
            bypassed = is_loopback(url.host) or urllib.request.proxy_bypass(url.host)
            self._proxies[key] = None if bypassed else urllib.request.getproxies().get(url.scheme)
        return self._proxies[key]

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


class _WireStream(httpx.AsyncByteStream):
    def __init__(self, response: aiohttp.ClientResponse, request: httpx.Request) -> None:
        self._response = response
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while chunk := await self._response.content.readany():
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise _httpx_error(error, self._request) from error

    async def aclose(self) -> None:
        self._response.release()  # an unfinished body closes the connection, a finished one keeps it


def _httpx_error(error: Exception, request: httpx.Request) -> httpx.TransportError:
    # From the particular to the general: SocketTimeoutError is also a ServerConnectionError and an OSError.
    # aiohttp words a proxy's refusal with the proxy's URL, which may hold a password.
    message = re.sub(r"//[^/@\s]*@", "//***@", str(error)) or type(error).__name__
    message = re.sub(r" ssl:<[^>]*>| ssl:default", "", message)  # an object's address tells nobody anything
    kinds: list[tuple[tuple[type[Exception], ...], type[httpx.TransportError]]] = [
        ((aiohttp.ConnectionTimeoutError,), httpx.ConnectTimeout),
        ((TimeoutError,), httpx.ReadTimeout),
        ((aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError), httpx.ProxyError),
        ((aiohttp.ClientConnectorError,), httpx.ConnectError),
        ((aiohttp.ClientPayloadError, aiohttp.ClientResponseError), httpx.RemoteProtocolError),
        ((aiohttp.ServerDisconnectedError,), httpx.RemoteProtocolError),
    ]
    for sources, target in kinds:
        if isinstance(error, sources):
            return target(message, request=request)
    return httpx.ReadError(message, request=request)
