"""Seasons: layout, calendars, determinism and untidiness. Key lists are written out here: they are the contract."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone

import pytest

from tif1_pipeline.exceptions import ConfigError, EventNotFoundError, SessionNotFoundError
from tif1_pipeline.keys import SESSION_TYPES
from tif1_pipeline.simulator.events import calendar
from tif1_pipeline.simulator.season import Season
from tif1_pipeline.simulator.untidiness import GARAGE, oddities_of


def words(text: str) -> list[str]:
    return text.split()


LAP_KEYS = words(
    "time lap compound stint s1 s2 s3 life pos status pb qs sesT drv dNum pout pin s1T s2T s3T vi1 vi2 vfl vst fresh "
    "team lST lSD del delR ff1G iacc wT wAT wH wP wR wTT wWD wWS"
)
TEL_KEYS = words("time rpm speed gear throttle brake drs distance rel_distance acc_x acc_y acc_z x y z dataKey")
SCHEDULE_KEYS = [
    *words("round_number country location official_event_name event_date event_name gmt_offset event_format"),
    *(f"session{n}{kind}" for n in range(1, 6) for kind in ("", "_date")),
    "f1_api_support",
]
EVENT = "Australian Grand Prix"


@pytest.fixture(scope="module")
def tidy() -> Season:
    return Season(2025, events=2, size="tiny", untidy=False)


@pytest.fixture(scope="module")
def untidy() -> Season:
    return Season(2025, events=3, size="tiny")


def read(season: Season, path: str):
    body = season.file(path)
    assert body is not None, path
    return json.loads(body)


# ---- layout


def test_session_tables_have_the_published_keys_in_order(tidy):
    folder = f"{EVENT}/Race"
    laps = read(tidy, f"{folder}/session_laptimes.json")
    assert list(laps) == LAP_KEYS
    assert len({len(values) for values in laps.values()}) == 1
    assert list(read(tidy, f"{folder}/weather.json")) == words("wT wAT wH wP wR wTT wWD wWS")
    assert list(read(tidy, f"{folder}/rcm.json")) == words("time cat msg status flag scope sector dNum lap")
    corners = read(tidy, f"{folder}/corners.json")
    assert list(corners)[:5] == ["CornerNumber", "X", "Y", "Angle", "Distance"]
    drivers = read(tidy, f"{folder}/drivers.json")["drivers"]
    assert list(drivers[0]) == words("driver team dn fn ln tc url")


def test_a_telemetry_file_has_the_published_keys_in_order(tidy):
    lap = read(tidy, f"{EVENT}/Qualifying/NOR/2_tel.json")
    assert list(lap) == ["tel"]
    assert list(lap["tel"]) == TEL_KEYS
    assert lap["tel"].pop("dataKey") == f"2025-{EVENT}-Qualifying-NOR-2"
    assert len({len(values) for values in lap["tel"].values()}) == 1


def test_newer_races_say_who_drives_ahead():
    season = Season(2025, events=1, size="tiny", untidy=False)
    keys = list(read(season, f"{EVENT}/Race/NOR/2_tel.json")["tel"])
    at = keys.index("rel_distance")
    assert keys[at + 1 : at + 3] == ["driver_ahead", "distance_to_driver_ahead"]
    older = Season(2024, events=1, size="tiny", untidy=False)
    assert "driver_ahead" not in read(older, "Bahrain Grand Prix/Race/NOR/2_tel.json")["tel"]


def test_a_drivers_own_file_holds_that_drivers_rows_of_the_session_file(tidy):
    together = read(tidy, f"{EVENT}/Race/session_laptimes.json")
    own = read(tidy, f"{EVENT}/Race/VER/laptimes.json")
    rows = [row for row in zip(*together.values(), strict=True) if row[LAP_KEYS.index("drv")] == "VER"]
    assert list(zip(*own.values(), strict=True)) == rows


def test_a_real_sized_telemetry_file_has_the_real_size_and_spacing():
    body = Season(2025, events=1).file(f"{EVENT}/Race/NOR/5_tel.json")
    assert body is not None
    assert body.startswith(b'{"tel": {"time": [0.0, ')
    assert 90_000 < len(body) < 200_000
    assert 550 < len(json.loads(body)["tel"]["time"]) < 1000


def test_sizes_differ_in_laps_and_drivers():
    race = {size: Season(2025, events=1, size=size).session(EVENT, "R") for size in ("full", "small", "tiny")}
    assert {size: max(map(len, session.plan.laps.values())) for size, session in race.items()} == {
        "full": 58,
        "small": 12,
        "tiny": 5,
    }
    assert {size: len(session.entered) for size, session in race.items()} == {"full": 20, "small": 20, "tiny": 5}
    files = sum(1 for path in race["full"].paths() if path.endswith("_tel.json"))
    assert 800 < files < 1400


def test_paths_lists_exactly_what_there_is(untidy):
    paths = list(untidy.paths())
    assert len(paths) == len(set(paths))
    assert all(untidy.file(path) is not None for path in paths)


@pytest.mark.parametrize(
    "path",
    ["", "x", "No Such Grand Prix/Race/drivers.json", f"{EVENT}/Sprint/drivers.json", f"{EVENT}/Race/other.json",
     f"{EVENT}/Race/XXX/1_tel.json", f"{EVENT}/Race/NOR/99_tel.json", f"{EVENT}/Race/NOR/01_tel.json",
     f"{EVENT}/Race/NOR/x_tel.json", f"{EVENT}/Race/NOR/other.json", f"{EVENT}/Race/../Race/drivers.json"],
)  # fmt: skip
def test_other_paths_hold_nothing(tidy, path):
    assert tidy.file(path) is None


# ---- calendars


@pytest.mark.parametrize(("year", "events", "first"), [
    (2018, 21, EVENT), (2020, 19, "Pre-Season Test 1"), (2021, 23, "Pre-Season Test"), (2024, 25, "Pre-Season Testing"),
    (2025, 25, "Pre-Season Testing"), (2026, 24, "Pre-Season Testing"), (2031, 24, EVENT),
])  # fmt: skip
def test_whole_calendars(year, events, first):
    schedule = json.loads(Season(year).schedule())
    assert list(schedule) == SCHEDULE_KEYS
    assert all(list(column) == [str(i) for i in range(events)] for column in schedule.values())
    assert schedule["event_name"]["0"] == first
    dates = list(schedule["event_date"].values())
    assert dates == sorted(dates)


def test_schedule_rows():
    schedule = json.loads(Season(2025).schedule())
    row = {name: column["2"] for name, column in schedule.items()}
    assert row["event_name"] == "Chinese Grand Prix"
    assert row["event_format"] == "sprint_qualifying"
    assert [row[f"session{n}"] for n in range(1, 6)] == [
        "Practice 1",
        "Sprint Qualifying",
        "Sprint",
        "Qualifying",
        "Race",
    ]
    assert (row["session5_date"], row["gmt_offset"], row["round_number"]) == ("2025-03-23T15:00:00", "+08:00", 2)
    testing = {name: column["0"] for name, column in schedule.items()}
    assert (testing["session4"], testing["session4_date"], testing["round_number"]) == (None, None, 0)
    names = set(schedule["event_name"].values())
    assert {"São Paulo Grand Prix", "Mexico City Grand Prix"} <= names
    assert "Montréal" in schedule["location"].values()
    assert set(schedule["gmt_offset"].values()) >= {"+11:00", "-03:00", "-08:00"}


def test_two_events_of_one_name_stay_apart():
    season = Season(2026, size="tiny")
    names = [event.name for event in season.events]
    assert names.count("Pre-Season Testing") == 2
    assert season.events[0].sessions != season.events[1].sessions
    more = Season(2025, events=1, testing=2)
    assert [event.name for event in more.events] == ["Pre-Season Testing", "Pre-Season Testing", EVENT]
    assert [event.round_number for event in more.events] == [0, 0, 1]
    folders = [key.event for key in more.sessions()]
    assert folders.count("Pre-Season Testing 1") == folders.count("Pre-Season Testing 2") == 3


@pytest.mark.parametrize("year", [2025, 2031])
def test_any_number_of_events(year):
    events = calendar(year, 200)
    assert len({event.name for event in events}) == 200
    starts = [event.sessions[0][1] for event in events]
    assert starts == sorted(starts)
    assert calendar(year, 0) == ()


def test_every_session_type_occurs():
    seen = {name for year in (2021, 2023, 2025) for event in calendar(year) for name in event.session_types}
    assert seen == set(SESSION_TYPES)


def test_errors_name_what_is_wrong(tidy):
    with pytest.raises(ConfigError, match=r"huge.*full, small, tiny"):
        Season(2025, size="huge")
    with pytest.raises(EventNotFoundError, match="Nowhere"):
        tidy.session("Nowhere Grand Prix", "R")
    with pytest.raises(SessionNotFoundError, match="Sprint"):
        tidy.session(EVENT, "S")


# ---- determinism

_DIGESTS = """
import hashlib, sys
from tif1_pipeline.simulator.season import Season
season = Season(2021, seed=7, events=2, size="tiny")
for path in sys.argv[1:]:
    print(hashlib.sha256(season.file(path)).hexdigest())
