"""What happens in a session: who drives which lap when, and what race control says. Files are written from this."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tif1_pipeline.simulator.circuits import Circuit
from tif1_pipeline.simulator.grid import Driver

PIT_LIMIT = 80 / 3.6
"""Speed limit in the pit lane, m/s."""
PIT_ENTRY = 280.0
"""Metres of pit lane before the start line."""
PIT_EXIT = 330.0
"""Metres of pit lane after it."""
PIT_BOX = 150.0
"""Metres of it to where the car is serviced."""
STANDING_START = 11.0
"""Acceleration off the grid, m/s²."""


@dataclass(slots=True)
class Lap:
    """One lap of one driver. Times are whole milliseconds; those of day count from the start of the timing stream.

    Attributes:
        number: Lap number, from 1.
        start: Session time at which it began.
        time: How long it took, or lasted until the car stopped.
        kind: ``start`` (from the grid), ``push``, ``slow`` (a cool-down lap or behind the safety car) or ``race``.
        compound: Tyre.
        stint: Number of the run or stint, from 1.
        life: Laps on these tyres.
        fresh: The tyres were new.
        standing: Milliseconds of it at a standstill: on the grid, in the pit box or the garage.
        pit_out: It began in the pit lane.
        pit_in: It ended in the pit lane.
        fraction: Share of the lap driven; below 1 the car stopped on track.
        sectors: Sector times.
        position: Place at its end, in races.
        status: Track status digits that applied.
        segment: Q1, Q2 or Q3.
        deleted: Why the time does not count, empty when it does.
        best: Personal best so far.
    """

    number: int
    start: int
    time: int
    kind: str
    compound: str
    stint: int = 1
    life: int = 1
    fresh: bool = True
    standing: int = 0
    pit_out: bool = False
    pit_in: bool = False
    fraction: float = 1.0
    sectors: tuple[int, int, int] = (0, 0, 0)
    position: int | None = None
    status: str = "1"
    segment: str | None = None
    deleted: str = ""
    best: bool = False

    @property
    def end(self) -> int:
        """Session time at its end."""
        return self.start + self.time

    @property
    def flying(self) -> bool:
        """It neither began nor ended in the pits, and was finished."""
        return not (self.pit_in or self.pit_out) and self.fraction == 1.0


@dataclass(frozen=True, slots=True)
class Message:
    """One race control message; ``at`` is session time in milliseconds."""

    at: int
    category: str
    text: str
    status: str | None = None
    flag: str | None = None
    scope: str | None = None
    sector: int | None = None
    car: str | None = None


@dataclass(slots=True)
class Plan:
    """A whole session.

    Attributes:
        laps: Each driver's laps by code; a driver who did not go out has none.
        messages: What race control said.
        end: Session time when the timing stream ends, in milliseconds.
        wet: It rains.
    """

    laps: dict[str, list[Lap]]
    end: int
    wet: bool = False
    messages: list[Message] = field(default_factory=list)


def pit_out_loss(track: Circuit) -> int:
    """Return milliseconds lost to the pit lane on the lap that begins in it."""
    return round(1000 * (PIT_EXIT / PIT_LIMIT - float(np.interp(PIT_EXIT, track.distance, track.time))))


def pit_in_loss(track: Circuit) -> int:
    """Return milliseconds lost to the pit lane on the lap that ends in it."""
    flat_out = track.lap_time - float(np.interp(track.length - PIT_ENTRY, track.distance, track.time))
    return round(1000 * (PIT_ENTRY / PIT_LIMIT - flat_out))


def complete(plan: Plan, track: Circuit, drivers: tuple[Driver, ...], rng: np.random.Generator) -> Plan:
    """Fill in what follows from the laps: sector times, personal bests and deletions with their messages."""
    first, second = (float(np.interp(end, track.distance, track.time)) / track.lap_time for end in track.sector_ends)
    out_loss, in_loss = pit_out_loss(track), pit_in_loss(track)
    numbers = {driver.code: driver.number for driver in drivers}
    for code, laps in plan.laps.items():
        best = None
        noise = rng.normal(0.0, 0.0015, (len(laps), 2)).tolist()
        luck = rng.random(len(laps)).tolist()
        for lap, (noise1, noise2), lot in zip(laps, noise, luck, strict=True):
            before = lap.standing + (out_loss if lap.pit_out else 0)
            after = in_loss if lap.pit_in else 0
            driven = lap.time - before - after
            sector1 = before + round(driven * (first + noise1))
            sector2 = round(driven * (second - first + noise2))
            lap.sectors = (sector1, sector2, lap.time - sector1 - sector2)
            if lap.kind in {"push", "race"} and lap.flying and lot < 0.025:
                turn = int(lot * 1000 % len(track.corner_at)) + 1
                lap.deleted = f"TRACK LIMITS AT TURN {turn} LAP {lap.number}"
                text = f"CAR {numbers[code]} ({code}) TIME {_clock(lap.time)} DELETED - {lap.deleted}"
                plan.messages.append(Message(lap.end + 45_000, "Other", text))
            if lap.flying and not lap.deleted and (best is None or lap.time < best):
                best, lap.best = lap.time, True
    plan.messages.sort(key=lambda message: (message.at, message.text))
    return plan


def _clock(milliseconds: int) -> str:
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}:{rest // 1000:02d}.{rest % 1000:03d}"


def blue_and_yellow_flags(plan: Plan, drivers: tuple[Driver, ...], rng: np.random.Generator, count: int) -> None:
    """Add the everyday messages that make up most of a session's list."""
    codes = [driver for driver in drivers if plan.laps.get(driver.code)]
    if not codes:
        return
    start = min(laps[0].start for laps in plan.laps.values() if laps)
    for at, sector, who, is_blue in zip(
        rng.integers(start, plan.end, count).tolist(),
        rng.integers(1, 21, count).tolist(),
        rng.integers(0, len(codes), count).tolist(),
        (rng.random(count) < 0.5).tolist(),
        strict=True,
    ):
        if is_blue:
            text = f"WAVED BLUE FLAG FOR CAR {codes[who].number} ({codes[who].code})"
            plan.messages.append(Message(at, "Flag", text, flag="BLUE", scope="Driver", car=codes[who].number))
            continue
        plan.messages += (
            Message(at, "Flag", f"YELLOW IN TRACK SECTOR {sector}", flag="YELLOW", scope="Sector", sector=sector),
            Message(at + 9_000, "Flag", f"CLEAR IN TRACK SECTOR {sector}", flag="CLEAR", scope="Sector", sector=sector),
        )


def as_choices(rng: np.random.Generator, options: list[Any], weights: list[float], count: int) -> list[Any]:
    """Return ``count`` options drawn by weight."""
    return [options[i] for i in rng.choice(len(options), count, p=np.array(weights) / sum(weights)).tolist()]
