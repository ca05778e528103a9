"""Many processes and threads on one cache: nobody is refused, starved or stuck, and nothing is lost or piles up."""

import itertools
import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.cache import stress_worker
from tests.cdn.misbehaving_server import BODY, Exchange, MisbehavingServer
from tests.stress.processes import Course, end_all, finish, held, start
from tests.stress.trial import Plan, Row
from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.connection import JOURNAL_LIMIT
from tif1_pipeline.cache.flight import LEASE_SECONDS
from tif1_pipeline.simulator import CdnServer, Season

AREA = "concurrency"
WORK = "tests.stress.concurrency_work"
PROCESSES, THREADS, MEMORY_MB = 16, 8, 4
LONGEST_WAIT = 5.0


def rows(plan: Plan) -> Iterator[Row]:
    """Try all of it."""
    yield from _crowd(plan)
    yield _single_flight(plan)
    yield _sessions(plan)
    yield _killed_leaders(plan)
    yield _forks(plan)
    yield _closes(plan)
    yield _many_caches(plan)


# ---- the crowd


def _crowd(plan: Plan) -> Iterator[Row]:
    seconds = plan.seconds(600) if plan.share >= 1 else max(15.0, 150 * plan.share)
    size = f"{PROCESSES} processes x {THREADS} threads"
    intact = Row(AREA, f"{size} read, write, remove, clean and verify, twice what memory holds")
    locked = Row(AREA, "a call that meets another's lock")
    stuck = Row(AREA, "threads of the crowd that came to their end")
    starved = Row(AREA, f"a writer's wait for its turn, {LONGEST_WAIT:g} s at most")
    log = Row(AREA, f"the write-ahead log of the crowd, {JOURNAL_LIMIT >> 20} MiB and a write at most")
    flat = Row(AREA, "descriptors, memory and threads of the crowd's processes stay flat")
    folder = plan.scratch / "crowd"
    folder.mkdir()
    board = stress_worker.Board(folder, PROCESSES, THREADS)
    crowd = stress_worker.Crowd(folder, board, time.time() + seconds, MEMORY_MB)
    course = Course()
    looks = 0
    try:
        for number in itertools.count():
            if time.time() > crowd.until:
                break
            time.sleep(0.05)
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
    intact.remark = f"{seconds:.0f} s, {number / seconds:,.0f} calls a second, {stored:.0f} MiB of tables"
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
    if longest_wait > LONGEST_WAIT:
        starved.wrong += int((board.waits[:, 2] > LONGEST_WAIT).sum())
        starved.say(f"the lock came after {longest_wait:.1f} s")
    idle = int((board.timings[..., 0].sum(axis=2) == 0).sum())
    if idle:
        starved.wrong += idle
        starved.say(f"{idle} threads came to nothing")
    yield starved

    log.tried = looks
    log.remark = f"{crowd.largest_log / 2**20:.1f} MiB"
    if crowd.largest_log > JOURNAL_LIMIT + (16 << 20):
        log.wrong += 1
        log.say(f"the log grew to {crowd.largest_log / 2**20:.1f} MiB")
    yield log

    # A connection has two or three descriptors: one a thread and ten for writing. A fetch has a thread for its lease.
    _judge(flat, course, PROCESSES, 24 if plan.share >= 1 else 96, (3 * (THREADS + 10) + 10, 2 * THREADS + 8))
    yield flat


def _note(course: Course, which: int, process: subprocess.Popen[str]) -> None:
    now = held(process.pid)
    if now is not None:
        course.note(f"descriptors {which}", now.descriptors)
        course.note(f"threads {which}", now.threads)
        course.note(f"memory {which}", now.resident / 2**20)


