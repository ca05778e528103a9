"""Storing what assets and ops return."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.base import Fresh, Source
from tif1_pipeline.defs.automation import NETWORK_RETRIES
from tif1_pipeline.defs.io_entries import (
    RETRIES,
    Address,
    address_of,
    annotation_of,
    asset_metadata,
    label_of,
    loops_over_partitions,
    own_partitions,
    step_of,
)
from tif1_pipeline.defs.io_metadata import CONTENT_VERSION, describe_entry, describe_value, plain
from tif1_pipeline.defs.io_types import SUPPORTED, form_of, is_stream, is_table
from tif1_pipeline.exceptions import CacheError, CacheLockedError, InvalidDataError, NetworkError, Tif1Error

# The text of a failure is shown in one line of the run's log; its metadata holds all reasons.
_REASONS_IN_TEXT = 5

DATA_VERSION_TAG = "dagster/data_version"
"""Tag of a materialization event with its data version."""

Partition = str | None
"""A partition key; None is the only value of what has no partitions."""


@dataclass(frozen=True, slots=True)
class PartitionOutput:
    """A value with what is known about it.

    Attributes:
        value: What is stored; an exception says why there is nothing.
        source: Where it came from.
        metadata: Shown with the materialization; wins over the IO manager's own entries.
    """

    value: Any
    source: Source = Source()
    metadata: Mapping[str, Any] = field(default_factory=dict)


def store_output(cache: Cache, context: dg.OutputContext, obj: Any, *, pinned: bool) -> None:
    """Store an output, each partition as an entry of its own, and report what was stored.

    Raises:
        Failure: Something was not stored; what was is marked as materialized.
        RetryRequested: It may be stored at another try.
    """
    own = own_partitions(context)
    if own is not None and not own:
        raise dg.Failure(
            f"{label_of(context)}: the run's range holds no partition, so nothing was stored. Does it end before it "
            "starts? Static partitions are in the order of their definition, dynamic ones in that of their creation.",
            allow_retries=False,
        )
    wanted: Mapping[Partition, Partition] = {**own} if own else {None: None}
    stored: dict[Partition, dict[str, Any]] = {}
    failed: dict[Any, Exception] = {}
    broken: Exception | None = None
    try:
        for partition, value in _deliveries(context, obj, wanted):
            try:
                stored[partition] = _store(cache, _address(context, partition, wanted, pinned=pinned), value)
            except Exception as error:  # noqa: BLE001 - one bad partition must not lose the others
                failed[partition] = error
            del value  # else it stays in memory while the next one is made
    except Exception as error:  # noqa: BLE001 - what came before it broke is stored and must be reported
        broken = error
    for partition in wanted:
        if partition not in stored and partition not in failed:
            failed[partition] = broken or InvalidDataError("the output does not hold this partition")
    good = {wanted[partition]: metadata for partition, metadata in stored.items() if partition not in failed}
    if failed or broken:
        failure = _failure(context, good, failed, len(wanted), broken)
        failure.__cause__ = broken or next(iter(failed.values()))
        raise _tried_again(context, failure) or failure
    _report(context, good)


def _deliveries(
    context: dg.OutputContext, obj: Any, wanted: Mapping[Partition, Partition]
) -> Iterator[tuple[Partition, Any]]:
    """Give the values with their partitions, one at a time."""
    if not _is_by_partition(context, obj, wanted):
        if len(wanted) > 1:
            raise InvalidDataError(
                f"the run is about {len(wanted)} partitions, the output is one {type(obj).__name__}: return "
                "{partition key: value} for each key of context.partition_keys, or run one partition at a time "
                "(without backfill policy)"
            )
        yield next(iter(wanted)), obj
        return
    for pair in obj.items() if isinstance(obj, Mapping) else obj:
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise InvalidDataError(
                f"a {type(obj).__name__} is not a value that can be stored, and no stream of (partition key, value) "
                f"pairs either: it gave a {type(pair).__name__}. Storable are {SUPPORTED}"
            )
        yield pair
        del pair


def _is_by_partition(context: dg.OutputContext, obj: Any, wanted: Mapping[Partition, Partition]) -> bool:
    """Whether the output holds one value a partition; the rule is in the docstring of ``CacheIOManager``."""
    if None in wanted:
        return False
    if not isinstance(obj, Mapping):
        return is_stream(obj)
    if len(wanted) > 1:
        return True
    item = form_of(annotation_of(context)).item
    if (item and item.is_frame) or any(is_table(value) or isinstance(value, PartitionOutput) for value in obj.values()):
        return True
    return loops_over_partitions(context) and obj.keys() <= wanted.keys()


def _address(
    context: dg.OutputContext, partition: Partition, wanted: Mapping[Partition, Partition], *, pinned: bool
) -> Address:
    if partition not in wanted:
        raise InvalidDataError("the run is not about this partition")
    return address_of(context, partition, pinned=pinned)


def _store(cache: Cache, address: Address, delivered: Any) -> dict[str, Any]:
    """Store one value and return its metadata."""
    partitioned = address.partition is not None
    if isinstance(delivered, Fresh):
        if delivered.not_modified:
            info = cache.info(address.entry)
            if info is None:
                raise CacheError("it is said to be unmodified, but nothing is stored", key=address.entry.text)
            return describe_entry(info, partitioned=partitioned)
        delivered = PartitionOutput(delivered.value, delivered.source)
    output = delivered if isinstance(delivered, PartitionOutput) else PartitionOutput(delivered)
    value = output.value
    if isinstance(value, Exception):
        raise value
    if form_of(type(value)).lazy:
        value = value.collect()
    extra = plain(output.metadata)
    written = cache.write(
        address.entry, value, source=output.source, part_by=address.part_by, schema_version=address.schema_version
    )
    # Dagster must never believe in what cannot be loaded.
    if not written.stored or written.info is None:
        raise CacheError(f"the cache did not store it: {written.reason}", key=address.entry.text)
    known = describe_entry(written.info, partitioned=partitioned)
    shown = {
        **known,
        "seconds": round(written.seconds, 4),
        **describe_value(value, address.declared, address.dataset),
        **extra,
    }
    return shown | {CONTENT_VERSION: known[CONTENT_VERSION]}


def _report(context: dg.OutputContext, stored: Mapping[Partition, Mapping[str, Any]]) -> None:
    """Hand metadata and data version to the materializations that Dagster is about to record."""
    step = step_of(context)
    if len(stored) == 1:
        context.add_output_metadata(next(iter(stored.values())))
    elif step:
        for partition, metadata in stored.items():
            step.add_asset_metadata(metadata, asset_key=context.asset_key, partition_key=partition)
    # A version that the asset gave itself stays.
    if step and context.has_asset_key and not step.has_data_version(context.asset_key):
        step.set_data_version(context.asset_key, dg.DataVersion(_data_version(context, stored)))


def _data_version(context: dg.OutputContext, stored: Mapping[Partition, Mapping[str, Any]]) -> str:
    """Return the data version of a run: it differs from a partition's former one if that partition's content does.

    Dagster has one version for all partitions of a run. One partition has the version of its content; several have a
    version of all their contents together, so that a correction of one is never hidden. Where nothing has changed since
    the last materialization, its version stays, whether it was of one partition or of several.
    """
    contents = {partition: str(metadata[CONTENT_VERSION]) for partition, metadata in stored.items()}
    events = _former_events(context, list(contents))
    former = {_version_for(events.get(partition), content) for partition, content in contents.items()}
    if len(former) == 1 and (version := former.pop()):
        return version
    if len(contents) == 1:
        return next(iter(contents.values()))
    lines = "".join(f"{partition}\t{contents[partition]}\n" for partition in sorted(contents, key=str))
    return hashlib.sha256(lines.encode()).hexdigest()


def _former_events(
    context: dg.OutputContext, partitions: Sequence[Partition]
) -> dict[Partition, dg.AssetMaterialization]:
    """Return each partition's last materialization before this one, where there is one."""
    instance = context.step_context.instance

    def last(partitions: Sequence[str] | None, count: int) -> dict[Partition, dg.AssetMaterialization]:
        found: dict[Partition, dg.AssetMaterialization] = {}
        asked = dg.AssetRecordsFilter(context.asset_key, asset_partitions=partitions)
        for record in instance.fetch_materializations(asked, limit=count).records:  # the newest first
            if record.asset_materialization is not None:
                found.setdefault(record.partition_key, record.asset_materialization)
        return found

    if None in partitions:
        return last(None, 1)
    keys = [str(partition) for partition in partitions]
    if len(keys) == 1:
        return last(keys, 1)
    # One query answers it where the run before was of the same partitions; a query a partition takes 5 ms.
    stored = instance.get_materialized_partitions(context.asset_key)
    keys = [key for key in keys if key in stored]
    found = last(keys, len(keys)) if keys else {}
    for key in keys:
        if key not in found:
            found |= last([key], 1)
    return found


