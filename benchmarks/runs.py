"""Dagster runs of many partitions: what ours cost beside the others', and beside the same work without Dagster."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.files import SEASON, SEASON_SESSIONS
from benchmarks.managers import PEERS, REMARKS, write_frame
from benchmarks.measure import Row, ask, in_turns, values

COUNTS = (1, 20, 100)
MOST_MS = 25.0
"""What a partition and asset may cost more than without Dagster."""


class Runs:
    """The measurements.

    Args:
        server: URL of the server.
        scratch: A folder.
        runs: Of each measurement.
    """

    def __init__(self, server: str, scratch: Path, runs: int) -> None:
        self._server = server
        self._scratch = scratch
        self._runs = max(2, runs // 2)
        self._number = 0

    def rows(self) -> Iterator[Row]:
        """Measure everything, row by row."""
        yield from self._bookkeeping()
        for count in COUNTS:
            answers = in_turns(
                1 if count == max(COUNTS) else self._runs,
                {side: lambda side=side, count=count: self._ask(side, count) for side in ("ours", *PEERS)},
            )
            for what, figure in (("materialized", "out_ms"), ("loaded by one run", "in_ms")):
                for peer, name in PEERS.items():
                    if answers[peer][0][figure] is None:  # it refuses
                        continue
                    note = REMARKS.get(peer, "")
                    if what == "materialized" and peer in ("pickle", "polars") and count > 1:
                        note = "a run a partition: it refuses an output of several"
                    yield Row(
                        f"Dagster: {count} partition{'s' * (count > 1)} of laps {what}",
                        values(answers["ours"], figure), name, values(answers[peer], figure), note=note,
                    )  # fmt: skip

    def _ask(self, side: str, count: int) -> dict[str, Any]:
        frame = str(write_frame(self._server, self._scratch, "laps"))
        return ask(side, "partitions.py", manager=side, partitions=count, folder=str(self._new_folder()), frame=frame)

    def _new_folder(self) -> Path:
        self._number += 1
        folder = self._scratch / "runs" / str(self._number)
        folder.mkdir(parents=True)
        return folder

    def _bookkeeping(self) -> Iterator[Row]:
        request = {"server": f"{self._server}/0", "year": SEASON, "partitions": SEASON_SESSIONS}
        answers = in_turns(
            self._runs,
            {"ours": lambda: ask("ours", "bookkeeping.py", folder=str(self._new_folder()), **request)},
        )["ours"]
        notes = {
            "within": f"fetched and stored without Dagster {statistics.median(values(answers, 'without')):.1f} ms; "
            f"an asset that does nothing costs {statistics.median(values(answers, 'nothing')):.1f} ms, and "
            f"{statistics.median(values(answers, 'default')):.1f} ms with Dagster's default storage of events",
            "drawing": "",
        }
        for figure, what in (("within", ""), ("drawing", ", with a picture of its lap times")):
            more = [answer[figure] - answer["without"] for answer in answers]
            yield Row(
                f"Dagster: a partition and asset more than without it, {SEASON_SESSIONS} in a run{what}", more,
                "at most", [MOST_MS] * len(more), None if what else 1.0, note=notes[figure],
            )  # fmt: skip
