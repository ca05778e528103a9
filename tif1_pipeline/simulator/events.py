"""Calendars: the facts of the seasons 2018 to 2026, and invented ones of any length."""

import json
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from tif1_pipeline.simulator.circuits import CIRCUITS, CircuitFacts

# One entry an event: location, month and day of the last session, then t for testing or s for a sprint weekend, then
# the event's name where it is not the circuit's own Grand Prix.
_CALENDARS = {
    2018: """Melbourne 0325, Sakhir 0408, Shanghai 0415, Baku 0429, Barcelona 0513, Monaco 0527, Montréal 0610,
        Le Castellet 0624, Spielberg 0701, Silverstone 0708, Hockenheim 0722, Budapest 0729, Spa-Francorchamps 0826,
        Monza 0902, Marina Bay 0916, Sochi 0930, Suzuka 1007, Austin 1021, Mexico City 1028 =Mexican,
        São Paulo 1111 =Brazilian, Yas Island 1125""",
    2019: """Melbourne 0317, Sakhir 0331, Shanghai 0414, Baku 0428, Barcelona 0512, Monaco 0526, Montréal 0609,
        Le Castellet 0623, Spielberg 0630, Silverstone 0714, Hockenheim 0728, Budapest 0804, Spa-Francorchamps 0901,
        Monza 0908, Marina Bay 0922, Sochi 0929, Suzuka 1013, Mexico City 1027 =Mexican, Austin 1103,
        São Paulo 1117 =Brazilian, Yas Island 1201""",
    2020: """Barcelona 0221t =Pre-Season Test 1, Barcelona 0228t =Pre-Season Test 2, Spielberg 0705,
        Spielberg 0712 =Styrian, Budapest 0719, Silverstone 0802, Silverstone 0809 =70th Anniversary, Barcelona 0816,
        Spa-Francorchamps 0830, Monza 0906, Mugello 0913, Sochi 0927, Nürburgring 1011, Portimão 1025, Imola 1101,
        Istanbul 1115, Sakhir 1129, Sakhir 1206 =Sakhir, Yas Island 1213""",
    2021: """Sakhir 0314t =Pre-Season Test, Sakhir 0328, Imola 0418, Portimão 0502, Barcelona 0509, Monaco 0523,
        Baku 0606, Le Castellet 0620, Spielberg 0627 =Styrian, Spielberg 0704, Silverstone 0718s, Budapest 0801,
        Spa-Francorchamps 0829, Zandvoort 0905, Monza 0912s, Sochi 0926, Istanbul 1010, Austin 1024, Mexico City 1107,
        São Paulo 1114s, Lusail 1121, Jeddah 1205, Yas Island 1212""",
    2022: """Barcelona 0225t =Pre-Season Track Session, Sakhir 0312t =Pre-Season Test, Sakhir 0320, Jeddah 0327,
        Melbourne 0410, Imola 0424s, Miami Gardens 0508, Barcelona 0522, Monaco 0529, Baku 0612, Montréal 0619,
        Silverstone 0703, Spielberg 0710s, Le Castellet 0724, Budapest 0731, Spa-Francorchamps 0828, Zandvoort 0904,
        Monza 0911, Marina Bay 1002, Suzuka 1009, Austin 1023, Mexico City 1030, São Paulo 1113s, Yas Island 1120""",
    2023: """Sakhir 0225t, Sakhir 0305, Jeddah 0319, Melbourne 0402, Baku 0430s, Miami Gardens 0507, Monaco 0528,
        Barcelona 0604, Montréal 0618, Spielberg 0702s, Silverstone 0709, Budapest 0723, Spa-Francorchamps 0730s,
        Zandvoort 0827, Monza 0903, Marina Bay 0917, Suzuka 0924, Lusail 1008s, Austin 1022s, Mexico City 1029,
        São Paulo 1105s, Las Vegas 1118, Yas Island 1126""",
    2024: """Sakhir 0223t, Sakhir 0302, Jeddah 0309, Melbourne 0324, Suzuka 0407, Shanghai 0421s, Miami Gardens 0505s,
        Imola 0519, Monaco 0526, Montréal 0609, Barcelona 0623, Spielberg 0630s, Silverstone 0707, Budapest 0721,
        Spa-Francorchamps 0728, Zandvoort 0825, Monza 0901, Baku 0915, Marina Bay 0922, Austin 1020s,
        Mexico City 1027, São Paulo 1103s, Las Vegas 1123, Lusail 1201s, Yas Island 1208""",
    2025: """Sakhir 0228t, Melbourne 0316, Shanghai 0323s, Suzuka 0406, Sakhir 0413, Jeddah 0420, Miami Gardens 0504s,
        Imola 0518, Monaco 0525, Barcelona 0601, Montréal 0615, Spielberg 0629, Silverstone 0706,
        Spa-Francorchamps 0727s, Budapest 0803, Zandvoort 0831, Monza 0907, Baku 0921, Marina Bay 1005, Austin 1019s,
        Mexico City 1026, São Paulo 1109s, Las Vegas 1122, Lusail 1130s, Yas Island 1207""",
    2026: """Sakhir 0213t, Sakhir 0220t, Melbourne 0308, Shanghai 0315s, Suzuka 0329, Miami Gardens 0503s,
        Montréal 0524s, Monaco 0607, Barcelona 0614 =Barcelona, Spielberg 0628, Silverstone 0705s,
        Spa-Francorchamps 0719, Budapest 0726, Zandvoort 0823s, Monza 0906, Madrid 0913 =Spanish, Baku 0926,
        Marina Bay 1011s, Austin 1025, Mexico City 1101, São Paulo 1108, Las Vegas 1121, Lusail 1129,
        Yas Island 1206""",
}

