"""Practice and qualifying: runs of laps from the garage, timed one by one."""

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

_COMPOUND_MS = {"SOFT": 0, "MEDIUM": 350, "HARD": 750, "INTERMEDIATE": 9_000, "WET": 14_000}
_COOL_DOWN = 1.55
_OUT_LAP = 1.32
_SEGMENTS = (("Q1", 1_080_000, 1.0), ("Q2", 900_000, 0.75), ("Q3", 720_000, 0.5))
_BREAK = 450_000


class _Runs:
    """Writes one driver's laps one after the other."""

    def __init__(self, track: Circuit, driver: Driver, rng: np.random.Generator, *, wet: bool) -> None:
        self.track, self.driver, self.rng, self.wet = track, driver, rng, wet
        self.laps: list[Lap] = []
        self.clock = 0
        self._out_loss, self._in_loss = pit_out_loss(track), pit_in_loss(track)

    def run(
        self, leave: int, kinds: str, compound: str, gain: float, segment: str | None, *, fresh: bool = True
    ) -> None:
        """Leave the garage at ``leave``; drive an out-lap, ``kinds`` (p a push lap, c a cool-down lap) and an in-lap.

        ``gain`` is the share of a lap time by which the track is slower than at its best.
        """
        if self.wet:
            compound = "INTERMEDIATE"
        stint = self.laps[-1].stint + 1 if self.laps else 1
        # After the first run a lap begins when the last one ended: the time in the garage belongs to the out-lap.
        start = self.clock or leave
        standing = max(0, leave - start)
        for place, kind in enumerate(f"o{kinds}i"):
            time = self.track.lap_time * 1000 * self.driver.pace * (1.0 + gain) + _COMPOUND_MS[compound]
            if kind == "p":
                time += 45 * place + abs(self.rng.normal(0.0, 260.0))
            else:
                time *= (_OUT_LAP if kind == "o" else _COOL_DOWN) * self.rng.uniform(0.95, 1.12)
            lap = Lap(
                len(self.laps) + 1,
                start,
                round(time),
                "push" if kind == "p" else "slow",
                compound,
                stint,
                place + 1,
                fresh,
                segment=segment,
                pit_out=kind == "o",
                pit_in=kind == "i",
            )
            if kind == "o":
                lap.standing = standing
                lap.time += standing + self._out_loss
            elif kind == "i":
                lap.time += self._in_loss
            self.laps.append(lap)
            start = self.clock = lap.end


def plan_practice(
    track: Circuit, drivers: tuple[Driver, ...], start: int, length: int, runs: int, rng: np.random.Generator
) -> Plan:
    """Drive a practice session: ``runs`` runs a driver within ``length`` ms from session time ``start``."""
    wet = bool(rng.random() < 0.1)
    plan = Plan({}, start + length + 600_000, wet)
    for driver in drivers:
        writer = _Runs(track, driver, rng, wet=wet)
        for number in range(runs):
            kinds = str(rng.choice(["p", "pcp", "pp", "pcpcp", "ppppp"] if runs > 1 else ["p", "pp"]))
            earliest = start + round(length * (number + rng.uniform(0.02, 0.35)) / runs)
            compound = as_choices(rng, ["SOFT", "MEDIUM", "HARD"], [1 + number, 2, 1], 1)[0]
            leave = max(earliest, writer.clock + 120_000 if writer.laps else 0)
            gain = 0.022 - 0.015 * number / runs + rng.uniform(0.0, 0.006)
            writer.run(leave, kinds, compound, gain, None, fresh=bool(rng.random() < 0.7))
        plan.laps[driver.code] = writer.laps
    return _finish(plan, track, drivers, start, start + length, rng)


def plan_qualifying(
    track: Circuit, drivers: tuple[Driver, ...], start: int, runs: int, rng: np.random.Generator
) -> Plan:
    """Drive a qualifying session: the slowest quarter of the field is out after Q1, as many after Q2."""
    wet = bool(rng.random() < 0.1)
    writers = [_Runs(track, driver, rng, wet=wet) for driver in drivers]
    begin, end = start, start
    messages = []
    for number, (segment, length, share) in enumerate(_SEGMENTS):
        # Best times of the segment before decide who goes on.
        field = sorted(
            writers, key=lambda writer: min((lap.time for lap in writer.laps if lap.kind == "push"), default=0)
        )
        for writer in field[: max(1, round(share * len(drivers)))]:
            for run in range(runs):
                earliest = begin + round(length * (run + rng.uniform(0.02, 0.3)) / runs)
                kinds = "pcp" if rng.random() < 0.2 else "p"
                gain = 0.006 - 0.002 * number + 0.0015 * (runs - run) * rng.random()
                writer.run(
                    max(earliest, writer.clock + 60_000), kinds, "SOFT", gain, segment, fresh=run > 0 or number > 0
                )
        end = begin + length
        messages.append(Message(begin, "Flag", "GREEN LIGHT - PIT EXIT OPEN", flag="GREEN", scope="Track"))
        messages.append(Message(end, "Flag", "CHEQUERED FLAG", flag="CHEQUERED", scope="Track"))
        begin = max([end, *(writer.clock for writer in writers)]) + _BREAK
    plan = Plan({writer.driver.code: writer.laps for writer in writers}, begin, wet, messages)
    return _finish(plan, track, drivers, start, end, rng)


def _finish(
    plan: Plan, track: Circuit, drivers: tuple[Driver, ...], start: int, end: int, rng: np.random.Generator
) -> Plan:
    plan.end = max([plan.end, *(laps[-1].end + 60_000 for laps in plan.laps.values() if laps)])
    if not plan.messages:
        plan.messages.append(Message(start, "Flag", "GREEN LIGHT - PIT EXIT OPEN", flag="GREEN", scope="Track"))
        plan.messages.append(Message(end, "Flag", "CHEQUERED FLAG", flag="CHEQUERED", scope="Track"))
    laps = sum(map(len, plan.laps.values()))
    blue_and_yellow_flags(plan, drivers, rng, min(25, laps // 4))
    return complete(plan, track, drivers, rng)
