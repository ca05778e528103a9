"""Telemetry of one lap: a car driven along the circuit's line so that the lap takes exactly its time."""

from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from tif1_pipeline.simulator.circuits import Array, Circuit
from tif1_pipeline.simulator.plan import PIT_BOX, PIT_ENTRY, PIT_EXIT, PIT_LIMIT, STANDING_START, Lap

TELEMETRY_COLUMNS = (
    "time", "rpm", "speed", "gear", "throttle", "brake", "drs", "distance", "rel_distance", "acc_x", "acc_y", "acc_z",
    "x", "y", "z",
)  # fmt: skip
"""Channels of every telemetry file, in its order; ``dataKey`` follows them."""
AHEAD_COLUMNS = ("driver_ahead", "distance_to_driver_ahead")
"""Channels that only newer files have, after ``rel_distance``."""

_CAR_PERIOD, _POSITION_PERIOD = 0.27, 0.248
"""Seconds between two samples of the car and of its position: two streams, merged and interpolated."""

_GEAR_UP = np.array([75.0, 112.0, 148.0, 184.0, 220.0, 256.0, 292.0])  # km/h
_GEAR_TOP = np.array([90.0, 122.0, 160.0, 198.0, 236.0, 272.0, 306.0, 345.0])
_TOP_RPM, _IDLE_RPM = 12_000.0, 3_600.0


