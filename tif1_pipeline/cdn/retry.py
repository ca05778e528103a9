"""When to ask a mirror again."""

import email.utils
import logging
import random
from datetime import UTC, datetime

import stamina.instrumentation

from tif1_pipeline.cdn.base import Timing
from tif1_pipeline.cdn.faults import MirrorError

logger = logging.getLogger(__name__)


def backoff(tries: int, timing: Timing) -> float:
    """Return the seconds to wait after so many tries: exponential with full jitter, lest clients march in step."""
    return random.uniform(0.0, min(timing.wait_max, timing.wait_initial * 2.0 ** min(tries - 1, 30)))


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header, a number or a date, asks for; None if it is neither."""
    if not value:
        return None
    value = value.strip()
    if value.isdecimal():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:  # "-0000" is read as a time of no zone; the header knows UTC only
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def log_retries_quietly() -> None:
    """Have stamina report the retries of this package to our logger instead of its default.

    The default prints each retry to standard output where structlog is installed, which comes with Dagster: a thousand
    lines in a notebook, and broken output of ``--json``. Hooks are process-wide: retries of others go on to theirs.
    """
    hooks = stamina.instrumentation.get_on_retry_hooks()
    if any(isinstance(hook, _RetryLog) for hook in hooks):
        return
    stamina.instrumentation.set_on_retry_hooks([_RetryLog(hooks)])


class _RetryLog:
    def __init__(self, others: tuple[stamina.instrumentation.RetryHook, ...]) -> None:
        self._others = others

    def __call__(self, details: stamina.instrumentation.RetryDetails) -> None:
        if isinstance(details.caused_by, MirrorError):
            logger.debug("retry %d in %.2f s: %s", details.retry_num, details.wait_for, details.caused_by)
            return
        for hook in self._others:
            hook(details)
