"""Processes that read a race's laps from the cache at the same time, each with an empty memory tier."""

import json
import multiprocessing
import statistics
import time

from timing import answer, request

READS = 30
asked = request()


def point(tif1):
    config = tif1.get_config()
    config.cache_dir = asked["folder"]
    config.cdn_urls = f"{asked['server']}/TracingInsights/{{year}}@main"
    config.schedule_urls = f"{asked['server']}/theOehrly/f1schedule@master/schedule_{{year}}.json"


def read(barrier, results):
    import tif1_pipeline as tif1

    point(tif1)
    session = tif1.get_session(asked["year"], asked["event"], "Race")
    rows = len(session.laps)
    barrier.wait()
    times = []
    for _ in range(READS):
        tif1.get_cache().clear_memory()
        started = time.perf_counter()
        assert len(tif1.get_session(asked["year"], asked["event"], "Race").laps) == rows
        times.append((time.perf_counter() - started) * 1000)
    degraded = tif1.get_cache().get_degraded()
    results.put(json.dumps({"ms": statistics.mean(times), "degraded": dict(degraded)}))
    tif1.close()


if __name__ == "__main__":
    import tif1_pipeline as tif1

    point(tif1)
    tif1.get_session(asked["year"], asked["event"], "Race").laps  # noqa: B018 - fetched and stored
    tif1.close()
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(asked["readers"]), context.Queue()
    processes = [context.Process(target=read, args=(barrier, results)) for _ in range(asked["readers"])]
    for process in processes:
        process.start()
    found = [json.loads(results.get(timeout=120)) for _ in processes]
    for process in processes:
        process.join()
    assert not any(of_one["degraded"] for of_one in found), found  # a lock error would be counted there
    answer(mean_ms=statistics.mean(one["ms"] for one in found), slowest_ms=max(one["ms"] for one in found))
