"""A static server whose own work does not show in what is measured: every answer is ready in memory before the first.

    python -m benchmarks.server FOLDER READY_FILE

``/{ms}/{path}`` answers with the file of that path, after that many milliseconds, gzipped for those who take it. Its
port is written to READY_FILE when all answers are ready. ``/count`` tells how many files were asked for since it was
last asked.
"""

import asyncio
import gzip
import hashlib
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from urllib.parse import unquote

GZIP_LEVEL = 6
"""As CDNs compress: nearly the smallest, at a bearable price."""
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nnot found\n"


def answers_of(file: Path) -> tuple[bytes, bytes]:
    """Return the whole answer, plain and gzipped."""
    body = file.read_bytes()
    tag = hashlib.blake2b(body, digest_size=16).hexdigest()
    return _answer(body, tag, ""), _answer(gzip.compress(body, GZIP_LEVEL), tag, "Content-Encoding: gzip\r\n")


def _answer(body: bytes, tag: str, encoding: str) -> bytes:
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n"
        f'ETag: W/"{tag}"\r\nVary: Accept-Encoding\r\n{encoding}Content-Length: {len(body)}\r\n\r\n'
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One client; requests without a body, one after the other."""

    answers: dict[str, tuple[bytes, bytes]]
    asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment] - of a TCP connection
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            self.answer(head)

    def answer(self, head: bytes) -> None:
        line, _, headers = head.partition(b"\r\n")
        target = line.split(b" ")[1].decode("ascii")
        if target == "/count":
            text = json.dumps(Connection.asked).encode()
            Connection.asked = 0
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
            return
        Connection.asked += 1
        delay, _, path = target[1:].partition("/")
        plain, compressed = self.answers.get(unquote(path), (MISSING, MISSING))
        found = compressed if b"gzip" in headers.lower() else plain
        if delay == "0":
            self.transport.write(found)
        else:
            asyncio.get_running_loop().call_later(int(delay) / 1000, self.transport.write, found)


async def serve(folder: Path, ready: Path) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    with ProcessPoolExecutor() as pool:
        found = pool.map(answers_of, files, chunksize=16)
        Connection.answers = {
            file.relative_to(folder).as_posix(): answers for file, answers in zip(files, found, strict=True)
        }
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=1024)
    partial = ready.with_suffix(".partial")
    partial.write_text(str(server.sockets[0].getsockname()[1]))
    partial.rename(ready)
    parent = os.getppid()
    while os.getppid() == parent:  # ends with whoever started it, however that ended
        await asyncio.sleep(1)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2])))
