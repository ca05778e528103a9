"""What encryption costs: the same entries read from disk and written with a key and without, interleaved.

.venv/bin/python benchmarks/encryption.py [RUNS]
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey

ROWS, DRIVERS, CHANNELS = 600_000, 20, 14


def telemetry() -> pa.Table:
    """About as many samples as a race has."""
    random = np.random.default_rng(1)
    names = np.repeat([f"D{number:02}" for number in range(DRIVERS)], ROWS // DRIVERS)
    columns = {
        f"c{number}": np.cumsum(random.integers(-3, 4, ROWS)).astype("float32") / 8 for number in range(CHANNELS)
    }
    return pa.table({"Driver": pa.array(names).dictionary_encode(), **columns})


def main(runs: int) -> None:
    table = telemetry()
    kinds = {"telemetry": (table, None), "one driver": (table, ["D07"]), "laps": (table.slice(0, 1200), None)}
    with tempfile.TemporaryDirectory() as folder:
        caches = {
            name: Cache(Config(cache_dir=Path(folder) / name, cache_encryption_key=key, memory_cache_enabled=False))
            for name, key in (("plain", None), ("encrypted", "a1" * 32))
        }
        print(f"{'median ms':22}{'plain':>9}{'encrypted':>11}{'ratio':>7}")
        for kind, (value, parts) in kinds.items():
            key = EntryKey(kind, kind)
            for doing in ("write", "read"):
                seconds: dict[str, list[float]] = {name: [] for name in caches}
                for _ in range(runs if doing == "read" else max(3, runs // 10)):
                    for name, cache in caches.items():
                        started = time.perf_counter()
                        if doing == "write":
                            cache.write(key, value, part_by="Driver" if len(value) == ROWS else None)
                        else:
                            cache.read(key, parts=parts)
                        seconds[name].append(time.perf_counter() - started)
                plain, sealed = (statistics.median(times) * 1000 for times in seconds.values())
                print(f"{kind + ', ' + doing:22}{plain:9.2f}{sealed:11.2f}{sealed / plain:6.2f}x", flush=True)
        print(f"stored: {caches['plain'].info('telemetry').compressed_size / 2**20:.1f} MiB of telemetry")
        for cache in caches.values():
            cache.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