# Session, days before the last one, hours after the race's time of day.
_WEEKENDS: dict[str, tuple[tuple[str, int, float], ...]] = {
    "conventional": (
        ("Practice 1", 2, -2.5),
        ("Practice 2", 2, 1.0),
        ("Practice 3", 1, -2.5),
        ("Qualifying", 1, 1.0),
        ("Race", 0, 0.0),
    ),
    "sprint_qualifying": (
        ("Practice 1", 2, -3.5),
        ("Sprint Qualifying", 2, 0.5),
        ("Sprint", 1, -4.0),
        ("Qualifying", 1, 0.0),
        ("Race", 0, 0.0),
    ),
    "sprint_shootout": (
        ("Practice 1", 2, -1.5),
        ("Qualifying", 2, 2.0),
        ("Sprint Shootout", 1, -2.5),
        ("Sprint", 1, 1.5),
        ("Race", 0, 0.0),
    ),
    "sprint": (
        ("Practice 1", 2, -0.5),
        ("Qualifying", 2, 3.0),
        ("Practice 2", 1, -3.0),
        ("Sprint", 1, 1.5),
        ("Race", 0, 0.0),
    ),
    "testing": (("Practice 1", 2, 0.0), ("Practice 2", 1, 0.0), ("Practice 3", 0, 0.0)),
}
_TESTING_STARTS_AT = 10.0

SCHEDULE_COLUMNS = (
    "round_number", "country", "location", "official_event_name", "event_date", "event_name", "gmt_offset",
    "event_format", "session1", "session1_date", "session2", "session2_date", "session3", "session3_date", "session4",
    "session4_date", "session5", "session5_date", "f1_api_support",
)  # fmt: skip
"""Columns of a schedule file, in its order."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a season.

    Attributes:
        year: Season.
        index: Place in the schedule, from 0; two events may share a name, never an index.
        round_number: Round of the championship, 0 for testing.
        name: Name as in the schedule and as the folder on the CDN.
        facts: Where it takes place.
        event_format: ``conventional``, ``sprint``, ``sprint_shootout``, ``sprint_qualifying`` or ``testing``.
        sessions: Names and local starts, in order.
    """

    year: int
    index: int
    round_number: int
    name: str
    facts: CircuitFacts
    event_format: str
    sessions: tuple[tuple[str, datetime], ...]

    @property
    def session_types(self) -> tuple[str, ...]:
        """Names of the sessions, in order."""
        return tuple(name for name, _ in self.sessions)

    def start_utc(self, session_type: str) -> datetime:
        """Return when a session starts, in UTC (without time zone)."""
        return dict(self.sessions)[session_type] - timedelta(hours=self.facts.gmt_offset)


def _sprint_format(year: int) -> str:
    if year >= 2024:
        return "sprint_qualifying"
    return "sprint_shootout" if year == 2023 else "sprint"


def _event(year: int, location: str, last_day: date, kind: str, name: str | None) -> dict[str, Any]:
    facts = CIRCUITS[location]
    event_format = {"t": "testing", "s": _sprint_format(year), "": "conventional"}[kind]
    if kind == "t":
        name, hour = name or "Pre-Season Testing", _TESTING_STARTS_AT
    else:
        name, hour = f"{name} Grand Prix" if name else facts.event, facts.race_hour
    midnight = datetime(last_day.year, last_day.month, last_day.day)
    sessions = tuple(
        (session, midnight - timedelta(days=days) + timedelta(hours=hour + later))
        for session, days, later in _WEEKENDS[event_format]
    )
    return {"year": year, "name": name, "facts": facts, "event_format": event_format, "sessions": sessions}


