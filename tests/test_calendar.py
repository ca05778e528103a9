"""Names of events: every spelling finds its event, and none is picked by guess."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from tif1_pipeline.calendar import SeasonCalendar
from tif1_pipeline.datasets import SCHEDULE
from tif1_pipeline.exceptions import EventNotFoundError, SessionNotFoundError
from tif1_pipeline.keys import SessionKey

CONVENTIONAL = ("Practice 1", "Practice 2", "Practice 3", "Qualifying", "Race")
SPRINT = ("Practice 1", "Sprint Qualifying", "Sprint", "Qualifying", "Race")
TESTING = ("Practice 1", "Practice 2", "Practice 3", None, None)
EVENTS = [
    (0, "Pre-Season Testing 1", "Bahrain", "Sakhir", TESTING),
    (0, "Pre-Season Testing 2", "Bahrain", "Sakhir", TESTING),
    (1, "Australian Grand Prix", "Australia", "Melbourne", CONVENTIONAL),
    (2, "Bahrain Grand Prix", "Bahrain", "Sakhir", CONVENTIONAL),
    (3, "Emilia Romagna Grand Prix", "Italy", "Imola", CONVENTIONAL),
    (4, "Monaco Grand Prix", "Monaco", "Monaco", CONVENTIONAL),
    (5, "Austrian Grand Prix", "Austria", "Spielberg", CONVENTIONAL),
    (6, "British Grand Prix", "United Kingdom", "Silverstone", CONVENTIONAL),
    (7, "Italian Grand Prix", "Italy", "Monza", CONVENTIONAL),
    (8, "São Paulo Grand Prix", "Brazil", "São Paulo", SPRINT),
    (9, "Mexico City Grand Prix", "Mexico", "Mexico City", CONVENTIONAL),
]
START = datetime(2026, 3, 1, 12)


@pytest.fixture(scope="module")
def calendar() -> SeasonCalendar:
    rows = []
    for index, (number, name, country, location, sessions) in enumerate(EVENTS):
        first = START + timedelta(days=14 * index)
        row = {"RoundNumber": number, "EventName": name, "Country": country, "Location": location}
        row |= {"EventFormat": "testing" if sessions is TESTING else "conventional", "EventDate": first}
        row["OfficialEventName"] = f"FORMULA 1 SPONSOR {name.upper()} 2026"
        for slot, session in enumerate(sessions, start=1):
            row[f"Session{slot}"] = session
            row[f"Session{slot}Date"] = first + timedelta(hours=slot) if session else None
            row[f"Session{slot}DateUtc"] = first + timedelta(hours=slot - 3) if session else None
        rows.append(row)
    return SeasonCalendar.from_table(2026, pa.Table.from_pylist(rows, schema=SCHEDULE.schema))


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("Monaco Grand Prix", "Monaco Grand Prix"),
        ("monaco", "Monaco Grand Prix"),
        ("monaco_grand_prix", "Monaco Grand Prix"),
        ("MONACO GP", "Monaco Grand Prix"),
        ("Silverstone", "British Grand Prix"),
        ("great britain", None),
        ("united kingdom", "British Grand Prix"),
        ("sao paulo", "São Paulo Grand Prix"),
        ("sao_paulo", "São Paulo Grand Prix"),
        ("Brazil", "São Paulo Grand Prix"),
        ("Monza", "Italian Grand Prix"),
        ("Imola", "Emilia Romagna Grand Prix"),
        ("Silverston", "British Grand Prix"),
        ("Austrlian", None),
        ("austrlia", None),
        ("Bahrain", "Bahrain Grand Prix"),
        ("Sakhir", "Bahrain Grand Prix"),
        ("Italy", None),
        ("Pre-Season Testing 2", "Pre-Season Testing 2"),
        ("Pre-Season Testing", None),
        (8, "São Paulo Grand Prix"),
        ("8", "São Paulo Grand Prix"),
        ("round 8", "São Paulo Grand Prix"),
        (0, None),
        (30, None),
        ("Mars", None),
        (-1, None),
        ("1.", None),
        ("usa", None),
        ("uk", None),
        ("mo", None),
        ("grand prix", None),
        ("", None),
        ("'; DROP TABLE entries; --", None),
        ("x" * 10_000, None),
    ],
)
def test_a_spelling_finds_its_event_or_is_refused(calendar, asked, name):
    if name is None:
        with pytest.raises(EventNotFoundError) as caught:
            calendar.find(asked)
        assert len(str(caught.value)) < 700
    else:
        assert calendar.find(asked).name == name


def test_an_ambiguous_name_names_the_candidates(calendar):
    with pytest.raises(EventNotFoundError, match=r"several.*Emilia Romagna Grand Prix.*Italian Grand Prix"):
        calendar.find("Italy")
    with pytest.raises(EventNotFoundError, match=r"Pre-Season Testing 1.*Pre-Season Testing 2"):
        calendar.find("Pre-Season Testing")
    with pytest.raises(EventNotFoundError, match=r"Austrian|Australian"):
        calendar.find("austrlia")


def test_an_event_is_mapping_text_and_key(calendar):
    event = calendar.find("Monaco")
    assert event["name"] == str(event) == "Monaco Grand Prix"
    assert (event["round"], event["location"], event["year"]) == (4, "Monaco", 2026)
    assert set(event) >= {"name", "location", "round", "country", "sessions"}
    assert calendar.find(event) is event
    with pytest.raises(KeyError, match="an event has no 'nmae'"):
        event["nmae"]


def test_sessions_by_name_and_short_form(calendar):
    assert calendar.find("Brazil").key("SQ") == SessionKey(2026, "São Paulo Grand Prix", "Sprint Qualifying")
    assert calendar.find("Monaco").key("r").partition == "2026 Monaco Grand Prix Race"
    with pytest.raises(SessionNotFoundError, match="has no Sprint; it has Practice 1, Practice 2"):
        calendar.find("Monaco").key("Sprint")


def test_events_keep_their_order_and_none_is_lost(calendar):
    assert [event.name for event in calendar.events] == [name for _, name, *_ in EVENTS]
    assert len(calendar.session_keys) == 9 * 5 + 2 * 3
    assert len({key.partition for key in calendar.session_keys}) == 51


def test_next_event_is_the_running_or_coming_race_weekend(calendar):
    assert calendar.next_event(datetime(2026, 1, 1, tzinfo=UTC)).name == "Australian Grand Prix"
    monaco = calendar.find("Monaco")
    for moment in (monaco.sessions[2].date_utc, monaco.sessions[-1].date_utc + timedelta(hours=1)):
        assert calendar.next_event(moment).name == "Monaco Grand Prix"
    assert calendar.next_event(monaco.sessions[-1].date_utc + timedelta(hours=5)).name == "Austrian Grand Prix"
    assert calendar.next_event(datetime(2026, 12, 31, tzinfo=UTC)) is None


def test_a_name_that_is_right_in_another_season_is_no_misspelling(calendar: SeasonCalendar):
    without = SeasonCalendar(2025, tuple(event for event in calendar.events if event.country != "Australia"))
    for name in ("Australia", "Australian Grand Prix"):
        with pytest.raises(EventNotFoundError):
            without.find(name)
    assert without.find("Austrria").country == "Austria"
