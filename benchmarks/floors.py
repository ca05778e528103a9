"""What the libraries alone take for a race's telemetry: below this no reading or fetching of it can get here.

    python -m benchmarks.floors [RUNS]

Fetching: all files are inflated, and parsed, from memory, each on one core; those of the race, and those of five
sessions. Reading: the stored bytes are read from the page cache; the parts are decoded on all cores; the frame's memory
is taken and filled. Nothing of this waits for anything, and nothing of it overlaps here.
"""

import gzip
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simdjson
from isal import igzip

import tif1_pipeline as tif1
from benchmarks import files
from benchmarks.measure import serving
from tif1_pipeline.api import get_reader
from tif1_pipeline.cache import codec, parquet, threads
from tif1_pipeline.decode.telemetry import _parse_fast

RUNS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
KEPT = files.ROOT / ".bench"


def show(what: str, work: Callable[[], object]) -> None:
    """Print how long something takes, the first time and then."""
    times = []
    for _ in range(1 + RUNS):
        started = time.perf_counter()
        result = work()
        times.append(1000 * (time.perf_counter() - started))
        del result
    rest = times[1:]
    print(f"{what:72} {statistics.median(rest):8.1f} ms ({min(rest):.1f} to {max(rest):.1f})")


def main() -> None:
    """Measure and print."""
    KEPT.mkdir(exist_ok=True)
    folder, what = files.prepare(KEPT)
    print(f"Measured on {what}.")
    parser = simdjson.Parser()
    for name, pattern in (("the race", "Race"), ("five sessions", "*")):
        paths = folder.glob(f"TracingInsights/{files.YEAR}@main/{files.EVENT}/{pattern}/*/*_tel.json")
        packed = [gzip.compress(path.read_bytes(), 6) for path in sorted(paths)]
        plain = [igzip.decompress(data) for data in packed]
        what = f"{len(packed)} files of {name}"
        inflated = f"inflating {what}, {sum(map(len, packed)) / 1e6:.0f} MB"
        show(inflated, lambda: [len(igzip.decompress(data)) for data in packed])  # noqa: B023 - shown at once
        parsed = f"parsing {what}, {sum(map(len, plain)) / 1e6:.0f} MB of JSON"
        show(f"{parsed}, without arrays", lambda: [_parse(parser, data) for data in plain])  # noqa: B023
        show(f"{parsed}, into arrays", lambda: [len(_parse_fast(parser, data) or ()) for data in plain])  # noqa: B023
    with tempfile.TemporaryDirectory(dir=KEPT) as scratch, serving(folder, Path(scratch)) as server:
        config = tif1.get_config()
        config.cdn_urls = f"{server}/0/TracingInsights/{{year}}@main"
        config.schedule_urls = f"{server}/0/theOehrly/f1schedule@master/schedule_{{year}}.json"
        config.cache_dir = Path(scratch) / "cache"
        session = tif1.get_session(files.YEAR, files.EVENT, "Race")
        frame = session.telemetry
        encoded = codec.encode_table(get_reader().table(session.key, "telemetry").value, 3, "Driver")
        tif1.close()
    stored = Path(KEPT / "floor.bin")
    stored.write_bytes(b"".join(blob.data for blob in encoded.blobs))
    show(f"reading {stored.stat().st_size / 1e6:.0f} MB from the page cache", stored.read_bytes)
    stored.unlink()
    show("decoding its Parquet parts, on all cores", lambda: threads.each(_decode, encoded.blobs))
    show("decoding its Parquet parts, on one", lambda: [_decode(blob) for blob in encoded.blobs])
    numbers = int(frame.memory_usage(index=False).sum()) // 4
    show(f"taking and filling memory for the frame, {4 * numbers / 1e6:.0f} MB", lambda: np.ones(numbers, "f4"))


def _parse(parser: simdjson.Parser, data: bytes) -> int:
    try:
        return len(parser.parse(data))  # the document must be gone before the next
    except ValueError:  # a bare NaN, which takes another way
        return 0


def _decode(blob: codec.Blob) -> int:
    return parquet.read(blob.data).num_rows


if __name__ == "__main__":
    main()
