"""Results have the same columns and types whatever is in them, and come back from the cache as they are."""

import pandas as pd
import pytest

from tif1_pipeline import analysis
from tif1_pipeline.cache.frames import from_table, to_table

RESULTS = {
    "fastest_laps": (analysis.FASTEST_LAPS, analysis.fastest_laps_of),
    "stints": (analysis.STINTS, analysis.stints_of),
    "race_pace": (analysis.RACE_PACE, analysis.race_pace_of),
    "driver_telemetry_summary": (analysis.DRIVER_TELEMETRY_SUMMARY, analysis.driver_telemetry_summary_of),
}


def results_of(laps, telemetry):
    """Every result from these tables, which have the columns that each says it needs, and no more."""
    tables = {"laps": laps, "telemetry": telemetry}
    for name, (result, analyse) in RESULTS.items():
        yield name, result, analyse(**{table: tables[table][list(columns)] for table, columns in result.needs.items()})
    key = "2025 Monaco Grand Prix Race"
    yield "event_summary", analysis.EVENT_SUMMARY, analysis.event_summary_of({key: laps})
    yield "season_summary", analysis.SEASON_SUMMARY, analysis.season_summary_of({key: analysis.race_pace_of(laps)})


@pytest.fixture
def tables(lap, laps_table, telemetry_table):
    laps = [lap(driver, n, 90.0 + n, FreshTyre=True) for driver in ("VER", "HAM") for n in range(1, 9)]
    samples = [("VER", 2, time, 200.0, 100.0, False, 5) for time in (0.0, 1.0)]
    untimed = [row | {"LapTime": None, "LapTimeSeconds": None} for row in laps]
    nothing_known = [{"Driver": "VER", "LapNumber": float(n)} for n in (1, 2)]
    return {
        "full": (laps_table(laps), telemetry_table(*samples)),
        "no rows": (laps_table([]), telemetry_table()),
        "no times": (laps_table(untimed), telemetry_table(*samples)),
        "no telemetry": (laps_table(laps), telemetry_table()),
        "no laps": (laps_table([]), telemetry_table(*samples)),
        "only what is required": (laps_table(nothing_known), telemetry_table(("VER", 1, 0.0, *[None] * 4))),
    }


@pytest.mark.parametrize("case", ["full", "no rows", "no times", "no telemetry", "no laps", "only what is required"])
def test_results_have_their_types_and_survive_the_cache(tables, case):
    for name, result, frame in results_of(*tables[case]):
        assert frame.dtypes.astype(str).to_dict() == result.dtypes, name
        assert frame.index.equals(pd.RangeIndex(len(frame))), name
        for column in result.columns:
            assert not (column.required and frame[column.name].isna().any()), (name, column.name)
        pd.testing.assert_frame_equal(from_table(to_table(frame, "pandas"), "pandas"), frame)


def test_every_column_says_what_it_is():
    for result in [*(result for result, _ in RESULTS.values()), analysis.EVENT_SUMMARY, analysis.SEASON_SUMMARY]:
        names = [column.name for column in result.columns]
        assert len(names) == len(set(names))
        assert all(column.description for column in result.columns)
        for column in result.columns:
            if column.name.endswith("Seconds"):
                assert column.unit == "s"
            if column.name.endswith("Percent"):
                assert column.unit == "%"


def test_inputs_stay_as_they_are(tables):
    laps, telemetry = tables["full"]
    before = laps.copy(), telemetry.copy()
    for _ in results_of(laps, telemetry):
        pass
    pd.testing.assert_frame_equal(laps, before[0])
    pd.testing.assert_frame_equal(telemetry, before[1])
