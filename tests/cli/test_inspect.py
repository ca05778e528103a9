"""`ls`, `search`, `stats`, `verify`: what is printed, as tables and as JSON, and how they end."""

import json
from datetime import datetime

import pytest

from tif1_pipeline.keys import EntryKey

LAPS = "2025_monaco_race_laps_pandas"
KEYS = {
    LAPS,
    "2025_monaco_race_weather_pandas",
    "2025_monaco_qualifying_laps_pandas",
    "2024_sao_paulo_sprint_qualifying_telemetry_pandas",
    "asset_kept",
    "asset_old",
}


def lines(result):
    assert result.exit_code == 0, result.output
    return [line.split("\t") for line in result.stdout.splitlines()]


def listed(result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_ls_lists_sessions_with_their_tables(invoke, filled):
    titles, *rows = lines(invoke("ls", "--sort", "accesses"))
    assert titles == ["Year", "Event", "Session", "Stored MiB", "Memory MiB", "Reads", "Last used", "Tables", "Types"]
    assert rows[0][:3] == ["2025", "monaco", "race"]
    assert (rows[0][5], rows[0][7], rows[0][8]) == ("3", "2", "laps,weather")
    assert datetime.fromisoformat(rows[0][6]).tzinfo
    assert len(rows) == 3


def test_ls_lists_entries_with_every_key_whole(invoke, filled):
    titles, *rows = lines(invoke("ls", "--entries"))
    assert titles[0] == "Key"
    assert {row[0] for row in rows} == KEYS


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["--year", "2024"], ["2024_sao_paulo_sprint_qualifying_telemetry_pandas"]),
        (["--type", "laps"], ["2025_monaco_qualifying_laps_pandas", LAPS]),
        (["--type", "laps", "--max-accesses", "0"], ["2025_monaco_qualifying_laps_pandas"]),
        (["--older-than", "30d"], ["asset_old"]),
        (["--older-than", "41d"], []),
        (["--min-size-mb", "100"], []),
        (["--min-size-mb", "0"], sorted(KEYS)),
        (["--sort", "stored", "--limit", "2"], ["asset_kept", LAPS]),
        (["--sort", "year", "--limit", "1", "--max-accesses", "0"], ["2025_monaco_qualifying_laps_pandas"]),
        (["--limit", "0"], []),
    ],
)
def test_ls_of_entries_takes_conditions(invoke, filled, arguments, keys):
    assert [row["key"] for row in listed(invoke("ls", "--entries", "--json", *arguments))] == keys


@pytest.mark.parametrize(
    ("arguments", "sessions"),
    [
        (["--year", "2025"], {"race", "qualifying"}),
        (["--type", "weather"], {"race"}),
        (["--max-accesses", "0"], {"qualifying", "sprint_qualifying"}),
        (["--older-than", "1d"], set()),
        (["--min-size-mb", "100"], set()),
        (["--sort", "event", "--limit", "2"], {"race", "qualifying"}),
    ],
)
def test_ls_of_sessions_takes_conditions(invoke, filled, arguments, sessions):
    assert {row["session_type"] for row in listed(invoke("ls", "--json", *arguments))} == sessions


def test_ls_largest_and_expired(invoke, filled, tif1, monkeypatch):
    assert [row["key"] for row in listed(invoke("ls", "--largest", "--limit", "1", "--json"))] == ["asset_kept"]
    assert listed(invoke("ls", "--expired", "--json")) == []
    monkeypatch.setattr(tif1.get_config(), "cache_ttl_laps", "0.001s")
    expired = listed(invoke("ls", "--expired", "--json"))
    assert {row["key"] for row in expired} == {LAPS, "2025_monaco_qualifying_laps_pandas"}
    monkeypatch.setattr(tif1.get_config(), "cache_ttl_laps", None)


def test_ls_says_what_there_is_when_nothing_is_so(invoke, filled):
    assert (
        invoke("ls", "--year", "1999").stdout == "no session is so; there are 6 entries: tif1-pipeline ls --entries\n"
    )
    assert invoke("ls", "--entries", "--year", "1999").stdout == "none of 6 entries is so\n"


def test_search_takes_globs_in_any_case(invoke, filled):
    assert {row["key"] for row in listed(invoke("search", "2025_MONACO_*", "--json"))} == {
        key for key in KEYS if "monaco" in key
    }
    assert len(listed(invoke("search", "*", "--limit", "2", "--json"))) == 2
    assert lines(invoke("search", "asset_ol?"))[1][0] == "asset_old"
    assert "no key of 6 entries matches nothing" in invoke("search", "nothing").stdout


