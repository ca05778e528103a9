"""Processes and threads that fetch the same, fork, and close what others use: single flight holds, all are served."""

import json
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.cdn.misbehaving_server import BODY, Exchange, MisbehavingServer
from tests.stress.processes import Course, end_all, finish, judge, start
from tests.stress.trial import Plan, Row
from tif1_pipeline.cache.flight import LEASE_SECONDS
from tif1_pipeline.simulator import CdnServer, Season

AREA = "concurrency"
WORK = "tests.stress.concurrency_work"


def rows(plan: Plan) -> Iterator[Row]:
    """Try all of it."""
    yield _single_flight(plan)
    yield _sessions(plan)
    yield _killed_leaders(plan)
    yield _forks(plan)
    yield _closes(plan)
    yield _many_caches(plan)


# ---- single flight


def _single_flight(plan: Plan) -> Row:
    processes, threads, keys = 8, 8, plan.count(60)
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
    children = plan.count(60)
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
    (answer,) = _all(row, [(WORK, "many", plan.scratch / "many", plan.count(120))], 250) or [None]
    if answer:
        row.tried = answer["tried"]
        course = Course()
        for descriptors, resident, threads in answer["samples"]:
            course.note("descriptors 0", descriptors)
            course.note("memory 0", resident / 2**20)
            course.note("threads 0", threads)
        judge(row, course, 1, 24)
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
