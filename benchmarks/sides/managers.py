"""One IO manager of Dagster: frames handed to it and loaded from it, as for a step. Run by any interpreter."""

import os
import statistics
import sys
from pathlib import Path

import dagster as dg
import pandas as pd
import pyarrow as pa
from timing import LATER, answer, request, timed

asked = request()
base = Path(asked["folder"])
base.mkdir(parents=True, exist_ok=True)
with pa.memory_map(asked["frame"]) as source:
    table = pa.ipc.open_file(source).read_all()
KEY = dg.AssetKey([asked["table"]])
DRIVER = "VER"


def given_frame():
    """The frame that an asset returns: the kind that the manager stores best."""
    frame = table.to_pandas()
    if asked["manager"] in ("deltalake", "duckdb"):  # which store neither categories nor time spans
        for name, dtype in frame.dtypes.items():
            if isinstance(dtype, pd.CategoricalDtype):
                frame[name] = frame[name].astype(object)
            elif dtype.kind == "m":
                frame[name] = frame[name].dt.total_seconds()
    if asked["manager"] == "polars":
        import polars as pl

        return pl.from_pandas(frame)
    return frame


def manager():
    """The manager, and the type that a consumer is annotated with."""
    name = asked["manager"]
    if name == "ours":
        from tif1_pipeline import CacheIOManager

        return CacheIOManager(path=str(base / "cache.db")), pd.DataFrame
    if name == "pickle":
        from dagster._core.storage.fs_io_manager import PickledObjectFilesystemIOManager

        return PickledObjectFilesystemIOManager(base_dir=str(base)), pd.DataFrame
    if name == "polars":
        import polars as pl
        from dagster_polars import PolarsParquetIOManager

        made = PolarsParquetIOManager(base_dir=str(base))
        made.setup_for_execution(dg.build_init_resource_context())
        return made, pl.DataFrame
    if name == "deltalake":
        from dagster_deltalake import LocalConfig
        from dagster_deltalake_pandas import DeltaLakePandasIOManager

        made = DeltaLakePandasIOManager(root_uri=str(base), storage_options=LocalConfig(), schema="f1")
        return made.create_io_manager(dg.build_init_resource_context()), pd.DataFrame
    from dagster_duckdb_pandas import DuckDBPandasIOManager

    made = DuckDBPandasIOManager(database=str(base / "store.duckdb"), schema="f1")
    return made.create_io_manager(dg.build_init_resource_context()), pd.DataFrame


RESOURCES = {
    "deltalake": {"root_uri": str(base), "storage_options": {}, "schema": "f1"},
    "duckdb": {"database": str(base / "store.duckdb"), "schema": "f1", "connection_config": {}},
}.get(asked["manager"], {})
io_manager, frame_type = manager()
part_by = {"part_by": "Driver"} if asked["manager"] == "ours" and asked["table"] == "telemetry" else {}


def output_context():
    return dg.build_output_context(
        asset_key=KEY,
        definition_metadata=part_by,
        dagster_type=dg.PythonObjectDagsterType(frame_type),
        resource_config=RESOURCES,
    )


def input_context(type_=frame_type, **metadata):
    return dg.build_input_context(
        asset_key=KEY,
        upstream_output=output_context(),
        definition_metadata=metadata,
        dagster_type=dg.PythonObjectDagsterType(type_),
        resource_config=RESOURCES,
    )


def load_pandas(context):
    """What a step gets that works with pandas."""
    frame = io_manager.load_input(context)
    return frame.to_pandas() if asked["manager"] == "polars" else frame


def load_driver(context):
    """One driver's rows, as directly as the manager can."""
    frame = io_manager.load_input(context)
    if asked["manager"] == "ours":
        return frame
    if asked["manager"] == "polars":
        import polars as pl

        return frame.filter(pl.col("Driver") == DRIVER).collect().to_pandas()
    return frame[frame["Driver"] == DRIVER]


def driver_context():
    if asked["manager"] == "polars":
        import polars as pl

        return input_context(pl.LazyFrame)
    return input_context(**({"drivers": [DRIVER]} if asked["manager"] == "ours" else {}))


def forget():
    if asked["manager"] == "ours":
        from tif1_pipeline.api import get_cache

        get_cache(base / "cache.db").clear_memory()


def end():
    """Let the manager end as with the process, which is cut short below."""
    if asked["manager"] == "ours":
        import tif1_pipeline

        tif1_pipeline.close()


if asked["phase"] == "out":
    times = []
    frame = given_frame()
    for _ in range(1 + LATER):  # the first makes file and tables
        context = output_context()
        times.append(timed(lambda context=context: io_manager.handle_output(context, frame))[0])
    answer(ms=statistics.median(times[1:]), rows=len(frame))
    end()
elif asked["phase"] == "once":
    io_manager.handle_output(output_context(), given_frame())
    end()
    answer()
else:
    # Contexts are Dagster's to make; each takes it longer than some of the reads.
    is_driver = asked["what"] == "driver"
    contexts = [driver_context() if is_driver else input_context() for _ in range(1 + LATER)]
    work = load_driver if is_driver else load_pandas
    first, frame = timed(lambda: work(contexts[0]))
    rows, later = len(frame), []
    for context in contexts[1:]:
        frame = None
        forget()
        later.append(timed(lambda context=context: work(context))[0])
    answer(first_ms=first, later_ms=statistics.median(later), rows=rows)
sys.stdout.flush()
os._exit(0)  # the threads of deltalake abort the interpreter at its end
