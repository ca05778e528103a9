"""How settings are read and judged: text from the environment or a file becomes the setting's type, or is an error."""

import base64
import logging
import os
import re
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_DURATION_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_LOOPBACK_HOSTS = {"localhost", "127.0.0.1", "::1"}


# ---- converters: values of the right type pass unchanged


def to_bool(value: Any) -> bool:
    """Read true and false, on and off, yes and no, 1 and 0."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in {"1", "true", "yes", "on"}:
        return True
    if text in {"0", "false", "no", "off"}:
        return False
    raise ValueError("choose true or false")


def to_int(value: Any) -> int:
    """Read a whole number."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("a whole number is needed")
    return int(value)


def to_float(value: Any) -> float:
    """Read a number."""
    if isinstance(value, bool):
        raise ValueError("a number is needed")  # noqa: TRY004 - one kind of error for every bad value
    return float(value)


def to_seconds(value: Any) -> timedelta:
    """Read ``timedelta``, a number of seconds, or text such as ``"90"``, ``"15m"``, ``"7d"``."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and value.strip()[-1:].lower() in _DURATION_UNITS:
        text = value.strip().lower()
        return timedelta(seconds=float(text[:-1]) * _DURATION_UNITS[text[-1]])
    return timedelta(seconds=to_float(value))


def to_path(value: Any) -> Path:
    """Read a path; ``~`` is the home folder."""
    if not str(value).strip():
        raise ValueError("a path is needed")
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:  # "~somebody" whom nobody knows
        raise ValueError(str(error)) from None
    check_name(str(path))
    return path


def check_name(path: str) -> None:
    """Refuse what no file can be called.

    Raises:
        ValueError: It holds a zero, or half of a surrogate pair.
    """
    if b"\0" in os.fsencode(path):
        raise ValueError("no path holds a zero")


def to_urls(value: Any) -> tuple[str, ...]:
    """Read URLs, after commas or on lines of their own."""
    if isinstance(value, str):
        value = [part for part in value.replace("\n", ",").split(",") if part.strip()]
    return tuple(str(url).strip().rstrip("/") for url in value)


def to_texts(value: Any) -> tuple[str, ...]:
    """Read texts, after commas."""
    texts = value.split(",") if isinstance(value, str) else tuple(value)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("texts are needed")
    return tuple(text.strip() for text in texts if text.strip())


def to_choice(value: Any) -> str:
    """Read one of some words, in whatever case."""
    return str(value).strip().lower()


def optional(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Read nothing, an empty text or "none" as None, and anything else by the given converter."""

    def convert_optional(value: Any) -> Any:
        if value is None or (isinstance(value, str) and value.strip().lower() in {"", "none"}):
            return None
        return convert(value)

    return convert_optional


# ---- validators


def between(low: float, high: float) -> Callable[[Any], None]:
    """Allow a number from ``low`` to ``high``."""

    def check(value: Any) -> None:
        if value is not None and not low <= value <= high:
            raise ValueError(f"choose a value from {low:,} to {high:,}")

    return check


def positive_duration(value: timedelta | None) -> None:
    """Allow a duration above zero."""
    if value is not None and value <= timedelta(0):
        raise ValueError("a duration above zero is needed")


def duration(value: timedelta) -> None:
    """Allow a duration of zero or more."""
    if value < timedelta(0):
        raise ValueError("a duration of zero or more is needed")


def one_of(*choices: str) -> Callable[[Any], None]:
    """Allow one of these words."""

    def check(value: Any) -> None:
        if value not in choices:
            raise ValueError(f"choose one of {', '.join(choices)}")

    return check


def page_size(value: int) -> None:
    """Allow what SQLite allows for its pages."""
    if not (512 <= value <= 65536 and value & (value - 1) == 0):
        raise ValueError("choose a power of two from 512 to 65,536")


def cron(value: str) -> None:
    """Allow a cron line that the cache's own cleanup and Dagster's scheduler both understand."""
    from cronsim import CronSim, CronSimError  # not at the top: its imports are no reader's business

    fields = value.split()
    try:
        # Without L, W and #, of which each knows others.
        if len(fields) != 5 or not all(re.fullmatch(r"([0-9*,/-]|[A-Za-z]{3})+", field) for field in fields):
            raise CronSimError("Bad line")  # noqa: TRY301
        # Also without the day of the week, which would hide a day that its month does not have.
        for days in (fields[4], "*"):
            CronSim(" ".join([*fields[:4], days]), datetime(2025, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise ValueError(
            f"{error}; a cron line of five fields is needed: minute, hour, day of month, month, day of week; "
            "of numbers or names such as MON, with * , - /"
        ) from None


def keys(values: tuple[str, ...] | None) -> None:
    """Allow keys of AES-256."""
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


def file_name(value: str) -> None:
    """Allow a file name without a folder."""
    if not value or Path(value).name != value:
        raise ValueError("a bare file name is needed; the folder is cache_dir")
    check_name(value)


def safe_urls(urls: tuple[str, ...]) -> None:
    """Allow https, and http on loopback, without credentials."""
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


def time_zone(value: str) -> None:
    """Allow a time zone that this machine knows, by its IANA name."""
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("an IANA name such as Europe/London is needed") from None


def alert_urls(urls: tuple[str, ...]) -> None:
    """Allow what the notification library understands."""
    if not urls:
        return
    logger = logging.getLogger("apprise")
    logger.addFilter(_nothing)  # it would write the URLs down, passwords and all
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it imports modules that Python is about to drop
            from apprise import Apprise  # not at the top: it knows over a hundred services, and few processes alert

            for number, url in enumerate(urls, 1):
                if not Apprise().add(url):
                    raise ValueError(f"number {number} is no Apprise URL, such as mailto://, slack:// or json://")
    finally:
        logger.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False


def web_url(url: str) -> None:
    """Allow an http(s) URL."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("an http(s) URL is needed")
