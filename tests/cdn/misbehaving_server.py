"""A real HTTP server on loopback that misbehaves on demand."""

import contextlib
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tif1_pipeline.cdn.base import CdnFile, Timing

BODY = b'{"tel": {"Speed": [1, 2, 3]}}'
LARGE = json.dumps(random.Random(1).choices(range(10**9), k=8000)).encode()  # 40 kB when it is packed
FILE = CdnFile(2025, ("Monaco Grand Prix", "Race", "VER", "10_tel.json"))


TIMING = Timing(wait_initial=0.01, wait_max=0.02, retry_after_max=5, set_aside=60, set_aside_alone=60)


class Exchange(BaseHTTPRequestHandler):
    """One connection's requests; a reply is a function of this."""

    protocol_version = "HTTP/1.1"
    server: "MisbehavingServer"

    def do_GET(self) -> None:
        server = self.server.owner
        mirror = self.path.split("/")[1]
        with server.lock:
            server.requests.append(
                (mirror, self.path, {name.lower(): value for name, value in self.headers.items()}, id(self.connection))
            )
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            number = sum(1 for request in server.requests if request[0] == mirror)
        try:
            reply = server.replies.get(self.path) or server.replies.get(mirror)
            if reply is None:
                self.send()
            elif isinstance(reply, list):
                reply[min(number, len(reply)) - 1](self)
            else:
                reply(self)
        finally:
            with server.lock:
                server.under_way -= 1

    def send(self, body: bytes = BODY, status: int = 200, **headers: str | int) -> None:
        """Send a response; Content-Length is right unless it is given."""
        given = {name.replace("_", "-").lower(): str(value) for name, value in headers.items()}
        lines = {"content-type": "application/json", "content-length": str(len(body))} | given
        head = f"HTTP/1.1 {status} Some Reason\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items() if v) + "\r\n"
        self.raw(head.encode("latin-1") + body)

    def raw(self, data: bytes) -> None:
        self.wfile.write(data)

    def hang_up(self, reset: bool = False) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            if reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            else:
                self.connection.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        """Say nothing until the test is over or the client has gone."""
        self.close_connection = True
        self.connection.settimeout(0.02)
        while not self.server.owner.over.is_set():
            try:
                if self.connection.recv(1) == b"":
                    self.server.owner.gone.set()
                    return
            except TimeoutError:
                continue
            except OSError:
                return

    def log_message(self, *_: object) -> None:
        pass


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    owner: "MisbehavingServer"

    def handle_error(self, *_: object) -> None:
        pass  # clients that hang up are part of the tests


class MisbehavingServer:
    """Mirrors ``a`` and ``b`` on one loopback server.

    Attributes:
        replies: By mirror or by whole path: a reply, or a list for the first, second … request (the last stays).
        requests: Mirror, path, headers and connection of each request.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.replies: dict[str, Callable[[Exchange], None] | list[Callable[[Exchange], None]]] = {}
        self.requests: list[tuple[str, str, dict[str, str], int]] = []
        self.under_way = 0
        self.most_under_way = 0
        self.over = threading.Event()
        self.gone = threading.Event()
        self.http = _HTTPServer(("127.0.0.1", 0), Exchange)
        self.http.owner = self
        self.origin = f"http://127.0.0.1:{self.http.server_port}"
        self._thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.over.set()
        self.http.shutdown()
        self._thread.join()
        self.http.server_close()

    def asked(self, mirror: str) -> int:
        """How many requests a mirror got."""
        return Counter(request[0] for request in self.requests)[mirror]

    def mirror(self, name: str) -> str:
        return f"{self.origin}/{name}/{{year}}"


def status(code: int, **headers: str | int) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.send(b"<html>no</html>", code, content_type="text/html", **headers)


def ok(exchange: Exchange) -> None:
    exchange.send()


def slow(seconds: float) -> Callable[[Exchange], None]:
    def reply(exchange: Exchange) -> None:
        time.sleep(seconds)
        exchange.send()

    return reply


def files(count: int) -> list[CdnFile]:
    return [CdnFile(2025, ("Monaco Grand Prix", "Race", "VER", f"{lap}_tel.json")) for lap in range(count)]
