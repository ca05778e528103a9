"""Comparing what a mirror says of a file with the version that is held."""

from datetime import datetime
from email.utils import parsedate_to_datetime

from tif1_pipeline.cdn.base import Fetched, Probed, Validators, Version


def conditions(held: Version | None, url: str) -> Validators | None:
    """Return what to send to a mirror: ETags are the mirror's own, and say nothing at another one."""
    if held is None:
        return None
    return held.validators if held.url == url else Validators(None, held.validators.last_modified)


def compared(answer: Fetched[None], held: Version | None) -> Probed:
    """Return what an answer without body means to somebody who holds a version."""
    version = Version(answer.validators, answer.url)
    if held is None:
        return Probed("changed", version)
    if answer.not_modified:
        return Probed("unchanged", version)
    own, theirs = held.validators, answer.validators
    # Asked by condition and answered in full all the same: some servers evaluate no conditions on HEAD.
    if held.url == answer.url and own.etag and theirs.etag:
        return Probed("unchanged" if _opaque(own.etag) == _opaque(theirs.etag) else "changed", version)
    if held.url == answer.url and own.last_modified and theirs.last_modified:
        return Probed("unchanged" if own.last_modified == theirs.last_modified else "changed", version)
    before, after = _moment(own.last_modified), _moment(theirs.last_modified)
    if before is None or after is None:
        return Probed("unknown", version)
    return Probed("changed" if after > before else "unchanged", version)


def _opaque(etag: str) -> str:
    # Weak comparison: a mirror that compresses on the way makes strong tags weak.
    return etag.removeprefix("W/")


def _moment(value: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return moment if moment.tzinfo else None
