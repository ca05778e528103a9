"""Settings: each default once, checked on assignment, effective at once.

Sources from weak to strong: the defaults below, environment variables ``TIF1_<NAME>``, a TOML file
(``[tool.tif1_pipeline]`` of ``pyproject.toml`` in the working directory, or the file named by ``TIF1_CONFIG``),
assignment.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from tif1_pipeline import setting_types as kinds
from tif1_pipeline.exceptions import ConfigError

ENV_PREFIX = "TIF1_"
MIB = 1 << 20
_MASK = "***"


# ---- the settings


def _default_memory_mb() -> int:
    """A quarter of the machine's memory, at most 2048 MiB."""
    try:
        ram_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
    except (ValueError, OSError, AttributeError):  # a platform that does not say
        ram_mb = 4096
    return max(64, min(2048, ram_mb // 4))


def _setting(
    default: Any, convert: Callable[[Any], Any], check: Any = None, help: str = "", *, secret: bool = False
) -> Any:
    metadata = {"help": help, "secret": secret, "convert": convert, "check": check}
    return (
        field(default_factory=default, metadata=metadata)
        if callable(default)
        else field(default=default, metadata=metadata)
    )


def _ttl(what: str) -> Any:
    return _setting(
        None, kinds.optional(kinds.to_seconds), kinds.positive_duration, f"age at which {what} counts as expired"
    )


@dataclass(init=False, eq=False, repr=False)
class Config:
    """The settings of one process; :func:`tif1_pipeline.get_config` returns the one in force.

    Every attribute is converted and checked on assignment. Durations take ``timedelta``, seconds or text such as
    ``"7d"``.

    Raises:
        ConfigError: An unknown name (with the closest ones) or a bad value (with the choices).
    """

    memory_cache_enabled: bool = _setting(True, kinds.to_bool, None, "keep ready tables in this process's memory")
    memory_cache_size: int = _setting(100, kinds.to_int, kinds.between(1, 1_000_000), "tables kept in memory")
    memory_cache_laps_size: int | None = _setting(
        None, kinds.optional(kinds.to_int), kinds.between(1, 1_000_000), "laps tables"
    )
    memory_cache_telemetry_size: int | None = _setting(
        None, kinds.optional(kinds.to_int), kinds.between(1, 1_000_000), "telemetry tables"
    )
    memory_cache_weather_size: int | None = _setting(
        None, kinds.optional(kinds.to_int), kinds.between(1, 1_000_000), "weather tables"
    )
    memory_cache_max_mb: int = _setting(
        _default_memory_mb, kinds.to_int, kinds.between(1, 1 << 20), "MiB of tables kept in memory"
    )

    cache_enabled: bool = _setting(True, kinds.to_bool, None, "use the cache at all")
    cache_dir: Path = _setting("~/.tif1/cache", kinds.to_path, None, "folder of the cache file")
    cache_filename: str = _setting("tif1_cache.db", str, kinds.file_name, "name of the cache file")
    cache_compression_level: int = _setting(
        3, kinds.to_int, kinds.between(1, 22), "zstd level inside the Parquet parts"
    )

    # All of a race's telemetry reads in 10 ms with pages of 16 KiB, 18 with 4, 12 with 32 (578 MB of entries); for one
    # driver, for laps and for metadata the page size made no difference.
    cache_page_size: int = _setting(16384, kinds.to_int, kinds.page_size, "SQLite page size in bytes, for new files")
    cache_cache_size: int = _setting(
        10_000, kinds.to_int, kinds.between(0, 10_000_000), "SQLite page cache, in pages at most"
    )
    cache_wal_mode: bool = _setting(True, kinds.to_bool, None, "write-ahead log: readers never wait for a writer")
    cache_wal_autocheckpoint: int = _setting(
        1000, kinds.to_int, kinds.between(0, 1_000_000), "WAL pages before a checkpoint"
    )
    cache_mmap_size: int = _setting(
        256 * MIB, kinds.to_int, kinds.between(0, 1 << 40), "bytes of the file mapped into memory"
    )
    cache_lock_timeout: timedelta = _setting(
        30, kinds.to_seconds, kinds.positive_duration, "wait for another process's lock"
    )
    cache_max_connections: int = _setting(10, kinds.to_int, kinds.between(1, 1000), "connections of the pool")
    # Of the time of a read 0.5 to 2 % (of all of a race's telemetry: 23 MB in 1.5 of 72 ms).
    cache_verify_checksum: bool = _setting(True, kinds.to_bool, None, "check each part's checksum when it is read")

    cache_ttl: timedelta | None = _ttl("any table")
    cache_ttl_laps: timedelta | None = _ttl("a laps table")
    cache_ttl_telemetry: timedelta | None = _ttl("a telemetry table")
    cache_ttl_weather: timedelta | None = _ttl("a weather table")
    cache_ttl_messages: timedelta | None = _ttl("a messages table")
    cache_ttl_schedule: timedelta | None = _setting(
        timedelta(hours=6),
        kinds.optional(kinds.to_seconds),
        kinds.positive_duration,
        "age at which the running season's calendar expires",
    )

    cache_check_freshness: bool = _setting(
        False, kinds.to_bool, None, "ask the CDN, by conditional request, whether a stored table is still current"
    )
    cache_freshness_interval: timedelta = _setting(
        3600, kinds.to_seconds, kinds.positive_duration, "time between two such questions about one table"
    )

    cache_auto_cleanup: bool = _setting(False, kinds.to_bool, None, "clean by itself, when cache_cleanup_schedule says")
    cache_max_size_mb: int = _setting(5000, kinds.to_int, kinds.between(1, 1 << 30), "stored MiB that spare no entry")
    cache_cleanup_threshold_mb: int = _setting(
        4500, kinds.to_int, kinds.between(1, 1 << 30), "stored MiB that start a cleanup"
    )
    cache_cleanup_target_mb: int = _setting(
        4000, kinds.to_int, kinds.between(0, 1 << 30), "stored MiB at which a cleanup ends"
    )
    cache_cleanup_strategy: str = _setting(
        "lru", kinds.to_choice, kinds.one_of("lru", "size", "age", "smart"), "which entries a cleanup removes first"
    )
    cache_cleanup_min_age: timedelta = _setting(
        timedelta(days=7), kinds.to_seconds, kinds.duration, "younger entries are spared"
    )
    cache_cleanup_min_access: int = _setting(
        3, kinds.to_int, kinds.between(0, 1 << 30), "entries read at least so often are spared; 0 spares none for that"
    )
    cache_cleanup_log: bool = _setting(True, kinds.to_bool, None, "log what a cleanup removed")
    cache_cleanup_schedule: str = _setting("0 2 * * *", str, kinds.cron, "when to clean by itself: a cron line, in UTC")

    cache_readonly: bool = _setting(False, kinds.to_bool, None, "open the cache read-only and write nothing")
    cache_fallback_dir: Path | None = _setting(
        None,
        kinds.optional(kinds.to_path),
        None,
        "folder used while cache_dir cannot be, and synced back to it afterwards",
    )
    cache_shards: int = _setting(1, kinds.to_int, kinds.between(1, 64), "files over which the entries are spread")

    cache_enable_metrics: bool = _setting(False, kinds.to_bool, None, "write metrics beside the cache file")
    cache_metrics_interval: timedelta = _setting(
        300, kinds.to_seconds, kinds.positive_duration, "time between two writes"
    )
    cache_debug: bool = _setting(False, kinds.to_bool, None, "log every look-up and write, with tier and time")
    cache_audit_log: Path | None = _setting(
        None, kinds.optional(kinds.to_path), None, "file of JSON lines: who did what to which entry, and when"
    )
    cache_encryption_key: tuple[str, ...] | None = _setting(
        None,
        kinds.optional(kinds.to_texts),
        kinds.keys,
        "encrypt what is stored: 32 bytes as hexadecimal or base64; former keys may follow, after commas",
        secret=True,
    )
    cache_encryption_key_file: Path | None = _setting(
        None, kinds.optional(kinds.to_path), None, "file with such keys, one a line, instead"
    )

    cdn_urls: tuple[str, ...] = _setting(
        (
            "https://cdn.jsdelivr.net/gh/TracingInsights/{year}@main",
            "https://huggingface.co/buckets/tracinginsights/{year}/resolve",
            "https://cdn.staticdelivr.com/gh/TracingInsights/{year}/main",
        ),
        kinds.to_urls,
        kinds.safe_urls,
        "mirrors of the timing data, in the order tried; {year} is replaced",
    )
    schedule_urls: tuple[str, ...] = _setting(
        (
            "https://raw.githubusercontent.com/theOehrly/f1schedule/master/schedule_{year}.json",
            "https://cdn.jsdelivr.net/gh/theOehrly/f1schedule@master/schedule_{year}.json",
        ),
        kinds.to_urls,
        kinds.safe_urls,
        "mirrors of the season schedules; {year} is replaced",
    )
    max_concurrent_requests: int = _setting(32, kinds.to_int, kinds.between(1, 256), "requests under way at once")
    request_timeout: timedelta = _setting(
        30, kinds.to_seconds, kinds.positive_duration, "limit for connecting and for each read"
    )
    max_retries: int = _setting(3, kinds.to_int, kinds.between(0, 20), "further tries a mirror after a passing fault")
    telemetry_dtype: str = _setting(
        "float32",
        kinds.to_choice,
        kinds.one_of("float32", "float64"),
        "float64 keeps every published bit at twice the size",
    )
    offline: bool = _setting(False, kinds.to_bool, None, "never ask the CDN; serve what is cached")

    operations_timezone: str = _setting("UTC", str, kinds.time_zone, "time zone of the times below, by its IANA name")
    nightly_warm_cron: str = _setting(
        "0 2 * * *", str, kinds.cron, "when the coming event, recent and often used sessions are warmed"
    )
    daily_maintenance_cron: str = _setting(
        "30 2 * * *", str, kinds.cron, "when the cache is verified, repaired, cleaned, backed up and reported on"
    )
    weekly_maintenance_cron: str = _setting(
        "0 3 * * 0", str, kinds.cron, "when indexes are rebuilt, the file optimized and vacuumed"
    )
    run_cleanup_cron: str = _setting("0 4 * * *", str, kinds.cron, "when old runs are deleted from Dagster's storage")
    run_retention: timedelta = _setting(
        timedelta(days=30), kinds.to_seconds, kinds.positive_duration, "age at which a run without use is deleted"
    )
    warm_recent: timedelta = _setting(
        timedelta(days=14), kinds.to_seconds, kinds.duration, "sessions that began so long ago are kept warm"
    )
    backup_dir: Path | None = _setting(
        None, kinds.optional(kinds.to_path), None, "folder of the daily backups; beside the cache file by default"
    )
    backup_keep: int = _setting(7, kinds.to_int, kinds.between(1, 10_000), "daily backups that are kept")
    calendar_interval: timedelta = _setting(
        3600, kinds.to_seconds, kinds.positive_duration, "time between two looks for changes of the calendar"
    )
    completion_interval: timedelta = _setting(
        120, kinds.to_seconds, kinds.positive_duration, "time between two looks for the files of an ended session"
    )
    completion_window: timedelta = _setting(
        timedelta(days=3), kinds.to_seconds, kinds.positive_duration, "how long an ended session is looked after"
    )
    expiry_interval: timedelta = _setting(
        900, kinds.to_seconds, kinds.positive_duration, "time between two looks for expired entries"
    )
    expiry_action: str = _setting(
        "refresh", kinds.to_choice, kinds.one_of("refresh", "drop"), "what becomes of expired entries"
    )
    repair_interval: timedelta = _setting(
        600, kinds.to_seconds, kinds.positive_duration, "time between two looks for derived tables that are gone"
    )
    monitoring_interval: timedelta = _setting(
        300, kinds.to_seconds, kinds.positive_duration, "time between two looks at the health of the cache"
    )
    alert_urls: tuple[str, ...] = _setting(
        (), kinds.to_texts, kinds.alert_urls, "where alerts go besides the log, as Apprise URLs", secret=True
    )
    alert_hit_rate: float = _setting(0.7, kinds.to_float, kinds.between(0, 1), "hit rate below which there is an alert")
    alert_free_disk: float = _setting(
        0.1, kinds.to_float, kinds.between(0, 1), "share of the disk that must be free, else there is an alert"
    )
    alert_integrity: float = _setting(
        0.95, kinds.to_float, kinds.between(0, 1), "share of sound entries below which there is an alert"
    )
    plots: bool = _setting(True, kinds.to_bool, None, "draw pictures for the Dagster UI")
    webserver_url: str = _setting(
        "http://127.0.0.1:3000",
        str,
        kinds.web_url,
        "the Dagster webserver, which is asked to reload when the calendar has new events",
    )

    def __init__(self, **values: Any) -> None:
        for name, setting in _FIELDS.items():
            # Not checked, which would take a new process 2 ms: a test does that.
            object.__setattr__(self, name, setting.metadata["convert"](_default_of(setting)))
        self.update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        """Convert, check and set."""
        object.__setattr__(self, name, self._checked(name, value))

    def _checked(self, name: str, value: Any) -> Any:
        if name not in _FIELDS:
            raise _unknown_setting(name)
        facts = _FIELDS[name].metadata
        try:
            converted = facts["convert"](value)
            if facts["check"]:
                facts["check"](converted)
        except (ValueError, TypeError, OverflowError) as error:
            shown = _MASK if facts["secret"] else _without_passwords(repr(value))[:200]
            reason = _without_passwords(str(error))
            raise ConfigError(
                f"{shown} is no value for the setting {name} ({facts['help']}): {reason}",
                setting=name,
            ) from None
        return converted

    def update(self, values: Mapping[str, Any]) -> None:
        """Assign several settings; nothing changes unless all are good.

        Raises:
            ConfigError: As on assignment.
        """
        checked = {name: self._checked(name, value) for name, value in values.items()}
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return every setting by name, in the order of the documentation; secrets and passwords are masked."""
        return {name: _shown(name, value) for name, value in self._values().items()}

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _FIELDS}

    def ttl_of(self, data_type: str) -> timedelta | None:
        """Return how long a table of this type counts as fresh: its own setting, or ``cache_ttl``."""
        return getattr(self, f"cache_ttl_{data_type}", None) or self.cache_ttl

    @property
    def cache_path(self) -> Path:
        """The cache file."""
        return self.cache_dir / self.cache_filename

    def __repr__(self) -> str:
        return "Config(" + ", ".join(f"{name}={value!r}" for name, value in self.to_dict().items()) + ")"


_FIELDS = {setting.name: setting for setting in fields(Config)}


def _default_of(setting: Any) -> Any:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def setting_help() -> dict[str, str]:
    """Return one line of explanation per setting."""
    return {name: setting.metadata["help"] for name, setting in _FIELDS.items()}


def _shown(name: str, value: Any) -> Any:
    if value and _FIELDS[name].metadata["secret"]:
        return _MASK
    return _without_passwords(value) if isinstance(value, str) else value


def _without_passwords(text: str) -> str:
    """Mask what may carry credentials in the URLs of a text: user and password, query and fragment."""
    return re.sub(r"(://[^\s'\"?#]*)[?#][^\s'\"]*", r"\1?***", re.sub(r"//[^/\s'\"]*@", "//***@", text))


def _unknown_setting(name: str) -> ConfigError:
    import difflib

    close = difflib.get_close_matches(name, _FIELDS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"the settings are {', '.join(_FIELDS)}"
    return ConfigError(f"there is no setting {name!r}: {hint}", setting=name)


def load_config(environ: Mapping[str, str] | None = None, directory: Path | None = None) -> Config:
    """Build the settings from file and environment.

    Args:
        environ: Environment to read; the process's own by default.
        directory: Where to look for ``pyproject.toml``; the working directory by default.

    Raises:
        ConfigError: A file that is missing or no TOML, an unknown name, or a bad value.
    """
    environ = os.environ if environ is None else environ
    config = Config()
    from_environment = {}
    for variable, value in environ.items():
        if variable.startswith(ENV_PREFIX) and variable != f"{ENV_PREFIX}CONFIG":
            name = variable.removeprefix(ENV_PREFIX).lower()
            if name not in _FIELDS:
                raise ConfigError(f"environment variable {variable}: {_unknown_setting(name)}", setting=name)
            from_environment[name] = value
    config.update(from_environment)
    config.update(_settings_from_file(environ, directory or Path.cwd()))
    return config


def _settings_from_file(environ: Mapping[str, str], directory: Path) -> dict[str, Any]:
    named = environ.get(f"{ENV_PREFIX}CONFIG")
    path = directory / "pyproject.toml"
    if not named and not path.is_file():
        return {}
    try:
        path = kinds.to_path(named) if named else path
        text = path.read_text(encoding="utf-8")
        if not named and "tif1_pipeline" not in text:
            return {}
        import tomllib  # not at the top: it takes 3 ms, and most users have no such section

        content = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # a bad path, no text, no TOML
        if not named:  # somebody else's pyproject.toml is not ours to judge
            return {}
        raise ConfigError(f"{ENV_PREFIX}CONFIG names {named}, which cannot be read: {error}", path=named) from error
    tool = content.get("tool")
    section = tool.get("tif1_pipeline") if isinstance(tool, dict) else None
    if section is None:
        section = content if named and path.name != "pyproject.toml" else {}
    if not isinstance(section, dict):
        raise ConfigError(f"tool.tif1_pipeline in {path} is no table: write [tool.tif1_pipeline]", path=str(path))
    return section
