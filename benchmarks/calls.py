"""What a cache call takes by the number of entries, and what readers take that read at the same time."""

import os
from collections.abc import Iterator
from pathlib import Path

from benchmarks.files import EVENT, YEAR
from benchmarks.measure import Row, ask, in_turns, values

SIZES = (100, 1_000, 10_000)
READERS = (1, 2, 4, 8)


class Calls:
    """The measurements.

    Args:
        server: URL of the server.
        scratch: A folder for the caches.
        runs: Of each measurement.
    """

    def __init__(self, server: str, scratch: Path, runs: int) -> None:
        self._server = server
        self._scratch = scratch / "calls"
        self._runs = max(3, runs // 2)

    def rows(self) -> Iterator[Row]:
        """Measure everything, row by row."""
        yield from self._calls()
        yield from self._readers()

    def _calls(self) -> Iterator[Row]:
        folders = {size: self._scratch / str(size) for size in SIZES}
        for size, folder in folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            ask("ours", "calls.py", work="fill", folder=str(folder), entries=size)
        answers = in_turns(
            self._runs,
            {
                str(size): lambda size=size, folder=folder: ask(
                    "ours", "calls.py", work="measure", folder=str(folder), entries=size
                )
                for size, folder in folders.items()
            },
        )
        few, *more = SIZES
        for call in ("lookup", "insert", "eviction"):
            for size in more:
                # The other way round: what the many take is to be no more than 1.5 times what the few take.
                yield Row(
                    f"{call} in a cache of {few} entries, compared with {size:,}",
                    values(answers[str(few)], call), f"ours, {size:,} entries", values(answers[str(size)], call),
                )  # fmt: skip

    def _readers(self) -> Iterator[Row]:
        folder = self._scratch / "readers"
        folder.mkdir(parents=True, exist_ok=True)
        request = {"server": f"{self._server}/0", "folder": str(folder), "year": YEAR, "event": EVENT}
        cores = os.cpu_count() or 1
        answers = in_turns(
            self._runs,
            {
                str(number): lambda number=number: ask("ours", "readers.py", readers=number, **request)
                for number in READERS
            },
        )
        alone = values(answers["1"], "mean_ms")
        for number in READERS[1:]:
            slowest = values(answers[str(number)], "slowest_ms")
            yield Row(
                f"laps from the cache by one process, compared with {number} at once, the slowest",
                alone, f"ours, {number} processes", slowest,
                note=f"{cores} cores alone explain {max(1.0, number / cores):g}; 2 x beyond that is the limit",
            )  # fmt: skip