def _version_for(event: dg.AssetMaterialization | None, content: str) -> str | None:
    """Return the data version that Dagster has for this content; None if the partition has another content."""
    if event is None:
        return None
    version = (event.tags or {}).get(DATA_VERSION_TAG)
    known = event.metadata.get(CONTENT_VERSION)
    return version if (known.value if known else version) == content else None


def _failure(
    context: dg.OutputContext,
    stored: Mapping[Partition, Mapping[str, Any]],
    failed: Mapping[Any, Exception],
    count: int,
    broken: Exception | None,
) -> dg.Failure:
    """Mark what was stored as materialized, because Dagster marks nothing of a failed step, and say what was not."""
    events = _former_events(context, list(stored)) if stored else {}
    for partition, metadata in stored.items():
        if partition is not None:
            dimensions = partition.dimension_keys if isinstance(partition, dg.MultiPartitionKey) else ()
            tags = {f"dagster/partition/{key.dimension_name}": key.partition_key for key in dimensions}
            content = str(metadata[CONTENT_VERSION])
            tags[DATA_VERSION_TAG] = _version_for(events.get(partition), content) or content
            context.log_event(
                dg.AssetMaterialization(context.asset_key, partition=partition, metadata=metadata, tags=tags)
            )
    errors = [*failed.values(), *([broken] if broken else [])]
    reasons = {str(partition): _reason(error) for partition, error in failed.items()}
    if None in failed:
        text = f"{label_of(context)} was not stored: {reasons.pop('None')}"
    elif not failed:
        text = f"{label_of(context)}: all {count} partitions were stored, then the output broke: {_reason(errors[0])}"
    else:
        some = [f"{partition}: {reason}" for partition, reason in list(reasons.items())[:_REASONS_IN_TEXT]]
        some += [f"… and {len(reasons) - len(some)} more"] if len(reasons) > len(some) else []
        text = f"{label_of(context)}: {len(stored)} of {count} partitions were stored; not stored: {'; '.join(some)}"
    return dg.Failure(
        text,
        metadata={"not_stored": dg.MetadataValue.json(reasons), "stored": len(stored)},
        allow_retries=any(_may_pass(error) for error in errors),
    )


def _tried_again(context: dg.OutputContext, failure: dg.Failure) -> dg.RetryRequested | None:
    """Return what has the step tried again, if that may help and the asset asks for it.

    Not left to a retry policy: under one, Dagster tries again what was terminated, too.
    """
    step = step_of(context)
    times = asset_metadata(context).get(RETRIES) if step and failure.allow_retries else None
    if not times:
        return None
    again = dg.RetryRequested(times, NETWORK_RETRIES.calculate_delay(step.previous_attempt_count + 1))
    again.__cause__ = failure
    return again


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, Tif1Error | dg.Failure) else f"{type(error).__name__}: {error}"


def _may_pass(error: Exception) -> bool:
    """Whether another try may succeed: not where data or code are at fault."""
    if isinstance(error, dg.Failure):
        return error.allow_retries
    if isinstance(error, Tif1Error):
        return isinstance(error, NetworkError | CacheLockedError) or type(error) is CacheError
    return True  # nobody knows; the asset's retry policy decides
