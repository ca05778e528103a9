"""TLS, proxies and how errors of the connection are told."""

import asyncio
import base64
import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time

import httpx
import pytest
from misbehaving_server import BODY, FILE, MisbehavingServer, files, status

from tif1_pipeline.cdn import transport
from tif1_pipeline.cdn.client import CdnClient
from tif1_pipeline.exceptions import NetworkError, Tif1Error


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not here to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", path, "-out", path]
    subprocess.run([*command, *subject], check=True, capture_output=True)
    return path


@pytest.fixture
def tls_server(certificate):
    server = MisbehavingServer()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True, do_handshake_on_connect=False)
    server.origin = server.origin.replace("http://", "https://")
    server.start()
    yield server
    server.stop()


def test_an_unknown_certificate_is_refused(client, config, tls_server):
    config.update({"cdn_urls": [tls_server.mirror("a")], "max_retries": 0})
    with pytest.raises(NetworkError, match="certificate verify failed"):
        client.fetch(FILE, bytes)
    assert not tls_server.requests


def test_a_certificate_of_a_known_authority_is_accepted(config, tls_server, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    config.cdn_urls = [tls_server.mirror("a")]
    client = CdnClient(config)
    assert client.fetch(FILE, bytes).value == BODY
    client.close()


def test_no_redirect_leaves_https(config, tls_server, server, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    config.cdn_urls = [tls_server.mirror("a")]
    tls_server.replies["a"] = status(302, location=f"{server.origin}/b/x")
    client = CdnClient(config)
    with pytest.raises(NetworkError, match=r"a redirect to http://127\.0\.0\.1, and only https is followed"):
        client.fetch(FILE, bytes)
    assert not server.requests
    client.close()


def test_proxies_of_the_environment_are_used_but_not_for_loopback(config, server, monkeypatch):
    connects = []

    def refuse(exchange):
        connects.append(exchange.path)
        exchange.send(b"", 502)

    exchange_class = server.http.RequestHandlerClass
    monkeypatch.setattr(exchange_class, "do_CONNECT", refuse, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", server.origin)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    config.update({"cdn_urls": ["https://cdn.invalid/{year}"], "max_retries": 0})
    client = CdnClient(config)
    with pytest.raises(NetworkError, match="ProxyError"):
        client.fetch(FILE, bytes)
    assert connects == ["cdn.invalid:443"]
    config.cdn_urls = [server.mirror("a")]
    assert client.fetch(FILE, bytes).value == BODY
    client.close()


def test_an_unknown_host_is_a_network_error(client, config):
    config.update({"cdn_urls": ["https://no-such-host.invalid/{year}"], "max_retries": 0})
    with pytest.raises(NetworkError, match=r"no-such-host\.invalid"):
        client.fetch(FILE, bytes)


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (lambda x: x.hang_up(), "RemoteProtocolError"),
        (lambda x: x.hang_up(reset=True), "ReadError"),
        (lambda x: (x.raw(b"SSH-2.0-OpenSSH\r\n\r\n"), x.hang_up()), "RemoteProtocolError"),
        (lambda x: x.stall(), "silence for 1 s"),
    ],
)
def test_what_the_connection_did_is_told(client, config, server, reply, told):
    config.update({"cdn_urls": [server.mirror("a")], "max_retries": 0, "request_timeout": 1})
    server.replies["a"] = reply
    with pytest.raises(NetworkError, match=told):
        client.fetch(FILE, bytes)


def proxy_of(server, monkeypatch, origin, connect):
    """Make the server the proxy of the environment, which hands CONNECT to a function."""
    exchange_class = server.http.RequestHandlerClass
    monkeypatch.setattr(exchange_class, "do_CONNECT", connect, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", origin)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_a_refusal_of_the_proxy_is_told_without_the_password(config, server, monkeypatch):
    asked = []

    def refuse(exchange):
        asked.append(exchange.headers["Proxy-Authorization"])
        exchange.send(b"", 407)

    origin = server.origin.replace("//", "//me:s%C3%A9cret@")
    proxy_of(server, monkeypatch, origin, refuse)
    config.update({"cdn_urls": ["https://cdn.invalid/{year}"], "max_retries": 0})
    client = CdnClient(config)
    with pytest.raises(NetworkError, match=r"ProxyError: the proxy .* answers HTTP 407") as raised:
        client.fetch(FILE, bytes)
    client.close()
    assert base64.b64decode(asked[0].removeprefix("Basic ")).decode() == "me:sécret"
    assert "cret" not in str(raised.value)


def test_files_come_through_a_proxy(config, server, tls_server, certificate, monkeypatch):
    """TLS is from end to end: the proxy hands bytes on."""
    port = tls_server.http.server_address[1]

    def hand_on(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def connect(exchange):
        assert exchange.path == "localhost:4433"
        with socket.create_connection(("127.0.0.1", port)) as target:
            exchange.connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=hand_on, args=(target, exchange.connection), daemon=True)
            back.start()
            hand_on(exchange.connection, target)
            back.join(5)
        exchange.close_connection = True

    proxy_of(server, monkeypatch, server.origin, connect)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr(transport, "is_loopback", lambda host: False)
    config.update({"cdn_urls": ["https://localhost:4433/a/{year}"], "max_retries": 0})
    client = CdnClient(config)
    for _ in range(2):
        assert client.fetch(FILE, bytes).value == BODY
    client.close()
    assert len(tls_server.requests) == 2


def test_a_proxy_that_is_not_there_is_told(config, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:1")
    config.update({"cdn_urls": ["https://cdn.invalid/{year}"], "max_retries": 0})
    client = CdnClient(config)
    with pytest.raises(NetworkError, match=r"ProxyError: cannot connect to the proxy 127\.0\.0\.1:1") as raised:
        client.fetch(FILE, bytes)
    client.close()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"{}"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", b"{}"),  # its end is the end of the connection
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"{}"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\nX: y\r\n\r\n", b"{}"),
    ],
)
def test_the_ways_to_send_a_body(client, config, server, answer, body):
    config.update({"cdn_urls": [server.mirror("a")], "max_retries": 0})
    server.replies["a"] = lambda x: (x.raw(answer), x.hang_up())
    assert client.fetch(FILE, bytes).value == body


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20), "headers of more than"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * (1 << 16), "headers of more than"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: " + b"x" * (1 << 20),
            "headers of more than",
        ),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n\0",
            "another protocol than HTTP",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not HTTP"),
    ],
)
def test_hostile_answers_are_refused(client, config, server, answer, told):
    config.update({"cdn_urls": [server.mirror("a")], "max_retries": 0})
    server.replies["a"] = lambda x: (x.raw(answer), x.hang_up())
    with pytest.raises(Tif1Error, match=told):
        client.fetch(FILE, bytes)


