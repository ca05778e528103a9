"""What happened outside is told to the cache: the next use fetches what is published now."""

import pandas as pd
import pytest

from tif1_pipeline import api, events
from tif1_pipeline.keys import SessionKey, schedule_entry

EVENT = "Australian Grand Prix"
OTHER = "Chinese Grand Prix"


def test_a_completed_race_is_fetched_anew(tif1, cdn):
    race = tif1.get_session(2025, EVENT, "Race")
    before = race.laps
    race.weather  # noqa: B018
    tif1.get_session(2025, EVENT, "Q").laps  # noqa: B018
    tif1.get_session(2025, OTHER, "Race").laps  # noqa: B018
    cdn.republish(f"{EVENT}/Race/session_laptimes.json")
    pd.testing.assert_frame_equal(tif1.get_session(2025, EVENT, "Race").laps, before)
    assert events.on_race_complete(2025, "Melbourne") == 3
    assert not tif1.get_session(2025, EVENT, "Race").laps.equals(before)
    assert tif1.get_cache().exists(2025, OTHER, "Race", "laps")
    assert events.on_race_complete(2025, EVENT) == 1
    assert events.on_race_complete(2025, EVENT) == 0


def test_a_race_that_the_calendar_does_not_know_is_refused(tif1):
    tif1.get_events(2025)
    with pytest.raises(tif1.EventNotFoundError):
        events.on_race_complete(2025, "Mars")


def test_a_new_schedule_drops_the_calendar_and_what_is_made_from_it(tif1, cdn):
    race = tif1.get_session(2025, EVENT, "Race")
    race.info  # noqa: B018
    race.laps  # noqa: B018
    tif1.get_session(2025, OTHER, "Race").info  # noqa: B018
    cdn.requests.clear()
    assert events.on_schedule_update(2024) == 0
    assert events.on_schedule_update(2025) == 3
    cache = api.get_cache()
    assert cache.info(schedule_entry(2025)) is None
    assert cache.exists(2025, EVENT, "Race", "laps")
    assert race.info["EventName"] == EVENT
    assert cdn.requests.count("*schedule_2025.json") == 1
    assert events.on_schedule_update(2025) == 2


def test_an_update_of_the_library_drops_what_it_cannot_read(tif1):
    tif1.get_session(2025, EVENT, "Race").laps  # noqa: B018
    cache = api.get_cache()
    assert events.on_library_update() == 0
    key = SessionKey(2025, EVENT, "Race").entry("weather")
    cache.write(key, pd.DataFrame({"n": [1]}), schema_version=0)
    assert events.on_library_update() == 1
    assert cache.info(key) is None
    assert tif1.get_cache().exists(2025, EVENT, "Race", "laps")
