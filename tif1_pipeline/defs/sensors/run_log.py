"""What a run's events say: which assets, checks and partitions it was about, what became of them, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

Thing = tuple[str, str | None]
"""What can fail: an asset, a check or a job by name, and a partition if there is one."""

_RANGE_START, _RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
_EVENTS = {
    dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED,
    dg.DagsterEventType.STEP_SUCCESS,
    dg.DagsterEventType.STEP_FAILURE,
    dg.DagsterEventType.RUN_FAILURE,
}


@dataclass
class RunLog:
    """The events of a run, as far as they tell success from failure.

    Attributes:
        run: The run.
        planned: What each step was to make; of a step that makes nothing, what it was to check.
        succeeded: Steps that succeeded.
        errors: Why each step failed that did, and under ``""`` why the run did if no step is to blame.
        not_stored: Of steps that stored some partitions and not others, those with the reason.
    """

    run: dg.DagsterRun
    planned: dict[str, list[Thing]] = field(default_factory=dict)
    succeeded: set[str] = field(default_factory=set)
    errors: dict[str, str] = field(default_factory=dict)
    not_stored: dict[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, instance: dg.DagsterInstance, run: dg.DagsterRun) -> "RunLog":
        """Read the events from the instance's storage."""
        log = cls(run)
        checks: list[tuple[str, dg.AssetCheckKey]] = []
        run_error = "the run failed without saying why"
        for entry in instance.all_logs(run.run_id, of_type=_EVENTS):
            event = entry.get_dagster_event()
            step = event.step_key or ""
            data: Any = event.event_specific_data  # of a class for each type of event
            if event.event_type == dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED:
                subset = data.partitions_subset  # or an event for each partition, as the storage likes it
                partitions = [data.partition] if subset is None else subset.get_partition_keys()
                name = data.asset_key.to_user_string()
                log.planned.setdefault(step, []).extend((name, partition) for partition in partitions)
            elif event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED:
                checks.append((step, data.asset_check_key))
            elif event.event_type == dg.DagsterEventType.STEP_SUCCESS:
                log.succeeded.add(step)
            elif event.event_type == dg.DagsterEventType.STEP_FAILURE:
                described = data.user_failure_data
                log.errors[step] = (described and described.description) or _cause(data.error)
                value = getattr(((described and described.metadata) or {}).get("not_stored"), "value", None)
                if isinstance(value, Mapping) and value:
                    log.not_stored[step] = value
            else:
                run_error = _cause(data.error) if getattr(data, "error", None) else event.message or run_error
        makers = set(log.planned)
        for step, check in checks:
            if step not in makers:
                partitions = log.partitions_of(check.asset_key.to_user_string())
                log.planned.setdefault(step, []).extend((check.to_user_string(), each) for each in partitions)
        for things in log.planned.values():
            things.sort(key=str)  # Dagster plans a run's partitions in no order
        if run.status == dg.DagsterRunStatus.FAILURE and not log.errors:
            log.errors[""] = run_error
        return log

    def partitions_of(self, name: str) -> list[str | None]:
        """Return an asset's partitions in this run by the events, or else the run's own by its tags."""
        tags = self.run.tags
        found = [partition for things in self.planned.values() for each, partition in things if each == name]
        if found or _RANGE_START not in tags:
            return found or [tags.get("dagster/partition")]
        return [f"{tags[_RANGE_START]}...{tags[_RANGE_END]}"]

    def targets(self) -> list[Thing]:
        """Return all that the run was about: assets and checks, or else the job."""
        if self.planned:
            return list(dict.fromkeys(thing for things in self.planned.values() for thing in things))
        names = sorted(key.to_user_string() for key in self.run.asset_selection or ()) or [self.run.job_name]
        return [(name, partition) for name in names for partition in self.partitions_of(name)]

    def failed(self) -> dict[Thing, str]:
        """Return what failed, each with a reason of its own or an empty text."""
        failed: dict[Thing, str] = {}
        for step in self.errors:
            reasons = self.not_stored.get(step)
            # A step that makes nothing by itself fails what it was for: that of which no step has succeeded.
            for thing in self.planned.get(step) or self._unmade():
                if reasons is None:
                    failed[thing] = ""
                elif str(thing[1]) in reasons:
                    failed[thing] = str(reasons[str(thing[1])])
        return failed

    def made(self) -> list[Thing]:
        """Return what the run made all the same, if it failed, and everything if it did not."""
        if self.run.status == dg.DagsterRunStatus.SUCCESS:
            return self.targets()
        failed = self.failed()
        steps = [*self.succeeded, *self.not_stored]
        return [thing for step in steps for thing in self.planned.get(step, ()) if thing not in failed]

    def _unmade(self) -> list[Thing]:
        made = {thing for step in self.succeeded for thing in self.planned.get(step, ())}
        targets = self.targets()
        return [thing for thing in targets if thing not in made] or targets


def _cause(error: Any) -> str:
    if error is None:
        return "no reason is known"
    while error.cause is not None:  # those around it are Dagster's own and say where it happened
        error = error.cause
    return error.message.strip()
