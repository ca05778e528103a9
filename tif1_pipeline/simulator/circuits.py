"""Circuits: facts about the real ones, and an invented line for each on which a car can be driven.

The shape is invented (nothing real is shipped); length and number of corners are the real ones, so that lap times, lap
counts and file sizes come out right.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tif1_pipeline.simulator.randomness import generator

Array = NDArray[np.float64]

STEP = 5.0
"""Metres between two points of a circuit's line."""

GRAVITY = 9.81
# A Formula 1 car in round numbers: tyres without downforce hold about 2 g sideways, downforce adds with speed squared.
_GRIP = 21.0
_DOWNFORCE = 0.0034
_POWER = 900.0  # W/kg at the wheels
_DRAG = 0.00122  # 1/m
_TRACTION = 12.5
_BRAKES = 17.0
_BRAKES_DOWNFORCE = 0.0034
_TIGHTEST = 0.075  # 1/m: the tightest hairpins have a radius of about 13 m


@dataclass(frozen=True, slots=True)
class CircuitFacts:
    """Where a circuit is.

    Attributes:
        event: Name of its Grand Prix, unless a calendar says otherwise.
        country: Country as the schedule spells it.
        location: Town as the schedule spells it.
        gmt_offset: Hours from UTC on the weekend.
        race_hour: Local time of the race's start, in hours.
        length_m: Length of a lap.
        corners: Number of corners.
    """

    event: str
    country: str
    location: str
    gmt_offset: float
    race_hour: float
    length_m: float
    corners: int


_TABLE = """
Australian|Australia|Melbourne|11|15|5278|14
Bahrain|Bahrain|Sakhir|3|18|5412|15
Chinese|China|Shanghai|8|15|5451|16
Azerbaijan|Azerbaijan|Baku|4|15|6003|20
Spanish|Spain|Barcelona|2|15|4657|14
Monaco|Monaco|Monaco|2|15|3337|19
Canadian|Canada|Montréal|-4|14|4361|14
French|France|Le Castellet|2|15|5842|15
Austrian|Austria|Spielberg|2|15|4318|10
British|United Kingdom|Silverstone|1|15|5891|18
German|Germany|Hockenheim|2|15|4574|17
Hungarian|Hungary|Budapest|2|15|4381|14
Belgian|Belgium|Spa-Francorchamps|2|15|7004|19
Italian|Italy|Monza|2|15|5793|11
Singapore|Singapore|Marina Bay|8|20|4940|19
Russian|Russia|Sochi|3|14|5848|18
Japanese|Japan|Suzuka|9|14|5807|18
United States|United States|Austin|-5|14|5513|20
Mexico City|Mexico|Mexico City|-6|14|4304|17
São Paulo|Brazil|São Paulo|-3|14|4309|15
Abu Dhabi|United Arab Emirates|Yas Island|4|17|5281|16
Tuscan|Italy|Mugello|2|15|5245|15
Eifel|Germany|Nürburgring|2|14|5148|15
Portuguese|Portugal|Portimão|1|15|4653|15
Emilia Romagna|Italy|Imola|2|15|4909|19
Turkish|Turkey|Istanbul|3|15|5338|14
Dutch|Netherlands|Zandvoort|2|15|4259|14
Qatar|Qatar|Lusail|3|19|5419|16
Saudi Arabian|Saudi Arabia|Jeddah|3|20|6174|27
Miami|United States|Miami Gardens|-4|16|5412|19
Las Vegas|United States|Las Vegas|-8|20|6201|17
Madrid|Spain|Madrid|2|15|5416|22
"""


def _read_table() -> dict[str, CircuitFacts]:
    facts = {}
    for line in _TABLE.strip().splitlines():
        event, country, location, offset, hour, length, corners = line.split("|")
        facts[location] = CircuitFacts(
            f"{event} Grand Prix", country, location, float(offset), float(hour), float(length), int(corners)
        )
    return facts


CIRCUITS = _read_table()
"""Facts by location."""


