"""Names: partition keys, CDN paths and cache keys of one session agree."""

import pytest

from tif1_pipeline.exceptions import InvalidDataError, SessionNotFoundError
from tif1_pipeline.keys import SessionKey, event_slug, generate_cache_key, path_segment, session_name, slug


def test_cache_keys_have_the_form_of_the_specification():
    assert generate_cache_key(2025, "Monaco", "Race", "laps") == "2025_monaco_race_laps_pandas"
    assert generate_cache_key(2025, "Monaco", "FP1", "laps") == "2025_monaco_practice_1_laps_pandas"
    assert (
        generate_cache_key(2024, "Silverstone", "Practice 1", "weather") == "2024_silverstone_practice_1_weather_pandas"
    )
    assert generate_cache_key(2025, "Monaco", "Race", "laps", "polars") == "2025_monaco_race_laps_polars"


def test_stored_keys_leave_out_grand_prix_and_accents():
    key = SessionKey(2025, "São Paulo Grand Prix", "Sprint Qualifying").entry("laps")
    assert key.text == "2025_sao_paulo_sprint_qualifying_laps_pandas"
    assert (key.year, key.event, key.session_type, key.data_type) == (2025, "sao_paulo", "sprint_qualifying", "laps")
    assert event_slug("British Grand Prix") == "british"


@pytest.mark.parametrize(
    "key",
    [
        SessionKey(2025, "São Paulo Grand Prix", "Race"),
        SessionKey(2024, "Miami Grand Prix", "Sprint Qualifying"),
        SessionKey(2023, "Austrian Grand Prix", "Sprint Shootout"),
        SessionKey(2023, "Austrian Grand Prix", "Sprint"),
        SessionKey(2026, "Pre-Season Testing 1", "Practice 3"),
        SessionKey(2020, "70th Anniversary Grand Prix", "Practice 1"),
    ],
    ids=str,
)
def test_a_partition_key_reads_back(key):
    assert SessionKey.parse(key.partition) == key


@pytest.mark.parametrize("text", ["", "2025", "2025 Monaco Grand Prix", "Monaco Race", "xx Monaco Grand Prix Race"])
def test_what_is_no_partition_key_is_refused(text):
    with pytest.raises(SessionNotFoundError, match="reads like"):
        SessionKey.parse(text)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("fp1", "Practice 1"),
        ("R", "Race"),
        ("q", "Qualifying"),
        ("sprint_shootout", "Sprint Shootout"),
        ("SQ", "Sprint Qualifying"),
        ("race", "Race"),
    ],
)
def test_session_types_are_known_by_name_and_short_form(given, name):
    assert session_name(given) == name


def test_an_unknown_session_type_names_the_choices():
    with pytest.raises(SessionNotFoundError, match=r"Practice 1 \(FP1\)"):
        session_name("warm-up")


def test_path_segments_are_escaped():
    assert path_segment("São Paulo Grand Prix") == "S%C3%A3o%20Paulo%20Grand%20Prix"
    assert path_segment("a/b?c#d%") == "a%2Fb%3Fc%23d%25"


@pytest.mark.parametrize("name", ["", ".", "..", " .. ", "a\0b", "a\nb", "\x7f", "\ud800"])
def test_names_that_would_reach_elsewhere_are_refused(name):
    with pytest.raises(InvalidDataError, match="cannot be the name"):
        path_segment(name)


def test_slugs_are_stable():
    assert slug("Pre-Season Testing 1") == "pre_season_testing_1"
    assert slug("Montréal") == "montreal"


def test_a_year_of_any_length_is_no_session() -> None:
    with pytest.raises(SessionNotFoundError):
        SessionKey.parse("9" * 5000 + " Monaco Grand Prix Race")
