"""Physics and sporting rules: what is on track must be possible."""

import json
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest

from tif1_pipeline.simulator.circuits import CIRCUITS, circuit
from tif1_pipeline.simulator.grid import drivers_of
from tif1_pipeline.simulator.plan import Lap
from tif1_pipeline.simulator.race import plan_race
from tif1_pipeline.simulator.randomness import generator
from tif1_pipeline.simulator.runs import plan_practice, plan_qualifying
from tif1_pipeline.simulator.season import Season
from tif1_pipeline.simulator.telemetry import lap_telemetry

TRACK = circuit("Suzuka")
RACES = {
    seed: plan_race(TRACK, drivers_of(2025, seed), 53, 3_600_000, generator(seed, "race"), stops=True)
    for seed in range(8)
}


@pytest.mark.parametrize("location", CIRCUITS)
def test_circuits_can_be_driven(location):
    track, facts = circuit(location), CIRCUITS[location]
    assert track.length == pytest.approx(facts.length_m, rel=0.005)
    assert np.hypot(track.x[0] - track.x[-1], track.y[0] - track.y[-1]) < 1e-6
    steps = np.hypot(np.diff(track.x), np.diff(track.y)) / 10
    assert steps.max() < 1.1 * steps.mean()
    assert 50 < 3.6 * track.speed.min() < 160
    assert 270 < 3.6 * track.speed.max() < 345
    assert 52 < track.lap_time < 125
    assert 0.6 * facts.corners <= len(track.corner_at) <= facts.corners


def _lap(kind: str, seconds: float, **more) -> Lap:
    return Lap(5, 0, round(seconds * 1000), kind, "SOFT", **more)


BASE = TRACK.lap_time
LAPS = {
    "push": _lap("push", BASE * 1.01),
    "race": _lap("race", BASE * 1.05),
    "slow": _lap("slow", BASE * 1.5),
    "start": _lap("start", BASE * 1.09, standing=2_000),
    "in": _lap("race", BASE * 1.05 + 12, pit_in=True),
    "out": _lap("race", BASE * 1.05 + 16, pit_out=True, standing=2_500),
    "garage": _lap("slow", BASE * 1.4 + 400, pit_out=True, standing=390_000),
    "retired": _lap("race", BASE * 0.5, fraction=0.45),
}


@pytest.mark.parametrize("name", LAPS)
def test_telemetry_is_physically_possible(name):
    lap = LAPS[name]
    tel = lap_telemetry(TRACK, lap, generator("tel", name), drs_allowed=True)
    time, distance, speed = tel["time"], tel["distance"], tel["speed"]
    assert (time[0], time[-1]) == (0.0, lap.time / 1000)
    assert np.array_equal(np.round(time, 3), time)
    assert (np.diff(time) > 0).all()
    assert 4 < len(time) / time[-1] < 12
    assert (np.diff(distance) >= 0).all()
    assert distance[-1] == pytest.approx(TRACK.length * lap.fraction, rel=0.01)
    driven = float(((speed[1:] + speed[:-1]) / 7.2 * np.diff(time)).sum())
    assert driven == pytest.approx(distance[-1], rel=0.004)
    assert 0 <= speed.min() <= speed.max() < 350
    assert tel["acc_x"].min() > -60
    assert tel["acc_x"].max() < 20
    assert np.abs(tel["acc_y"]).max() < 60
    assert set(tel["gear"]) <= set(range(1, 9))
    assert 0 <= tel["throttle"].min() <= tel["throttle"].max() <= 100
    assert not ((tel["throttle"] > 60) & (tel["brake"] == 1)).any()
    assert 3_000 < tel["rpm"].min() <= tel["rpm"].max() < 13_000
    standing = float(np.diff(time)[speed[1:] < 1].sum())
    assert standing == pytest.approx(lap.standing / 1000, abs=3.0)
    # The car stays on the circuit's line, a few metres aside at most.
    x, y = (np.interp(distance, TRACK.distance, line) for line in (TRACK.x, TRACK.y))
    assert np.hypot(tel["x"] - x, tel["y"] - y).max() < 50
    # Each of the two merged streams brought whole numbers.
    assert np.mean(tel["speed"] == np.round(tel["speed"])) > 0.35
    assert 0.3 < np.mean(tel["x"] == np.round(tel["x"])) < 0.7


