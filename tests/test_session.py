"""Sessions as a notebook uses them: over HTTP from a simulated CDN, through a real cache file."""

import asyncio
import copy
import threading
from datetime import UTC, datetime

import pandas as pd
import polars as pl
import pytest

from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.simulator import Fault

EVENT = "Australian Grand Prix"


@pytest.fixture
def race(tif1):
    return tif1.get_session(2025, "Australia", "Race")


# ---- names


@pytest.mark.parametrize("asked", ["Australian Grand Prix", "australia", "Melbourne", 1, "australian_grand_prix"])
def test_every_spelling_is_one_session_and_one_entry(tif1, cdn, asked):
    tif1.get_session(2025, EVENT, "R").laps  # noqa: B018
    fetched = cdn.requests.count("session_laptimes.json")
    session = tif1.get_session(2025, asked, "race")
    assert (session.year, session.event, session.session_type) == (2025, EVENT, "Race")
    assert len(session.laps)
    assert cdn.requests.count("session_laptimes.json") == fetched
    assert tif1.get_cache().exists(2025, asked, "Race", "laps")


def test_unknown_names_are_refused_with_the_choices(tif1):
    with pytest.raises(tif1.EventNotFoundError, match=r"the events are|did you mean"):
        tif1.get_session(2025, "Mars", "Race")
    with pytest.raises(tif1.SessionNotFoundError, match=r"Practice 1 \(FP1\)"):
        tif1.get_session(2025, EVENT, "Warm-up")
    with pytest.raises(tif1.SessionNotFoundError, match="has no Sprint; it has Practice 1"):
        tif1.get_session(2025, EVENT, "Sprint")
    with pytest.raises(tif1.EventNotFoundError, match="seasons start with 2018"):
        tif1.get_session(2017, "Monaco", "Race")
    with pytest.raises(tif1.EventNotFoundError, match="no calendar of the season 2018 is published"):
        tif1.get_session(2018, "Monaco", "Race")
    with pytest.raises(tif1.ConfigError, match="pandas or polars"):
        tif1.get_session(2025, EVENT, "Race", backend="dask")
    with pytest.raises(tif1.DriverNotFoundError, match=r"no driver .XXX..*there are"):
        tif1.get_session(2025, EVENT, "Race").get_driver_laps("XXX")


def test_events_and_sessions_of_a_season(tif1):
    events = tif1.get_events(2025)
    assert [event["round"] for event in events] == [1, 2]
    assert str(events[0]) == events[0]["name"] == EVENT
    assert tif1.get_session(2025, events[0], "Q").event == EVENT
    assert tif1.get_sessions(2025, EVENT) == ["Practice 1", "Practice 2", "Practice 3", "Qualifying", "Race"]


def test_next_event_is_none_when_the_season_is_over_or_unpublished(tif1):
    following = tif1.get_next_event()
    if datetime.now(UTC).year != 2025:
        assert following is None


# ---- tables


def test_every_table_has_its_schema(race):
    frames = {
        "laps": race.laps,
        "telemetry": race.telemetry,
        "weather": race.weather,
        "messages": race.messages,
        "drivers": race.drivers_df,
        "corners": race.corners,
    }
    for name, frame in frames.items():
        expected = [column.name for column in DATASETS[name].columns]
        assert list(frame.columns)[: len(expected)] == expected, name
        assert len(frame), name
    assert frames["laps"]["LapTime"].dtype == "timedelta64[ns]"
    assert frames["laps"]["LapStartDate"].dtype == "datetime64[ns]"
    assert isinstance(frames["laps"]["Driver"].dtype, pd.CategoricalDtype)
    assert frames["laps"]["IsAccurate"].dtype == "boolean"
    assert frames["telemetry"]["Speed"].dtype == "float32"
    assert set(race.drivers) == set(frames["drivers"]["Driver"])


def test_info_says_what_the_session_is(race):
    info = race.info
    assert (info["EventName"], info["SessionType"], info["Year"], info["RoundNumber"]) == (EVENT, "Race", 2025, 1)
    assert info["StartDate"].tzinfo is not None


def test_polars_frames_hold_the_same(tif1, race):
    polars = tif1.get_session(2025, EVENT, "Race", backend="polars")
    assert isinstance(polars.laps, pl.DataFrame)
    assert polars.laps["LapTimeSeconds"].to_list() == [None if pd.isna(v) else v for v in race.laps["LapTimeSeconds"]]
    assert isinstance(polars.get_driver_telemetry(race.drivers[0]), pl.DataFrame)
    assert isinstance(polars.get_driver_laps(race.drivers[0]), pl.DataFrame)


