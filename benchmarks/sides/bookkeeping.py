"""Session partitions of ``laps`` in one Dagster run, the same without Dagster, and a run that does nothing.

The instance is that of ``tif1-pipeline dev``; the run that does nothing is made on Dagster's default one, too.
"""

import logging
import os
import warnings
from pathlib import Path

from timing import answer, request, timed

import tif1_pipeline as tif1

asked = request()
folder = Path(asked["folder"])
config = tif1.get_config()
config.cache_dir = folder
config.cdn_urls = f"{asked['server']}/TracingInsights/{{year}}@main"
config.schedule_urls = f"{asked['server']}/theOehrly/f1schedule@master/schedule_{{year}}.json"
events = [event for event in tif1.get_events(asked["year"]) if not event.is_testing]
keys = [key for event in events for key in event.session_keys][: asked["partitions"]]
assert len(keys) == asked["partitions"]
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import dagster as dg  # noqa: E402 - the partitions are made from the stored calendar

from tif1_pipeline.api import get_cache, get_reader  # noqa: E402
from tif1_pipeline.cli.home import provide_instance  # noqa: E402
from tif1_pipeline.definitions import defs  # noqa: E402
from tif1_pipeline.defs.event_storage import BATCH_SIZE  # noqa: E402
from tif1_pipeline.defs.partitions import session_partitions_def  # noqa: E402


@dg.asset(partitions_def=session_partitions_def, backfill_policy=dg.BackfillPolicy.single_run())
def nothing() -> None: ...


ends = {"start": keys[0].partition, "end": keys[-1].partition}
options = {
    "tags": {f"dagster/asset_partition_range_{which}": key for which, key in ends.items()},
    "run_config": {"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
}


def without_dagster():
    for key in keys:
        get_cache().write(key.entry("laps"), get_reader().fetch(key, "laps").table)


def in_dagster(instance, *, plots):
    config.plots = plots
    result = dg.materialize(
        list(defs.assets or ()),
        selection=dg.AssetSelection.assets("laps"),
        instance=instance,
        resources=dict(defs.resources or {}),
        **options,
    )
    assert result.success


def do_nothing(instance):
    assert dg.materialize([nothing], instance=instance, **options).success


def measure(work):
    for each in work.values():  # the first warms imports, connections and instance
        each()
    return {name: timed(each)[0] / len(keys) for name, each in work.items()}


os.environ["DAGSTER_HOME"] = str(provide_instance(folder / "home"))
with dg.DagsterInstance.get() as instance:
    figures = measure(
        {
            "without": without_dagster,
            "within": lambda: in_dagster(instance, plots=False),
            "drawing": lambda: in_dagster(instance, plots=True),
            "nothing": lambda: do_nothing(instance),
        }
    )
del os.environ[BATCH_SIZE]
(folder / "default").mkdir()
with dg.DagsterInstance.local_temp(str(folder / "default")) as instance:
    figures |= measure({"default": lambda: do_nothing(instance)})
tif1.close()
answer(**figures)
