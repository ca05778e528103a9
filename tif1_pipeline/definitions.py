"""Everything Dagster sees."""

import warnings

import dagster as dg

# Every @asset with a backfill policy prints this; the policy is what keeps backfills of many sessions in few runs.
warnings.filterwarnings("ignore", category=dg.BetaWarning)

from tif1_pipeline.defs.assets.derived import derived_assets  # noqa: E402
from tif1_pipeline.defs.assets.source import source_assets  # noqa: E402
from tif1_pipeline.defs.io_manager import CacheIOManager  # noqa: E402
from tif1_pipeline.defs.resources import TimingDataResource  # noqa: E402

defs = dg.Definitions(
    assets=[*source_assets, *derived_assets],
    resources={
        # Both follow the settings of the process: environment TIF1_*, or the file named by TIF1_CONFIG.
        "io_manager": CacheIOManager(),
        "timing_data": TimingDataResource(),
    },
    # A new process a step would find the memory tier cold and pay two seconds of imports.
    executor=dg.in_process_executor,
)
