"""Which cache entry belongs to an output or input of Dagster."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg

from tif1_pipeline.datasets import DATASETS, Dataset
from tif1_pipeline.exceptions import ConfigError
from tif1_pipeline.keys import EntryKey, SessionKey, schedule_entry

DATASET = "tif1/dataset"
"""Metadata of an asset that holds one of the tables of :data:`tif1_pipeline.datasets.DATASETS`."""

PART_BY = "part_by"
"""Metadata of an asset: the column whose values are stored as parts that can be loaded alone."""

RETRIES = "tif1/retries"
"""Metadata of an asset: how often a step is tried again when what hindered it may pass, as an outage of the network."""

COLUMN_SCHEMA = "dagster/column_schema"

# No slash in any key: the cache takes what follows one for the name of a part, and replaces parts with their whole.
# The rest is what stands between names here, what a terminal would stumble over, and the escape character itself.
_UNSAFE = re.compile(r"[%/\x00-\x1f\x7f\ud800-\udfff]")
_UNSAFE_IN_NAME = re.compile(r"[%/.@\x00-\x1f\x7f\ud800-\udfff]")

Context = dg.OutputContext | dg.InputContext


@dataclass(frozen=True, slots=True)
class Address:
    """Where one value of an asset or op is stored.

    Attributes:
        entry: Its key.
        label: What a person calls it.
        partition: The partition key; None where there are no partitions.
        dataset: The Formula 1 table it is, if it is one.
        session: Session or season of that table.
        part_by: Column whose values are stored as parts.
        schema_version: Of the dataset; 0 for other assets.
        declared: The columns on the asset's definition.
    """

    entry: EntryKey
    label: str
    partition: str | None = None
    dataset: Dataset | None = None
    session: SessionKey | int = 0
    part_by: str | None = None
    schema_version: int = 0
    declared: dg.TableSchema | None = None


def address_of(context: Context, partition: str | None, *, pinned: bool = False) -> Address:
    """Return where one partition (None: the only value) of an output is stored, or of an input is found.

    ========================  ==========================================================  ======
    value                     key                                                         pinned
    ========================  ==========================================================  ======
    asset ``shop/sales``      ``asset:shop.sales``                                        yes
    its partition ``a/b``     ``asset:shop.sales@a%2Fb``                                  yes
    a Formula 1 table         as ``get_session`` has it: ``2025_monaco_race_laps_pandas`` no
    output of an op           ``op:<run id>.<step>.<output>[.<mapping key>]``             no
    ========================  ==========================================================  ======

    Assets are pinned: cleanup never evicts what Dagster believes to be there and nobody can fetch again. Op outputs
    serve the rest of their run, cleanup may have them once they are old.
    """
    label = label_of(context, partition)
    if not context.has_asset_key:
        return Address(EntryKey(f"op:{_joined(context.get_identifier())}", "op_output"), label)
    metadata = asset_metadata(context)
    name = metadata.get(DATASET)
    if name is not None:
        return replace(_address_of_dataset(name, partition, label), declared=metadata.get(COLUMN_SCHEMA))
    text = f"asset:{_joined(context.asset_key.path)}"
    if partition is not None:
        text += f"@{_UNSAFE.sub(_percent, partition)}"
    return Address(
        EntryKey(text, context.asset_key.path[-1], pinned=pinned),
        label,
        partition,
        part_by=metadata.get(PART_BY),
        declared=metadata.get(COLUMN_SCHEMA),
    )


def label_of(context: Context, partition: str | None = None) -> str:
    """Return what messages call an asset, its partition, or an op's output."""
    if not context.has_asset_key:
        return f"op output {'/'.join(context.get_identifier()[1:])}"
    asset = f"asset {context.asset_key.to_user_string()}"
    return asset if partition is None else f"{asset}, partition {str(partition)!r}"


def own_partitions(context: Context) -> dict[str, str] | None:
    """Return the run's partitions of an asset, each with the object Dagster has for it; None without partitions.

    Keys of multi-partitions are strings that know their dimensions; others know them by their text. Those of an input
    are in the order of their definition: Dagster has them in that of a set, another one in each process.
    """
    if not context.has_asset_partitions:
        return None
    keys = context.asset_partition_keys
    if isinstance(context, dg.InputContext) and len(keys) > 1:
        place = _place_in(context.asset_partitions_def, context)
        keys = sorted(keys, key=lambda key: (place(key), key))
    return {str(key): key for key in keys}


def _place_in(partitions: dg.PartitionsDefinition, context: dg.InputContext) -> Callable[[Any], Any]:
    """Return what tells where a key stands among others."""
    if isinstance(partitions, dg.TimeWindowPartitionsDefinition):
        return lambda key: partitions.time_window_for_partition_key(key).start
    if isinstance(partitions, dg.MultiPartitionsDefinition):
        places = [(one.name, _place_in(one.partitions_def, context)) for one in partitions.partitions_defs]
        return lambda key: [place(key.keys_by_dimension[name]) for name, place in places]
    # A context that was built by hand may be without an instance.
    instance = None if isinstance(partitions, dg.StaticPartitionsDefinition) else context.instance
    ranks = {key: rank for rank, key in enumerate(partitions.get_partition_keys(dynamic_partitions_store=instance))}
    return lambda key: ranks.get(key, len(ranks))  # one that was deleted comes last


def annotation_of(context: Context) -> Any:
    """Return the Python type that an output or input is annotated with."""
    try:
        return context.dagster_type.typing_type
    except dg.DagsterInvariantViolationError:  # a context that was built by hand without a type
        return Any


def loops_over_partitions(context: Context) -> bool:
    """Whether the running asset is written for several partitions a run: it has a backfill policy that says so."""
    step = step_of(context)
    policy = step.assets_def.backfill_policy if step and step.assets_def else None
    return policy is not None and policy.max_partitions_per_run != 1


def step_of(context: Context) -> Any:
    """Return the running step, or None outside of runs."""
    try:
        return context.step_context
    except dg.DagsterInvariantViolationError:
        return None


def asset_metadata(context: Context) -> Mapping[str, Any]:
    """Return the metadata of an asset's definition, as plain values."""
    if isinstance(context, dg.OutputContext):
        metadata = context.definition_metadata
    else:
        metadata = context.upstream_output.definition_metadata if context.upstream_output else {}
    return {name: value.value if isinstance(value, dg.MetadataValue) else value for name, value in metadata.items()}


def _address_of_dataset(name: str, partition: str | None, label: str) -> Address:
    dataset = DATASETS.get(name)
    if dataset is None:
        raise ConfigError(f"{label}: its metadata {DATASET!r} is {name!r}; the datasets are {', '.join(DATASETS)}")
    if partition is None:
        raise ConfigError(f"{label}: its metadata {DATASET!r} is {name!r}, so it needs one partition a {dataset.level}")
    if dataset.level == "season":
        if not partition.isdecimal():
            raise ConfigError(f"{label}: partitions of the dataset {name!r} are seasons such as '2025'")
        season = int(partition)
        return Address(
            schedule_entry(season), label, partition, dataset, season, dataset.part_by, dataset.schema_version
        )
    session = SessionKey.parse(partition)
    return Address(session.entry(name), label, partition, dataset, session, dataset.part_by, dataset.schema_version)


def _joined(names: Sequence[str]) -> str:
    return ".".join(_UNSAFE_IN_NAME.sub(_percent, name) for name in names)


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))