def test_second_read_is_answered_by_the_cache(tif1, race, cdn):
    first = race.laps
    asked = cdn.requests.total
    tif1.get_cache().clear_memory()
    from_disk = tif1.get_session(2025, EVENT, "Race").laps
    from_memory = tif1.get_session(2025, EVENT, "Race").laps
    assert cdn.requests.total == asked
    pd.testing.assert_frame_equal(first, from_disk)
    pd.testing.assert_frame_equal(first, from_memory)


def test_a_caller_that_changes_a_frame_never_changes_the_cache(race):
    before = race.laps.copy(deep=True)
    frame = race.laps
    frame.loc[0, "LapNumber"] = -1.0
    frame["Position"] = 99.0
    del frame["Driver"]
    pd.testing.assert_frame_equal(race.laps, before)


# ---- parts


def test_one_lap_is_one_telemetry_file(race, cdn):
    laps = race.laps
    driver, lap = laps.iloc[0]["Driver"], int(laps.iloc[0]["LapNumber"])
    frame = race.get_lap_telemetry(driver, lap)
    assert set(frame["Driver"]) == {driver}
    assert set(frame["LapNumber"]) == {lap}
    assert cdn.requests.count("*_tel.json") == 1
    race.get_lap_telemetry(driver.lower(), lap)
    assert cdn.requests.count("*_tel.json") == 1


def test_one_driver_fetches_that_drivers_files_only(race, cdn):
    driver = race.laps.iloc[0]["Driver"]
    frame = race.get_driver_telemetry(driver)
    assert set(frame["Driver"]) == {driver}
    assert cdn.requests.count("*_tel.json") == cdn.requests.count(f"*/{driver}/*_tel.json") > 0
    asked = cdn.requests.total
    lap = int(frame["LapNumber"].iloc[0])
    pd.testing.assert_frame_equal(
        race.get_lap_telemetry(driver, lap).reset_index(drop=True),
        frame[frame["LapNumber"] == lap].reset_index(drop=True),
    )
    assert cdn.requests.total == asked


def test_the_whole_table_serves_drivers_and_laps(tif1, race, cdn):
    whole = race.telemetry
    asked = cdn.requests.total
    for driver in whole["Driver"].unique():
        part = race.get_driver_telemetry(driver)
        expected = whole[whole["Driver"] == driver].reset_index(drop=True)
        pd.testing.assert_frame_equal(part, expected, check_categorical=False)
    assert cdn.requests.total == asked
    missing = max(whole["LapNumber"]) + 100
    with pytest.raises(tif1.DataNotFoundError, match=f"lap {missing}"):
        race.get_lap_telemetry(whole["Driver"].iloc[0], missing)


def test_driver_laps_by_code_and_number(race):
    row = race.drivers_df.dropna(subset="DriverNumber").iloc[:1]
    driver = race.laps.iloc[0]["Driver"]
    assert set(race.get_driver_laps(driver)["Driver"]) == {driver}
    if len(row):
        by_number = race.get_driver_laps(row.iloc[0]["DriverNumber"])
        assert set(by_number["Driver"]) <= {row.iloc[0]["Driver"]}


# ---- loading


def test_load_fetches_everything_at_once(race, cdn, tif1):
    assert race.load() is race
    asked = cdn.requests.total
    for frame in (race.laps, race.telemetry, race.weather, race.messages):
        assert len(frame)
    assert cdn.requests.total == asked


def test_load_async_leaves_the_event_loop_free(race, cdn):
    async def both() -> int:
        ticks = 0
        task = asyncio.create_task(race.load_async(telemetry=False))
        while not task.done():
            await asyncio.sleep(0.001)
            ticks += 1
        await task
        return ticks

    cdn.faults.add(Fault("latency", seconds=0.05))
    assert asyncio.run(both()) > 3


def test_sync_properties_work_inside_a_running_event_loop(race):
    async def notebook_cell() -> int:
        return len(race.laps)

    assert asyncio.run(notebook_cell()) > 0


