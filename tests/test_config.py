"""Settings: sources in order of strength, checked on assignment."""

from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from tif1_pipeline.config import Config, load_config, setting_help
from tif1_pipeline.exceptions import ConfigError


def test_defaults_are_those_of_the_specification(tmp_path):
    config = load_config({}, tmp_path)
    assert config.memory_cache_size == 100
    assert config.cache_path == Path("~/.tif1/cache/tif1_cache.db").expanduser()
    assert config.cache_compression_level == 3
    assert config.cache_lock_timeout == timedelta(seconds=30)
    assert config.max_concurrent_requests == 32
    assert 64 <= config.memory_cache_max_mb <= 2048
    assert config.cdn_urls[0] == "https://cdn.jsdelivr.net/gh/TracingInsights/{year}@main"
    assert config.telemetry_dtype == "float32"
    assert config.cache_ttl is None


def test_the_defaults_are_what_a_check_allows():
    config = Config()
    for name in setting_help():
        setattr(config, name, getattr(config, name))  # raises if not


def test_file_beats_environment_beats_default_and_assignment_beats_all(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.tif1_pipeline]\nmax_retries = 5\n")
    config = load_config({"TIF1_MAX_RETRIES": "7", "TIF1_CACHE_TTL": "7d"}, tmp_path)
    assert config.max_retries == 5
    assert config.cache_ttl == timedelta(days=7)
    config.max_retries = 1
    assert config.max_retries == 1


def test_a_named_file_replaces_pyproject(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.tif1_pipeline]\nmax_retries = 5\n")
    named = tmp_path / "tif1.toml"
    named.write_text("max_retries = 6\n")
    assert load_config({"TIF1_CONFIG": str(named)}, tmp_path).max_retries == 6


def test_a_named_file_that_is_missing_or_broken_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml, which cannot be read"):
        load_config({"TIF1_CONFIG": str(tmp_path / "nowhere.toml")}, tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("= 5")
    with pytest.raises(ConfigError, match=r"broken\.toml, which cannot be read"):
        load_config({"TIF1_CONFIG": str(broken)}, tmp_path)


def test_someone_elses_broken_pyproject_is_not_ours_to_judge(tmp_path):
    (tmp_path / "pyproject.toml").write_text("= 5")
    assert load_config({}, tmp_path).max_retries == 3


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("cache_compression_level", 30, "from 1 to 22"),
        ("cache_compression_level", "much", "cache_compression_level"),
        ("memory_cache_size", 0, "from 1"),
        ("memory_cache_size", True, "whole number"),
        ("memory_cache_size", 1.5, "whole number"),
        ("cache_enabled", "maybe", "true or false"),
        ("cache_page_size", 5000, "power of two"),
        ("cache_filename", "../x.db", "bare file name"),
        ("cache_dir", "", "path"),
        ("cache_ttl", "soon", "cache_ttl"),
        ("cache_ttl", -1, "above zero"),
        ("telemetry_dtype", "float16", "float32, float64"),
        ("cdn_urls", "http://example.org/{year}", "plain http"),
        ("cdn_urls", "ftp://example.org", "no http"),
        ("cdn_urls", "", "at least one"),
        ("cdn_urls", "https://example.org/{year}?token=x", "query or fragment"),
        ("cdn_urls", "https://me:secret@example.org", "credentials"),
        ("request_timeout", 0, "above zero"),
        ("max_concurrent_requests", 0, "from 1 to 256"),
    ],
)
def test_a_bad_value_is_refused_with_the_choices_and_changes_nothing(name, value, says):
    config = Config()
    before = config.to_dict()
    with pytest.raises(ConfigError, match=says):
        setattr(config, name, value)
    assert config.to_dict() == before


@pytest.mark.parametrize(
    "line",
    ["", "daily", "@daily", "0 2 * *", "0 0 2 * * *", "0 25 * * *", "0 0 L * *", "0 0 LW * *", "0 0 * * 5L"]  # noqa: RUF005
    + ["0 0 * * 1#2", "0 0 ? * *", "0 0 31 2 *", "0 0 31 2 1", "*/0 * * * *", "\u0663 0 * * *"],
)
def test_a_cron_line_that_only_some_schedulers_understand_is_refused(line):
    with pytest.raises(ConfigError, match=r"nightly_warm_cron.*a cron line of five fields is needed"):
        Config().nightly_warm_cron = line


