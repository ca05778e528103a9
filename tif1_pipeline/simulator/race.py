"""Races and sprints: stints, pit stops, safety cars, retirements and lapped cars."""

from dataclasses import dataclass

import numpy as np

from tif1_pipeline.simulator.circuits import Circuit
from tif1_pipeline.simulator.grid import Driver
from tif1_pipeline.simulator.plan import (
    Lap,
    Message,
    Plan,
    as_choices,
    blue_and_yellow_flags,
    complete,
    pit_in_loss,
    pit_out_loss,
)

# Milliseconds a lap: slower than the softest tyre when new, and more for each lap of age.
_TYRES = {"SOFT": (0, 85), "MEDIUM": (420, 55), "HARD": (850, 33), "INTERMEDIATE": (0, 40), "WET": (2500, 40)}
_FUEL_MS = 55
"""A lap's worth of fuel makes a lap so much slower."""
_RACE_PACE = 1.03
_WET_PACE = 1.17
_SAFETY_CAR_PACE = 1.45


@dataclass(frozen=True, slots=True)
class _Stint:
    compound: str
    last_lap: int
    fresh: bool


@dataclass(slots=True)
class _Car:
    driver: Driver
    stints: list[_Stint]
    retires_on: int | None
    clock: int
    laps: list[Lap]
    grid_place: int
    stint: int = 0
    life: int = 0
    done: bool = False


def plan_race(
    track: Circuit, drivers: tuple[Driver, ...], laps: int, start: int, rng: np.random.Generator, *, stops: bool
) -> Plan:
    """Drive a race.

    Args:
        track: Where.
        drivers: Who starts.
        laps: Race distance.
        start: Session time of the start, in ms.
        rng: Decides everything.
        stops: Cars must change tyres (not in a sprint).
    """
    wet = bool(rng.random() < 0.12)
    base = track.lap_time * 1000 * _RACE_PACE * (_WET_PACE if wet else 1.0)
    grid = sorted(drivers, key=lambda driver: driver.pace + rng.normal(0.0, 0.0012))
    cars = [
        _Car(
            driver,
            _stints(laps, rng, wet=wet, stops=stops),
            int(rng.integers(1, laps + 1)) if rng.random() < 0.11 and driver is not grid[0] else None,
            start,
            [],
            place,
        )
        for place, driver in enumerate(grid)
    ]
    neutral = _safety_car_laps(laps, rng)
    pace_noise = rng.normal(0.0, 170.0, (laps, len(cars))).tolist()
    out_loss, in_loss = pit_out_loss(track), pit_in_loss(track)
    plan = Plan({driver.code: [] for driver in drivers}, start, wet)
    leader_end = None
    for number in range(1, laps + 1):
        slow = number in neutral
        running = [car for car in cars if not car.done]
        for car in running:
            _drive(car, number, laps, base, slow, pace_noise[number - 1][car.grid_place], (out_loss, in_loss), rng)
        if slow:
            _bunch_up(running, base)
        finished = sorted((car for car in running if car.laps[-1].fraction == 1.0), key=lambda car: car.laps[-1].end)
        for place, car in enumerate(finished, 1):
            car.laps[-1].position = place
        if number == laps and finished:
            leader_end = finished[0].laps[-1].end
    # Lapped cars finish on the lap they are on when the winner crosses the line.
    if leader_end is not None:
        for car in cars:
            car.laps = [lap for lap in car.laps if lap.start < leader_end]
    for car in cars:
        plan.laps[car.driver.code] = car.laps
    plan.end = max((car.laps[-1].end for car in cars if car.laps), default=start) + 300_000
    _messages(plan, cars, neutral, start, rng, laps)
    return complete(plan, track, drivers, rng)


def _stints(laps: int, rng: np.random.Generator, *, wet: bool, stops: bool) -> list[_Stint]:
    count = (2 if rng.random() < 0.6 else 3) if stops and laps >= 4 else 1
    ends = sorted({round(laps * (i + rng.uniform(-0.25, 0.2)) / count) for i in range(1, count)} | {laps})
    ends = [end for end in ends if 1 <= end < laps] + [laps]
    if wet:
        compounds = as_choices(rng, ["INTERMEDIATE", "WET"], [0.9, 0.1], len(ends))
    else:
        compounds = as_choices(rng, ["SOFT", "MEDIUM", "HARD"], [0.15, 0.45, 0.4], len(ends))
        if len(set(compounds)) == 1 and len(ends) > 1:  # the rules ask for two
            compounds[-1] = "HARD" if compounds[0] != "HARD" else "MEDIUM"
    return [_Stint(c, end, bool(rng.random() < 0.8)) for c, end in zip(compounds, ends, strict=True)]


