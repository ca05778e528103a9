"""Run by tif1's own interpreter: writes the laps of sessions, as tif1 returns them, to Parquet files.

python tif1_laps.py http://127.0.0.1:8400 FOLDER "Race" "Qualifying"
"""

import sys
from pathlib import Path

import tif1
from tif1.cdn import CDNSource, get_cdn_manager

server, folder, *sessions = sys.argv[1:]
tif1.get_config().set("cache_dir", folder)
# The settings of tif1 take https alone; the simulated CDN speaks http on loopback.
manager = get_cdn_manager()
manager.sources = [CDNSource(name="loopback", base_url=f"{server}/TracingInsights")]
manager._failure_counts = {"loopback": 0}
for name in sessions:
    session = tif1.get_session(2025, "Australian Grand Prix", name, enable_cache=False)
    laps = session.laps
    print(name, type(laps).__module__, laps.shape, {column: str(dtype) for column, dtype in laps.dtypes.items()})
    laps.reset_index(drop=True).to_parquet(Path(folder) / f"{name}.parquet")
