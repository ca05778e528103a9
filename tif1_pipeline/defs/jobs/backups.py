"""The daily backup."""

import copy
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from tif1_pipeline import api
from tif1_pipeline.cache import Cache, archive
from tif1_pipeline.defs.jobs.common import AFTER, OpConfig, Report, disabled, hindrance, op_output, perform, skipped
from tif1_pipeline.defs.resources import TimingDataResource
from tif1_pipeline.exceptions import CacheError


class BackupConfig(OpConfig):
    """Options of the backup."""

    directory: str | None = Field(
        default=None, description="Folder; by default the setting backup_dir, else 'backups' beside the cache file."
    )
    keep: int | None = Field(
        default=None, ge=1, description="Backups to keep in it; by default the setting backup_keep."
    )
    restore: bool = Field(
        default=True, description="Restore the backup into a temporary folder beside it, and verify every entry there."
    )


@dg.op(ins=AFTER, out=op_output())
def backup(context: dg.OpExecutionContext, config: BackupConfig, timing_data: TimingDataResource) -> dict[str, Any]:
    """Back the cache up, keep the newest backups, and see whether this one can be restored."""

    def back_up() -> Report:
        if reason := disabled():
            return skipped(reason)
        settings = api.get_config()
        cache = timing_data.cache
        folder = settings.backup_dir if config.directory is None else Path(config.directory)
        keep = settings.backup_keep if config.keep is None else config.keep
        # Where another file stands in for the cache, nothing in it does not mean that there is nothing.
        if not cache.get_size_mb() and hindrance(cache) is None:
            return skipped("nothing is stored yet")
        if config.dry_run:
            place = str(folder or cache.get_cache_dir() / "backups")
            return Report({"to_copy_mb": round(cache.get_size_mb(), 3), "keep": keep}, {"directory": place})
        path = cache.backup(folder, keep=keep)
        counts = {"bytes": path.stat().st_size, "kept": len(list(path.parent.glob("tif1_cache-*.tar.zst")))}
        shown = {"path": dg.MetadataValue.path(str(path))}
        if not config.restore:
            return Report(counts, shown)
        try:
            found = _verify_backup(path)
        except CacheError as error:
            if "needed" not in error.details:  # by what a lack of room is told
                raise
            return Report(counts, {**shown, "not_restored": error.message})
        counts |= {"verified_entries": found["valid_entries"], "corrupted_entries": found["corrupted_entries"]}
        problem = None
        if faults := found["corrupted_list"]:
            problem = f"the backup {path} holds {len(faults)} faults: {faults[0]['key']}: {faults[0]['error']}"
        return Report(counts, shown, problem=problem)

    return perform(context, config, back_up)


def _verify_backup(path: Path) -> dict[str, Any]:
    """Restore a backup into a folder that is gone afterwards; returns what verifying it finds."""
    settings = copy.copy(api.get_config())
    with archive.work_folder(path.parent) as work:
        for name, value in _OF_A_TRIAL.items():
            setattr(settings, name, value)
        settings.cache_dir = work / "trial"  # not the folder itself: restoring locks its folder, too
        trial = Cache(settings, path=settings.cache_path)
        try:
            trial.restore(path)
            return trial.verify_integrity()
        finally:
            trial.close()


_OF_A_TRIAL: dict[str, Any] = {
    "cache_enabled": True,
    "cache_readonly": False,
    "cache_fallback_dir": None,
    "cache_audit_log": None,
    "cache_enable_metrics": False,
    "memory_cache_enabled": False,
}