@dataclass(frozen=True, slots=True)
class Circuit:
    """A closed line with the speed of an undisturbed lap at the limit; every array has one value a point.

    Attributes:
        length: Metres of one lap.
        distance: Metres from the start line; the last point is the start line again.
        x: East, in 1/10 m.
        y: North, in 1/10 m.
        z: Height, in 1/10 m.
        curvature: 1/m, positive to the left.
        speed: m/s at the limit.
        time: Seconds from the start line at that speed.
        drs: 1 where the rear wing may open.
        corner_at: Indexes of the corners' apexes.
        sector_ends: Metres at which sectors 1 and 2 end.
    """

    length: float
    distance: Array
    x: Array
    y: Array
    z: Array
    curvature: Array
    speed: Array
    time: Array
    drs: Array
    corner_at: NDArray[np.int64]
    sector_ends: tuple[float, float]

    @property
    def lap_time(self) -> float:
        """Seconds of a lap at the limit."""
        return float(self.time[-1])


def _smooth(values: Array, sigma: float) -> Array:
    """Smooth a closed line with a Gaussian of ``sigma`` points."""
    frequencies = np.fft.rfftfreq(len(values))
    return np.fft.irfft(np.fft.rfft(values) * np.exp(-2 * (np.pi * sigma * frequencies) ** 2), len(values))


