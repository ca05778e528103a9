"""What the pictures show is what the tables say."""

import numpy as np
import pandas as pd
import pytest
import tables_to_draw as tables
from picture_pixels import HEADER, LARGEST, contrast, drawn, pixels, says_no_data, where
from PIL import ImageColor
from tables_to_draw import DRAWINGS

from tif1_pipeline import plots
from tif1_pipeline.plots.colors import COMPOUNDS, CYCLE, GRID, PANEL


@pytest.mark.parametrize("compound", COMPOUNDS)
@pytest.mark.parametrize("name", ["lap_times", "tyre_strategy"])
def test_a_compound_has_its_colour(name, compound):
    function, (frame,) = DRAWINGS[name]
    color = COMPOUNDS[compound].color
    with_it = frame.assign(Compound=None if compound == "UNKNOWN" else compound)
    without = frame.assign(Compound="SOFT" if compound != "SOFT" else "HARD")
    areas = [where(pixels(function(table)), color).sum() for table in (with_it, without)]
    # Without it there are edges of letters, which have any mixture of colours.
    assert areas[0] > areas[1] + 500
    assert areas[1] < 400


def test_what_is_no_compound_is_drawn_as_unknown():
    odd, unknown = (tables.stints().assign(Compound=name) for name in ("TEST_UNKNOWN", None))
    assert plots.tyre_strategy(odd) == plots.tyre_strategy(unknown)


def test_all_five_compounds_are_told_apart():
    shown = pixels(plots.tyre_strategy(tables.stints()))
    areas = [where(shown, compound.color).sum() for name, compound in COMPOUNDS.items() if name != "UNKNOWN"]
    assert min(areas) > 0.8 * max(areas)


def test_each_stint_is_as_long_as_it_was():
    stints = pd.DataFrame(
        {"Driver": ["A", "A", "B"], "Compound": ["SOFT", "WET", "SOFT"], "StartLap": [1, 11, 1], "EndLap": [10, 40, 5]}
    )
    shown = pixels(plots.tyre_strategy(stints))[HEADER:]
    soft, wet = where(shown, COMPOUNDS["SOFT"].color), where(shown, COMPOUNDS["WET"].color)
    first = np.flatnonzero(wet.any(axis=1))[1]  # a line of pixels through the bar of driver A
    assert wet[first].sum() == pytest.approx(3 * soft[first].sum(), abs=6)
    assert soft.sum(axis=1).max() == pytest.approx(soft[first].sum(), abs=2)


def test_outliers_do_not_squash_the_others():
    laps = tables.laps(compounds=("SOFT",))
    plain = pixels(plots.lap_times(laps))
    laps.loc[[5, 70], "LapTimeSeconds"] = [3600.0, 0.5]
    shown = pixels(plots.lap_times(laps))
    heights = []
    for picture in (plain, shown):
        rows = np.flatnonzero(where(picture[HEADER:], COMPOUNDS["SOFT"].color).any(axis=1))
        heights.append(np.ptp(rows))
    assert heights[0] > 200
    assert heights[1] > 0.9 * heights[0]


def test_laps_behind_the_safety_car_do_not_squash_the_others():
    laps = tables.laps(compounds=("SOFT",))
    laps.loc[laps["LapNumber"].between(20, 32), "LapTimeSeconds"] += 60
    rows = np.flatnonzero(where(pixels(plots.lap_times(laps))[HEADER:], COMPOUNDS["SOFT"].color).any(axis=1))
    assert np.ptp(rows) > 200


@pytest.mark.parametrize("slower", [1.06, 1.3])
def test_laps_on_rain_tyres_are_shown_beside_those_on_slicks(slower):
    laps = tables.laps(compounds=("HARD",)).astype({"Compound": "str"})
    wet = laps["LapNumber"].between(20, 24)
    laps.loc[wet, "LapTimeSeconds"] *= slower
    laps.loc[wet, "Compound"] = "INTERMEDIATE"
    laps.loc[laps["LapNumber"] == 40, "LapTimeSeconds"] += 60  # behind the safety car
    shown = pixels(plots.lap_times(laps))
    rain, slicks = (where(shown[HEADER:], COMPOUNDS[name].color) for name in ("INTERMEDIATE", "HARD"))
    # The points are a fraction of the width apart and stand above the others.
    assert np.flatnonzero(rain.any(axis=1)).max() < np.flatnonzero(slicks.any(axis=1)).max()
    assert np.ptp(np.flatnonzero(rain.any(axis=0))) >= 40
    assert np.ptp(np.flatnonzero(slicks.any(axis=1))) > 30


