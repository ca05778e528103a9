"""From a response to the JSON it carries: read within bounds, complete, inflated, and no error page."""

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


def json_body(exchange: Exchange, wire: bytes) -> bytes:
    """Inflate the body and check that it can be JSON.

    Raises:
        MirrorError: It is empty, HTML, no JSON object or array, does not inflate, or grows too large.
    """
    encoding = (exchange.header("content-encoding") or "").lower()
    body = _inflate(wire, encoding) if encoding not in {"", "identity"} else wire
    start = body[:256].lstrip() or body.lstrip()
    if not start:
        raise MirrorError("invalid", "an empty body")
    content_type = (exchange.header("content-type") or "").partition(";")[0].strip().lower()
    if "html" in content_type or start[:1] not in {b"{", b"["}:
        raise MirrorError(
            "invalid", f"{content_type or 'something'} instead of JSON, beginning with {bytes(start[:40])!r}"
        )
    return body


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
