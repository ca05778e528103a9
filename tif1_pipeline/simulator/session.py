"""One session of a season: its plan, and each of its files on demand."""

import functools
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import orjson

from tif1_pipeline.simulator import tables, untidiness
from tif1_pipeline.simulator.circuits import Circuit, circuit
from tif1_pipeline.simulator.events import Event
from tif1_pipeline.simulator.grid import Driver, drivers_of
from tif1_pipeline.simulator.plan import Lap, Plan
from tif1_pipeline.simulator.race import plan_race
from tif1_pipeline.simulator.randomness import chance, generator, hash_number
from tif1_pipeline.simulator.runs import plan_practice, plan_qualifying
from tif1_pipeline.simulator.telemetry import AHEAD_COLUMNS, lap_telemetry, telemetry_json

SESSION_FILES = ("drivers.json", "session_laptimes.json", "weather.json", "rcm.json", "corners.json")
"""Files of a session folder, beside the drivers' folders."""

_RACE_METRES, _MONACO_METRES, _SPRINT_METRES = 305_000.0, 260_000.0, 100_000.0
_RACE_STARTS_AT, _OTHERS_START_AT = 3_600_000, 900_000  # ms of session time
_HOUR = 3_600_000
_FIRST_SEASON_WITH_AHEAD = 2025


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is of everything.

    Attributes:
        drivers: Number of drivers, ``None`` for all.
        race_laps: Laps of a race, ``None`` for the real distance.
        sprint_laps: Laps of a sprint, ``None`` for the real distance.
        practice_runs: Runs a driver in practice.
        qualifying_runs: Runs a driver in each part of qualifying.
        coarseness: How much farther apart telemetry samples are than real ones.
    """

    drivers: int | None
    race_laps: int | None
    sprint_laps: int | None
    practice_runs: int
    qualifying_runs: int
    coarseness: float


SIZES = {
    "full": Size(None, None, None, 4, 2, 1.0),
    "small": Size(None, 12, 6, 1, 1, 1.0),
    "tiny": Size(5, 5, 3, 1, 1, 11.0),
}
"""By name: ``full`` like the real ones, ``small`` with fewer laps, ``tiny`` for tests (5 drivers, 60 samples a lap)."""


class Session:
    """One session, made when it is asked for; made by :meth:`Season.session`.

    Attributes:
        event: Its event.
        session_type: Its full name.
        oddities: Ways in which its files are untidy, names of :mod:`tif1_pipeline.simulator.untidiness`.
    """

    def __init__(self, event: Event, session_type: str, seed: object, size: Size, oddities: frozenset[str]) -> None:
        self.event = event
        self.session_type = session_type
        self.oddities = oddities
        self._size = size
        self._seed = seed
        self._names = (seed, event.year, event.name, session_type)

    # ---- what happens

    @functools.cached_property
    def track(self) -> Circuit:
        """The circuit; one shape a season for all sessions at one place."""
        return circuit(self.event.facts.location, self._seed)

    @functools.cached_property
    def entered(self) -> tuple[Driver, ...]:
        """The drivers of ``drivers.json``."""
        drivers = drivers_of(self.event.year, self._seed, self._size.drivers)
        order = generator(*self._names, "order").permutation(len(drivers)).tolist()
        return tuple(drivers[i] for i in order)

    @functools.cached_property
    def plan(self) -> Plan:
        """Who drives which lap when."""
        rng = generator(*self._names)
        drivers = self.entered
        if untidiness.IDLE_DRIVER in self.oddities and len(drivers) > 2:
            drivers = drivers[:-1]
        # Not in the order of the file, which differs between sessions: the fastest first.
        drivers = tuple(sorted(drivers, key=lambda driver: driver.pace))
        if self.is_race:
            plan = plan_race(self.track, drivers, self._race_laps(), self.start, rng, stops=self.session_type == "Race")
        elif self.session_type.startswith("Practice"):
            runs, length = self._size.practice_runs, _HOUR
            if self.event.event_format == "testing":
                runs, length = 2 * runs, 8 * _HOUR
            plan = plan_practice(self.track, drivers, self.start, length, runs, rng)
        else:
            plan = plan_qualifying(self.track, drivers, self.start, self._size.qualifying_runs, rng)
        for driver in self.entered:
            plan.laps.setdefault(driver.code, [])
        if untidiness.SKIPPED_LAPS in self.oddities:
            for code, laps in plan.laps.items():
                # Mostly those with time in the garage.
                plan.laps[code] = [
                    lap
                    for lap in laps
                    if not (lap.pit_out and self._chance("skip", code, lap) < (0.95 if lap.standing else 0.3))
                ]
        if untidiness.GARAGE in self.oddities:
            self._stand_in_the_garage(plan)
        return plan

    @property
    def is_race(self) -> bool:
        """It is a race or a sprint."""
        return self.session_type in {"Race", "Sprint"}

    @property
    def start(self) -> int:
        """Session time of its start, in ms: the timing stream begins earlier."""
        return (_RACE_STARTS_AT if self.is_race else _OTHERS_START_AT) + hash_number(*self._names, "offset") % 60_000

    @property
    def stream_start(self) -> datetime:
        """UTC of session time zero."""
        return self.event.start_utc(self.session_type) - timedelta(milliseconds=self.start)

    def _race_laps(self) -> int:
        sprint = self.session_type == "Sprint"
        fixed = self._size.sprint_laps if sprint else self._size.race_laps
        if fixed is not None:
            return fixed
        metres = _MONACO_METRES if self.event.facts.location == "Monaco" else _RACE_METRES
        return int((_SPRINT_METRES if sprint else metres) / self.event.facts.length_m) + 1

    def _stand_in_the_garage(self, plan: Plan) -> None:
        """Let one car's first lap last for hours in the garage."""
        code = next(driver.code for driver in self.entered if plan.laps[driver.code])
        first = plan.laps[code][0]
        hours = 5_800_000
        first.start, first.time, first.standing = first.start - hours, first.time + hours, first.standing + hours
        first.pit_out = True
        first.sectors = (first.sectors[0] + hours, *first.sectors[1:])

    def _chance(self, what: str, code: str, lap: Lap) -> float:
        return chance(*self._names, what, code, lap.number)

    def laps(self, code: str) -> list[Lap]:
        """Return a driver's laps that the lap tables list."""
        laps = self.plan.laps.get(code, [])
        if untidiness.UNLISTED_LAPS not in self.oddities:
            return laps
        return [lap for lap in laps if lap.kind == "push" or self._chance("unlisted", code, lap) > 0.35]

    def telemetry_laps(self, code: str) -> list[int]:
        """Return the numbers of a driver's laps that have a telemetry file."""
        return [lap.number for lap in self.plan.laps.get(code, []) if self._has_telemetry(code, lap)]

    def _has_telemetry(self, code: str, lap: Lap) -> bool:
        if not self.oddities or lap.standing > _HOUR:
            return True
        return self._chance("telemetry", code, lap) > 0.012

    # ---- files

    def paths(self) -> Iterator[str]:
        """Yield the path of every file there is, relative to the session's folder."""
        for name in SESSION_FILES:
            if name != "session_laptimes.json" or untidiness.NO_SESSION_LAPTIMES not in self.oddities:
                yield name
        for driver in self.entered:
            if self.plan.laps[driver.code]:
                yield f"{driver.code}/laptimes.json"
            for number in self.telemetry_laps(driver.code):
                yield f"{driver.code}/{number}_tel.json"

    def file(self, path: str) -> bytes | None:
        """Return a file by its path in the session's folder, ``None`` if there is none."""
        code, _, name = path.rpartition("/")
        if not code:
            return self._session_file(name)
        driver = next((driver for driver in self.entered if driver.code == code), None)
        laps = self.plan.laps.get(code)
        if driver is None or not laps:
            return None
        if name == "laptimes.json":
            columns = self._laps_of(driver)
            if untidiness.SHORT_LAPTIMES in self.oddities:
                return untidiness.table_json({name: columns[name] for name in ("time", "lap", "compound")}, nan=True)
            return untidiness.table_json(columns, nan=untidiness.NAN_TOKENS in self.oddities)
        number = name.removesuffix("_tel.json")
        if name == number or not number.isdecimal() or str(int(number)) != number:
            return None
        place = bisect_left(laps, int(number), key=lambda lap: lap.number)
        if place == len(laps) or laps[place].number != int(number) or not self._has_telemetry(code, laps[place]):
            return None
        return self._telemetry(driver, laps[place])

    def _session_file(self, name: str) -> bytes | None:
        odd = self.oddities
        if name == "drivers.json":
            return orjson.dumps(tables.drivers(self.entered, newer=untidiness.OLD_DRIVERS not in odd))
        if name == "weather.json":
            return untidiness.table_json(untidiness.untidy_weather(self._sky, odd, *self._names))
        if name == "rcm.json":
            return untidiness.table_json(tables.messages(self.plan, self.stream_start))
        if name == "corners.json":
            rotation = round(360 * chance(self._seed, self.event.facts.location), 1) if self.event.index % 2 else None
            return orjson.dumps(tables.corners(self.track, rotation))
        if name == "session_laptimes.json" and untidiness.NO_SESSION_LAPTIMES not in odd:
            together: tables.Columns = {}
            for driver in self.entered:
                if self.plan.laps[driver.code]:
                    for column, values in self._laps_of(driver).items():
                        together.setdefault(column, []).extend(values)
            return untidiness.table_json(together, nan=untidiness.NAN_TOKENS in odd)
        return None

    @functools.cached_property
    def _sky(self) -> tables.Columns:
        return tables.weather(self.plan, generator(*self._names, "weather"))

    def _laps_of(self, driver: Driver) -> tables.Columns:
        rng = generator(*self._names, "table", driver.code)
        columns = tables.lap_columns(self.laps(driver.code), driver, self.track, self._sky, self.stream_start, rng)
        return untidiness.untidy_laps(columns, self.oddities, *self._names)

    def _telemetry(self, driver: Driver, lap: Lap) -> bytes:
        names = (*self._names, driver.code, lap.number)
        ahead = self._ahead(driver, lap) if self.is_race else None
        in_drs_range = ahead is not None and min(ahead[1:]) < 1000 and lap.number > 2
        channels: dict[str, Any] = lap_telemetry(
            self.track,
            lap,
            generator(*names),
            coarseness=self._size.coarseness,
            drs_allowed=not self.plan.wet and (in_drs_range if self.is_race else lap.kind == "push"),
            samples=untidiness.GARAGE_SAMPLES if lap.standing > _HOUR else None,
        )
        if self.event.year >= _FIRST_SEASON_WITH_AHEAD and self.is_race:
            channels = _with_ahead(channels, ahead)
        key = f"{self.event.year}-{self.event.name}-{self.session_type}-{driver.code}-{lap.number}"
        if self.oddities:
            channels = untidiness.untidy_telemetry(channels, *names)
        return telemetry_json(channels, key)

    def _ahead(self, driver: Driver, lap: Lap) -> tuple[str, int, int] | None:
        """Return the number of the car ahead on this lap, and the gap in ms at its start and end."""
        starts = self._starts.get(lap.number, [])
        place = bisect_left(starts, lap.start, key=lambda start: start[0])
        if place == 0:
            return None
        ahead, number = starts[place - 1][1:]
        return number, max(200, lap.start - ahead.start), max(200, lap.end - ahead.end)

    @functools.cached_property
    def _starts(self) -> dict[int, list[tuple[int, Lap, str]]]:
        """Every lap number's starts, the earliest first."""
        starts: dict[int, list[tuple[int, Lap, str]]] = {}
        for driver in self.entered:
            for lap in self.plan.laps[driver.code]:
                starts.setdefault(lap.number, []).append((lap.start, lap, driver.number))
        for rows in starts.values():
            rows.sort(key=lambda row: (row[0], row[2]))
        return starts


def _with_ahead(channels: dict[str, Any], ahead: tuple[str, int, int] | None) -> dict[str, Any]:
    """Insert the channels about the car ahead where newer files have them."""
    count = len(channels["time"])
    if ahead is None:
        car: Any = [tables.MISSING] * count
        gap: Any = car
    else:
        number, before, after = ahead
        car = [number] * count
        gap = np.linspace(before, after, count) / 3600.0 * np.maximum(channels["speed"], 20.0)
    columns = {}
    for name, values in channels.items():
        columns[name] = values
        if name == "rel_distance":
            columns |= dict(zip(AHEAD_COLUMNS, (car, gap), strict=True))
    return columns
