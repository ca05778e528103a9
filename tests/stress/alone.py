"""One trial in a process of its own: ``python -m tests.stress.alone <trial> <scratch> <share> <seed> <niceness>``.

Prints a line of JSON for each row. What a trial does to its process, and looks for in it, is no business of the others.
"""

import importlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from tests.stress.trial import Plan, Trial


def main() -> None:
    """Run it."""
    name, scratch, share, seed, niceness = sys.argv[1:]
    os.nice(int(niceness))
    trial: Trial = importlib.import_module(f"tests.stress.{name}")
    for row in trial.rows(Plan(Path(scratch), float(share), int(seed))):
        print(json.dumps(asdict(row)), flush=True)


if __name__ == "__main__":
    main()
