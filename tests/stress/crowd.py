"""A crowd of processes and threads on one cache: nobody is refused, starved or stuck; nothing is lost or piles up."""

import itertools
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing

from tests.cache import stress_worker
from tests.stress.processes import Course, held, judge
from tests.stress.trial import Plan, Row
from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.connection import JOURNAL_LIMIT

AREA = "crowd"
PROCESSES, THREADS, MEMORY_MB = 16, 8, 4
LONGEST_WAIT = 5.0
HURRIED = 120.0
"""Seconds of the full trial in which nobody rests between two calls; the others are tried beside the crowd after it."""


def rows(plan: Plan) -> Iterator[Row]:
    """Let the crowd work, then look at what it left."""
    seconds = plan.seconds(600) if plan.share >= 1 else max(15.0, 150 * plan.share)
    hurried = HURRIED if plan.share >= 1 else seconds
    size = f"{PROCESSES} processes x {THREADS} threads"
    intact = Row(AREA, f"{size} read, write, remove, clean and verify, twice what memory holds")
    locked = Row(AREA, "a call that meets another's lock")
    stuck = Row(AREA, "threads of the crowd that came to their end")
    starved = Row(AREA, f"a writer's wait for its turn, at most {LONGEST_WAIT:g} s")
    log = Row(AREA, f"the write-ahead log of the crowd, cut above {JOURNAL_LIMIT >> 20} MiB, twice that at most")
    flat = Row(AREA, "descriptors, memory and threads of the crowd's processes stay flat")
    folder = plan.scratch / "crowd"
    folder.mkdir()
    board = stress_worker.Board(folder, PROCESSES, THREADS)
    started = time.time()
    crowd = stress_worker.Crowd(folder, board, started + seconds, MEMORY_MB, started + hurried)
    course = Course()
    looks, of_hurried = 0, 0
    try:
        for number in itertools.count():
            if time.time() > crowd.until:
                break
            time.sleep(0.05)
            if time.time() < started + hurried:
                of_hurried = int(board.timings[..., 0].sum())
            crowd.look()
            looks += 1
            # Those that have not begun to work hold nothing yet.
            if number % 20 == 0 and board.timings[..., 0].sum(axis=(1, 2)).all():
                for which, process in enumerate(crowd.processes):
                    _note(course, which, process)
        said = crowd.end(120)
    except subprocess.TimeoutExpired:
        said = [f"a process is not over 120 s after its time: {folder}"]
    finally:
        crowd.kill()
    complaints = [text for texts in crowd.complaints() for text in _single(texts)]
    of_locks = [text for text in complaints if re.search("lock", text, re.IGNORECASE)]
    number = int(board.timings[..., 0].sum())

    intact.tried = number
    for text in complaints:
        if text not in of_locks:
            intact.wrong += 1
            intact.say(text)
    cache = Cache(stress_worker.settings(folder, MEMORY_MB))
    with closing(cache):
        _look_afterwards(cache, board, intact)
        stored = cache.get_size_info()["uncompressed_mb"]
    intact.remark = f"{seconds:.0f} s, {of_hurried / hurried:,.0f} calls a second"
    if hurried < seconds:
        rest = (number - of_hurried) / (seconds - hurried)
        intact.remark += f" for {hurried:.0f} s, then {rest:,.0f} beside other trials"
    intact.remark += f"; {stored:.0f} MiB of tables"
    yield intact

    locked.tried = number
    for text in of_locks:
        locked.wrong += 1
        locked.say(text)
    yield locked

    stuck.tried = PROCESSES * THREADS
    for text in said:
        stuck.wrong += 1
        stuck.say(text[-3000:])
    yield stuck

    number, seconds_waited, longest_wait = board.waits[:, 0].sum(), board.waits[:, 1].sum(), board.waits[:, 2].max()
    starved.tried = int(number)
    longest = {kind: board.timings[:, :, which, 2].max() for which, kind in enumerate(stress_worker.KINDS)}
    told = ", ".join(f"{kind} {longest[kind]:.1f} s" for kind in sorted(longest, key=lambda kind: -longest[kind])[:5])
    starved.remark = f"{longest_wait:.2f} s, {1000 * seconds_waited / max(1, number):.0f} ms on average; "
    starved.remark += f"longest calls on {os.cpu_count()} cores: {told}"
    # The cut is for machines with other work, too: there all wait longer, and in a fair queue all about as long.
    bound = max(LONGEST_WAIT, 0 if plan.share >= 1 else 5 * seconds_waited / max(1, number))
    if longest_wait > bound:
        starved.wrong += int((board.waits[:, 2] > bound).sum())
        starved.say(f"the lock came after {longest_wait:.1f} s")
    idle = int((board.timings[..., 0].sum(axis=2) == 0).sum())
    if idle:
        starved.wrong += idle
        starved.say(f"{idle} threads came to nothing")
    yield starved

    log.tried = looks
    log.remark = f"{crowd.largest_log / 2**20:.1f} MiB"
    if crowd.largest_log > 2 * JOURNAL_LIMIT:
        log.wrong += 1
        log.say(f"the log grew to {crowd.largest_log / 2**20:.1f} MiB")
    yield log

    # A connection has two or three descriptors: one a thread and ten for writing. A fetch has a thread for its lease.
    judge(flat, course, PROCESSES, 24 if plan.share >= 1 else 96, (3 * (THREADS + 10) + 10, 2 * THREADS + 8))
    yield flat


def _note(course: Course, which: int, process: subprocess.Popen[str]) -> None:
    now = held(process.pid)
    if now is not None:
        course.note(f"descriptors {which}", now.descriptors)
        course.note(f"threads {which}", now.threads)
        course.note(f"memory {which}", now.resident / 2**20)


def _single(texts: str) -> list[str]:
    """Return the complaints of one file, each with its traceback."""
    return [text.strip() for text in re.split(r"\n(?=\d+\.\d{3} process)", texts) if text.strip()]


def _look_afterwards(cache: Cache, board: stress_worker.Board, row: Row) -> None:
    report = cache.verify_integrity()
    if report["corrupted_list"]:
        row.wrong += len(report["corrupted_list"])
        row.say(f"not sound: {report['corrupted_list'][:3]}")
    lost, ghosts = stress_worker.losses_and_ghosts(board, cache)
    row.lost += len(lost)
    row.wrong += len(ghosts)
    for key, *versions in lost:
        row.say(f"lost: {key}: {versions}")
    for key, *versions in ghosts:
        row.say(f"removed and there: {key}: {versions}")
    if (board.state > 0).sum() * 10 < len(board.state):
        row.say("hardly anything is stored: nothing was shown")