def _trace(track: Circuit, lap: Lap, rng: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """Return time, distance, speed and acceleration along the lap."""
    distance = track.distance
    wobble = 1.0 + 0.008 * np.cos(distance * (2 * np.pi * int(rng.integers(2, 9)) / track.length) + rng.uniform(0, 6.3))
    free = track.speed * wobble
    cap = np.full(len(free), 120.0)
    if lap.pit_out:
        cap = np.where(
            distance < PIT_EXIT, PIT_LIMIT, np.sqrt(PIT_LIMIT**2 + 22.0 * np.maximum(distance - PIT_EXIT, 0))
        )
    if lap.pit_in:
        entry = track.length - PIT_ENTRY
        cap = np.minimum(cap, np.sqrt(PIT_LIMIT**2 + 50.0 * np.maximum(entry - distance, 0)))
    # A standing car stands on its grid slot, in the garage where the lap begins, or in its box inside the pit lane.
    box = PIT_BOX if lap.pit_out and lap.standing < 60_000 else 0.0
    if lap.standing:
        cap = np.minimum(cap, np.sqrt(2 * STANDING_START * np.abs(distance - box)))
    last = len(distance)
    if lap.fraction < 1.0:
        last = max(3, int(np.searchsorted(distance, lap.fraction * track.length)))
        cap = np.minimum(cap, np.sqrt(2 * 5.0 * np.maximum(distance[last - 1] - distance, 0.0)))
    distance, free, cap = distance[:last], free[:last], cap[:last]
    target = (lap.time - lap.standing) / 1000
    # How hard the driver goes between the limits follows from the time the lap has to take.
    effort = 1.0
    speed = np.minimum(free, cap)
    for _ in range(3):
        slowness = 2 * np.diff(distance) / np.maximum(speed[1:] + speed[:-1], 0.5)
        capped = speed[1:] >= cap[1:]
        held = float(slowness[capped].sum())
        effort *= float(slowness.sum() - held) / max(target - held, 0.3 * target)
        speed = np.minimum(free * effort, cap)
    time = np.append(0.0, np.cumsum(2 * np.diff(distance) / np.maximum(speed[1:] + speed[:-1], 0.5)))
    stretch = target / float(time[-1])
    time, speed = time * stretch, speed / stretch
    acceleration = np.empty_like(speed)
    acceleration[1:-1] = (speed[2:] ** 2 - speed[:-2] ** 2) / (2 * (distance[2:] - distance[:-2]))
    acceleration[0], acceleration[-1] = acceleration[1], acceleration[-2]
    if lap.standing:
        at = int(np.argmin(np.abs(distance - box)))
        stop = lap.standing / 1000
        time = np.concatenate((time[: at + 1], [time[at] + 0.001, time[at] + stop - 0.001], time[at:] + stop))
        distance = np.concatenate((distance[: at + 1], [distance[at]] * 2, distance[at:]))
        speed = np.concatenate((speed[: at + 1], [0.0, 0.0], speed[at:]))
        acceleration = np.concatenate((acceleration[: at + 1], [0.0, 0.0], acceleration[at:]))
    return time, distance, speed, acceleration


def _sample_times(milliseconds: int, rng: np.random.Generator, coarseness: float) -> tuple[Array, NDArray[np.bool_]]:
    """Return the merged times of both streams in whole milliseconds, and which belong to the car's."""
    streams = []
    for period in (_CAR_PERIOD, _POSITION_PERIOD):
        step = 1000 * period * coarseness
        count = int(milliseconds / step * 1.15) + 4
        times = np.cumsum(np.rint(rng.uniform(0.72, 1.28, count) * step))
        streams.append(times[times < milliseconds - 1])
    merged = np.concatenate(([0.0], *streams, [float(milliseconds)]))
    of_car = np.zeros(len(merged), dtype=bool)
    of_car[: len(streams[0]) + 1] = True
    order = np.argsort(merged, kind="stable")
    merged, of_car = merged[order], of_car[order]
    fresh = np.append(True, np.diff(merged) > 0)
    return merged[fresh], of_car[fresh]


def lap_telemetry(
    track: Circuit,
    lap: Lap,
    rng: np.random.Generator,
    *,
    coarseness: float = 1.0,
    drs_allowed: bool = False,
    samples: int | None = None,
) -> dict[str, NDArray[Any]]:
    """Return the channels of one lap.

    Args:
        track: Where.
        lap: Which lap.
        rng: Decides the noise.
        coarseness: How much farther apart the samples are than real ones.
        drs_allowed: The rear wing may open on this lap.
        samples: So many samples instead, for a car that stands in the garage for hours.
    """
    if samples is not None:
        coarseness = lap.time / samples / (1000 / (1 / _CAR_PERIOD + 1 / _POSITION_PERIOD))
    milliseconds, of_car = _sample_times(lap.time, rng, coarseness)
    at = milliseconds / 1000
    time, along, pace, gain = _trace(track, lap, rng)
    distance = np.interp(at, time, along)
    speed = np.interp(at, time, pace)
    count = len(at)
    noise = rng.standard_normal((5, count))
    moving = np.minimum(speed / 20.0, 1.0)
    accelerating = np.interp(at, time, gain) * (speed > 0.1)
    # What the engine must give, against what it can.
    wanted = (accelerating + 0.00122 * speed * speed) / np.minimum(12.5, 900.0 / np.maximum(speed, 8.0))
    throttle = np.rint(np.clip(130.0 * wanted, 0.0, 100.0))
    brake = accelerating < -4.5
    throttle[brake | (speed < 0.1)] = 0.0
    kmh = 3.6 * speed
    gear = 1 + np.searchsorted(_GEAR_UP, kmh)
    rpm = np.maximum(_TOP_RPM * (kmh / _GEAR_TOP[gear - 1]) ** 0.75 + 40.0 * noise[3] * moving, _IDLE_RPM)
    bend = np.interp(distance, track.distance, track.curvature)
    wing = np.interp(distance, track.distance, track.drs) > 0.5 if drs_allowed else np.zeros(count, dtype=bool)
    x, y, z = (np.interp(distance, track.distance, line) for line in (track.x, track.y, track.z))
    aside = 12.0 * np.sin(distance * (2 * np.pi / track.length) + noise[0, 0])
    x, y = x + aside + 2.0 * noise[3] * moving, y - aside + 2.0 * noise[4] * moving
    # Each stream publishes whole numbers; at the other stream's times they are interpolated.
    return {
        "time": at,
        "rpm": np.where(of_car, np.rint(rpm), rpm),
        "speed": np.where(of_car, np.rint(kmh), kmh),
        "gear": gear,
        "throttle": throttle,
        "brake": brake.astype(np.int64),
        "drs": wing.astype(np.int64),
        "distance": distance,
        "rel_distance": distance / track.length,
        "acc_x": accelerating + 0.35 * noise[0] * moving,
        "acc_y": speed * speed * bend + 0.9 * noise[1] * moving,
        "acc_z": 2.2 * noise[2] * moving,
        "x": np.where(of_car, x, np.rint(x)),
        "y": np.where(of_car, y, np.rint(y)),
        "z": np.where(of_car, z, np.rint(z)),
    }


def telemetry_json(channels: dict[str, Any], data_key: str) -> bytes:
    """Return a telemetry file, spaced as the real ones are; channels are arrays or lists."""
    # Each channel by itself: looking for the colons in the whole text would take longer than writing it.
    parts = []
    for name, values in channels.items():
        text = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY).replace(b",", b", ")
        if isinstance(values, np.ndarray) and values.dtype.kind == "f" and np.isnan(values).any():
            text = text.replace(b"null", b"NaN")  # what other writers make of it, and strict parsers reject
        parts.append(b'"%s": %s' % (name.encode(), text))
    parts.append(b'"dataKey": ' + orjson.dumps(data_key))
    return b'{"tel": {' + b", ".join(parts) + b"}}"