def test_stats_as_json_are_those_of_the_cache(invoke, filled):
    found = listed(invoke("stats", "--json"))
    assert found["totals"]["total_entries"] == 6
    assert set(found["by_type"]) == {"laps", "weather", "telemetry", "asset"}
    assert found["by_year"]["2025"]["session_count"] == 2
    assert found["accesses"][0] == {"year": 2025, "event": "monaco", "session_type": "race", "access_count": 3}
    assert found["cache"] == str(filled.get_cache_file())


def test_stats_as_text_name_types_seasons_and_sessions(invoke, filled):
    rows = lines(invoke("stats"))
    assert ["Entries", "6"] in rows
    assert ["asset", "2"] in [row[:2] for row in rows]
    assert ["2025", "monaco", "race", "3"] in rows
    assert [title for [title] in (row for row in rows if len(row) == 1) if title] == [
        "By type",
        "By season",
        "Most read sessions",
    ]


@pytest.mark.parametrize("arguments", [["ls"], ["ls", "--entries"], ["search", "*"], ["stats"], ["verify"]])
def test_looking_at_no_cache_creates_none(invoke, tmp_path, arguments):
    file = tmp_path / "nowhere" / "cache.db"
    result = invoke(*arguments, "--cache", file)
    assert result.exit_code == 0
    assert f"there is no cache at {file}" in result.stdout
    json.loads(invoke(*arguments, "--cache", file, "--json").stdout)
    assert not file.parent.exists()


def test_an_empty_cache_is_said_to_be_empty(invoke, tif1):
    tif1.get_cache().open()
    assert "is empty" in invoke("ls").stdout


def test_a_folder_stands_for_its_cache_file(invoke, filled, tif1):
    folder = filled.get_cache_dir()
    tif1.get_config().cache_dir = folder / "elsewhere"
    assert listed(invoke("ls", "--json")) == []
    assert len(listed(invoke("ls", "--json", "--cache", folder))) == 3


def test_keys_cannot_steer_the_terminal(invoke, tif1):
    tif1.get_cache().write(EntryKey("a\x1b[2J\nb\tc", "asset"), [1])
    assert lines(invoke("ls", "--entries"))[1][0] == r"a\x1b[2J\x0ab\x09c"


def test_verify_of_a_sound_cache(invoke, filled):
    result = invoke("verify")
    assert (result.exit_code, result.stdout) == (0, "6 of 6 entries are sound\n")
    assert listed(invoke("verify", "--json"))["integrity_pct"] == 100
    assert invoke("verify", LAPS).stdout == "1 of 1 entry is sound\n"


def test_verify_ends_with_1_and_removes_on_demand(invoke, filled, damage):
    damage(filled, LAPS)
    result = invoke("verify")
    assert result.exit_code == 1
    assert "5 of 6 entries are sound" in result.stdout
    assert f"{LAPS}: " in result.stdout
    assert filled.info(LAPS)
    result = invoke("verify", "--remove", "--json")
    assert (result.exit_code, json.loads(result.stdout)["removed"]) == (1, 1)
    assert filled.info(LAPS) is None
    assert invoke("verify").exit_code == 0


def test_verify_of_one_entry_removes_that_alone(invoke, filled, damage):
    damage(filled, LAPS)
    damage(filled, "asset_old")
    assert invoke("verify", "asset_kept").exit_code == 0
    assert invoke("verify", LAPS).exit_code == 1
    assert invoke("verify", LAPS, "--remove").exit_code == 1
    assert {row["key"] for row in filled.get_entries()} == KEYS - {LAPS}


def test_verify_of_no_entry_says_how_to_find_one(invoke, filled):
    result = invoke("verify", "2025_mars")
    assert result.exit_code == 1
    assert "there is no entry 2025_mars" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["ls", "--older-than", "soon"], "'soon' is no duration"),
        (["ls", "--older-than", "-1d"], "no duration"),
        (["ls", "--min-size-mb", "-1"], "--min-size-mb"),
        (["ls", "--limit", "-1"], "--limit"),
        (["ls", "--year", "x"], "--year"),
        (["ls", "--sort", "key"], "add --entries"),
        (["ls", "--sort", "colour"], "--sort"),
        (["ls", "more"], "unexpected extra argument"),
        (["search"], "GLOB"),
        (["stats", "--jsn"], "No such option"),
        (["lss"], "Did you mean ls?"),
    ],
)
def test_bad_input_is_a_usage_error(invoke, arguments, reason):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert reason in result.stderr