def test_rare_and_neutralised_laps_on_rain_tyres_squash_nothing():
    for last, seconds in ((1, 30), (20, 60)):
        laps = tables.laps(compounds=("HARD",)).astype({"Compound": "str"})
        wet = laps["LapNumber"].between(20, 20 + last - 1) & (laps["Driver"].astype(str) <= f"D{last:02}")
        laps.loc[wet, "LapTimeSeconds"] += seconds
        laps.loc[wet, "Compound"] = "WET"
        rows = np.flatnonzero(where(pixels(plots.lap_times(laps))[HEADER:], COMPOUNDS["HARD"].color).any(axis=1))
        assert np.ptp(rows) > 200


@pytest.mark.parametrize("times", [[80], [80, 200], [80, 200, 200, 200], [200, 1, 80, 5000], [0, -3, 80]])
def test_few_laps_of_any_times(times):
    laps = pd.DataFrame({"LapNumber": range(len(times)), "LapTimeSeconds": times, "Compound": "SOFT"})
    assert where(pixels(plots.lap_times(laps))[HEADER:], COMPOUNDS["SOFT"].color).any()


def test_times_that_are_none_say_so():
    assert says_no_data(plots.lap_times(pd.DataFrame({"LapNumber": [1], "LapTimeSeconds": [0], "Compound": "SOFT"})))


def test_the_track_keeps_its_shape():
    laps = tables.laps(2, 5)
    for width, height in ((8000, 8000), (12000, 3000), (2000, 9000)):
        shown = pixels(plots.track_map(tables.telemetry(laps, width=width, height=height), laps))
        line = (contrast(shown, np.array(ImageColor.getrgb(PANEL))) > 3)[HEADER + 4 : -22, :560]
        rows, columns = np.flatnonzero(line.any(axis=1)), np.flatnonzero(line.any(axis=0))
        assert np.ptp(columns) / np.ptp(rows) == pytest.approx(width / height, rel=0.1)
        assert max(np.ptp(columns) / 530, np.ptp(rows) / 334) > 0.85


def test_the_quickest_laps_are_those_that_count_and_have_telemetry():
    laps = tables.laps(4, 10)
    telemetry = tables.telemetry(laps)
    expected = plots.speed_trace(telemetry, laps)
    deleted = pd.DataFrame({"Driver": ["D03"], "LapNumber": [1.0], "LapTimeSeconds": [70.0], "Deleted": [True]})
    without_telemetry = pd.DataFrame({"Driver": ["D02"], "LapNumber": [99.0], "LapTimeSeconds": [60.0]})
    more = pd.concat([laps.astype({"Driver": "str"}), deleted, without_telemetry], ignore_index=True)
    assert plots.speed_trace(telemetry, more) == expected
    counted = more.assign(Deleted=False)
    telemetry_of_deleted = telemetry[telemetry["Driver"] == "D03"].assign(LapNumber=1)
    assert plots.speed_trace(pd.concat([telemetry, telemetry_of_deleted]), counted) != expected


def test_three_drivers_have_three_colours():
    shown = pixels(drawn("speed_trace"))
    assert all(where(shown, color).sum() > 150 for color in CYCLE[:3])
    assert not any(where(shown, color).sum() > 20 for color in CYCLE[3:])


def test_a_season_has_a_cell_for_each_session():
    season = tables.season(6)
    full = pixels(plots.cached_sessions(season.fillna(1.0)))
    holes = pixels(plots.cached_sessions(season))
    missing = int(season.isna().to_numpy().sum())
    cell = (where(holes, GRID, 6).sum() - where(full, GRID, 6).sum()) / missing
    assert missing == 2
    assert 400 < cell < 1200
    nothing = pixels(plots.cached_sessions(season * np.nan))
    assert where(nothing, GRID, 6).sum() == pytest.approx(season.size * cell, rel=0.1)


def test_simulated_tables(tif1):
    race = tif1.get_session(2025, tif1.get_events(2025)[0], "Race")
    for png in (
        plots.lap_times(race.laps),
        plots.speed_trace(race.telemetry, race.laps),
        plots.track_map(race.telemetry, race.laps),
    ):
        assert not says_no_data(png)
        assert len(png) < LARGEST


@pytest.mark.slow
def test_real_tables(real_tif1):
    qualifying = real_tif1.get_session(2025, "Melbourne", "Qualifying")
    laps, telemetry = qualifying.laps, qualifying.telemetry
    pngs = [plots.lap_times(laps), plots.speed_trace(telemetry, laps), plots.track_map(telemetry, laps)]
    assert all(len(png) < LARGEST and not says_no_data(png) for png in pngs)
