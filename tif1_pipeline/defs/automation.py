"""What keeps assets right by themselves: derived ones follow their upstreams, failed fetches are tried again."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import dagster as dg

from tif1_pipeline.calendar import Event, SeasonCalendar

OWNERS = ["team:timing-data"]
"""Owners of all assets."""

NETWORK_RETRIES = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""For what asks the CDN: an outage that outlasts the client's own retries. Number and delays only, never the policy of
an op: under one, Dagster tries again what was terminated, too."""

_AFTER_A_SESSION = timedelta(days=2)
"""Data appears half an hour after a session; so much later it is late."""
_UNTIL_ASKED = timedelta(days=1)
"""So long after an event its deadline is loaded: before it passes, and when the event's data is there normally."""
_AFTER_THE_SEASON = timedelta(days=14)
"""How long its last event is asked for."""


def _follow_upstream() -> dg.AutomationCondition:
    condition = dg.AutomationCondition
    # Of each upstream asset one partition: an event is summed up by the sessions it has had.
    upstreams_are_there = condition.all_deps_match(~condition.missing()).with_label("upstreams_are_there")
    changed = condition.any_deps_match(
        # Who was materialized in one run with its upstream has followed already.
        condition.data_version_changed() & ~condition.executed_with_root_target()
    )
    newly_possible = (condition.missing() & upstreams_are_there).newly_true()
    trigger = (changed | newly_possible).with_label("upstream_changed_or_newly_possible")
    # A change that came after the last request, but was seen together with it, is not handled by it.
    handled = ((condition.newly_requested() | condition.newly_updated()) & ~trigger).with_label("handled")
    return (
        trigger.since(handled) & upstreams_are_there & ~condition.any_deps_in_progress() & ~condition.in_progress()
    ).with_label("follow_upstream")


FOLLOW_UPSTREAM = _follow_upstream()
"""Condition of a derived asset: requested when the data version of an upstream has changed, not when that was merely
materialized again, and when it is missing while its upstreams are there. It waits while they are in progress.

Not while a check of theirs stands failed: Dagster has one status for all partitions of a check, so a session that fails
would hold up all others until any of them passes, and then be followed itself. Who derives looks at the rows."""

automation_sensor = dg.AutomationConditionSensorDefinition(
    "automation_sensor",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description="Requests derived assets whose upstreams have changed or that are missing, every 30 s. On by default.",
)


def season_freshness(calendars: Iterable[SeasonCalendar], now: datetime | None = None) -> dg.FreshnessPolicy | None:
    """Return by when the assets of sessions must have data of the latest event; None out of season.

    Dagster looks at the latest materialization of any partition: once the deadline has passed, one from before the
    event's last session is a fault, until there is a newer one. A deadline is a cron line, which has no year; that of
    the year before says nothing, as it asks for any data since. ``calendar_sensor`` has the next one loaded.

    Args:
        calendars: The calendars that are stored.
        now: The present (aware); by default that of the clock.
    """
    now = now or datetime.now(UTC)
    for calendar in calendars:
        ends = sorted(end for event in calendar.events if (end := _end_of(event)))
        over = [end for end in ends if end + _UNTIL_ASKED <= now]
        if over and (len(over) < len(ends) or now <= over[-1] + _AFTER_THE_SEASON):
            due = over[-1] + _AFTER_A_SESSION
            line = f"{due.minute} {due.hour} {due.day} {due.month} *"
            return dg.FreshnessPolicy.cron(deadline_cron=line, lower_bound_delta=_AFTER_A_SESSION, timezone="UTC")
    return None


def _end_of(event: Event) -> datetime | None:
    end = None if event.is_testing else event.end_utc
    return end and end.astimezone(UTC)
