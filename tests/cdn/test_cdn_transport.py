"""TLS, proxies and how errors of the connection are told."""

import shutil
import ssl
import subprocess

import aiohttp
import httpx
import multidict
import pytest
import yarl
from misbehaving_server import BODY, FILE, MisbehavingServer, status

from tif1_pipeline.cdn.client import CdnClient
from tif1_pipeline.cdn.transport import _httpx_error
from tif1_pipeline.exceptions import NetworkError


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


def test_messages_hold_no_password_and_no_object_address():
    request = httpx.Request("GET", "https://cdn.example/x.json")
    headers = multidict.CIMultiDictProxy(multidict.CIMultiDict())
    info = aiohttp.RequestInfo(yarl.URL("http://me:secret@proxy:1"), "GET", headers)
    refused = aiohttp.ClientHttpProxyError(info, (), status=407, message="Proxy Authentication Required")
    assert "secret" in str(refused)
    assert "secret" not in str(_httpx_error(refused, request))
    error = OSError("Cannot connect to host cdn.example:443 ssl:<ssl.SSLContext object at 0x7f5e> [Name not known]")
    assert str(_httpx_error(error, request)) == "Cannot connect to host cdn.example:443 [Name not known]"
