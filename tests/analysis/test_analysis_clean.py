"""Which laps show pace, and which belong to one stint."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tif1_pipeline.analysis.clean import clean_laps, comparable_laps, finished_laps, slope, stint_numbers, valid_laps

SOON = pd.Timedelta(seconds=1)


@pytest.mark.parametrize(
    ("values", "clean"),
    [
        ({}, True),
        ({"LapTimeSeconds": 107.0}, True),
        ({"LapTimeSeconds": 107.001}, False),
        ({"LapTimeSeconds": None}, False),
        ({"LapTimeSeconds": 0.0}, False),
        ({"LapTimeSeconds": 7.0}, False),
        ({"Deleted": True}, False),
        ({"Deleted": None}, True),
        ({"TrackStatus": "2"}, False),
        ({"TrackStatus": "12"}, False),
        ({"TrackStatus": "4"}, False),
        ({"TrackStatus": None}, True),
        ({"PitInTime": SOON}, False),
        ({"PitOutTime": SOON}, False),
        ({"LapNumber": 1.0}, False),
        ({"Compound": None}, True),
    ],
)
def test_a_clean_lap_is_green_timed_and_not_through_the_pits(lap, laps_table, values, clean):
    laps = laps_table([lap("VER", 2, 100.0), lap("VER", 3, 105.0, **values)])
    assert clean_laps(laps).tolist() == [True, clean]


def test_a_lap_that_does_not_count_is_no_measure_for_the_others(lap, laps_table):
    laps = laps_table([lap("VER", 2, 50.0, Deleted=True), lap("VER", 3, 60.0, TrackStatus="6"), lap("VER", 4, 100.0)])
    assert clean_laps(laps).tolist() == [False, False, True]
    assert valid_laps(laps).tolist() == [False, True, True]


def test_laps_on_rain_tyres_are_measured_by_each_other(lap, laps_table):
    inter = {"Compound": "INTERMEDIATE"}
    laps = laps_table(
        [
            lap("VER", 2, 80.0),
            lap("VER", 3, 90.0),
            lap("VER", 4, 90.0, **inter),
            lap("HAM", 2, 96.0, **inter),
            lap("HAM", 3, 97.0, **inter),
            lap("HAM", 4, 110.0, Compound="WET"),
        ]
    )
    assert clean_laps(laps).tolist() == [True, False, True, True, False, True]
    # Two clean laps on intermediates, one on slicks, one on wets.
    assert comparable_laps(laps).tolist() == [False, False, True, True, False, False]


def test_a_session_without_a_green_lap_has_no_clean_one(lap, laps_table):
    laps = laps_table([lap("VER", number, None if number == 3 else 140.0, TrackStatus="5") for number in range(1, 6)])
    assert not clean_laps(laps).any()
    assert not comparable_laps(laps).any()
    empty = laps.iloc[:0]
    assert len(clean_laps(empty)) == len(comparable_laps(empty)) == len(stint_numbers(empty)) == 0


def test_published_stints_are_taken_and_gaps_in_them_filled_from_the_lap_before(lap, laps_table):
    stints = [None, 1.0, None, 2.0, None]
    laps = laps_table([lap("VER", number, 90.0, Stint=stint) for number, stint in enumerate(stints, 1)])
    # In any order of rows.
    assert stint_numbers(laps.iloc[::-1])[laps.index].tolist() == [1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("second", "third"),
    [
        ({}, {"PitOutTime": SOON}),
        ({}, {"Compound": "HARD"}),
        ({"Compound": None}, {"Compound": "HARD"}),
        ({}, {"TyreLife": 1.0}),
    ],
)
def test_without_published_stints_tyres_and_pits_tell(lap, laps_table, second, third):
    rows = [lap("VER", 1, 90.0, PitOutTime=SOON), lap("VER", 2, 90.0, **second), lap("VER", 3, 90.0, **third)]
    laps = laps_table([row | {"Stint": None} for row in rows] + [lap("HAM", 1, 90.0, Stint=7.0)])
    assert stint_numbers(laps).tolist() == [1, 1, 2, 7]


def test_where_nothing_tells_there_is_one_stint(lap, laps_table):
    unknown = {"Stint": None, "Compound": None, "TyreLife": None}
    laps = laps_table([lap("VER", number, 90.0, **unknown) for number in range(1, 4)])
    assert stint_numbers(laps).tolist() == [1, 1, 1]


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["VER", "HAM"]), st.sampled_from(["SOFT", "HARD", None]), st.booleans()), max_size=30
    )
)
def test_inferred_stints_count_up_from_one_and_keep_to_one_compound(lap, laps_table, rows):
    laps = laps_table(
        [
            lap(driver, number, 90.0, Stint=None, Compound=compound, PitOutTime=SOON if out else None, TyreLife=None)
            for number, (driver, compound, out) in enumerate(rows, 1)
        ]
    )
    laps["Number"] = stint_numbers(laps)
    for _, own in laps.groupby("Driver", observed=True):
        steps = np.diff(own["Number"], prepend=0)
        assert steps[0] == 1
        assert set(steps[1:]) <= {0, 1}
    for _, stint in laps.groupby(["Driver", "Number"], observed=True):
        assert stint["Compound"].nunique() <= 1
        assert not stint["PitOutTime"].iloc[1:].notna().any()


def test_a_last_lap_that_never_ended_was_not_finished(lap, laps_table):
    ended = [lap("VER", 1, 90.0), lap("VER", 2, None), lap("VER", 3, 90.0)]
    flagged = [lap("HAM", 1, 90.0), lap("HAM", 2, None, Position=4.0)]
    retired = [lap("LEC", 1, 90.0), lap("LEC", 2, None, Position=None)]
    crashed = [lap("SAI", 1, None, Position=None)]
    counts = finished_laps(laps_table([*retired[::-1], *ended, *crashed, *flagged]))
    assert counts.to_dict() == {"VER": 3, "HAM": 2, "LEC": 1, "SAI": 0}


numbers = st.floats(-100, 100, allow_subnormal=False).map(lambda value: round(value, 3))


@settings(max_examples=30, deadline=None)
@given(rise=numbers, start=numbers, outlier=st.floats(-1e6, 1e6), where=st.integers(0, 9))
def test_one_odd_lap_does_not_move_the_slope(rise, start, outlier, where):
    x = np.arange(10.0)
    y = start + rise * x
    assert slope(x, y) == pytest.approx(rise, abs=1e-9)
    y[where] += outlier
    # 36 of 45 pairs are not the odd lap's.
    assert slope(x, y) == pytest.approx(rise, abs=1e-9)


def test_points_above_each_other_have_no_slope():
    assert np.isnan(slope(np.array([3.0, 3.0]), np.array([1.0, 2.0])))
    assert slope(np.array([1.0, 2.0, 2.0]), np.array([1.0, 2.0, 4.0])) == 2.0
