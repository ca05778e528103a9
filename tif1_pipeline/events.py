"""What to call when something has happened, for those who use no Dagster: what is out of date is dropped."""

from tif1_pipeline import api
from tif1_pipeline.keys import schedule_entry


def on_race_complete(year: int, event: str) -> int:
    """Drop the tables of an event's sessions, so that their next use fetches what is published now.

    Returns:
        The number of entries dropped, as the other functions do.

    Raises:
        EventNotFoundError: The season's calendar is stored and no event of it goes by this name.
    """
    return api.get_cache().invalidate_event(year, event)


def on_schedule_update(year: int) -> int:
    """Drop a season's calendar, and the ``session_info`` tables, which are made from it."""
    return api.get_cache().invalidate_custom(
        lambda entry: (
            entry["key"] == schedule_entry(year).text
            or (entry["year"] == year and entry["data_type"] == "session_info")
        )
    )


def on_library_update() -> int:
    """Drop the entries of former versions of this package, which are never read again."""
    return api.get_cache().upgrade_version()