def _safety_car_laps(laps: int, rng: np.random.Generator) -> set[int]:
    if rng.random() > 0.55 or laps < 5:
        return set()
    first = int(rng.integers(2, max(3, laps - 3)))
    return set(range(first, min(laps, first + max(2, min(5, laps // 6)))))


def _drive(
    car: _Car,
    number: int,
    laps: int,
    base: float,
    slow: bool,
    noise: float,
    losses: tuple[int, int],
    rng: np.random.Generator,
) -> None:
    """Add the car's next lap."""
    car.life += 1
    stint = car.stints[car.stint]
    offset, wear = _TYRES[stint.compound]
    time = base * car.driver.pace + (laps - number) * _FUEL_MS + offset + wear * (car.life - 1) + noise
    time = max(time, base * 0.98)
    lap = Lap(number, car.clock, 0, "race", stint.compound, car.stint + 1, car.life, stint.fresh)
    if slow:
        # The lap on which it comes out begins under green.
        time, lap.kind, lap.status = (
            base * _SAFETY_CAR_PACE,
            "slow",
            "4" if car.laps and car.laps[-1].kind == "slow" else "24",
        )
    if number == 1:
        lap.kind = "start"
        lap.standing = 250 + 210 * car.grid_place + round(abs(noise))
        time += 4_500 + lap.standing
    if car.laps and car.laps[-1].pit_in:
        lap.pit_out = True
        lap.standing = round(2_150 + rng.exponential(450.0))
        time += losses[0] + lap.standing
    if number == stint.last_lap and number < laps:
        lap.pit_in = True
        time += losses[1]
        car.stint, car.life = car.stint + 1, 0
    lap.time = round(time)
    if number == car.retires_on:
        lap.fraction = float(rng.uniform(0.15, 0.9))
        lap.time = round(lap.time * lap.fraction) + 3_000
        lap.pit_in = False
        car.done = True
    car.clock += lap.time
    car.laps.append(lap)


def _bunch_up(running: list[_Car], base: float) -> None:
    """Close the queue behind the safety car: nobody passes, and the gaps shrink to a second."""
    queue = sorted((car for car in running if car.laps[-1].fraction == 1.0), key=lambda car: car.laps[-1].start)
    ahead = None
    for car in queue:
        lap = car.laps[-1]
        if ahead is not None:
            catching_up = lap.time - round(base * (_SAFETY_CAR_PACE - 1.15))
            lap.time = max(lap.start + catching_up, ahead + 850 + 13 * car.grid_place) - lap.start
        car.clock = ahead = lap.end


def _messages(plan: Plan, cars: list[_Car], neutral: set[int], start: int, rng: np.random.Generator, laps: int) -> None:
    say = plan.messages.append
    say(Message(start - 2_400_000, "Flag", "GREEN LIGHT - PIT EXIT OPEN", flag="GREEN", scope="Track"))
    if not plan.wet and laps > 2:
        say(Message(start + 120_000, "Drs", "DRS ENABLED", status="ENABLED"))
    leader = min((car for car in cars if len(car.laps) > 1), key=lambda car: car.laps[1].start, default=None)
    if neutral and leader:
        inside = [lap for lap in leader.laps if lap.number in neutral]
        if inside:
            say(Message(inside[0].start, "SafetyCar", "SAFETY CAR DEPLOYED", status="DEPLOYED"))
            say(Message(inside[-1].end - 40_000, "SafetyCar", "SAFETY CAR IN THIS LAP", status="IN THIS LAP"))
    blue_and_yellow_flags(plan, tuple(car.driver for car in cars), rng, min(70, 5 * laps))
    say(Message(plan.end - 290_000, "Flag", "CHEQUERED FLAG", flag="CHEQUERED", scope="Track"))