def test_drs_opens_on_straights_only_and_only_when_allowed():
    allowed, forbidden = (
        lap_telemetry(TRACK, LAPS["push"], generator("drs"), drs_allowed=allowed) for allowed in (True, False)
    )
    assert set(allowed["drs"]) == {0, 1}
    assert set(forbidden["drs"]) == {0}
    assert allowed["speed"][allowed["drs"] == 1].min() > 120


def test_the_pit_lane_has_a_speed_limit():
    tel = lap_telemetry(TRACK, LAPS["in"], generator("pit"))
    assert tel["speed"][tel["distance"] > TRACK.length - 250].max() < 82
    tel = lap_telemetry(TRACK, LAPS["out"], generator("pit"))
    assert tel["speed"][tel["distance"] < 320].max() < 82


@pytest.mark.parametrize("seed", RACES)
def test_race_times_add_up_and_positions_follow_from_them(seed):
    plan = RACES[seed]
    ends: dict[int, list[tuple[int, int]]] = {}
    for laps in plan.laps.values():
        assert [lap.number for lap in laps] == list(range(1, len(laps) + 1))
        for lap, following in pairwise(laps):
            assert lap.end == following.start
        for lap in laps:
            assert sum(lap.sectors) == lap.time
            assert min(lap.sectors) > 0 or lap.fraction < 1
            if lap.position is not None:
                ends.setdefault(lap.number, []).append((lap.end, lap.position))
    for rows in ends.values():
        assert [position for _, position in sorted(rows)] == list(range(1, len(rows) + 1))
    winner = min(laps[-1].end for laps in plan.laps.values() if len(laps) == 53)
    assert all(laps[-1].start < winner for laps in plan.laps.values())


def test_races_have_what_races_have():
    laps = [lap for plan in RACES.values() for own in plan.laps.values() for lap in own]
    stops = [sum(lap.pit_in for lap in own) for plan in RACES.values() for own in plan.laps.values() if len(own) > 50]
    assert set(stops) <= {1, 2}
    assert {lap.compound for lap in laps} >= {"SOFT", "MEDIUM", "HARD"}
    retired = [own for plan in RACES.values() for own in plan.laps.values() if own[-1].fraction < 1]
    assert 4 < len(retired) < 40
    assert all(own[-1].position is None for own in retired)
    neutral = [plan for plan in RACES.values() if any(m.category == "SafetyCar" for m in plan.messages)]
    assert 0 < len(neutral) < len(RACES)
    assert {lap.status for lap in laps} == {"1", "24", "4"}
    assert any(lap.deleted for lap in laps)
    deleted = sum(bool(lap.deleted) for lap in laps)
    assert deleted == sum("DELETED" in m.text for plan in RACES.values() for m in plan.messages)


def test_fuel_and_tyres_show_in_lap_times():
    slopes, gains = [], []
    for plan in RACES.values():
        if plan.wet:
            continue
        for laps in plan.laps.values():
            clean = [lap for lap in laps if lap.kind == "race" and lap.flying]
            for one, two in pairwise(clean):
                if one.stint == two.stint and one.compound == "SOFT":
                    slopes.append(two.time - one.time)
                elif one.stint == two.stint and one.compound == "HARD":
                    gains.append(two.time - one.time)
    assert np.mean(slopes) > 10  # soft tyres wear faster than fuel burns
    assert np.mean(gains) < -10  # hard ones slower