def _judge(row: Row, course: Course, processes: int, spare_mb: float, holding: tuple[int, int] = (0, 0)) -> None:
    """Compare the second with the last quarter.

    Args:
        row: Where the verdict goes.
        course: What was sampled.
        processes: How many.
        spare_mb: MiB that memory may grow by; in a short run the allocators are not through with their own growth.
        holding: Descriptors and threads that a process has when all that it may hold is in use.
    """
    bounds: dict[str, Callable[[float], float]] = {
        "descriptors": lambda before: max(before + 4, holding[0]),
        "threads": lambda before: max(before + 2, holding[1]),
        "memory": lambda before: before * 1.15 + spare_mb,
    }
    row.tried = sum(map(len, course.samples.values()))
    told = []
    for kind, bound in bounds.items():
        growths = [course.growth(f"{kind} {which}") for which in range(processes) if course.samples[f"{kind} {which}"]]
        for which, (before, after) in enumerate(growths):
            if after > bound(before):
                row.leaked += 1
                row.say(f"{kind} of process {which} grew from {before:.0f} to {after:.0f}")
        if growths:
            before, after = max(growths, key=lambda growth: growth[1] - growth[0])
            told.append(f"{kind} {before:.0f} to {after:.0f}{' MiB' if kind == 'memory' else ''}")
    row.remark = "second to last quarter, the process that grew most: " + ", ".join(told)


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


# ---- single flight


def _single_flight(plan: Plan) -> Row:
    processes, threads, keys = 8, 8, plan.count(100)
    row = Row(AREA, f"{processes} processes x {threads} threads miss the same keys: one fetch each")
    server = MisbehavingServer()
    server.replies["flight"] = _in(0.03)
    server.start()
    try:
        seed = plan.chance(AREA).randrange(10**6)
        moment = time.time() + 12
        arguments = (plan.scratch / "flight", server.origin, "flight", keys, threads)
        answers = _all(row, [(WORK, "flight", *arguments, seed + n, moment) for n in range(processes)], 200)
    finally:
        server.stop()
    reads = sum(answer["reads"] for answer in answers)
    asked = Counter(path for _, path, _, _ in server.requests)
    row.tried = keys
    row.wrong += sum(number != 1 for number in asked.values()) + abs(keys - len(asked))
    for path, number in asked.items():
        if number != 1:
            row.say(f"{path} was fetched {number} times")
    if reads != processes * threads * keys:
        row.say(f"{reads} reads of {processes * threads * keys} came to their end")
    row.remark = f"{reads:,} reads, {sum(asked.values())} requests"
    return row


def _sessions(plan: Plan) -> Row:
    processes = 6
    row = Row(AREA, f"{processes} processes x 4 threads load the same race: each file is asked for once")
    season = Season(2025, events=1, size="tiny", seed=plan.seed)
    with CdnServer(season) as cdn:
        arguments = (plan.scratch / "session", cdn.cdn_urls[0], cdn.schedule_urls[0], 2025, season.events[0].name)
        moment = time.time() + 12
        answers = _all(row, [(WORK, "session", *arguments, moment)] * processes, 200)
        asked = Counter(cdn.requests.by_path)
    row.tried = len(asked)
    for path, number in asked.items():
        if number != 1:
            row.wrong += 1
            row.say(f"{path} was asked for {number} times")
    if len({tuple(rows) for answer in answers for rows in answer["rows"]}) != 1:
        row.wrong += 1
        row.say("not all have loaded the same")
    row.remark = f"{sum(answer['reads'] for answer in answers)} tables, {sum(asked.values())} requests"
    return row


def _killed_leaders(plan: Plan) -> Row:
    keys = plan.count(30)
    row = Row(AREA, "the process that fetches is killed: its lease runs out, one other takes over")
    server = MisbehavingServer()
    # The first request for each key is left without an answer until the one who asked is dead.
    for number in range(keys):
        server.replies[f"/killed/{number}"] = _hold
    server.start()
    folder = plan.scratch / "killed"
    leader: subprocess.Popen[str] | None = None
    waiting: list[subprocess.Popen[str]] = []
    try:
        arguments = (folder, server.origin, "killed", keys)
        leader = start(WORK, "flight", *arguments, 4 * keys, 0, 0)  # so that it leads all of the keys
        _until(lambda: len(_keys_asked(server)) == keys, 60)
        held_keys = len(_keys_asked(server))
        waiting = [start(WORK, "flight", *arguments, 4, n, 0) for n in range(4)]
        time.sleep(8 if plan.share >= 1 else 5)  # they wait for the leases by now, which are renewed
        before = Counter(_keys_asked(server, every=True))
        if set(before.values()) != {1} or held_keys != keys:
            row.wrong += 1
            row.say(f"asked for before the kill: {dict(before)}")
        leader.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        server.over.set()
        outcomes = [finish(process, LEASE_SECONDS + 90) for process in waiting]
        took = time.monotonic() - killed
    finally:
        end_all([process for process in (leader, *waiting) if process])
        server.stop()
    for output, failure in outcomes:
        if failure:
            row.wrong += 1
            row.say(failure)
        else:
            for text in json.loads(output)["wrong"]:
                row.wrong += 1
                row.say(text)
    after = Counter(_keys_asked(server, every=True))
    row.tried = keys
    for key, number in sorted(after.items()):
        if number != 2:
            row.wrong += 1
            row.say(f"{key} was fetched {number - 1} times after the kill")
    with closing(sqlite3.connect(folder / "cache" / "tif1_cache.db")) as connection:
        left = connection.execute("SELECT count(*) FROM leases").fetchone()[0]
    row.leaked += left
    if left:
        row.say(f"{left} leases are left")
    row.remark = f"all read {took:.0f} s after the kill (a lease lasts {LEASE_SECONDS:g} s)"
    return row


