"""Several processes on one cache file: the multiprocess executor, and runs side by side."""

import subprocess
import sys
import textwrap
from pathlib import Path

import dagster as dg

from tif1_pipeline import CacheIOManager

PROJECT = """
    import warnings

    import dagster as dg
    import pandas as pd
    import polars as pl

    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=dg.BetaWarning)

    from tif1_pipeline import CacheIOManager

    parts = dg.StaticPartitionsDefinition(["a", "b", "c"])
    SR = dg.BackfillPolicy.single_run()


    @dg.asset(partitions_def=parts, backfill_policy=SR)
    def first(context: dg.AssetExecutionContext) -> dict[str, pd.DataFrame]:
        return {key: pd.DataFrame({"n": [ord(key)]}) for key in context.partition_keys}


    @dg.asset(partitions_def=parts, backfill_policy=SR)
    def second(first: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
        return {key: table * 2 for key, table in first.items()}


    defs = dg.Definitions(
        [first, second],
        jobs=[dg.define_asset_job("both", [first, second])],
        resources={"io_manager": CacheIOManager(path="cache.db")},
        executor=dg.multiprocess_executor.configured({"max_concurrent": 2}),
    )


    def both():
        return defs.resolve_job_def("both")


    if __name__ == "__main__":
        import project

        with dg.DagsterInstance.local_temp() as instance:
            tags = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "c"}
            with dg.execute_job(dg.reconstructable(project.both), instance, tags=tags) as result:
                assert result.success
            assert instance.get_materialized_partitions(dg.AssetKey("second")) == {"a", "b", "c"}
            assert defs.load_asset_value("second", partition_key="b", instance=instance)["n"].to_list() == [196]
        print("all is well")
"""

WRITER = """
    import sys

    import dagster as dg
    import pandas as pd

    from tif1_pipeline import CacheIOManager

    name, path = sys.argv[1:]


    @dg.asset(key=name)
    def value() -> pd.DataFrame:
        return pd.DataFrame({"name": [name] * 1000, "n": range(1000)})


    @dg.asset
    def contested() -> pd.DataFrame:
        return pd.DataFrame({"name": [name] * 1000, "n": range(1000)})


    for _ in range(2):
        dg.materialize([value, contested], resources={"io_manager": CacheIOManager(path=path)})
"""


def python(folder: Path, name: str, code: str, *arguments: str) -> "subprocess.Popen[str]":
    file = folder / f"{name}.py"
    file.write_text(textwrap.dedent(code))
    return subprocess.Popen(
        [sys.executable, str(file), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_every_step_in_a_process_of_its_own(tmp_path):
    process = python(tmp_path, "project", PROJECT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output[-3000:]
    assert "all is well" in output


def test_runs_side_by_side_on_one_file_lose_nothing(tmp_path):
    path = str(tmp_path / "cache.db")
    processes = [python(tmp_path, f"writer{name}", WRITER, name, path) for name in "xy"]
    for process in processes:
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 0, output[-3000:]
    manager = CacheIOManager(path=path)
    for name in ("x", "y", "contested"):
        with dg.build_input_context(asset_key=name) as context:
            table = manager.load_input(context)
        assert len(table) == 1000
        assert table["name"].nunique() == 1
