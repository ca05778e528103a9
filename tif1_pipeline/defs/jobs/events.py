"""Telling Dagster of tables that were stored outside of the runs of their assets."""

import dagster as dg

from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.defs.io_metadata import data_version_of, describe_entry
from tif1_pipeline.defs.io_outputs import DATA_VERSION_TAG
from tif1_pipeline.defs.partitions import PARTITIONS
from tif1_pipeline.keys import SessionKey


def log_materialized(
    context: dg.OpExecutionContext | dg.SensorEvaluationContext,
    key: SessionKey | int,
    dataset: str,
    info: EntryInfo,
) -> bool:
    """Log that a partition of a source asset was stored, so that the UI and automation know of it.

    In an op the event belongs to its run; in a sensor, which has none, it is stored by itself.

    Args:
        context: Of the op or sensor.
        key: The session, or the season of a ``schedule``.
        dataset: Name of the dataset, which is that of its asset.
        info: What is stored.

    Returns:
        Whether it was logged; False for a partition that the loaded definitions do not have (yet), which is said.
    """
    known = PARTITIONS.seasons if isinstance(key, int) else PARTITIONS.sessions
    partition = str(key) if isinstance(key, int) else key.partition
    if not known.has_partition_key(partition):
        context.log.warning(
            f"{dataset} of {partition} is stored, but the loaded definitions have no such partition: reload the code "
            "location to see it"
        )
        return False
    event = dg.AssetMaterialization(
        dg.AssetKey(dataset),
        partition=partition,
        metadata=describe_entry(info, partitioned=True),
        tags={DATA_VERSION_TAG: data_version_of(info)},
    )
    if isinstance(context, dg.SensorEvaluationContext):
        context.instance.report_runless_asset_event(event)
    else:
        context.log_event(event)
    return True
