"""Backup, restore, export and import of a generated cache: seconds and peak memory, each in a process of its own.

    .venv/bin/python benchmarks/backup.py [--gib 5] [--folder /tmp]

The folder takes about four times the size of the cache for a while and is empty again afterwards.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

MAKE = """
import sys
import numpy as np
import pyarrow as pa
from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.keys import SessionKey
cache = Cache(Config(cache_dir=sys.argv[1], memory_cache_enabled=False, cache_compression_level=1))
schema, random = DATASETS["telemetry"].schema, np.random.default_rng(0)
drivers, rows = 20, 38_000
indices = pa.array(np.repeat(np.arange(drivers, dtype="int32"), rows))
names = pa.DictionaryArray.from_arrays(indices, [f"D{number:02}" for number in range(drivers)])
columns = []
for field in schema:
    if field.name == "Driver":
        columns.append(names)
    elif pa.types.is_dictionary(field.type):
        columns.append(names)
    elif pa.types.is_boolean(field.type):
        columns.append(pa.array(random.random(drivers * rows) < 0.2))
    elif field.type == pa.float32():
        columns.append(pa.array((random.random(drivers * rows) * 300).astype("float32")))
    else:
        columns.append(pa.array(random.integers(0, 90, drivers * rows)).cast(field.type))
table = pa.Table.from_arrays(columns, schema=schema)
number, stored = 0, 0
while stored < float(sys.argv[2]) * 2**30:
    key = SessionKey(2018 + number // 100, f"Event {number % 100}", "Race").entry("telemetry")
    stored += cache.write(key, table, part_by="Driver", schema_version=1).info.compressed_size
    number += 1
print(f"{number} races of {table.nbytes / 2**20:.0f} MiB in memory, {stored / 2**30:.2f} GiB stored")
cache.close()
"""
WORK = """
import json, resource, sys, time
from pathlib import Path
from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
cache = Cache(Config(cache_dir=sys.argv[1]))
from tif1_pipeline.cache import manage
started = time.perf_counter()
result = getattr(cache, sys.argv[2])(sys.argv[3])
seconds = time.perf_counter() - started
cache.close()
# Not ru_maxrss, which a process inherits from the one that started it.
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "mb": int(peak) / 1024, "result": str(result)}))
"""


def run(*arguments: str) -> str:
    ran = subprocess.run([sys.executable, "-c", *arguments], check=False, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return ran.stdout.strip()


def main(gib: float, folder: str | None) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        root = Path(scratch)
        print(run(MAKE, str(root / "cache"), str(gib)), flush=True)
        made = ""
        for what, cache, target in (
            ("backup", "cache", str(root / "backups")),
            ("restore", "cache", ""),
            ("export", "cache", str(root / "tree")),
            ("import_", "imported", str(root / "tree")),
        ):
            figures = json.loads(run(WORK, str(root / cache), what, target or made))
            if what == "backup":
                made = figures["result"]
            if what == "restore":
                Path(made).unlink()
            print(f"{what:8} {figures['seconds']:7.1f} s   peak {figures['mb']:4.0f} MB", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=float, default=5.0)
    parser.add_argument("--folder")
    given = parser.parse_args()
    main(given.gib, given.folder)