"""


def test_another_process_and_another_order_give_the_same_bytes():
    season = Season(2021, seed=7, events=2, size="tiny")
    paths = [path for path in season.paths() if "Race" in path][::7]
    here = [hashlib.sha256(season.file(path) or b"").hexdigest() for path in paths]
    done = subprocess.run(
        [sys.executable, "-c", _DIGESTS, *reversed(paths)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == here[::-1]


def test_seeds_and_events_differ():
    bodies = {
        seed: Season(2025, seed=seed, events=1, size="tiny", untidy=False).file(f"{EVENT}/Race/NOR/2_tel.json")
        for seed in (1, 2)
    }
    assert bodies[1] != bodies[2]
    long, short = (Season(2025, events=count, size="tiny", untidy=False) for count in (5, 1))
    assert long.file(f"{EVENT}/Race/VER/3_tel.json") == short.file(f"{EVENT}/Race/VER/3_tel.json")


# ---- untidiness


def test_tidy_seasons_are_json_with_every_file(tidy):
    def refuse(token):
        raise AssertionError(token)

    for path in tidy.paths():
        json.loads(tidy.file(path) or b"", parse_constant=refuse)
    for key in tidy.sessions():
        session = tidy.session(key.event, key.session_type)
        assert not session.oddities
        for code, laps in session.plan.laps.items():
            assert session.telemetry_laps(code) == [lap.number for lap in laps]


def test_every_oddity_of_tables_occurs_within_a_few_events(untidy):
    seen: Counter[str] = Counter()
    for key in untidy.sessions():
        session = untidy.session(key.event, key.session_type)
        folder = f"{key.event}/{key.session_type}"
        text = untidy.file(f"{folder}/session_laptimes.json") or b""
        laps = json.loads(text)
        seen["bare NaN in laps"] += b"NaN" in text
        seen["bare NaN in weather"] += b"NaN" in (untidy.file(f"{folder}/weather.json") or b"")
        seen["None among numbers"] += "None" in laps["time"] and any(isinstance(t, float) for t in laps["time"])
        seen["whole column None"] += any(set(laps[name]) == {"None"} for name in LAP_KEYS if name not in {"qs", "pos"})
        seen["None among flags"] += "None" in laps["fresh"] or "None" in laps["pb"]
        seen["integer laps"] += isinstance(laps["lap"][0], int)
        seen["unknown column"] += bool(set(laps) - set(LAP_KEYS))
        drivers = read(untidy, f"{folder}/drivers.json")["drivers"]
        seen["old drivers"] += len(drivers[0]) == 2
        seen["new drivers"] += len(drivers[0]) == 7
        idle = {driver["driver"] for driver in drivers} - set(laps["drv"])
        seen["driver without laps"] += bool(idle)
        assert all(untidy.file(f"{folder}/{code}/laptimes.json") is None for code in idle)
        busy = laps["drv"][0]
        own = read(untidy, f"{folder}/{busy}/laptimes.json")
        seen["short own file"] += list(own) == ["time", "lap", "compound"]
        listed = {int(lap) for lap, code in zip(laps["lap"], laps["drv"], strict=True) if code == busy}
        seen["telemetry without lap"] += bool(set(session.telemetry_laps(busy)) - listed)
        for code in set(laps["drv"]):
            numbers = {int(lap) for lap, owner in zip(laps["lap"], laps["drv"], strict=True) if owner == code}
            seen["lap without telemetry"] += bool(numbers - set(session.telemetry_laps(code)))
        seen["deleted lap"] += any(reason.startswith("TRACK LIMITS") for reason in laps["delR"])
        corners = read(untidy, f"{folder}/corners.json")
        seen["rotation"] += "Rotation" in corners
        seen["no rotation"] += "Rotation" not in corners
    missing = [name for name, count in seen.items() if not count]
    assert not missing
    # Untidiness is the exception.
    assert seen["bare NaN in laps"] < 10
    assert seen["whole column None"] < 10


def test_every_oddity_of_telemetry_occurs():
    season = Season(2025, events=2, size="small")
    races = [season.session(name, "Race") for name in (EVENT, "Chinese Grand Prix")]
    seen: Counter[str] = Counter()
    for session, path in ((race, path) for race in races for path in race.paths()):
        if not path.endswith("_tel.json"):
            continue
        body = session.file(path) or b""
        tel = json.loads(body)["tel"]
        seen["files"] += 1
        seen["NaN"] += any(value != value for value in tel["acc_x"] if isinstance(value, float))
        seen["None among numbers"] += "None" in tel["throttle"] and "None" in tel["brake"]
        seen["None channel"] += set(tel["acc_x"]) == {"None"}
        seen["integers"] += isinstance(tel["speed"][0], int)
        seen["unknown channel"] += "tyre_temp" in tel
        assert b"null" not in body
    assert min(seen.values()) > 0, seen
    assert sum(seen.values()) - seen["files"] < 0.15 * seen["files"]


def test_old_seasons_lack_some_session_files():
    for year, lacking in ((2019, True), (2025, False)):
        season = Season(year, events=1, size="tiny")
        found = [season.file(f"{k.event}/{k.session_type}/session_laptimes.json") for k in season.sessions()]
        assert (None in found) is lacking
        assert any(found)


def test_one_practice_session_has_a_car_in_the_garage():
    season = Season(2025, events=2, size="tiny")
    sessions = [season.session(key.event, key.session_type) for key in season.sessions()]
    (garage,) = [session for session in sessions if GARAGE in session.oddities]
    assert garage.session_type.startswith("Practice")
    sizes = {}
    for code, laps in garage.plan.laps.items():
        for lap in laps:
            tel = json.loads(garage.file(f"{code}/{lap.number}_tel.json") or b'{"tel": {"time": []}}')["tel"]
            sizes[code, lap.number] = len(tel["time"])
    assert 47_000 < max(sizes.values()) < 53_000
    assert sorted(sizes.values())[-2] < 5_000


def test_oddities_come_round_in_every_event_of_five_sessions():
    for first in range(0, 40, 5):
        found = [oddities_of(0, 2018, first + i, "Race", garage=False) for i in range(5)]
        assert len(frozenset.union(*found)) == 9


def test_missing_numbers_are_nan_or_none_never_null(untidy):
    for path in untidy.paths():
        if not path.endswith("_tel.json"):
            body = untidy.file(path) or b""
            assert b"null" not in body, path


def test_a_session_is_rescheduled_and_an_event_cancelled_while_the_files_stay():
    season, untouched = (Season(2025, events=3, size="tiny", seed=4) for _ in range(2))
    before = {path: season.file(path) for path in list(season.paths())[:40]}
    season.reschedule(EVENT, "R", datetime(2025, 3, 17, 3, 30, tzinfo=timezone(timedelta(hours=2))))
    schedule = json.loads(season.schedule())
    assert schedule["gmt_offset"]["0"] == "+11:00"
    assert schedule["session5_date"]["0"] == "2025-03-17T12:30:00"
    assert season.session(EVENT, "Race").event.start_utc("Race") == datetime(2025, 3, 17, 1, 30)
    season.cancel(EVENT)
    assert list(json.loads(season.schedule())["event_name"].values()) == [event.name for event in untouched.events[1:]]
    assert {path: season.file(path) for path in before} == before
    last = f"{untouched.events[2].name}/Race/session_laptimes.json"
    assert season.file(last) == untouched.file(last)
    with pytest.raises(SessionNotFoundError, match="has no Sprint"):
        season.reschedule(EVENT, "Sprint", datetime.now(UTC))
    with pytest.raises(EventNotFoundError):
        season.cancel("No Grand Prix")
