"""What maintenance costs, and what others notice of it: cleanup, verification, vacuum and checkpoint of a large cache.

    .venv/bin/python benchmarks/maintenance.py [--gib 5] [--dir /tmp]

The cache is made of telemetry-like tables (20 parts, random walks in float32) and removed at the end. While half of it
is cleaned away, two processes read one part at a time and one writes small entries; their waits are wall time, so on a
machine with few cores they contain the turns of the other processes. They are measured once without a cleanup too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.base import Source
from tif1_pipeline.cache.codec import encode_table
from tif1_pipeline.cache.store import new_info
from tif1_pipeline.config import MIB, Config
from tif1_pipeline.keys import EntryKey

DRIVERS = 20
ROWS = 30_000
CHANNELS = ("RPM", "Speed", "Throttle", "Distance", "AccelerationX", "AccelerationY", "AccelerationZ", "X", "Y", "Z")
READER = """
import json, sys, time
from pathlib import Path
from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey
folder, role, last = sys.argv[1:]
cache = Cache(Config(cache_dir=folder, memory_cache_enabled=False))
stop = Path(folder) / "stop"
waits, number = [], 0
cache.read("t0", parts=["D00"])
print("ready", flush=True)
while not stop.exists():
    number += 1
    started = time.perf_counter()
    if role == "read":
        assert cache.read(f"t{int(last) - number % 20}", parts=[f"D{number % 20:02}"]) is not None
    else:
        assert cache.write(EntryKey(f"small{number % 50}", "x"), {"n": number}).stored
    waits.append((time.perf_counter() - started) * 1000)
waits.sort()
print(json.dumps({"number": len(waits), "p50": waits[len(waits) // 2], "p99": waits[int(len(waits) * 0.99)],
                  "max": waits[-1], "degraded": cache.get_degraded()}), flush=True)
"""


def telemetry() -> pa.Table:
    random = np.random.default_rng(1)
    rows = DRIVERS * ROWS
    drivers = pa.array(np.repeat(np.arange(DRIVERS, dtype=np.int8), ROWS))
    columns = {"Driver": pa.DictionaryArray.from_arrays(drivers, [f"D{number:02}" for number in range(DRIVERS)])}
    for name in CHANNELS:
        columns[name] = np.cumsum(random.normal(size=rows)).astype(np.float32).round(2)
    return pa.table(columns)


def fill(cache: Cache, gib: float) -> int:
    """Store the same encoded table under many keys: what it costs to encode is another benchmark's."""
    encoded = encode_table(telemetry(), 3, "Driver")
    size = sum(len(blob.data) for blob in encoded.blobs)
    number = max(40, round(gib * 1024 * MIB / size))
    file = cache._tiered.file_of("t0")
    started = time.perf_counter()
    for index in range(number):
        file.store.save(new_info(EntryKey(f"t{index}", "telemetry"), encoded, "arrow", Source(), 1), encoded)
    seconds = time.perf_counter() - started
    print(f"stored {number} entries, {number * size / MIB:.0f} MiB, in {seconds:.1f} s", flush=True)
    return number


def others(folder: Path, last: int, work: object) -> float:
    """Run the work while others read and write; prints their waits, returns its seconds."""
    (folder / "stop").unlink(missing_ok=True)
    roles = ("read", "read", "write")
    command = [sys.executable, "-c", READER, str(folder)]
    processes = [
        subprocess.Popen([*command, role, str(last)], stdout=subprocess.PIPE, text=True, env=os.environ)
        for role in roles
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    started = time.perf_counter()
    work()  # type: ignore[operator]
    seconds = time.perf_counter() - started
    (folder / "stop").touch()
    for role, process in zip(roles, processes, strict=True):
        waits = json.loads(process.communicate()[0])
        print(
            f"    {role:6}{waits['number']:7} times, ms: median {waits['p50']:.1f}, 99 % {waits['p99']:.1f}, "
            f"max {waits['max']:.1f} {waits['degraded'] or ''}",
            flush=True,
        )
    return seconds


def timed(what: str, work: object) -> float:
    started = time.perf_counter()
    result = work()  # type: ignore[operator]
    seconds = time.perf_counter() - started
    print(f"{what}: {seconds:.2f} s -> {result}", flush=True)
    return seconds


def main(gib: float, scratch: Path) -> None:
    with tempfile.TemporaryDirectory(dir=scratch) as made:
        folder = Path(made)
        config = Config(cache_dir=folder, memory_cache_enabled=False, cache_cleanup_min_age=0)
        cache = Cache(config)
        number = fill(cache, gib)
        stored = cache.get_size_info()["compressed_mb"]
        print(f"load average {os.getloadavg()[0]:.1f}")
        cpu = time.process_time()
        seconds = timed("verify", cache.verify_integrity)
        cpu = time.process_time() - cpu
        print(
            f"    {stored * MIB / 1e6 / seconds:.0f} MB/s of stored bytes, {stored * MIB / 1e6 / cpu:.0f} a CPU second"
        )
        print("others, nothing going on:")
        others(folder, number - 1, lambda: time.sleep(3))
        config.update(
            {
                "cache_max_size_mb": max(1, int(stored * 0.9)),
                "cache_cleanup_threshold_mb": max(1, int(stored * 0.9)),
                "cache_cleanup_target_mb": int(stored / 2),
            }
        )
        print("others, during a cleanup:")
        removed = 0

        def clean() -> None:
            nonlocal removed
            removed = cache.run_auto_cleanup()

        seconds = others(folder, number - 1, clean)
        print(f"cleanup: {seconds:.2f} s -> {removed} entries")
        timed("checkpoint", cache.checkpoint)
        timed("vacuum, MiB freed", cache.vacuum)
        timed("rebuild indexes", cache.rebuild_indexes)
        timed("optimize", cache.optimize)
        cache.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=float, default=5.0)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    main(given.gib, given.dir)
