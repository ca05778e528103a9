"""Look-ups, inserts and evictions in a cache of so many entries."""

import shutil
import statistics
from pathlib import Path

import pyarrow as pa
from timing import answer, request, timed

from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey

ROUNDS = 60
asked = request()
folder = Path(asked["folder"])
table = pa.table({"LapNumber": list(range(60)), "LapTimeSeconds": [90.5 + lap / 100 for lap in range(60)]})


def open_cache(place: Path) -> Cache:
    return Cache(Config(cache_dir=place, memory_cache_enabled=False))


def key_of(number: int) -> EntryKey:
    return EntryKey(f"2025_event{number:05}_race_laps_pandas", "laps")


if asked["work"] == "fill":
    cache = open_cache(folder / "made")
    for number in range(asked["entries"]):
        assert cache.write(key_of(number), table).stored
    cache.close()
    answer()
else:
    place = folder / "used"  # a copy: evictions take from it
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / "made", place)
    cache = open_cache(place)
    step = max(1, asked["entries"] // ROUNDS)
    chosen = [key_of(number) for number in range(0, step * ROUNDS, step)]
    cache.read(chosen[0])
    lookups = [timed(lambda key=key: cache.read(key))[0] for key in chosen]
    inserts = [timed(lambda number=number: cache.write(key_of(100_000 + number), table))[0] for number in range(ROUNDS)]
    evictions = [timed(lambda: cache.clear_lru(1))[0] for _ in range(ROUNDS)]
    cache.close()
    answer(lookup=statistics.median(lookups), insert=statistics.median(inserts), eviction=statistics.median(evictions))
