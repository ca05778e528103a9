"""This project's side: sessions through the Python API."""

from timing import by_phase, import_all, request

import tif1_pipeline as tif1

asked = request()
config = tif1.get_config()
config.cache_dir = asked["folder"]
config.cdn_urls = f"{asked['server']}/TracingInsights/{{year}}@main"
config.schedule_urls = f"{asked['server']}/theOehrly/f1schedule@master/schedule_{{year}}.json"
if asked["requests"]:
    config.max_concurrent_requests = asked["requests"]


def get_session(name="Race"):
    return tif1.get_session(asked["year"], asked["event"], name)


def load(names):
    loaded = []
    for name in names:
        session = get_session(name)
        loaded.append((session.laps, session.weather, session.messages, session.telemetry))
    return loaded


WORK = {
    "laps": lambda: get_session().laps,
    "weather": lambda: get_session().weather,
    "messages": lambda: get_session().messages,
    "one lap": lambda: get_session().get_lap_telemetry("VER", 10),
    "one driver": lambda: get_session().get_driver_telemetry("VER"),
    "all telemetry": lambda: get_session().telemetry,
    "race": lambda: load(["Race"]),
    "sessions": lambda: load(asked["sessions"]),
}


def forget():
    if asked["phase"] == "later":
        tif1.get_cache().clear_memory()


# What reading and fetching import when they need it.
TO_READ = """
    isal.isal_zlib pandas pyarrow._parquet pyarrow.pandas_compat pyarrow.vendored.version tif1_pipeline.api
"""
TO_FETCH = """
    encodings.idna pyarrow.parquet simdjson sqlalchemy.dialects.sqlite tif1_pipeline.cache.engine
    tif1_pipeline.cache.schema tif1_pipeline.cdn.engine tif1_pipeline.cdn.runner tif1_pipeline.fetch
"""
if asked["phase"] != "process":  # else the imports are part of what is measured
    import_all(TO_READ)
    if asked["phase"] == "cold":
        import_all(TO_FETCH)
by_phase(WORK[asked["work"]], asked["phase"], between=forget)
tif1.close()