def _in(seconds: float) -> Callable[[Exchange], None]:
    def reply(exchange: Exchange) -> None:
        time.sleep(seconds)
        exchange.send(BODY)

    return reply


def _hold(exchange: Exchange) -> None:
    if not exchange.server.owner.over.wait(120):
        return
    exchange.send(BODY)


def _keys_asked(server: MisbehavingServer, *, every: bool = False) -> Any:
    with server.lock:
        asked = [path for _, path, _, _ in server.requests]
    return asked if every else set(asked)


def _until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)


# ---- forks, closing, many


def _forks(plan: Plan) -> Row:
    children = plan.count(100)
    row = Row(AREA, "forked while threads read, decode and write: the child reads and writes on")
    (answer,) = _all(row, [(WORK, "forks", plan.scratch / "forks", children, plan.seed)], 300) or [None]
    if answer:
        row.tried = answer["tried"]
        row.lost += len(answer["lost"])
        for name in answer["lost"]:
            row.say(f"lost: {name}")
        row.remark = f"{answer['writes']} writes of the parent meanwhile; a fork took {answer['longest']:.2f} s at most"
    return row


def _closes(plan: Plan) -> Row:
    row = Row(AREA, "closed over and over while eight threads use it: served all the same")
    (answer,) = _all(row, [(WORK, "closes", plan.scratch / "closes", plan.seconds(25))], 200) or [None]
    if answer:
        row.tried = answer["tried"]
        row.leaked += len(answer["left"])
        for name in answer["left"]:
            row.say(f"open after the last close: {name}")
        row.remark = f"closed {answer['closed']} times"
    return row


def _many_caches(plan: Plan) -> Row:
    row = Row(AREA, "caches opened, used by threads and closed in one process: nothing is left of them")
    (answer,) = _all(row, [(WORK, "many", plan.scratch / "many", plan.count(400))], 250) or [None]
    if answer:
        row.tried = answer["tried"]
        course = Course()
        for descriptors, resident, threads in answer["samples"]:
            course.note("descriptors 0", descriptors)
            course.note("memory 0", resident / 2**20)
            course.note("threads 0", threads)
        _judge(row, course, 1, 24)
        row.tried = answer["tried"]
        row.leaked += len(answer["left"])
        for name in answer["left"]:
            row.say(f"open after the close: {name}")
    return row


def _all(row: Row, commands: list[tuple[Any, ...]], seconds: float) -> list[dict[str, Any]]:
    """Run modules at once; returns what they count, and notes what went wrong."""
    for command in commands[:1]:
        Path(command[2]).mkdir(exist_ok=True)
    processes = [start(*command) for command in commands]
    answers = []
    deadline = time.monotonic() + seconds
    try:
        for process in processes:
            output, failure = finish(process, max(1.0, deadline - time.monotonic()))
            if failure:
                row.wrong += 1
                row.say(failure)
                continue
            answers.append(json.loads(output.splitlines()[-1]))
            for text in answers[-1]["wrong"]:
                row.wrong += 1
                row.say(text)
    finally:
        end_all(processes)
    return answers
