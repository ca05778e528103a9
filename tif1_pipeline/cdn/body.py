"""From a response to the JSON it carries: read within bounds, complete, inflated, and no error page."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from isal import igzip_lib

from tif1_pipeline.cdn.connection import MAX_WIRE_BYTES, TooLargeError
from tif1_pipeline.cdn.faults import MirrorError
from tif1_pipeline.cdn.transport import Exchange

# The largest file published so far has 9 MB, 3 MB of them on the wire, and jsDelivr serves none above 20 MB. Parsed,
# JSON can take twenty times its size: more would fill the memory of a small machine.
MAX_BODY_BYTES = 32 << 20

_INFLATE_FLAGS = {
    "gzip": igzip_lib.DECOMP_GZIP,
    "x-gzip": igzip_lib.DECOMP_GZIP,
    "deflate": igzip_lib.DECOMP_ZLIB,  # which is zlib's format in spite of its name
}
_GZIP_TRAILER_BYTES = 8  # checksum, then the size of the content

_LARGE = 16 << 10
"""Bytes on the wire that take 0.1 ms to inflate. One alone waits 0.2 ms for the other thread; a dozen share that."""
_BATCH = 12
"""Bodies that are handed over at once."""


async def read_wire(exchange: Exchange) -> bytes:
    """Read the body as it is on the wire.

    Raises:
        MirrorError: It is too large.
        httpx.TransportError: It ends before its Content-Length, or is interrupted.
    """
    announced = exchange.header("content-length") or ""
    if announced.isdecimal() and int(announced) > MAX_WIRE_BYTES:
        raise MirrorError("invalid", f"a body of {int(announced):,} bytes, more than the {MAX_WIRE_BYTES:,} allowed")
    try:
        return await exchange.body()
    except TooLargeError as error:
        raise MirrorError("invalid", str(error)) from None


class Inflater:
    """Inflates bodies, large ones on a thread of its own while the loop parses those before.

    Some at a time: whenever a thread hands something over, both wait for the interpreter's lock.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tif1-inflate")
        self._waiting: list[tuple[asyncio.Future[bytes], bytes, str]] = []

    async def inflate(self, wire: bytes, encoding: str) -> bytes:
        """Return a body as it was before the server compressed it.

        Args:
            wire: As it came.
            encoding: How it was compressed; may be empty.

        Raises:
            MirrorError: It does not inflate, grows too large, or is compressed in a way that was not asked for.
        """
        encoding = encoding.lower()
        if encoding in {"", "identity"}:
            return wire
        if len(wire) < _LARGE:
            return _inflate(wire, encoding)
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._hand_over)
        future: asyncio.Future[bytes] = loop.create_future()
        self._waiting.append((future, wire, encoding))
        return await future

    def _hand_over(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), _BATCH):
            batch = waiting[start : start + _BATCH]
            work = [(wire, encoding) for _, wire, encoding in batch]
            loop = asyncio.get_running_loop()
            try:
                done: asyncio.Future[list[bytes | Exception]] = loop.run_in_executor(self._pool, _inflate_each, work)
            except RuntimeError:  # the interpreter is about to end, or the system has no thread left
                done = loop.create_future()
                done.set_result(_inflate_each(work))
            done.add_done_callback(lambda done, batch=batch: _deliver([future for future, *_ in batch], done.result()))

    def close(self) -> None:
        """Let the thread end."""
        self._pool.shutdown(wait=False)


def _deliver(futures: list[asyncio.Future[bytes]], bodies: list[bytes | Exception]) -> None:
    for future, body in zip(futures, bodies, strict=True):
        if future.done():  # cancelled
            continue
        if isinstance(body, Exception):
            future.set_exception(body)
        else:
            future.set_result(body)


def _inflate_each(work: list[tuple[bytes, str]]) -> list[bytes | Exception]:
    bodies: list[bytes | Exception] = []
    for wire, encoding in work:
        try:
            bodies.append(_inflate(wire, encoding))
        except Exception as error:  # noqa: BLE001 - of one body, and raised where that is waited for
            bodies.append(error)
    return bodies


def check_json(exchange: Exchange, body: bytes) -> None:
    """Check that a body can be JSON.

    Raises:
        MirrorError: It is empty, HTML, or no JSON object or array.
    """
    start = body[:256].lstrip() or body.lstrip()
    if not start:
        raise MirrorError("invalid", "an empty body")
    content_type = (exchange.header("content-type") or "").partition(";")[0].strip().lower()
    if "html" in content_type or start[:1] not in {b"{", b"["}:
        raise MirrorError(
            "invalid", f"{content_type or 'something'} instead of JSON, beginning with {bytes(start[:40])!r}"
        )


def _inflate(wire: bytes, encoding: str) -> bytes:
    flag = _INFLATE_FLAGS.get(encoding)
    if flag is None:
        raise MirrorError("invalid", f"Content-Encoding {encoding[:40]!r}, though only gzip was asked for")
    if not wire:
        return b""
    limit = MAX_BODY_BYTES
    if flag == igzip_lib.DECOMP_GZIP:
        # The size at the end of a gzip body spares a growing buffer: a quarter faster. It may lie: inflating stops at
        # it, and what is then unfinished is refused.
        limit = int.from_bytes(wire[-4:], "little") if len(wire) > _GZIP_TRAILER_BYTES else 0
    if limit > MAX_BODY_BYTES:
        raise MirrorError("invalid", f"{encoding} of {limit:,} bytes, more than the {MAX_BODY_BYTES:,} allowed")
    inflater = igzip_lib.IgzipDecompressor(flag=flag)
    try:
        body = inflater.decompress(wire, limit + 1)
    except igzip_lib.IsalError as error:  # pyright: ignore[reportGeneralTypeIssues] - its stub is wrong
        raise MirrorError("invalid", f"{encoding} that does not inflate ({error})") from error
    if not inflater.eof or inflater.unused_data:
        raise MirrorError(
            "invalid", f"{encoding} that is cut off, of another size than it says, or larger than allowed"
        )
    return body