def test_each_request_of_a_connection_has_its_own_time(client, config, server):
    config.update({"cdn_urls": [server.mirror("a")], "max_retries": 0, "request_timeout": 1})
    connections = set()

    def reply(exchange):
        connections.add(exchange.client_address)
        exchange.send()

    server.replies["a"] = reply
    client.fetch(FILE, bytes)
    time.sleep(0.7)
    server.replies["a"] = lambda exchange: (time.sleep(0.6), reply(exchange))
    assert client.fetch(FILE, bytes).value == BODY  # 1.3 s after the first one
    server.replies["a"] = lambda exchange: (connections.add(exchange.client_address), exchange.stall())
    started = time.monotonic()
    with pytest.raises(NetworkError, match="silence for 1 s"):
        client.fetch(FILE, bytes)
    assert 1 <= time.monotonic() - started < 3
    config.request_timeout = 0.3
    server.replies["a"] = reply
    client.fetch(FILE, bytes)
    config.request_timeout = 60
    client.fetch(FILE, bytes)
    config.request_timeout = 0.3
    server.replies["a"] = lambda exchange: exchange.stall()
    with pytest.raises(NetworkError, match=r"silence for 0\.3 s"):
        client.fetch(FILE, bytes)
    assert len(connections) == 2


def test_a_trailer_is_no_header(client, config, server):
    config.update({"cdn_urls": [server.mirror("a")], "max_retries": 0})
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    server.replies["a"] = lambda x: x.raw(chunked + b'ETag: "other"\r\nContent-Encoding: br\r\n\r\n')
    fetched = client.fetch(FILE, bytes)
    assert (fetched.value, fetched.validators.etag) == (b"{}", None)


