"""The side of tif1, run by an interpreter of its own."""

import tif1
from tif1.cdn import CDNSource, get_cdn_manager
from timing import by_phase, import_all, request

asked = request()
tif1.get_config().set("cache_dir", asked["folder"])
# Its settings take https alone; the server is on loopback.
manager = get_cdn_manager()
manager.sources = [CDNSource(name="loopback", base_url=f"{asked['server']}/TracingInsights")]
manager._failure_counts = {"loopback": 0}


def get_session(name="Race"):
    return tif1.get_session(asked["year"], asked["event"], name, enable_cache=True)


def one_driver():
    driver = get_session().get_driver("VER")
    return [driver.get_lap(int(lap)).telemetry for lap in driver.laps["LapNumber"]]


def load(names):
    loaded = []
    for name in names:
        session = get_session(name)
        loaded.append(
            (session.laps, session.weather, session.race_control_messages, session.fetch_all_laps_telemetry())
        )
    return loaded


WORK = {
    "laps": lambda: get_session().laps,
    "weather": lambda: get_session().weather,
    "messages": lambda: get_session().race_control_messages,
    "one lap": lambda: get_session().get_driver("VER").get_lap(10).telemetry,
    "one driver": one_driver,
    "all telemetry": lambda: get_session().fetch_all_laps_telemetry(),
    "race": lambda: load(["Race"]),
    "sessions": lambda: load(asked["sessions"]),
}

# What it imports when it needs it.
NEEDED = """
    encodings.idna importlib.resources.readers lz4.frame niquests orjson pandas.io.formats.string pyarrow.pandas_compat
    pyarrow.vendored.version tif1.async_fetch tif1.core tif1.events tif1.http_session tif1.models tif1.payload_loader
    tif1.schedule_schema urllib3.contrib.hface.protocols.http1 zstandard
"""
if asked["phase"] != "process":  # else the imports are part of what is measured
    import_all(NEEDED)
by_phase(WORK[asked["work"]], asked["phase"])
