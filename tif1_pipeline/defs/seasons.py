"""Which seasons there are."""

from datetime import UTC, datetime

from tif1_pipeline.keys import FIRST_SEASON


def known_seasons() -> range:
    """Return the seasons that have or may get data: from the first one to this year's."""
    return range(FIRST_SEASON, datetime.now(UTC).year + 1)
