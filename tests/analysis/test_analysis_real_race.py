"""The 2025 Australian Grand Prix, where its files are: what came out of that race comes out of the analyses.

Lap times, compounds and telemetry are the published ones; stints, pit stops and track status are not in these files.
"""

import pytest

from tif1_pipeline.analysis import (
    driver_telemetry_summary_of,
    fastest_laps_of,
    race_pace_of,
    season_summary_of,
    stints_of,
)


@pytest.fixture
def race(real_tif1):
    return real_tif1.get_session(2025, "Melbourne", "R")


def test_pace_and_stints_of_a_race_that_changed_tyres_for_the_weather(race):
    fastest = fastest_laps_of(race.laps)
    assert fastest.loc[0, ["Driver", "LapNumber", "LapTimeSeconds", "Compound"]].tolist() == ["NOR", 43, 82.167, "HARD"]

    pace = race_pace_of(race.laps)
    assert pace["Driver"].tolist()[:4] == ["NOR", "PIA", "VER", "RUS"]
    # Of 57 laps, most on intermediates, a third behind the safety car.
    assert pace["CleanLaps"].iloc[:4].between(25, 32).all()
    laps = pace.set_index("Driver")["Laps"]
    # Alonso crashed on his 33rd lap, Lawson on his 47th, Bortoleto on his 46th, three on the first or before it.
    assert laps[["ALO", "LAW", "BOR", "SAI", "DOO", "HAD"]].tolist() == [32, 46, 45, 0, 0, 0]
    assert (laps.drop(["ALO", "LAW", "BOR", "SAI", "DOO", "HAD"]) == 57).all()

    stints = stints_of(race.laps).set_index(["Driver", "Stint"])
    assert stints.loc["NOR", "Compound"].tolist() == ["INTERMEDIATE", "HARD", "INTERMEDIATE"]
    assert stints.loc["NOR", "EndLap"].tolist() == [34, 44, 57]
    first = stints.xs(1, level="Stint")["DegradationSecondsPerLap"].dropna()
    assert len(first) >= 14
    assert (first < 0).all(), "on a drying track each lap is quicker"

    season = season_summary_of({"2025 Australian Grand Prix Race": pace}).set_index("Team")
    assert season.index[0] == "McLaren"
    # Six did not see the flag, of six teams.
    assert season["Retirements"].sum() == 6
    assert season.loc["Williams", "RaceLapShare"] == 0.5


@pytest.mark.slow
def test_driving_is_much_alike_from_car_to_car(race):
    summary = driver_telemetry_summary_of(race.telemetry, race.laps).set_index("Driver")
    assert len(summary) == 20
    compared = summary[summary["Laps"] >= 10]
    assert len(compared) >= 15
    # Albert Park in the wet: half of the lap flat out, also for those whose pedal reads 99 at its stop.
    assert compared["FullThrottleShare"].between(0.44, 0.52).all()
    assert compared["BrakeShare"].between(0.15, 0.26).all()
    assert compared["MeanSpeed"].between(203, 211).all()
    assert compared["GearChangesPerLap"].between(29, 42).all()
    assert summary["TopSpeed"].max() == 333.0
    assert summary["TopSpeed"].isna().sum() == 1, "Hadjar's car sent zeros alone"