def _outline(facts: CircuitFacts, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw the line: a polygon around a centre, so that it never crosses itself, with rounded corners."""
    count = facts.corners
    angles = np.sort((np.arange(count) + rng.uniform(-0.38, 0.38, count)) * 2 * np.pi / count)
    # Many corners on one lap must bend less each, or the lap would be all hairpins.
    radii = 1.0 + rng.uniform(-0.4, 0.4, count) * min(1.0, 13 / count) ** 1.5
    px, py = 1.35 * radii * np.cos(angles), radii * np.sin(angles)
    px, py = np.append(px, px[0]), np.append(py, py[0])
    along = np.append(0.0, np.cumsum(np.hypot(np.diff(px), np.diff(py))))
    points = round(facts.length_m / STEP)
    at = np.linspace(0.0, along[-1], points, endpoint=False)
    x, y = np.interp(at, along, px), np.interp(at, along, py)
    # Two shears bend the round shape without making it cross itself.
    x = x + rng.uniform(0.15, 0.45) * np.sin(1.6 * y + rng.uniform(0, 6.3))
    y = y + rng.uniform(0.15, 0.45) * np.sin(1.3 * x + rng.uniform(0, 6.3))
    sigma = rng.uniform(15.0, 20.0) / STEP
    x, y = _smooth(x, sigma), _smooth(y, sigma)
    # Rounding moved the points together in the corners: bring them to equal distances again, and to the full length.
    for _ in range(3):
        step = np.hypot(np.diff(x, append=x[0]), np.diff(y, append=y[0]))
        along = np.append(0.0, np.cumsum(step))
        at = np.linspace(0.0, along[-1], points, endpoint=False)
        x, y = np.interp(at, along, np.append(x, x[0])), np.interp(at, along, np.append(y, y[0]))
    scale = facts.length_m / np.hypot(np.diff(x, append=x[0]), np.diff(y, append=y[0])).sum()
    return _smooth(x * scale, 1.5), _smooth(y * scale, 1.5)


def _curvature(x: Array, y: Array) -> tuple[Array, float]:
    """Return the curvature of a closed line of equally far points, and the distance between them."""
    dx, dy = (np.roll(x, -1) - np.roll(x, 1)) / 2, (np.roll(y, -1) - np.roll(y, 1)) / 2
    ddx, ddy = np.roll(x, -1) - 2 * x + np.roll(x, 1), np.roll(y, -1) - 2 * y + np.roll(y, 1)
    return (dx * ddy - dy * ddx) / (dx * dx + dy * dy) ** 1.5, float(np.hypot(dx, dy).mean())


def _best_line(facts: CircuitFacts, rng: np.random.Generator) -> tuple[Array, Array, Array, float]:
    """Return x, y, curvature and step of the first line drawn whose corners can be driven, or the most drivable one."""
    lines = []
    for _ in range(16):
        x, y = _outline(facts, rng)
        curvature, step = _curvature(x, y)
        tightest = float(np.abs(curvature).max())
        lines.append((tightest, x, y, curvature, step))
        if tightest < _TIGHTEST:
            break
    _, x, y, curvature, step = min(lines, key=lambda line: line[0])
    while np.abs(curvature).max() > _TIGHTEST:
        x, y = _smooth(x, 2.0), _smooth(y, 2.0)
        scale = facts.length_m / np.hypot(np.diff(x, append=x[0]), np.diff(y, append=y[0])).sum()
        x, y = x * scale, y * scale
        curvature, step = _curvature(x, y)
    return x, y, curvature, step


def _limit_speed(curvature: Array, step: float) -> Array:
    """Drive the line at the limit of tyres, engine and brakes; returns m/s."""
    bend = np.abs(curvature)
    corner = np.sqrt(_GRIP / np.maximum(bend - _DOWNFORCE, _GRIP / 100.0**2))
    speeds = corner.tolist()
    count = len(speeds)
    # Two rounds each way, because the end of a lap is the start of the next.
    for i in range(2 * count):
        v = speeds[i % count]
        gain = min(_TRACTION, _POWER / v) - _DRAG * v * v
        speeds[(i + 1) % count] = min(speeds[(i + 1) % count], (v * v + 2 * gain * step) ** 0.5)
    for i in range(2 * count, 0, -1):
        v = speeds[i % count]
        loss = _BRAKES + _BRAKES_DOWNFORCE * v * v
        speeds[(i - 1) % count] = min(speeds[(i - 1) % count], (v * v + 2 * loss * step) ** 0.5)
    return np.array(speeds)


def _rotate_to_longest_straight(bend: Array) -> int:
    """Return the point where the start line goes: late on the longest stretch without a corner."""
    straight = np.append(bend, bend) < 0.002
    best, run, end = 0, 0, 0
    for i, is_straight in enumerate(straight):
        run = run + 1 if is_straight else 0
        if run > best:
            best, end = run, i
    return (end - best // 3) % len(bend)


@functools.lru_cache(maxsize=64)
def circuit(location: str, seed: object = 0) -> Circuit:
    """Return the circuit at a location of :data:`CIRCUITS`; the seed decides its shape."""
    facts = CIRCUITS[location]
    x, y, curvature, step = _best_line(facts, generator(seed, "circuit", location))
    start = _rotate_to_longest_straight(np.abs(curvature))
    x, y, curvature = np.roll(x, -start), np.roll(y, -start), np.roll(curvature, -start)
    speed = _smooth(_limit_speed(curvature, step), 1.2)

    count = len(x)
    length = float(np.hypot(np.diff(x, append=x[0]), np.diff(y, append=y[0])).sum())
    phase = np.linspace(0.0, 2 * np.pi, count, endpoint=False)
    rng = generator(seed, "height", location)
    z = np.full(count, 90.0)
    for waves in range(1, 7):
        z += rng.normal(0.0, 60.0 / waves**1.5) * np.cos(waves * phase + rng.uniform(0, 6.3))
    closed = [np.append(values, values[0]) for values in (10 * x, 10 * y, z, curvature, speed)]
    distance = np.linspace(0.0, length, count + 1)
    speed = closed[4]
    time = np.append(0.0, np.cumsum(2 * np.diff(distance) / (speed[1:] + speed[:-1])))

    turn = np.abs(closed[3])
    peaks = np.flatnonzero((turn[1:-1] > turn[:-2]) & (turn[1:-1] >= turn[2:]) & (turn[1:-1] > 0.003)) + 1
    corner_at = np.sort(peaks[np.argsort(turn[peaks])[::-1][: facts.corners]])
    return Circuit(
        length=length,
        distance=distance,
        x=closed[0],
        y=closed[1],
        z=closed[2],
        curvature=closed[3],
        speed=speed,
        time=time,
        drs=_drs_zones(turn),
        corner_at=corner_at,
        sector_ends=(length * rng.uniform(0.28, 0.36), length * rng.uniform(0.64, 0.72)),
    )


def _drs_zones(turn: Array) -> Array:
    """Return 1 on straights of 300 m and more, from 80 m behind their start."""
    zones = np.zeros(len(turn))
    corners = np.flatnonzero(turn > 0.003)
    for start, end in zip(corners, np.append(corners[1:], corners[0] + len(turn)), strict=True):
        if (end - start) * STEP > 300.0:
            zones[np.arange(start + int(80 / STEP), end - int(60 / STEP)) % len(turn)] = 1.0
    return zones
