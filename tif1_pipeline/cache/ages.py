"""How old an entry may be: the one home of this rule, for reads and for maintenance."""

from datetime import UTC, datetime, timedelta

from tif1_pipeline.cache.base import OUTDATED, EntryInfo
from tif1_pipeline.config import Config

OF_THE_CALENDAR = ("schedule", "session_info")
"""What these tables say follows from the season's calendar, and settles with the season."""

AHEAD = timedelta(minutes=5)
"""An entry that was stored further ahead was stored by a clock that was wrong: how old it is, is not known."""


def is_young(info: EntryInfo | None, max_age: timedelta | None) -> bool:
    """Tell whether an entry has not expired; one that is in memory alone has no known age."""
    if info is None:
        return max_age is None
    if info.created_at == OUTDATED:
        return False
    return max_age is None or -AHEAD <= datetime.now(UTC) - info.created_at <= max_age


def max_age(config: Config, data_type: str, year: int | None, stored_at: datetime | None) -> timedelta | None:
    """Return the age at which an entry counts as expired; None for never.

    Args:
        config: The settings in force.
        data_type: What the entry holds.
        year: Season it is about.
        stored_at: When it was stored, or last found current (UTC); None if it is not stored.
    """
    if data_type not in OF_THE_CALENDAR:
        return config.ttl_of(data_type)
    if year is not None and stored_at is not None and stored_at.year > year:
        return config.cache_ttl  # the season was over: its calendar changes no more
    return config.ttl_of("schedule")