def _real_calendar(year: int) -> list[dict[str, Any]]:
    events = []
    for entry in _CALENDARS[year].replace("\n", " ").split(","):
        where, _, name = entry.strip().partition(" =")
        location, _, day = where.rpartition(" ")
        last_day = date(year, int(day[:2]), int(day[2:4]))
        events.append(_event(year, location, last_day, day[4:], name or None))
    return events


def _invented_calendar(year: int, count: int, start: date, taken: set[str]) -> list[dict[str, Any]]:
    """Go round the circuits from a Sunday on; a name is a folder on the CDN, so a second visit gets one of its own."""
    locations = list(CIRCUITS)
    spacing = max(1, min(14, 270 // count)) if count else 1
    events: list[dict[str, Any]] = []
    number = 0
    while len(events) < count:
        visit, place = divmod(number, len(locations))
        number += 1
        facts = CIRCUITS[locations[place]]
        name = facts.event if not visit else f"{facts.event.removesuffix(' Grand Prix')} {visit + 1} Grand Prix"
        if name in taken:
            continue
        kind = "s" if len(events) % 4 == 1 and year >= 2021 else ""
        day = start + timedelta(days=spacing * len(events))
        events.append(_event(year, locations[place], day, kind, name.removesuffix(" Grand Prix")))
    return events


def calendar(year: int, events: int | None = None, testing: int | None = None) -> tuple[Event, ...]:
    """Return a season's events in the order of the schedule.

    Args:
        year: Season; 2018 to 2026 are the real calendars, other years are invented.
        events: Grands Prix, any number: the first ones of the real calendar, then invented ones. ``None`` takes the
            whole real calendar (24 in an invented year).
        testing: Testing events ahead of them, all called "Pre-Season Testing" if there are more than the real calendar
            has. ``None`` takes the real ones when ``events`` is ``None``, else none.
    """
    known = _real_calendar(year) if year in _CALENDARS else []
    tests = [event for event in known if event["event_format"] == "testing"]
    grands_prix = [event for event in known if event["event_format"] != "testing"]
    if testing is None:
        testing = len(tests) if events is None else 0
    if events is None:
        events = len(grands_prix) or 24
    first = date(year, 2, 4)
    tests += [_event(year, "Sakhir", first + timedelta(days=4 * n), "t", None) for n in range(testing - len(tests))]
    tests.sort(key=lambda event: event["sessions"][-1][1])
    start = date(year, 3, 1) if not grands_prix else grands_prix[-1]["sessions"][-1][1].date() + timedelta(days=1)
    start += timedelta(days=(6 - start.weekday()) % 7)
    taken = {event["name"] for event in grands_prix}
    grands_prix += _invented_calendar(year, max(0, events - len(grands_prix)), start, taken)
    chosen = tests[:testing] + grands_prix[:events]
    return tuple(Event(index=i, round_number=max(0, i + 1 - testing), **event) for i, event in enumerate(chosen))


def schedule_json(events: tuple[Event, ...]) -> bytes:
    """Return the schedule file of these events, column-oriented and laid out as pandas writes it."""
    columns: dict[str, dict[str, Any]] = {name: {} for name in SCHEDULE_COLUMNS}
    for event in events:
        row: dict[str, Any] = {
            "round_number": event.round_number,
            "country": event.facts.country,
            "location": event.facts.location,
            "official_event_name": f"FORMULA 1 {event.name.upper()} {event.year}",
            "event_date": (event.sessions[-1][1] + timedelta(hours=9 if event.round_number == 0 else 2)).isoformat(),
            "event_name": event.name,
            "gmt_offset": _offset(event.facts.gmt_offset),
            "event_format": event.event_format,
            "f1_api_support": True,
        }
        for number in range(1, 6):
            session, start = (*event.sessions, *((None, None),) * 5)[number - 1]
            row[f"session{number}"] = session
            row[f"session{number}_date"] = start.isoformat() if start else None
        for name in SCHEDULE_COLUMNS:
            columns[name][str(event.index)] = row[name]
    return json.dumps(columns, indent=2, separators=(",", ":")).encode()


def _offset(hours: float) -> str:
    minutes = round(abs(hours) * 60)
    return f"{'-' if hours < 0 else '+'}{minutes // 60:02d}:{minutes % 60:02d}"