def test_the_field_bunches_up_behind_the_safety_car():
    plan = next(plan for plan in RACES.values() if any(m.category == "SafetyCar" for m in plan.messages))
    slow = sorted({lap.number for laps in plan.laps.values() for lap in laps if lap.kind == "slow"})

    def spread(number: int) -> int:
        ends = sorted(own[number - 1].end for own in plan.laps.values() if len(own) >= number)
        return ends[len(ends) // 2] - ends[0]

    assert spread(slow[-1]) < max(spread(slow[0] - 1), 15_000)


def test_qualifying_eliminates_the_slowest():
    drivers = drivers_of(2025, 0)
    plan = plan_qualifying(TRACK, drivers, 900_000, 2, generator("q"))
    segments = [
        {code for code, laps in plan.laps.items() if any(lap.segment == q for lap in laps)} for q in ("Q1", "Q2", "Q3")
    ]
    assert [len(codes) for codes in segments] == [20, 15, 10]
    assert segments[2] < segments[1] < segments[0]
    best = {code: min(lap.time for lap in laps if lap.kind == "push") for code, laps in plan.laps.items()}
    assert min(best, key=lambda code: best[code]) in segments[2]
    assert min(best.values()) == pytest.approx(1000 * BASE, rel=0.02)


def test_practice_laps_follow_each_other():
    plan = plan_practice(TRACK, drivers_of(2025, 0), 900_000, 3_600_000, 4, generator("p"))
    for laps in plan.laps.values():
        assert laps[0].pit_out
        assert laps[-1].pit_in
        for one, two in pairwise(laps):
            assert one.end == two.start
            assert one.pit_in == two.pit_out
    assert all(
        0.99 * BASE < lap.time / 1000 < 1.2 * BASE for own in plan.laps.values() for lap in own if lap.kind == "push"
    )


def test_lap_tables_agree_with_themselves_the_weather_and_the_calendar():
    season = Season(2025, events=1, size="small", untidy=False)
    folder = "Australian Grand Prix/Race"
    laps = json.loads(season.file(f"{folder}/session_laptimes.json") or b"")
    sky = json.loads(season.file(f"{folder}/weather.json") or b"")
    rows = [dict(zip(laps, row, strict=True)) for row in zip(*laps.values(), strict=True)]
    start = datetime.fromisoformat("2025-03-16T04:00:00")
    for row in rows:
        if row["time"] != "None":
            assert row["sesT"] - row["lST"] == pytest.approx(row["time"], abs=1e-6)
            assert row["s3T"] == pytest.approx(row["sesT"])
            if "None" not in (row["s1"], row["s2"], row["s3"]):
                assert row["s1"] + row["s2"] + row["s3"] == pytest.approx(row["time"], abs=1e-6)
        minute = sky["wT"].index(row["wT"])
        assert row["wT"] <= row["lST"] < row["wT"] + 61
        assert row["wAT"] == sky["wAT"][minute]
        assert timedelta(0) <= datetime.fromisoformat(row["lSD"][:26]) - start < timedelta(hours=2)
    assert all(50 < row["vst"] < 360 for row in rows if row["vst"] != "None")
    messages = json.loads(season.file(f"{folder}/rcm.json") or b"")
    assert messages["time"] == sorted(messages["time"])
    assert {"Flag", "Drs"} <= set(messages["cat"])


def test_the_car_ahead_is_ahead():
    season = Season(2025, events=1, size="small", untidy=False)
    session = season.session("Australian Grand Prix", "Race")
    order = sorted((laps[2].position or 99, code) for code, laps in session.plan.laps.items() if len(laps) > 3)
    numbers = {driver.code: driver.number for driver in session.entered}
    second = json.loads(session.file(f"{order[1][1]}/4_tel.json") or b"")["tel"]
    assert set(second["driver_ahead"]) == {numbers[order[0][1]]}
    assert min(second["distance_to_driver_ahead"]) > 0
    first = json.loads(session.file(f"{order[0][1]}/4_tel.json") or b"")["tel"]
    assert set(first["driver_ahead"]) == {"None"}