def test_the_rest_of_a_second_answer_is_not_taken_for_the_next_request(client, config, server):
    config.update({"cdn_urls": [server.mirror("a")], "max_retries": 0, "max_concurrent_requests": 1})

    def reply(exchange):
        if not hasattr(exchange, "was_asked"):
            exchange.was_asked = True
            exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\nContent-")
        else:  # what is still owed of the second answer comes first
            exchange.raw(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"b":666}')

    server.replies["a"] = reply
    assert client.fetch(FILE, bytes).value == b"{}"
    assert client.fetch(FILE, bytes).value == b"{}"


def test_connections_that_the_server_does_not_keep_are_let_go_of_together(client, config, server):
    """Else each retry could meet another one of them."""
    config.update({"cdn_urls": [server.mirror("a")], "max_retries": 1, "max_concurrent_requests": 8})
    together = threading.Barrier(8)

    def reply(exchange):
        if hasattr(exchange, "was_asked"):
            exchange.hang_up()
            return
        exchange.was_asked = True
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(2)
        exchange.send()

    server.replies["a"] = reply
    client.fetch_many(files(8), lambda _, body: body)
    together.abort()
    assert client.fetch(FILE, bytes).value == BODY


def test_a_second_answer_is_not_taken_for_the_next_request(client, config, server):
    """A body that is followed by another answer could be taken for what the next request asks for."""
    config.update({"cdn_urls": [server.mirror("a")], "max_retries": 0, "max_concurrent_requests": 1})
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n" + b'{"drivers":[]}'[:13]
    server.replies["a"] = lambda x: x.raw(good + b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"b":666}')
    assert client.fetch(FILE, bytes).value == b'{"drivers":[]'
    server.replies["a"] = None
    assert client.fetch(FILE, bytes).value == BODY


def connect(url, timeout, busy_seconds=0.0):
    """Ask a server while the loop decodes large files, each for 0.15 s; returns the seconds until it has answered."""

    async def asked():
        loop, sender = asyncio.get_running_loop(), transport.Transport()
        until = loop.time() + busy_seconds

        def decode():
            if loop.time() < until:
                time.sleep(0.15)
                loop.call_soon(decode)

        loop.call_soon(decode)
        started = loop.time()
        exchange = await sender.send("GET", url, b"", timeout)
        exchange.close()
        await sender.aclose()
        return loop.time() - started

    return asyncio.run(asked())


def test_a_busy_loop_is_not_taken_for_a_server_that_is_not_there(server):
    assert connect(f"{server.mirror('a')}/x", 0.1, busy_seconds=1.5) > 0.1


@pytest.mark.parametrize("busy_seconds", [0, 1.5])
def test_a_server_that_does_not_accept_is_given_up(busy_seconds):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as waiting:
        address = full.getsockname()
        for _ in range(4):  # the queue is full after one or two
            waiting.enter_context(other := socket.socket())
            other.setblocking(False)
            other.connect_ex(address)
        started = time.monotonic()
        with pytest.raises(httpx.ConnectTimeout, match=r"within 0\.3 s"):
            connect(f"http://127.0.0.1:{address[1]}/x", 0.3, busy_seconds)
        assert 0.3 <= time.monotonic() - started < 10
