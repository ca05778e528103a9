"""`config`: what is in force, and a settings file of all defaults."""

import dataclasses
import json
import re

import pytest

from tif1_pipeline.config import Config, load_config

NAMES = [field.name for field in dataclasses.fields(Config)]


def test_all_settings_are_listed_with_their_meaning(invoke):
    titles, *rows = [line.split("\t") for line in invoke("config").stdout.splitlines()]
    assert titles == ["Setting", "Value", "Source", "Default", "Meaning"]
    assert [row[0] for row in rows] == NAMES
    assert all(row[4] for row in rows)


def test_as_json_with_values_of_their_type(invoke, tif1):
    rows = {row["name"]: row for row in json.loads(invoke("config", "--json").stdout)}
    assert list(rows) == NAMES
    assert rows["cache_wal_mode"]["value"] is True
    assert rows["cache_ttl_schedule"]["value"] == 6 * 3600
    assert rows["cache_dir"]["value"] == str(tif1.get_config().cache_dir)
    assert rows["cdn_urls"]["value"] == list(tif1.get_config().cdn_urls)
    assert rows["cache_shards"]["source"] == "default"


@pytest.mark.parametrize("name", ["cache_ttl_schedule", "CACHE_TTL_SCHEDULE", "TIF1_CACHE_TTL_SCHEDULE"])
def test_one_setting_by_any_of_its_names(invoke, name):
    rows = dict(line.split("\t") for line in invoke("config", name).stdout.splitlines())
    assert rows["Setting"] == "cache_ttl_schedule"
    assert (rows["Value"], rows["Default"], rows["Source"]) == ("6h", "6h", "default")
    assert rows["Variable"] == "TIF1_CACHE_TTL_SCHEDULE"
    assert json.loads(invoke("config", name, "--json").stdout)["value"] == 6 * 3600


def test_an_unknown_setting_names_those_that_are_close(invoke, tif1):
    error = invoke("config", "cache_dri").exception
    assert isinstance(error, tif1.ConfigError)
    assert "cache_dir" in str(error)


def test_secrets_are_not_shown(invoke, tif1):
    tif1.get_config().cache_encryption_key = "ab" * 32
    try:
        for arguments in (["config"], ["config", "--json"], ["config", "cache_encryption_key"], ["config", "--toml"]):
            result = invoke(*arguments)
            assert result.exit_code == 0
            assert "abab" not in result.output
            assert arguments[-1] == "--toml" or "***" in result.stdout
    finally:
        tif1.get_config().cache_encryption_key = None


def test_the_settings_file_is_all_comments_and_holds_the_defaults(invoke, tmp_path):
    text = invoke("config", "--toml").stdout
    file = tmp_path / "tif1.toml"
    file.write_text(text)
    environment = {"TIF1_CONFIG": str(file)}
    assert load_config(environment).to_dict() == Config().to_dict()
    switched_on = re.sub(r"^#(\w+ = )", r"\1", text, flags=re.MULTILINE)
    assert re.findall(r"^(\w+) = ", switched_on, re.MULTILINE) == NAMES
    file.write_text(switched_on)
    others = {f"TIF1_{name}".upper(): "5" for name in ("cache_shards", "max_retries", "cache_ttl")}
    assert load_config(environment | others).to_dict() == Config().to_dict()


def test_toml_prints_all_alone(invoke):
    assert invoke("config", "--toml", "--json").exit_code == 2
    assert invoke("config", "cache_dir", "--toml").exit_code == 2


def test_sources_of_a_process_of_its_own(start, tmp_path):
    file = tmp_path / "tif1.toml"
    file.write_text("cache_shards = 3\nmax_retries = 7\n")
    process = start("config", "--json", TIF1_CONFIG=str(file), TIF1_MAX_RETRIES="9", TIF1_CACHE_TTL="5d")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    rows = {row["name"]: row for row in json.loads(output)}
    assert (rows["cache_shards"]["value"], rows["cache_shards"]["source"]) == (3, "file")
    assert (rows["max_retries"]["value"], rows["max_retries"]["source"]) == (7, "file")
    assert (rows["cache_ttl"]["value"], rows["cache_ttl"]["source"]) == (5 * 86400, "environment")
    assert rows["cache_wal_mode"]["source"] == "default"
