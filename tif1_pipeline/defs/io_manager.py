"""The IO manager that is a cache: what assets return is stored as entries, what they take is loaded from them."""

from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from tif1_pipeline.api import get_cache
from tif1_pipeline.defs.io_inputs import InputLoader
from tif1_pipeline.defs.io_outputs import PartitionOutput, store_output

__all__ = ["CacheIOManager", "PartitionOutput"]


class CacheIOManager(dg.ConfigurableIOManager):
    """Stores what assets return in a cache file, and loads it as the kind of value their consumers are annotated with.

    Works for any asset, partitioned in any way or not at all, in any Dagster project::

        import dagster as dg
        import pandas as pd
        from tif1_pipeline import CacheIOManager

        @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["north", "south"]))
        def sales(context: dg.AssetExecutionContext) -> pd.DataFrame:
            return pd.DataFrame({"shop": [1, 2], "total": [2.5, 4.0]})

        @dg.asset(ins={"sales": dg.AssetIn(metadata={"columns": ["total"], "partition_column": "region"})})
        def report(sales: pd.DataFrame) -> dict:
            return sales.groupby("region", observed=True).total.sum().to_dict()

        defs = dg.Definitions([sales, report], resources={"io_manager": CacheIOManager(path="shop.db")})

    **Outputs** are pandas or polars frames, Arrow tables and what JSON can say; None of an asset that is not annotated
    ``-> None`` is JSON's null. Asset metadata ``part_by`` names a column whose values are stored as parts that can be
    loaded alone. :class:`PartitionOutput` adds source and metadata to a value. A run of several partitions returns
    ``{partition key: value}``, or an object whose class has an ``__iter__`` that gives such pairs: then one value at a
    time is in memory. In a run of *one* partition a dict holds

    - one value a partition if it holds a frame or a ``PartitionOutput``, if the output is annotated
      ``dict[str, <frame>]``, or if the asset has a backfill policy for several partitions and the dict has
      no key but the run's;
    - else it is the value itself.

    Where a partition is missing, cannot be stored, or is an exception, the others are stored and marked as
    materialized, and the step fails with the reasons.

    **Inputs** load as ``pd.DataFrame``, ``pl.DataFrame``, ``pl.LazyFrame``, ``pa.Table`` or JSON types; without
    annotation as they were stored, Formula 1 tables as pandas. Several partitions load as ``dict[str, X]``, or as one
    frame where the annotation is a kind of frame, in the order of their definition. With *one* partition
    ``dict[str, <frame>]`` is a dict of one; ``dict[str, <JSON type>]`` is the value itself if a run loads its own
    partition and has no backfill policy for several, else a dict of one; ``dict`` alone is the value itself.
    ``Optional[X]`` is None where nothing is stored.

    **Input metadata**: ``columns`` loads these alone; ``parts`` (``drivers`` for the column ``Driver``) loads
    their rows alone, none where there are none; ``partition_column`` adds a column with the partition key to a frame of
    several partitions; ``allow_missing_partitions`` leaves out what is not stored; ``errors_by_partition`` gives, in an
    input annotated ``dict[str, Any]``, the error in place of a value that cannot be had: the others are not lost.

    **Retries**: asset metadata ``tif1/retries`` says how often a step is tried again that may succeed then, as after an
    outage of the network; bad data is not tried again, nor what was terminated, as it would be under a retry policy.
    """

    path: str | None = Field(default=None, description="The cache file; by default the one of the settings.")
    pinned: bool = Field(
        default=True,
        description="Keep what assets store from the cache's cleanup: what it evicts must be materialized again.",
    )

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Store an output, each partition as an entry of its own.

        Raises:
            Failure: Something was not stored; what was is marked as materialized.
            RetryRequested: It may be stored at another try, and the asset's metadata asks for one.
        """
        store_output(get_cache(self._file), context, obj, pinned=self.pinned)

    def load_input(self, context: dg.InputContext) -> Any:
        """Load an input as it is annotated.

        Raises:
            CacheError: It is not stored, and is nothing that can be fetched again.
        """
        return InputLoader(context, self._file).load()

    @property
    def _file(self) -> Path | None:
        return None if self.path is None else Path(self.path)
