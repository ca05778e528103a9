"""The small files of a session: lap tables, weather, race control messages, drivers and corners."""

from datetime import datetime, timedelta
from typing import Any

import numpy as np

from tif1_pipeline.simulator.circuits import Circuit
from tif1_pipeline.simulator.grid import Driver
from tif1_pipeline.simulator.plan import Lap, Plan

LAP_COLUMNS = (
    "time", "lap", "compound", "stint", "s1", "s2", "s3", "life", "pos", "status", "pb", "qs", "sesT", "drv", "dNum",
    "pout", "pin", "s1T", "s2T", "s3T", "vi1", "vi2", "vfl", "vst", "fresh", "team", "lST", "lSD", "del", "delR",
    "ff1G", "iacc", "wT", "wAT", "wH", "wP", "wR", "wTT", "wWD", "wWS",
)  # fmt: skip
"""Columns of ``session_laptimes.json``, in its order."""
WEATHER_COLUMNS = ("wT", "wAT", "wH", "wP", "wR", "wTT", "wWD", "wWS")
"""Columns of ``weather.json``, in its order."""
MESSAGE_COLUMNS = ("time", "cat", "msg", "status", "flag", "scope", "sector", "dNum", "lap")
"""Columns of ``rcm.json``, in its order."""
CORNER_COLUMNS = ("CornerNumber", "X", "Y", "Angle", "Distance")
"""Columns of ``corners.json``, in its order."""
MISSING = "None"
"""How the files write a missing value, in columns of any type."""

Columns = dict[str, list[Any]]


