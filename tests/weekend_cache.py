"""What the cache of the simulated weekend holds, told by processes of their own: it belongs to the pipeline's."""

import json
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_FIRST_LAP = """
import sys, tif1_pipeline as tif1
tif1.get_config().offline = True
times = tif1.get_session(int(sys.argv[1]), sys.argv[2], "R").laps["LapTimeSeconds"].dropna()
print(round(float(times.iloc[0]), 3))
"""
_ROWS = """
import sys, tif1_pipeline as tif1
tif1.get_config().max_retries = 0
for name in sys.argv[3:]:
    it = tif1.get_session(int(sys.argv[1]), sys.argv[2], name)
    print(*map(len, (it.drivers_df, it.laps, it.telemetry, it.weather, it.messages, it.corners)))
"""
_SOUND = """
import sys, json, tif1_pipeline as tif1
print(json.dumps([key for key in sys.argv[1:] if tif1.get_cache().verify_entry(key)]))
"""
_RESTORED = """
import sys, json, tif1_pipeline as tif1
tif1.get_config().cache_dir = sys.argv[2]
cache = tif1.get_cache()
cache.restore(sys.argv[1])
found = cache.verify_integrity()
found["missing"] = [key for key in sys.argv[3:] if not cache.verify_entry(key)]
print(json.dumps(found))
"""


def run(code: str, *arguments: str) -> str:
    """Return what a program prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout.strip()


def first_lap_time(year: int, event: str) -> float:
    """Return the first lap time of the stored race."""
    return float(run(_FIRST_LAP, str(year), event))


def readable(year: int, event: str, session_types: Sequence[str]) -> tuple[bool, str]:
    """Tell whether each table of these sessions can be read and has rows, and how many, or why not."""
    try:
        lines = run(_ROWS, str(year), event, *session_types).splitlines()
    except RuntimeError as error:
        return False, str(error)[-300:]
    return "0" not in " ".join(lines).split(), ", ".join(lines)


def rot(file: Path) -> list[str]:
    """Flip bytes of two source tables, one of them of many parts, and of a derived one; returns their keys."""
    keys = []
    with sqlite3.connect(file, timeout=30) as connection:
        for pattern in ("%race_laps_pandas", "%qualifying_telemetry_pandas", "asset:stints@%"):
            entry, key = connection.execute(
                "SELECT id, key FROM entries WHERE key LIKE ? ORDER BY key LIMIT 1", (pattern,)
            ).fetchone()
            part, data = connection.execute(
                "SELECT id, data FROM parts WHERE entry_id = ? ORDER BY ordinal DESC LIMIT 1", (entry,)
            ).fetchone()
            middle = len(data) // 2
            rotten = data[:middle] + bytes(255 - byte for byte in data[middle : middle + 16]) + data[middle + 16 :]
            connection.execute("UPDATE parts SET data = ? WHERE id = ?", (rotten, part))
            keys.append(key)
    connection.close()
    return keys


def sound(keys: Sequence[str]) -> list[str]:
    """Return those of the entries that are there, whole and sound."""
    return json.loads(run(_SOUND, *keys).splitlines()[-1])


def restored(backup: Path, keys: Sequence[str]) -> tuple[bool, str]:
    """Tell whether a backup restores into an empty folder, verifies, and has these entries, sound."""
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(run(_RESTORED, str(backup), folder, *keys).splitlines()[-1])
    is_whole = found["total_entries"] > 0 and found["valid_entries"] == found["total_entries"]
    text = f"{found['valid_entries']} of {found['total_entries']} entries sound, "
    text += f"without {', '.join(found['missing'])}" if found["missing"] else f"{len(keys)} repaired ones among them"
    return is_whole and not found["missing"], text
