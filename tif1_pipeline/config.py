"""Settings: each default once, checked on assignment, effective at once.

Sources from weak to strong: the defaults below, environment variables ``TIF1_<NAME>``, a TOML file
(``[tool.tif1_pipeline]`` of ``pyproject.toml`` in the working directory, or the file named by ``TIF1_CONFIG``),
assignment.
"""

import base64
import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from tif1_pipeline.exceptions import ConfigError

ENV_PREFIX = "TIF1_"
MIB = 1 << 20
_DURATION_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MASK = "***"
_LOOPBACK_HOSTS = {"localhost", "127.0.0.1", "::1"}


# ---- converters: text from the environment or a file becomes the setting's type, values of that type pass unchanged


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in {"1", "true", "yes", "on"}:
        return True
    if text in {"0", "false", "no", "off"}:
        return False
    raise ValueError("choose true or false")


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("a whole number is needed")
    return int(value)


def _to_float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError("a number is needed")  # noqa: TRY004 - one kind of error for every bad value
    return float(value)


def _to_seconds(value: Any) -> timedelta:
    """Read ``timedelta``, a number of seconds, or text such as ``"90"``, ``"15m"``, ``"7d"``."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and value.strip()[-1:].lower() in _DURATION_UNITS:
        text = value.strip().lower()
        return timedelta(seconds=float(text[:-1]) * _DURATION_UNITS[text[-1]])
    return timedelta(seconds=_to_float(value))


def _to_path(value: Any) -> Path:
    if not str(value).strip():
        raise ValueError("a path is needed")
    return Path(value).expanduser()


def _to_urls(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part for part in value.replace("\n", ",").split(",") if part.strip()]
    return tuple(str(url).strip().rstrip("/") for url in value)


def _to_keys(value: Any) -> tuple[str, ...]:
    return tuple(key.strip() for key in (value.split(",") if isinstance(value, str) else value))


def _to_choice(value: Any) -> str:
    return str(value).strip().lower()


def _optional(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def convert_optional(value: Any) -> Any:
        if value is None or (isinstance(value, str) and value.strip().lower() in {"", "none"}):
            return None
        return convert(value)

    return convert_optional


# ---- validators


def _between(low: float, high: float) -> Callable[[Any, Any, Any], None]:
    def check(_: Any, __: Any, value: Any) -> None:
        if value is not None and not low <= value <= high:
            raise ValueError(f"choose a value from {low:,} to {high:,}")

    return check


def _positive_duration(_: Any, __: Any, value: timedelta | None) -> None:
    if value is not None and value <= timedelta(0):
        raise ValueError("a duration above zero is needed")


def _duration(_: Any, __: Any, value: timedelta) -> None:
    if value < timedelta(0):
        raise ValueError("a duration of zero or more is needed")


def _one_of(*choices: str) -> Callable[[Any, Any, Any], None]:
    def check(_: Any, __: Any, value: Any) -> None:
        if value not in choices:
            raise ValueError(f"choose one of {', '.join(choices)}")

    return check


def _page_size(_: Any, __: Any, value: int) -> None:
    if not (512 <= value <= 65536 and value & (value - 1) == 0):
        raise ValueError("choose a power of two from 512 to 65,536")


def _cron(_: Any, __: Any, value: str) -> None:
    from cronsim import CronSim, CronSimError  # not at the top: its imports are no reader's business

    try:
        CronSim(value, datetime(2025, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise ValueError(
            f"{error}; a cron line of five fields is needed: minute, hour, day of month, month, day of week"
        ) from None


def _keys(_: Any, __: Any, values: tuple[str, ...] | None) -> None:
    for value in values or ():
        try:
            size = len(key_bytes(value))
        except ValueError:
            size = 0
        if size != 32:
            raise ValueError("a key is 32 bytes, as 64 hexadecimal digits or as base64")


def key_bytes(text: str) -> bytes:
    """Return the bytes of a key written as hexadecimal digits or base64.

    Raises:
        ValueError: It is neither.
    """
    return bytes.fromhex(text) if re.fullmatch("[0-9a-fA-F]{64}", text) else base64.b64decode(text, validate=True)


def _file_name(_: Any, __: Any, value: str) -> None:
    if not value or Path(value).name != value or "\0" in value:
        raise ValueError("a bare file name is needed; the folder is cache_dir")


def _safe_urls(_: Any, __: Any, urls: tuple[str, ...]) -> None:
    if not urls:
        raise ValueError("at least one URL is needed")
    for url in urls:
        parts = urlsplit(url.replace("{year}", "2025"))
        if not parts.hostname or parts.scheme not in {"https", "http"}:
            raise ValueError(f"{url!r} is no http(s) URL")
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK_HOSTS:
            raise ValueError(f"{url!r}: plain http is allowed for loopback hosts only, use https")
        if parts.query or parts.fragment:
            raise ValueError(f"{url.partition('?')[0]!r}: a query or fragment would swallow the path of the file")
        if parts.username or parts.password:
            raise ValueError("credentials in a URL would end up in logs and metadata")


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
    return attrs.field(
        default=default,
        converter=convert,
        validator=check,
        metadata={"help": help, "secret": secret},
    )


def _ttl(what: str) -> Any:
    return _setting(None, _optional(_to_seconds), _positive_duration, f"age at which {what} counts as expired")


@attrs.define(init=False, eq=False, repr=False, on_setattr=attrs.setters.NO_OP)
class Config:
    """The settings of one process; :func:`tif1_pipeline.get_config` returns the one in force.

    Every attribute is converted and checked on assignment. Durations take ``timedelta``, seconds or text such as
    ``"7d"``.

    Raises:
        ConfigError: An unknown name (with the closest ones) or a bad value (with the choices).
    """

    memory_cache_enabled: bool = _setting(True, _to_bool, None, "keep ready tables in this process's memory")
    memory_cache_size: int = _setting(100, _to_int, _between(1, 1_000_000), "tables kept in memory")
    memory_cache_laps_size: int | None = _setting(None, _optional(_to_int), _between(1, 1_000_000), "laps tables")
    memory_cache_telemetry_size: int | None = _setting(
        None, _optional(_to_int), _between(1, 1_000_000), "telemetry tables"
    )
    memory_cache_weather_size: int | None = _setting(None, _optional(_to_int), _between(1, 1_000_000), "weather tables")
    memory_cache_max_mb: int = _setting(
        attrs.Factory(_default_memory_mb), _to_int, _between(1, 1 << 20), "MiB of tables kept in memory"
    )

    cache_enabled: bool = _setting(True, _to_bool, None, "use the cache at all")
    cache_dir: Path = _setting("~/.tif1/cache", _to_path, None, "folder of the cache file")
    cache_filename: str = _setting("tif1_cache.db", str, _file_name, "name of the cache file")
    cache_compression_level: int = _setting(3, _to_int, _between(1, 22), "zstd level inside the Parquet parts")

    # All of a race's telemetry reads in 10 ms with pages of 16 KiB, 18 with 4, 12 with 32 (578 MB of entries); for one
    # driver, for laps and for metadata the page size made no difference.
    cache_page_size: int = _setting(16384, _to_int, _page_size, "SQLite page size in bytes, for new files")
    cache_cache_size: int = _setting(10_000, _to_int, _between(0, 10_000_000), "SQLite page cache, in pages at most")
    cache_wal_mode: bool = _setting(True, _to_bool, None, "write-ahead log: readers never wait for a writer")
    cache_wal_autocheckpoint: int = _setting(1000, _to_int, _between(0, 1_000_000), "WAL pages before a checkpoint")
    cache_mmap_size: int = _setting(256 * MIB, _to_int, _between(0, 1 << 40), "bytes of the file mapped into memory")
    cache_lock_timeout: timedelta = _setting(30, _to_seconds, _positive_duration, "wait for another process's lock")
    cache_max_connections: int = _setting(10, _to_int, _between(1, 1000), "connections of the pool")
    cache_verify_checksum: bool = _setting(False, _to_bool, None, "check each part's checksum when it is read")

    cache_ttl: timedelta | None = _ttl("any table")
    cache_ttl_laps: timedelta | None = _ttl("a laps table")
    cache_ttl_telemetry: timedelta | None = _ttl("a telemetry table")
    cache_ttl_weather: timedelta | None = _ttl("a weather table")
    cache_ttl_messages: timedelta | None = _ttl("a messages table")
    cache_ttl_schedule: timedelta | None = _setting(
        timedelta(hours=6),
        _optional(_to_seconds),
        _positive_duration,
        "age at which the running season's calendar expires",
    )

    cache_check_freshness: bool = _setting(
        False, _to_bool, None, "ask the CDN, by conditional request, whether a stored table is still current"
    )
    cache_freshness_interval: timedelta = _setting(
        3600, _to_seconds, _positive_duration, "time between two such questions about one table"
    )

    cache_auto_cleanup: bool = _setting(False, _to_bool, None, "clean by itself, when cache_cleanup_schedule says")
    cache_max_size_mb: int = _setting(5000, _to_int, _between(1, 1 << 30), "stored MiB that spare no entry")
    cache_cleanup_threshold_mb: int = _setting(4500, _to_int, _between(1, 1 << 30), "stored MiB that start a cleanup")
    cache_cleanup_target_mb: int = _setting(4000, _to_int, _between(0, 1 << 30), "stored MiB at which a cleanup ends")
    cache_cleanup_strategy: str = _setting(
        "lru", _to_choice, _one_of("lru", "size", "age", "smart"), "which entries a cleanup removes first"
    )
    cache_cleanup_min_age: timedelta = _setting(timedelta(days=7), _to_seconds, _duration, "younger entries are spared")
    cache_cleanup_min_access: int = _setting(
        3, _to_int, _between(0, 1 << 30), "entries read at least so often are spared; 0 spares none for that"
    )
    cache_cleanup_log: bool = _setting(True, _to_bool, None, "log what a cleanup removed")
    cache_cleanup_schedule: str = _setting("0 2 * * *", str, _cron, "when to clean by itself: a cron line, in UTC")

    cache_readonly: bool = _setting(False, _to_bool, None, "open the cache read-only and write nothing")
    cache_fallback_dir: Path | None = _setting(
        None, _optional(_to_path), None, "folder used while cache_dir cannot be, and synced back to it afterwards"
    )
    cache_shards: int = _setting(1, _to_int, _between(1, 64), "files over which the entries are spread")

    cache_enable_metrics: bool = _setting(False, _to_bool, None, "write metrics beside the cache file")
    cache_metrics_interval: timedelta = _setting(300, _to_seconds, _positive_duration, "time between two writes")
    cache_debug: bool = _setting(False, _to_bool, None, "log every look-up and write, with tier and time")
    cache_audit_log: Path | None = _setting(
        None, _optional(_to_path), None, "file of JSON lines: who did what to which entry, and when"
    )
    cache_encryption_key: tuple[str, ...] | None = _setting(
        None,
        _optional(_to_keys),
        _keys,
        "encrypt what is stored: 32 bytes as hexadecimal or base64; former keys may follow, after commas",
        secret=True,
    )
    cache_encryption_key_file: Path | None = _setting(
        None, _optional(_to_path), None, "file with such keys, one a line, instead"
    )

    cdn_urls: tuple[str, ...] = _setting(
        (
            "https://cdn.jsdelivr.net/gh/TracingInsights/{year}@main",
            "https://huggingface.co/buckets/tracinginsights/{year}/resolve",
            "https://cdn.staticdelivr.com/gh/TracingInsights/{year}/main",
        ),
        _to_urls,
        _safe_urls,
        "mirrors of the timing data, in the order tried; {year} is replaced",
    )
    schedule_urls: tuple[str, ...] = _setting(
        (
            "https://raw.githubusercontent.com/theOehrly/f1schedule/master/schedule_{year}.json",
            "https://cdn.jsdelivr.net/gh/theOehrly/f1schedule@master/schedule_{year}.json",
        ),
        _to_urls,
        _safe_urls,
        "mirrors of the season schedules; {year} is replaced",
    )
    max_concurrent_requests: int = _setting(32, _to_int, _between(1, 256), "requests under way at once")
    request_timeout: timedelta = _setting(30, _to_seconds, _positive_duration, "limit for connecting and for each read")
    max_retries: int = _setting(3, _to_int, _between(0, 20), "further tries a mirror after a passing fault")
    telemetry_dtype: str = _setting(
        "float32", _to_choice, _one_of("float32", "float64"), "float64 keeps every published bit at twice the size"
    )
    offline: bool = _setting(False, _to_bool, None, "never ask the CDN; serve what is cached")

    def __init__(self, **values: Any) -> None:
        self.__attrs_init__()  # type: ignore[attr-defined] - generated by attrs
        for name, value in values.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        """Convert, check and set; attrs' own hooks would raise errors that do not name the setting."""
        field = _FIELDS.get(name)
        if field is None:
            raise _unknown_setting(name)
        try:
            converted = field.converter(value) if field.converter else value
            if field.validator:
                field.validator(self, field, converted)
        except (ValueError, TypeError, OverflowError) as error:
            shown = _MASK if field.metadata["secret"] else _without_passwords(repr(value))[:200]
            reason = _without_passwords(str(error))
            raise ConfigError(
                f"{shown} is no value for the setting {name} ({field.metadata['help']}): {reason}", setting=name
            ) from None
        object.__setattr__(self, name, converted)

    def update(self, values: Mapping[str, Any]) -> None:
        """Assign several settings; nothing changes unless all are good.

        Raises:
            ConfigError: As on assignment.
        """
        trial = Config(**self._values())
        for name, value in values.items():
            setattr(trial, name, value)
        for name in values:
            object.__setattr__(self, name, getattr(trial, name))

    def to_dict(self) -> dict[str, Any]:
        """Return every setting by name, in the order of the documentation; secrets are masked."""
        return {
            name: _MASK if value is not None and _FIELDS[name].metadata["secret"] else value
            for name, value in self._values().items()
        }

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


_FIELDS: dict[str, Any] = {field.name: field for field in attrs.fields(Config)}


def setting_help() -> dict[str, str]:
    """Return one line of explanation per setting."""
    return {name: field.metadata["help"] for name, field in _FIELDS.items()}


def _without_passwords(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def _unknown_setting(name: str) -> ConfigError:
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
    path = Path(named).expanduser() if named else directory / "pyproject.toml"
    if not named and not path.is_file():
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        if not named:  # somebody else's pyproject.toml is not ours to judge
            return {}
        raise ConfigError(f"{ENV_PREFIX}CONFIG names {path}, which cannot be read: {error}", path=str(path)) from error
    section = content.get("tool", {}).get("tif1_pipeline")
    if section is None:
        section = content if named and path.name != "pyproject.toml" else {}
    return section