def timestamp(moment: datetime) -> str:
    """Return a UTC moment the way the files write it, to the nanosecond."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f") + "000"


def weather(plan: Plan, rng: np.random.Generator) -> Columns:
    """Return about one row a minute; times in seconds of session time, speeds in m/s, pressure in mbar."""
    times = np.arange(18_586, plan.end, 60_000) / 1000
    count = len(times)

    def walk(start: float, step: float, low: float, high: float) -> list[float]:
        return np.round(np.clip(start + np.cumsum(rng.normal(0.0, step, count)), low, high), 1).tolist()

    air = walk(rng.uniform(16, 30), 0.06, 8.0, 40.0)
    # Of a wet session some minutes stay dry.
    raining = rng.random(count) < 0.7 if plan.wet else np.zeros(count, dtype=bool)
    return {
        "wT": times.tolist(),
        "wAT": air,
        "wH": walk(78.0 if plan.wet else rng.uniform(35, 65), 0.6, 15.0, 98.0),
        "wP": walk(rng.uniform(985, 1018), 0.05, 960.0, 1035.0),
        "wR": raining.tolist(),
        "wTT": np.round(np.array(air) + walk(4.0 if plan.wet else rng.uniform(8, 20), 0.15, 2.0, 26.0), 1).tolist(),
        "wWD": ((rng.integers(0, 360) + np.cumsum(rng.integers(-25, 26, count))) % 360).astype(int).tolist(),
        "wWS": walk(rng.uniform(0.5, 4.0), 0.3, 0.0, 9.0),
    }


def lap_columns(
    laps: list[Lap], driver: Driver, track: Circuit, sky: Columns, stream_start: datetime, rng: np.random.Generator
) -> Columns:
    """Return one driver's laps with every column; missing values are ``None`` here.

    Args:
        laps: The driver's laps.
        driver: Who.
        track: Where.
        sky: The session's weather.
        stream_start: UTC of session time zero.
        rng: Decides the noise of the speed traps.
    """
    rows: Columns = {name: [] for name in LAP_COLUMNS}
    traps = _speed_traps(track)
    noise = np.round(rng.normal(0.0, 2.5, (len(laps), 4))).tolist()
    lots = rng.random(len(laps)).tolist()
    at = np.clip(np.searchsorted(sky["wT"], [lap.start / 1000 for lap in laps], side="right") - 1, 0, None).tolist()
    fastest = min((lap.time for lap in laps if lap.flying), default=1)
    for lap, trap_noise, lot, minute in zip(laps, noise, lots, at, strict=True):
        finished = lap.fraction == 1.0
        # Laps through the pits often have no time of their own, others now and then; never those not finished.
        untimed = 0.3 if lap.pit_out else 0.15 if lap.pit_in else 0.015
        timed = finished and lap.standing < 60_000 and lot > untimed
        s1, s2, s3 = lap.sectors
        pace = min(1.0, fastest / max(lap.time - lap.standing, 1)) ** 0.5
        row = {
            "time": lap.time / 1000 if timed else None,
            "lap": float(lap.number),
            "compound": lap.compound,
            "stint": float(lap.stint),
            "s1": s1 / 1000 if timed and lap.kind != "start" else None,
            "s2": s2 / 1000 if finished or lap.fraction > 0.7 else None,
            "s3": s3 / 1000 if timed else None,
            "life": float(lap.life),
            "pos": float(lap.position) if lap.position else None,
            "status": lap.status,
            "pb": lap.best,
            "qs": lap.segment,
            "sesT": lap.end / 1000,
            "drv": driver.code,
            "dNum": driver.number,
            "pout": (lap.start + lap.standing + 15_000) / 1000 if lap.pit_out else None,
            "pin": (lap.end - 12_500) / 1000 if lap.pit_in else None,
            "s1T": (lap.start + s1) / 1000 if finished else None,
            "s2T": (lap.start + s1 + s2) / 1000 if finished else None,
            "s3T": lap.end / 1000 if finished else None,
            "fresh": lap.fresh,
            "team": driver.team,
            "lST": lap.start / 1000,
            "lSD": timestamp(stream_start + timedelta(milliseconds=lap.start)),
            "del": bool(lap.deleted),
            "delR": lap.deleted,
            "ff1G": False,
            "iacc": timed and lap.flying and lap.kind in {"push", "race"},
        }
        for name, speed, jitter in zip(("vi1", "vi2", "vfl", "vst"), traps, trap_noise, strict=True):
            in_pits = name == "vfl" and lap.pit_in
            row[name] = None if in_pits or not finished else float(round(speed * pace + jitter))
        row |= {name: sky[name][minute] for name in WEATHER_COLUMNS}
        for name, values in rows.items():
            values.append(row[name])
    return rows


def _speed_traps(track: Circuit) -> list[float]:
    """Return km/h at the two sector ends, at the line and on the fastest point."""
    places = [*track.sector_ends, 0.0]
    return [3.6 * float(v) for v in (*np.interp(places, track.distance, track.speed), track.speed.max())]


def messages(plan: Plan, stream_start: datetime) -> Columns:
    """Return the race control messages; ``time`` is UTC, missing values are ``None``."""
    # The lap shown is the leader's: the highest number begun.
    starts = sorted((lap.start, lap.number) for laps in plan.laps.values() for lap in laps)
    begun, highest = [], 0
    for start, number in starts:
        highest = max(highest, number)
        begun.append((start, highest))
    rows: Columns = {name: [] for name in MESSAGE_COLUMNS}
    at = np.searchsorted([start for start, _ in begun], [message.at for message in plan.messages], side="right")
    for message, place in zip(plan.messages, at.tolist(), strict=True):
        moment = stream_start + timedelta(seconds=round(message.at / 1000))
        row = (
            timestamp(moment), message.category, message.text, message.status, message.flag, message.scope,
            message.sector, message.car, begun[place - 1][1] if place else 1,
        )  # fmt: skip
        for values, value in zip(rows.values(), row, strict=True):
            values.append(value)
    return rows


def drivers(entered: tuple[Driver, ...], *, newer: bool) -> dict[str, Any]:
    """Return the entry list, in the older form (code and team) or the newer one."""
    entries = []
    for driver in entered:
        entry = {"driver": driver.code, "team": driver.team}
        if newer:
            entry |= {
                "dn": driver.number,
                "fn": driver.first_name,
                "ln": driver.last_name,
                "tc": driver.colour,
                "url": f"https://media.example/drivers/{driver.code.lower()}.png",
            }
        entries.append(entry)
    return {"drivers": entries}


def corners(track: Circuit, rotation: float | None) -> dict[str, Any]:
    """Return the corners; X and Y in 1/10 m, distance in m, angle in degrees at which to print the number."""
    at = track.corner_at
    inside = np.degrees(np.arctan2(np.gradient(track.y), np.gradient(track.x)))[at] - 90.0 * np.sign(
        track.curvature[at]
    )
    columns: dict[str, Any] = {
        "CornerNumber": list(range(1, len(at) + 1)),
        "X": track.x[at].tolist(),
        "Y": track.y[at].tolist(),
        "Angle": ((inside + 180.0) % 360.0 - 180.0).tolist(),
        "Distance": track.distance[at].tolist(),
    }
    if rotation is not None:
        columns["Rotation"] = rotation
    return columns