def test_concurrent_misses_fetch_once(tif1, cdn):
    cdn.faults.add(Fault("latency", seconds=0.2))
    tif1.get_session(2025, EVENT, "Race")
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(len(tif1.get_session(2025, EVENT, "Race").laps)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1
    assert len(results) == 8
    assert cdn.requests.count("session_laptimes.json") == 1


# ---- bypass, offline, faults


def test_without_the_cache_nothing_is_read_from_it_or_stored(tif1, cdn):
    cached = tif1.get_session(2025, EVENT, "Race").laps
    session = tif1.get_session(2025, EVENT, "Race", enable_cache=False)
    before = cdn.requests.count("session_laptimes.json")
    pd.testing.assert_frame_equal(session.laps, cached)
    assert cdn.requests.count("session_laptimes.json") == before + 1
    session.laps  # noqa: B018
    assert cdn.requests.count("session_laptimes.json") == before + 1, "the session holds what it fetched"
    assert len(session.weather)
    assert not tif1.get_cache().exists(2025, EVENT, "Race", "weather")


def test_get_telemetry_can_bypass_the_cache(race, cdn, tif1):
    cached = race.get_telemetry()
    before = cdn.requests.count("*_tel.json", status=200)
    fresh = race.get_telemetry(enable_cache=False)
    assert cdn.requests.count("*_tel.json", status=200) > before
    pd.testing.assert_frame_equal(cached, fresh)


def test_cache_enabled_off_bypasses(tif1, cdn):
    tif1.get_config().cache_enabled = False
    session = tif1.get_session(2025, EVENT, "Race")
    assert len(session.laps)
    tif1.get_config().cache_enabled = True
    assert not tif1.get_cache().exists(2025, EVENT, "Race", "laps")


def test_offline_serves_what_is_cached_and_says_why_else_not(tif1, race, cdn):
    laps = race.laps
    tif1.get_config().offline = True
    asked = cdn.requests.total
    pd.testing.assert_frame_equal(tif1.get_session(2025, "Melbourne", "R").laps, laps)
    with pytest.raises(tif1.NetworkError, match="offline"):
        race.weather  # noqa: B018
    assert cdn.requests.total == asked


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("error", status=503), "NetworkError"),
        (Fault("truncate"), "NetworkError|InvalidDataError"),
        (Fault("garbage"), "InvalidDataError"),
        (Fault("reset"), "NetworkError"),
        (Fault("missing"), "DataNotFoundError"),
        (Fault("forbidden"), "DataNotFoundError"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_a_faulty_cdn_is_a_clear_error_and_what_is_cached_is_still_served(tif1, race, cdn, fault, error):
    laps = race.laps
    cdn.faults.add(fault)
    with pytest.raises(tif1.Tif1Error) as caught:
        race.telemetry  # noqa: B018
    assert type(caught.value).__name__ in error.split("|")
    with pytest.raises(tif1.Tif1Error):
        race.weather  # noqa: B018
    assert not tif1.get_cache().exists(2025, EVENT, "Race", "telemetry")
    pd.testing.assert_frame_equal(tif1.get_session(2025, EVENT, "Race").laps, laps)
    cdn.faults.clear()


def test_an_expired_table_is_checked_and_kept_when_unchanged(tif1, race, cdn):
    race.laps  # noqa: B018
    tif1.get_config().cache_ttl_laps = 0.001
    race.laps  # noqa: B018
    assert cdn.requests.count("session_laptimes.json", status=304) >= 1
    assert cdn.requests.count("session_laptimes.json", status=200) == 1


def test_an_expired_table_is_replaced_when_it_changed(tif1, race, cdn):
    before = race.laps
    tif1.get_config().cache_ttl_laps = 0.001
    cdn.republish(f"{EVENT}/Race/session_laptimes.json")
    assert not race.laps.equals(before)


def test_an_expired_table_is_served_when_the_cdn_is_down(tif1, race, cdn, caplog):
    before = race.laps
    tif1.get_config().cache_ttl_laps = 0.001
    cdn.faults.add(Fault("error", status=500))
    pd.testing.assert_frame_equal(race.laps, before)
    assert "could not be refreshed, serving it as it is" in caplog.text


def test_a_table_with_a_hole_is_not_stored(tif1, race, cdn):
    driver = race.laps.iloc[0]["Driver"]
    cdn.faults.add(Fault("error", status=500, path=f"Race/{driver}/1_tel.json"))
    with pytest.raises(tif1.NetworkError, match="1 of"):
        race.telemetry  # noqa: B018
    assert not tif1.get_cache().exists(2025, EVENT, "Race", "telemetry")
    cdn.faults.clear()
    assert len(race.telemetry)


def test_settings_take_effect_at_once(tif1, race, cdn, tmp_path):
    race.laps  # noqa: B018
    tif1.get_config().cache_dir = tmp_path / "elsewhere"
    assert not tif1.get_cache().exists(2025, EVENT, "Race", "laps")
    assert len(tif1.get_session(2025, EVENT, "Race").laps)
    assert cdn.requests.count("session_laptimes.json") == 2
    assert (tmp_path / "elsewhere" / "tif1_cache.db").exists()


def test_float64_telemetry_keeps_every_published_bit(tif1, season):
    import json

    tif1.get_config().telemetry_dtype = "float64"
    race = tif1.get_session(2025, EVENT, "Race")
    laps = race.laps
    driver, lap = laps.iloc[1]["Driver"], int(laps.iloc[1]["LapNumber"])
    published = json.loads(season.file(f"{EVENT}/Race/{driver}/{lap}_tel.json"))["tel"]
    frame = race.get_lap_telemetry(driver, lap)
    assert frame["Distance"].dtype == "float64"
    expected = [float("nan") if value in ("None", None) else value for value in published["distance"]]
    pd.testing.assert_series_equal(frame["Distance"], pd.Series(expected, name="Distance", dtype="float64"))


def test_a_session_can_be_copied_and_described(race):
    assert repr(race) == "<Session 2025 Australian Grand Prix Race>"
    assert copy.copy(race).key == race.key


def test_a_driver_who_was_published_late_is_found_once_the_table_expired(tif1, race, cdn):
    driver = race.laps.iloc[0]["Driver"]
    cdn.hide(f"Race/{driver}/*_tel.json")
    assert driver not in set(race.telemetry["Driver"])
    cdn.publish()
    with pytest.raises(tif1.DataNotFoundError, match=f"no telemetry of {driver}"):
        race.get_driver_telemetry(driver)
    tif1.get_config().cache_ttl_telemetry = 0.001
    assert len(race.get_driver_telemetry(driver))


def test_an_expired_table_that_only_memory_has_is_served_when_the_cdn_is_down(tif1, race, cdn, tmp_path):
    (tmp_path / "a file").write_text("where the folder should be")
    tif1.get_config().cache_dir = tmp_path / "a file"
    before = race.laps
    tif1.get_config().cache_ttl_laps = 0.001
    cdn.faults.add(Fault("error", status=500))
    pd.testing.assert_frame_equal(race.laps, before)


def test_an_unusable_cache_folder_costs_no_data(tif1, cdn, tmp_path):
    (tmp_path / "a file").write_text("where the folder should be")
    tif1.get_config().cache_dir = tmp_path / "a file"
    session = tif1.get_session(2025, EVENT, "Race")
    driver = session.drivers[0]
    for frame in (session.laps, session.weather, session.get_driver_telemetry(driver), session.get_driver_laps(driver)):
        assert len(frame)


def test_some_drivers_rows_of_any_table(tif1, race):
    from tif1_pipeline.api import get_reader

    driver = race.laps.iloc[0]["Driver"]
    rows = get_reader().table(race.key, "laps", "pandas", columns=["Driver", "LapNumber"], drivers=[driver]).value
    assert set(rows["Driver"]) == {driver}
    assert list(rows.columns) == ["Driver", "LapNumber"]


def test_a_cache_file_of_its_own_knows_every_spelling(tif1, cdn, tmp_path):
    from tif1_pipeline.api import get_reader

    get_reader(tmp_path / "own.db").calendar(2025)
    race = get_reader(tmp_path / "own.db").calendar(2025).find("Melbourne").key("R")
    get_reader(tmp_path / "own.db").table(race, "laps")
    assert tif1.get_cache(tmp_path / "own.db").exists(2025, "Melbourne", "R", "laps")
    assert not tif1.get_cache().exists(2025, EVENT, "Race", "laps")
    assert tif1.get_cache(tif1.get_config().cache_path) is tif1.get_cache()


def test_removing_a_table_removes_its_parts(tif1, race, cdn):
    driver = race.laps.iloc[0]["Driver"]
    race.get_driver_telemetry(driver)
    asked = cdn.requests.count("*_tel.json")
    assert tif1.get_cache().remove(race.key.entry("telemetry")) == 1
    race.get_driver_telemetry(driver)
    assert cdn.requests.count("*_tel.json") == 2 * asked


def test_a_file_that_is_no_cache_is_refused_and_left_alone(tif1, tmp_path):
    table = tmp_path / "sales.csv"
    table.write_text("shop,total\n1,2\n")
    with pytest.raises(tif1.CacheVersionError, match="no SQLite database; nothing was changed"):
        tif1.get_cache(table).read("x")
    assert table.read_text() == "shop,total\n1,2\n"
