"""What Dagster adds: session partitions of `laps` in one run, beside the same fetched and stored without Dagster.

.venv/bin/python benchmarks/partitions.py [PARTITIONS]
"""

import statistics
import sys
import tempfile
import time
import warnings

import tif1_pipeline as tif1
from tif1_pipeline.simulator import CdnServer, Season

RUNS = 5


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder, CdnServer(Season(2025, seed=1, size="full")) as server:
        config = tif1.get_config()
        config.update({"cdn_urls": server.cdn_urls, "schedule_urls": server.schedule_urls, "cache_dir": folder})
        calendar = tif1.get_events(2025)
        keys = [key for event in calendar if not event.is_testing for key in event.session_keys][:count]
        warnings.simplefilter("ignore")
        import dagster as dg

        from tif1_pipeline.api import get_cache, get_reader
        from tif1_pipeline.definitions import defs
        from tif1_pipeline.defs.partitions import session_partitions_def

        @dg.asset(partitions_def=session_partitions_def, backfill_policy=dg.BackfillPolicy.single_run())
        def nothing() -> None: ...

        ends = {"start": keys[0].partition, "end": keys[-1].partition}
        options = {
            "tags": {f"dagster/asset_partition_range_{which}": key for which, key in ends.items()},
            "run_config": {"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
        }

        def empty() -> None:
            assert dg.materialize([nothing], instance=instance, **options).success

        def without_dagster() -> None:
            for key in keys:
                get_cache().write(key.entry("laps"), get_reader().fetch(key, "laps").table)

        def with_dagster() -> None:
            result = dg.materialize(
                list(defs.assets or ()),
                selection=dg.AssetSelection.assets("laps"),
                instance=instance,
                resources=dict(defs.resources or {}),
                **options,
            )
            assert result.success

        with dg.DagsterInstance.local_temp(folder) as instance:
            seconds: dict[str, list[float]] = {"without": [], "with": [], "empty": []}
            for run in range(RUNS + 1):  # the first warms server, imports and instance
                for name, work in (("without", without_dagster), ("with", with_dagster), ("empty", empty)):
                    started = time.perf_counter()
                    work()
                    if run:
                        seconds[name].append(time.perf_counter() - started)
        each = {name: statistics.median(times) / len(keys) * 1000 for name, times in seconds.items()}
        print(
            f"{len(keys)} partitions, median of {RUNS}: {each['without']:.1f} ms each fetched and stored, "
            f"{each['with']:.1f} ms in a Dagster run, {each['with'] - each['without']:.1f} ms more; "
            f"an asset that does nothing: {each['empty']:.1f} ms"
        )
        tif1.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
