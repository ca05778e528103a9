"""`clean`, `expire`, `clear`, `vacuum`, `optimize`: what goes, what stays, what asks first."""

import json
import shlex

import numpy as np
import pyarrow as pa
import pytest

from tif1_pipeline.keys import EntryKey

LAPS = "2025_monaco_race_laps_pandas"
TELEMETRY = "2024_sao_paulo_sprint_qualifying_telemetry_pandas"
QUALIFYING = "2025_monaco_qualifying_laps_pandas"
WEATHER = "2025_monaco_race_weather_pandas"
KEYS = {LAPS, WEATHER, QUALIFYING, TELEMETRY, "asset_kept", "asset_old"}


def keys(cache):
    return {row["key"] for row in cache.get_entries()}


TARGETS = [
    ("--all --yes", KEYS),
    ("--year 2025", {LAPS, WEATHER, QUALIFYING}),
    ("--year 2025 --event Monaco", {LAPS, WEATHER, QUALIFYING}),
    ("--year 2025 --event 'Monaco Grand Prix' --session R", {LAPS, WEATHER}),
    ("--year 2025 --event monaco --session race --type weather", {WEATHER}),
    ("--year 2024 --event 'São Paulo' --session SQ", {TELEMETRY}),
    ("--year 2023", set()),
    ("--type laps", {LAPS, QUALIFYING}),
    ("--pattern '*_race_*'", {LAPS, WEATHER}),
    ("--older-than 30d", {"asset_old"}),
    ("--largest 1", {LAPS}),  # the pinned one is larger
    ("--lru 1", {"asset_old"}),
    ("--low-access 1", {WEATHER, QUALIFYING, TELEMETRY, "asset_old"}),
    ("--corrupted", {QUALIFYING}),
]


@pytest.mark.parametrize(("target", "removed"), TARGETS)
def test_clear_removes_what_is_named_and_foretells_it(invoke, filled, damage, target, removed):
    damage(filled, QUALIFYING)
    arguments = shlex.split(target)
    foretold = invoke("clear", *arguments, "--dry-run", "--json")
    assert foretold.exit_code == 0, foretold.output
    assert {row["key"] for row in json.loads(foretold.stdout)["entries"]} == removed
    assert keys(filled) == KEYS
    result = invoke("clear", *arguments, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["removed"] == len(removed)
    assert keys(filled) == KEYS - removed


def test_clear_finds_events_by_the_calendar_that_is_stored(invoke, tif1):
    tif1.get_session(2025, "Australian Grand Prix", "R").laps  # noqa: B018
    found = invoke("clear", "--year", "2025", "--event", "Melbourne", "--dry-run", "--json")
    assert {row["event"] for row in json.loads(found.stdout)["entries"]} == {"australian"}
    assert isinstance(invoke("clear", "--year", "2025", "--event", "Mars").exception, tif1.EventNotFoundError)
    number = len(json.loads(found.stdout)["entries"])
    result = invoke("clear", "--year", "2025", "--event", "Melbourne", "--json")
    assert json.loads(result.stdout)["removed"] == number


def test_clear_all_refuses_where_nobody_can_be_asked(invoke, filled):
    result = invoke("clear", "--all")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert keys(filled) == KEYS


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("", "say what to remove: choose one of --all"),
        ("--all --year 2025", "--all and --year cannot be given together"),
        ("--year 2025 --type laps", "--year and --type cannot be given together"),
        ("--lru 1 --largest 1", "cannot be given together"),
        ("--event Monaco", "--event needs a --year"),
        ("--year 2025 --session R", "--session needs"),
        ("--largest 0", "--largest"),
        ("--low-access -1", "--low-access"),
        ("--older-than yesterday", "no duration"),
    ],
)
def test_clear_needs_one_target(invoke, filled, arguments, reason):
    result = invoke("clear", *shlex.split(arguments), "--yes")
    assert result.exit_code == 2
    assert reason in result.stderr
    assert keys(filled) == KEYS


def test_expire_drops_what_is_too_old(invoke, filled, tif1):
    assert invoke("expire", "--dry-run").stdout == "nothing has expired\n"
    tif1.get_config().cache_ttl_laps = "0.001s"
    try:
        foretold = json.loads(invoke("expire", "--dry-run", "--json").stdout)
        assert {row["key"] for row in foretold["entries"]} == {LAPS, QUALIFYING}
        assert LAPS in invoke("expire", "--dry-run").stdout
        assert "2 entries removed, 4 left" in invoke("expire").stdout
    finally:
        tif1.get_config().cache_ttl_laps = None
    assert keys(filled) == KEYS - {LAPS, QUALIFYING}


