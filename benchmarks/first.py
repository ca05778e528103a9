"""The same work on the same files for this project and for tif1: cold, warm and hot, interleaved, in new processes.

    .venv/bin/python benchmarks/first.py FOLDER [RUNS]

FOLDER holds files laid out as on the CDN with the 2025 Australian Grand Prix; tif1 is taken from .peers/tif1, where the
tests put it. Prints medians in milliseconds, imports aside, and the ratio.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = ROOT / ".venv" / "bin" / "python"
PEER = ROOT / ".peers" / "tif1" / "bin" / "python"

OURS = """
import json, sys, time
server, folder, work, phase = sys.argv[1:]
import tif1_pipeline as tif1, pandas, sqlalchemy, tif1_pipeline.cdn.engine, tif1_pipeline.fetch
config = tif1.get_config()
config.cache_dir = folder
config.cdn_urls = f"{server}/TracingInsights/{{year}}@main"
config.schedule_urls = f"{server}/theOehrly/f1schedule@master/schedule_{{year}}.json"
def run():
    session = tif1.get_session(2025, "Australian Grand Prix", "Race")
    if work == "laps": return session.laps
    if work == "weather": return session.weather
    if work == "one lap": return session.get_lap_telemetry("VER", 10)
    if work == "one driver": return session.get_driver_telemetry("VER")
    return session.telemetry
"""
THEIRS = """
import json, sys, time
server, folder, work, phase = sys.argv[1:]
import tif1, pandas
tif1.get_config().set("cache_dir", folder)
from tif1.cdn import CDNSource, get_cdn_manager
manager = get_cdn_manager()
manager.sources = [CDNSource(name="loopback", base_url=f"{server}/TracingInsights")]
manager._failure_counts = {"loopback": 0}
def run():
    session = tif1.get_session(2025, "Australian Grand Prix", "Race", enable_cache=True)
    if work == "laps": return session.laps
    if work == "weather": return session.weather
    if work == "one lap": return session.get_driver("VER").get_lap(10).telemetry
    if work == "one driver":
        driver = session.get_driver("VER")
        return [driver.get_lap(int(lap)).telemetry for lap in driver.laps["LapNumber"]]
    return session.fetch_all_laps_telemetry()
"""
TIMED = """
times = []
for _ in range(1 if phase != "hot" else 6):
    started = time.perf_counter(); result = run(); times.append((time.perf_counter() - started) * 1000)
import resource
print(json.dumps({"ms": times[0] if phase != "hot" else sorted(times[1:])[2],
                  "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "size": len(result)}))
"""
WORK = ("laps", "weather", "one lap", "one driver", "all telemetry")


def measure(python: Path, code: str, server: str, folder: Path, work: str, phase: str) -> dict[str, float]:
    command = [str(python), "-c", code + TIMED, server, str(folder), work, phase]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIF1_")}
    ran = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=300)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return json.loads(ran.stdout.splitlines()[-1])


def disk_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def main(data: str, runs: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        ready = Path(scratch) / "port"
        serve = [str(PROJECT), "-m", "tif1_pipeline.cli", "serve-cdn", data, "--port", "0", "--ready-file", str(ready)]
        with subprocess.Popen(serve, stdout=subprocess.DEVNULL) as process:
            try:
                while not ready.exists():
                    if process.poll() is not None:
                        raise SystemExit("the server did not start")
                compare(f"http://127.0.0.1:{ready.read_text().strip()}", Path(scratch), runs)
            finally:
                process.terminate()


def compare(server: str, scratch: Path, runs: int) -> None:
    sides = {"ours": (PROJECT, OURS), "tif1": (PEER, THEIRS)}
    # Once for nothing: the server compresses each file when it is first asked for.
    measure(*sides["ours"], server, scratch / "first", "all telemetry", "cold")
    print(f"{'':24}{'ours ms':>10}{'tif1 ms':>10}{'ratio':>8}   peak MB ours / tif1")
    for work in WORK:
        for phase in ("cold", "warm", "hot"):
            figures: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for _ in range(runs):
                for side, (python, code) in sides.items():
                    folder = scratch / f"{side}-{work}"
                    if phase == "cold":
                        shutil.rmtree(folder, ignore_errors=True)
                        folder.mkdir()
                    figures[side].append(measure(python, code, server, folder, work, phase))
            medians = {side: statistics.median(each["ms"] for each in rows) for side, rows in figures.items()}
            peaks = {side: statistics.median(each["peak_mb"] for each in rows) for side, rows in figures.items()}
            ratio = medians["tif1"] / medians["ours"]
            print(
                f"{work + ', ' + phase:24}{medians['ours']:10.2f}{medians['tif1']:10.2f}{ratio:7.1f}x"
                f"   {peaks['ours']:.0f} / {peaks['tif1']:.0f}",
                flush=True,
            )
        print(f"{work + ', on disk':24}" + "".join(f"{disk_mb(scratch / f'{side}-{work}'):8.1f}MB" for side in sides))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3)