@pytest.mark.parametrize(
    "line", ["* * * * *", " 0 2 * * * ", "*/15 2-4,6 1,15 JAN-jun mon-FRI", "0 0 29 2 *", "7/20 * * jul 7"]
)
def test_a_cron_line_that_is_allowed_makes_a_schedule(line):
    config = Config()
    config.nightly_warm_cron = line
    dg.ScheduleDefinition(name="some", job_name="some_job", cron_schedule=config.nightly_warm_cron)


@pytest.mark.parametrize("scheme", ["https", "http", "ftp"])
def test_an_error_does_not_repeat_credentials(scheme):
    with pytest.raises(ConfigError) as caught:
        Config(cdn_urls=f"{scheme}://me:secret@example.org")
    assert "secret" not in str(caught.value)


def test_an_unknown_name_names_the_closest():
    with pytest.raises(ConfigError, match="did you mean cache_ttl"):
        Config().cache_tll = 5
    with pytest.raises(ConfigError, match=r"TIF1_CACHE_DIRR.*did you mean cache_dir"):
        load_config({"TIF1_CACHE_DIRR": "x"})


def test_update_is_all_or_nothing():
    config = Config()
    with pytest.raises(ConfigError):
        config.update({"max_retries": 9, "cache_compression_level": 99})
    assert config.max_retries == 3


@pytest.mark.parametrize(
    ("value", "seconds"), [("90", 90), ("15m", 900), ("2h", 7200), ("7d", 604800), ("1w", 604800), (1.5, 1.5), (60, 60)]
)
def test_durations_are_read_in_every_form(value, seconds):
    assert Config(cache_ttl=value).cache_ttl == timedelta(seconds=seconds)


def test_ttl_by_type_falls_back_to_the_general_one():
    config = Config(cache_ttl="7d", cache_ttl_laps="1h", cache_ttl_schedule=None)
    assert config.ttl_of("laps") == timedelta(hours=1)
    assert config.ttl_of("weather") == config.ttl_of("corners") == config.ttl_of("schedule") == timedelta(days=7)


def test_loopback_may_be_plain_http_and_lists_are_split():
    config = Config(cdn_urls="http://127.0.0.1:8000/{year}/, https://example.org/{year}")
    assert config.cdn_urls == ("http://127.0.0.1:8000/{year}", "https://example.org/{year}")


def test_every_setting_says_what_it_does():
    assert all(setting_help().values())
    assert set(setting_help()) == set(Config().to_dict())


@pytest.mark.parametrize(
    "url", ["http://me:hunter2@127.0.0.1:1", "http://me:x@hunter2@127.0.0.1:1", "http://127.0.0.1:1/?token=hunter2"]
)
def test_what_is_secret_in_a_url_is_not_shown(url: str) -> None:
    config = Config(webserver_url=url)
    assert "hunter2" not in repr(config) + str(config.to_dict())
    assert "127.0.0.1:1" in config.to_dict()["webserver_url"]
    with pytest.raises(ConfigError) as error:
        Config(cdn_urls=[url.replace("http:", "https:")])
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cache_dir", "a\0b"),
        ("cache_dir", "\ud800"),
        ("cache_dir", "~nobody-of-this-name/x"),
        ("cache_filename", "\ud800"),
        ("cache_encryption_key", [7]),
    ],
)
def test_values_that_only_their_use_would_refuse(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        setattr(Config(), name, value)


@pytest.mark.parametrize("content", ["[[tool.tif1_pipeline]]", "[tool]\ntif1_pipeline = 3"])
def test_a_section_that_is_no_table(tmp_path: Path, content: str) -> None:
    (tmp_path / "pyproject.toml").write_text(content)
    with pytest.raises(ConfigError, match="no table"):
        load_config({}, tmp_path)


def test_a_file_of_somebody_else_whose_tool_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("tool = 3")
    assert load_config({}, tmp_path).to_dict() == Config().to_dict()


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "~nobody-of-this-name/x"])
def test_a_path_of_settings_that_no_file_can_have(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="TIF1_CONFIG"):
        load_config({"TIF1_CONFIG": path}, tmp_path)
