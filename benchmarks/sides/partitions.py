"""An asset of many partitions and one that loads them all, in real runs on a real instance, with one IO manager.

Managers that refuse an output of several partitions get a run a partition, as Dagster would launch them.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

import dagster as dg
import pandas as pd
import pyarrow as pa
from timing import answer, request, timed

asked = request()
name, base = asked["manager"], Path(asked["folder"])
base.mkdir(parents=True, exist_ok=True)
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
with pa.memory_map(asked["frame"]) as source:
    frame = pa.ipc.open_file(source).read_all().to_pandas()
KEYS = [f"p{number:03}" for number in range(asked["partitions"])]
partitions = dg.StaticPartitionsDefinition(KEYS)
TAKES_SEVERAL = name in ("ours", "deltalake", "duckdb")
IN_ONE_FRAME = name in ("deltalake", "duckdb")

if IN_ONE_FRAME:  # which store neither categories nor time spans
    for column, dtype in frame.dtypes.items():
        if isinstance(dtype, pd.CategoricalDtype):
            frame[column] = frame[column].astype(object)
        elif dtype.kind == "m":
            frame[column] = frame[column].dt.total_seconds()
    frame = frame.drop(columns=[c for c in frame.columns if frame[c].isna().all()])
if name == "ours":
    from tif1_pipeline import CacheIOManager

    manager, kind = CacheIOManager(path=str(base / "cache.db")), pd.DataFrame
elif name == "pickle":
    manager, kind = dg.FilesystemIOManager(base_dir=str(base)), pd.DataFrame
elif name == "polars":
    import polars as pl
    from dagster_polars import PolarsParquetIOManager

    manager, kind = PolarsParquetIOManager(base_dir=str(base)), pl.DataFrame
    frame = pl.from_pandas(frame)
elif name == "deltalake":
    from dagster_deltalake import LocalConfig
    from dagster_deltalake_pandas import DeltaLakePandasIOManager

    manager = DeltaLakePandasIOManager(root_uri=str(base / "delta"), storage_options=LocalConfig(), schema="f1")
    kind = pd.DataFrame
else:
    from dagster_duckdb_pandas import DuckDBPandasIOManager

    manager, kind = DuckDBPandasIOManager(database=str(base / "store.duckdb"), schema="f1"), pd.DataFrame
many = kind if IN_ONE_FRAME or len(KEYS) == 1 else dict[str, kind]


@dg.asset(
    partitions_def=partitions,
    backfill_policy=dg.BackfillPolicy.single_run(),
    metadata={"partition_expr": "part"} if IN_ONE_FRAME else {},
)
def made(context: dg.AssetExecutionContext):
    if IN_ONE_FRAME:
        return pd.concat([frame.assign(part=key) for key in context.partition_keys], ignore_index=True)
    return dict.fromkeys(context.partition_keys, frame) if TAKES_SEVERAL else frame


def count(made) -> int:
    return sum(map(len, made.values())) if isinstance(made, dict) else len(made)


def _loaded(made: many) -> None:
    assert count(made) == len(frame) * len(KEYS)


loaded = dg.asset(name="loaded")(_loaded)
quiet = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
with dg.DagsterInstance.local_temp(str(base)) as instance:
    common = {"instance": instance, "resources": {"io_manager": manager}, "run_config": quiet}

    def materialize():
        if TAKES_SEVERAL:
            ends = {"dagster/asset_partition_range_start": KEYS[0], "dagster/asset_partition_range_end": KEYS[-1]}
            assert dg.materialize([made], tags=ends, **common).success
        else:
            for key in KEYS:
                assert dg.materialize([made], partition_key=key, **common).success

    def load():
        if name == "ours":
            from tif1_pipeline.api import get_cache

            get_cache(base / "cache.db").clear_memory()
        assert dg.materialize([made, loaded], selection=[loaded], **common).success

    dg.materialize([made], partition_key=KEYS[0], **common)  # imports and tables of the instance
    out = timed(materialize)[0]
    # deltalake's refuses to load several: "Array partition values are not yet supported".
    answer(out_ms=out, in_ms=None if name == "deltalake" and len(KEYS) > 1 else timed(load)[0])
sys.stdout.flush()
os._exit(0)  # the threads of deltalake abort the interpreter at its end