def test_clean_does_nothing_below_the_threshold(invoke, filled):
    assert "nothing would go: a cleanup starts above 4,500 MiB" in invoke("clean", "--dry-run").stdout
    assert "0 entries removed, 6 left" in invoke("clean").stdout


def test_clean_to_a_size_takes_what_is_old_and_seldom_read(invoke, filled, tif1):
    before = tif1.get_config().to_dict()
    arguments = ["--to-mb", "0", "--strategy", "size", "--max-age-days", "30", "--min-access", "2"]
    cache = tif1.get_cache()
    noise = np.random.default_rng(1).integers(0, 1 << 62, 200_000)  # above the least threshold, 1 MiB
    cache.write(EntryKey("noise", "asset", pinned=True), pa.table({"n": noise}))
    foretold = json.loads(invoke("clean", *arguments, "--dry-run", "--json").stdout)
    assert [row["key"] for row in foretold["entries"]] == ["asset_old"]
    assert foretold["to_remove_mb"] == pytest.approx(foretold["entries"][0]["compressed_mb"])
    text = invoke("clean", *arguments, "--dry-run").stdout
    assert "1 entry, 0.0 MiB, would be removed" in text
    assert "asset_old" in text
    assert "1 entry removed" in invoke("clean", *arguments).stdout
    assert KEYS - keys(filled) == {"asset_old"}
    assert tif1.get_config().to_dict() == before


def test_clean_smart_goes_down_to_the_size_whatever_it_takes(invoke, filled, tif1):
    arguments = ["--smart", "--max-age-days", "30", "--min-access", "1"]
    foretold = invoke("clean", *arguments, "--dry-run")
    assert "1 entry, 0.0 MiB, would be removed" in foretold.stdout
    assert "asset_old" in foretold.stdout
    assert json.loads(invoke("clean", *arguments, "--json").stdout)["removed"] == 1
    assert keys(filled) == KEYS - {"asset_old"}
    assert "4 entries removed, 1 left" in invoke("clean", "--smart", "--to-mb", "0").stdout
    assert keys(filled) == {"asset_kept"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--smart --strategy lru", "leave --strategy out"),
        ("--strategy random", "--strategy"),
        ("--to-mb -1", "--to-mb"),
        ("--max-age-days 1e300", "no number of days"),
        ("--max-age-days nan", "no number of days"),
        ("--min-access x", "--min-access"),
    ],
)
def test_clean_refuses_bad_input(invoke, filled, arguments, reason):
    result = invoke("clean", *shlex.split(arguments))
    assert result.exit_code == 2
    assert reason in result.stderr
    assert keys(filled) == KEYS


def test_vacuum_says_what_was_freed(invoke, filled):
    filled.clear_type("asset")
    freed = float(invoke("vacuum").stdout.split()[0])
    assert freed > 0
    assert invoke("vacuum").stdout == "0.0 MiB freed\n"


def test_optimize_does_what_is_asked_for(invoke, filled):
    assert invoke("optimize").stdout == "statistics refreshed\n"
    result = invoke("optimize", "--reindex", "--checkpoint")
    assert result.stdout == "indexes built anew\nstatistics refreshed\nlog written back\n"
    wal = filled.get_cache_file().with_name(filled.get_cache_file().name + "-wal")
    assert wal.stat().st_size == 0


@pytest.mark.parametrize(
    "arguments",
    ["clean", "clean --smart", "clean --dry-run", "expire", "clear --all --yes", "clear --lru 3", "vacuum", "optimize"],
)
def test_no_cache_is_no_error_and_stays_none(invoke, tmp_path, arguments):
    file = tmp_path / "nowhere" / "cache.db"
    result = invoke(*shlex.split(arguments), "--cache", file)
    assert result.exit_code == 0, result.output
    assert "there is no cache" in result.stdout
    assert not file.exists()


def test_a_read_only_cache_is_left_alone(invoke, filled, tif1):
    tif1.get_config().cache_readonly = True
    try:
        for arguments in ("clear --type laps", "vacuum", "optimize"):
            assert isinstance(invoke(*arguments.split()).exception, tif1.CacheReadOnlyError)
    finally:
        tif1.get_config().cache_readonly = False
    assert keys(filled) == KEYS
