"""Telling Dagster of tables that were stored outside of the runs of their assets."""

import dagster as dg

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.defs.checks import check_stored
from tif1_pipeline.defs.io_metadata import data_version_of, describe_entry
from tif1_pipeline.defs.io_outputs import DATA_VERSION_TAG
from tif1_pipeline.defs.partitions import PARTITIONS
from tif1_pipeline.keys import SessionKey


def log_materialized(
    context: dg.OpExecutionContext | dg.SensorEvaluationContext,
    cache: Cache,
    key: SessionKey | int,
    dataset: str,
    info: EntryInfo,
) -> bool:
    """Log that a partition of a source asset was stored, and what its checks say, so that the UI and automation know.

    In an op the materialization belongs to its run; in a sensor, which has none, it is stored by itself, as the checks
    always are. Nothing is derived from what a blocking check has failed, whoever stored it.

    Args:
        context: Of the op or sensor.
        cache: Where it is stored.
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
    checked = check_stored(cache, dataset, partition)  # before automation can see the materialization
    if isinstance(context, dg.SensorEvaluationContext):
        context.instance.report_runless_asset_event(event)
    else:
        context.log_event(event)
    for result in checked:
        context.instance.report_runless_asset_event(_evaluation(result, dataset))
        if not result.passed:
            context.log.warning(f"{dataset} of {partition} fails its check {result.check_name}: {result.description}")
    return True


def _evaluation(result: dg.AssetCheckResult, asset: str) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(asset),
        check_name=result.check_name or "",
        passed=result.passed,
        metadata=result.metadata,
        severity=result.severity,
        description=result.description,
    )
