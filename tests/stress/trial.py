"""What every trial is given and what it tells."""

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(slots=True)
class Row:
    """What was tried of one kind, and what came of it.

    Attributes:
        area: The trial, e.g. ``crash``.
        what: What was done, as a reader of the table understands it.
        tried: How often.
        lost: What had been acknowledged and was not there afterwards.
        wrong: Values other than what was stored or published, and states that must not be.
        leaked: Secrets shown, files outside their folder or open to others, processes, descriptors or memory left.
        remark: Figures beside: longest waits, requests counted, what a setting changes.
        failures: What went wrong, one text each; the first ones are printed.
    """

    area: str
    what: str
    tried: int = 0
    lost: int = 0
    wrong: int = 0
    leaked: int = 0
    remark: str = ""
    failures: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether it was tried, and nothing was lost, wrong or leaked."""
        return self.tried > 0 and not (self.lost or self.wrong or self.leaked or self.failures)

    def say(self, text: str) -> None:
        """Note what went wrong; also on the screen, so that it is known before the end."""
        self.failures.append(text)
        print(f"  {self.area}, {self.what}: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is to be tried.

    Attributes:
        scratch: A folder of the trial's own, on a disk.
        share: 1 for everything; the cut in `.ci/run` takes a twentieth.
        seed: What chance follows from.
    """

    scratch: Path
    share: float = 1.0
    seed: int = 0

    def count(self, full: int) -> int:
        """Return how often to try what is tried ``full`` times in all."""
        return max(1, round(full * self.share))

    def seconds(self, full: float) -> float:
        """Return how long to do what is done for ``full`` seconds in all."""
        return max(5.0, full * self.share)

    def chance(self, name: str) -> random.Random:
        """Return a source of chance that is the same in every run with this seed."""
        return random.Random(f"{self.seed} {name}")


class Trial(Protocol):
    """A module of this package."""

    def rows(self, plan: Plan) -> Iterator[Row]:
        """Try one thing after the other, and tell of each when it is done."""
        ...
