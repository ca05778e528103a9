"""The ways in which real files are untidy, put into the simulated ones.

An oddity of a session comes round every few sessions, so that every event of five sessions has each of them; those of
single telemetry files come by chance.
"""

import json
import math
from typing import Any

import numpy as np
import orjson

from tif1_pipeline.simulator.randomness import chance, generator, hash_number
from tif1_pipeline.simulator.tables import MISSING, Columns

NONE_COLUMNS = "none_columns"
"""Whole columns of the lap table are ``"None"``."""
NAN_TOKENS = "nan_tokens"
"""Missing numbers of the lap tables are bare ``NaN`` tokens."""
INTEGER_COLUMNS = "integer_columns"
"""Numbers that are floats elsewhere are integers."""
EXTRA_COLUMN = "extra_column"
"""The lap table has a column nobody knows."""
OLD_DRIVERS = "old_drivers"
"""``drivers.json`` has codes and teams only."""
IDLE_DRIVER = "idle_driver"
"""A driver of ``drivers.json`` has no laps."""
SHORT_LAPTIMES = "short_laptimes"
"""``{DRV}/laptimes.json`` has the columns time, lap and compound only."""
NO_SESSION_LAPTIMES = "no_session_laptimes"
"""``session_laptimes.json`` is missing (seasons up to 2021)."""
NAN_WEATHER = "nan_weather"
"""``weather.json`` has bare ``NaN`` tokens."""
SKIPPED_LAPS = "skipped_laps"
"""Some laps through the pits are in no file at all (practice)."""
UNLISTED_LAPS = "unlisted_laps"
"""Some laps have telemetry but are missing from the lap tables (qualifying)."""
GARAGE = "garage"
"""One lap has 50,000 samples: the car stands in the garage (one practice session of a season)."""

_EVERY = {
    NONE_COLUMNS: 5, NAN_TOKENS: 4, INTEGER_COLUMNS: 3, EXTRA_COLUMN: 5, OLD_DRIVERS: 2, IDLE_DRIVER: 4,
    SHORT_LAPTIMES: 4, NO_SESSION_LAPTIMES: 3, NAN_WEATHER: 5,
}  # fmt: skip

GARAGE_SAMPLES = 50_000

_OFTEN_EMPTY = (
    ("stint", "s1", "s2", "s3", "life", "pos", "status", "pb", "qs", "pout", "pin"),
    ("vi1", "vi2", "vfl", "vst", "fresh"),
    ("s1T", "s2T", "s3T", "lSD", "iacc"),
)


def oddities_of(seed: object, year: int, session_index: int, session_type: str, *, garage: bool) -> frozenset[str]:
    """Return which oddities the session has that comes so many sessions after the season's first."""
    found = {
        name
        for name, every in _EVERY.items()
        if (session_index + hash_number(seed, year, name)) % every == 0
        and (name != NO_SESSION_LAPTIMES or year <= 2021)
    }
    if session_type.startswith("Practice"):
        found.add(SKIPPED_LAPS)
    elif session_type not in {"Race", "Sprint"}:
        found.add(UNLISTED_LAPS)
    if garage:
        found.add(GARAGE)
    return frozenset(found)


def untidy_laps(columns: Columns, oddities: frozenset[str], *names: object) -> Columns:
    """Return a lap table with a session's oddities; missing values are still ``None``."""
    columns = dict(columns)
    if NONE_COLUMNS in oddities:
        for name in _OFTEN_EMPTY[hash_number(*names, NONE_COLUMNS) % len(_OFTEN_EMPTY)]:
            if name in columns:
                columns[name] = [None] * len(columns[name])
    if INTEGER_COLUMNS in oddities:
        for name in ("lap", "stint", "life", "pos", "vst"):
            if name in columns:
                columns[name] = [None if value is None else int(value) for value in columns[name]]
    if EXTRA_COLUMN in oddities:
        columns["tyreT"] = [None if life is None else 95.0 + life % 7 for life in columns["life"]]
    return columns


def untidy_weather(columns: Columns, oddities: frozenset[str], *names: object) -> Columns:
    """Return the weather with some values missing as ``NaN``."""
    if NAN_WEATHER not in oddities:
        return columns
    lots = generator(*names, NAN_WEATHER).random(len(columns["wT"])).tolist()
    lots[0] = 0.0  # so that there is one
    return columns | {
        name: [math.nan if lot < 0.06 else value for value, lot in zip(columns[name], lots, strict=True)]
        for name in ("wAT", "wWS")
    }


def table_json(columns: Columns, *, nan: bool = False) -> bytes:
    """Return a table's file. Missing values are ``"None"``, or bare ``NaN`` in columns of numbers if ``nan``."""
    filled = {}
    for name, values in columns.items():
        missing = math.nan if nan and any(isinstance(value, float) for value in values) else MISSING
        filled[name] = [missing if value is None else value for value in values]
    if nan or any(value != value for values in filled.values() for value in values):
        return json.dumps(filled, ensure_ascii=False).encode()  # orjson would write null
    return orjson.dumps(filled)


def untidy_telemetry(channels: dict[str, Any], *names: object) -> dict[str, Any]:
    """Return one lap's channels, in a few files untidy."""
    lot = chance(*names, "untidy")
    if lot > 0.06:
        return channels
    channels = dict(channels)
    some = generator(*names, "where").random(len(channels["time"])) < 0.03
    some[len(some) // 2] = True
    if lot < 0.015:  # NaN where the stream had a gap
        for name in ("acc_x", "acc_y", "acc_z"):
            channels[name] = np.where(some, math.nan, channels[name])
    elif lot < 0.03:
        for name in ("throttle", "brake", "drs"):
            pairs = zip(channels[name].tolist(), some.tolist(), strict=True)
            channels[name] = [MISSING if missing else value for value, missing in pairs]
    elif lot < 0.04:
        for name in ("acc_x", "acc_y", "acc_z"):
            channels[name] = [MISSING] * len(some)
    elif lot < 0.05:
        for name in ("speed", "rpm", "throttle"):
            channels[name] = channels[name].astype(int)
        channels["gear"] = channels["gear"].astype(float)
    else:
        channels["brake"] = channels["brake"].astype(bool)
        channels["tyre_temp"] = [MISSING] * len(some)
    return channels
