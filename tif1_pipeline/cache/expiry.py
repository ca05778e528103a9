"""Entries that are older than they may be."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from tif1_pipeline.cache import entries
from tif1_pipeline.cache.ages import AHEAD, OF_THE_CALENDAR, max_age
from tif1_pipeline.cache.base import OUTDATED
from tif1_pipeline.cache.schema import ENTRIES
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.config import Config
from tif1_pipeline.datasets import DATASETS


def condition(config: Config) -> sa.ColumnElement[bool]:
    """Return what holds for the entries that are expired now and can be fetched again."""
    now = time.time()
    expired: list[sa.ColumnElement[bool]] = []
    for data_type in DATASETS:
        mine = ENTRIES.c.data_type == data_type
        if data_type not in OF_THE_CALENDAR:
            expired.append(sa.and_(mine, _older(now, max_age(config, data_type, None, None))))
            continue
        # The age depends on whether the season was over when the entry was stored, and on nothing else: ask for both.
        stored_in = sa.cast(sa.func.strftime("%Y", ENTRIES.c.created_at, "unixepoch"), sa.Integer)
        settled = sa.func.coalesce(stored_in > ENTRIES.c.year, sa.false())
        during = max_age(config, data_type, 2000, datetime(2000, 12, 31, tzinfo=UTC))
        after = max_age(config, data_type, 2000, datetime(2001, 1, 1, tzinfo=UTC))
        expired.append(sa.and_(mine, sa.case((settled, _older(now, after)), else_=_older(now, during))))
    return sa.and_(sa.not_(ENTRIES.c.pinned), sa.or_(*expired))


def expired(tiered: Tiered) -> list[dict[str, Any]]:
    """Return the entries that are older than they may be and can be fetched again, oldest first."""
    return entries.listed(tiered, condition(tiered.config), entries.BY_AGE)


def _older(now: float, age: timedelta | None) -> sa.ColumnElement[bool]:
    if age is None:
        return ENTRIES.c.created_at <= OUTDATED.timestamp()
    ahead = ENTRIES.c.created_at > now + AHEAD.total_seconds()
    return sa.or_(ENTRIES.c.created_at < now - age.total_seconds(), ahead)
