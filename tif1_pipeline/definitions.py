"""Everything Dagster sees."""

import gc
import warnings

import dagster as dg

# Every @asset with a backfill policy prints this; the policy is what keeps backfills of many sessions in few runs.
warnings.filterwarnings("ignore", category=dg.BetaWarning)

# Garbage collection would look through all of Dagster's own objects, twice, while the following is imported: a fifth of
# the time that it takes.
gc.freeze()

from tif1_pipeline.defs.assets.derived import derived_assets  # noqa: E402
from tif1_pipeline.defs.assets.source import source_assets  # noqa: E402
from tif1_pipeline.defs.automation import automation_sensor  # noqa: E402
from tif1_pipeline.defs.checks import source_checks  # noqa: E402
from tif1_pipeline.defs.io_manager import CacheIOManager  # noqa: E402
from tif1_pipeline.defs.jobs.expiry import expiry_job  # noqa: E402
from tif1_pipeline.defs.jobs.maintenance import cleanup_job, daily_maintenance_job, weekly_maintenance_job  # noqa: E402
from tif1_pipeline.defs.jobs.runs import run_cleanup_job  # noqa: E402
from tif1_pipeline.defs.jobs.warm import nightly_warm_job  # noqa: E402
from tif1_pipeline.defs.resources import TimingDataResource  # noqa: E402
from tif1_pipeline.defs.schedules import schedules  # noqa: E402
from tif1_pipeline.defs.sensors.calendar import calendar_sensor  # noqa: E402
from tif1_pipeline.defs.sensors.completion import race_completion_sensor  # noqa: E402
from tif1_pipeline.defs.sensors.expiry import ttl_expiry_sensor  # noqa: E402
from tif1_pipeline.defs.sensors.failures import run_failure_sensor  # noqa: E402
from tif1_pipeline.defs.sensors.monitoring import monitoring_sensor  # noqa: E402
from tif1_pipeline.defs.sensors.repair import repair_sensor  # noqa: E402

gc.unfreeze()

defs = dg.Definitions(
    assets=[*source_assets, *derived_assets],
    asset_checks=source_checks,
    jobs=[nightly_warm_job, daily_maintenance_job, weekly_maintenance_job, cleanup_job, expiry_job, run_cleanup_job],
    # Cron lines and time zone come from the settings.
    schedules=schedules,
    sensors=[
        calendar_sensor,
        race_completion_sensor,
        automation_sensor,
        repair_sensor,
        ttl_expiry_sensor,
        monitoring_sensor,
        run_failure_sensor,
    ],
    resources={
        # Both follow the settings of the process: environment TIF1_*, or the file named by TIF1_CONFIG.
        "io_manager": CacheIOManager(),
        "timing_data": TimingDataResource(),
        # What maintains the cache does not write its own results into it.
        "op_io_manager": dg.mem_io_manager,
    },
    # A new process a step would find the memory tier cold and pay two seconds of imports.
    executor=dg.in_process_executor,
)
