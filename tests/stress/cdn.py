"""A CDN that does everything wrong: what comes is right or an error that says why, and nothing wrong is stored.

Each fault is tried thrice on a small simulated session: at every request to the first of two mirrors, where the other
one is sound (all must come, and right); by chance at both; and at every request to both, after which it goes away and
all must come by itself. What is stored at the end of each is compared with what a clean run reads, cell by cell.
"""

import json
import os
import queue
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.stress import cdn_faults as faults
from tests.stress.cdn_faults import Files, Mirrors, Reply
from tests.stress.cdn_reader import TABLES, TIMING
from tests.stress.trial import Plan, Row
from tif1_pipeline.cdn.body import MAX_BODY_BYTES
from tif1_pipeline.cdn.connection import MAX_WIRE_BYTES
from tif1_pipeline.cdn.visit import MAX_REDIRECTS, TIMEOUTS_PER_TRY
from tif1_pipeline.simulator import CdnServer, Fault, Season

ROOT = Path(__file__).parents[2]
YEAR = 2025
TIMEOUT, RETRIES, CONCURRENT = 0.6, 1, 16
MACHINE_SECONDS = 10.0
"""What a loaded machine may take beside all waiting."""
MEMORY_MB = CONCURRENT * (MAX_WIRE_BYTES + MAX_BODY_BYTES) / 1e6
"""More than a reader at rest by so much is too much: what requests under way may hold, on the wire and inflated."""
READERS = 4


class Reader:
    """A process of cdn_reader, one order at a time."""

    def __init__(self, folder: Path) -> None:
        self._log = (folder / "readers.log").open("a")
        self._start()

    def _start(self) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stress.cdn_reader"],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip

    def ask(self, seconds: float, orders: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Give an order and return the answer.

        Raises:
            TimeoutError: There was none in time; the process is another one now.
        """
        orders = (orders or {}) | more
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(orders).encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], seconds)
            line = process.stdout.readline() if ready else b""
        except OSError:
            line = b""
        if line:
            return json.loads(line)
        code = process.poll()
        self.close()
        self._start()
        raise TimeoutError(f"no answer to {orders['do']} within {seconds:.0f} s (process: {code})")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@dataclass
class Kind:
    """A kind of fault.

    Attributes:
        what: As the table names it.
        reply: What the server does.
        harmless: It delays only: everything comes in spite of it.
        either: Another version of the files is as right.
        hops: Requests that one try may take.
        timeout: The setting; what is decoded holds up the clock of all.
    """

    what: str
    reply: Reply
    harmless: bool = False
    either: bool = False
    hops: int = 1
    timeout: float = TIMEOUT


@dataclass
class Bench:
    """What all trials share."""

    plan: Plan
    files: Files
    key: list[Any]
    telemetry_files: int
    clean: dict[str, str] = field(default_factory=dict)
    later: dict[str, str] = field(default_factory=dict)
    rest_mb: float = 0.0
    readers: "queue.Queue[Reader]" = field(default_factory=queue.Queue)
    numbers: "Iterator[int]" = field(default_factory=lambda: iter(range(1_000_000)))

    def settings(self, urls: Sequence[str], schedules: Sequence[str]) -> dict[str, Any]:
        """Return settings with a cache that nobody has used."""
        return {
            "cache_dir": str(self.plan.scratch / f"cache-{next(self.numbers)}"),
            "cdn_urls": list(urls),
            "schedule_urls": list(schedules),
            "request_timeout": TIMEOUT,
            "max_retries": RETRIES,
            "max_concurrent_requests": CONCURRENT,
            "cache_verify_checksum": True,
        }

    def most_requests(self, hops: int = 1) -> int:
        """Return how many requests one load may take: tries of each file at two mirrors.

        The schedule, four files, and two of them once more: telemetry asks by itself for drivers and laps that failed.
        """
        return 2 * (1 + RETRIES) * hops * (1 + 4 + 2 + 3 + self.telemetry_files)

    def most_seconds(self, timeout: float = TIMEOUT) -> float:
        """How long a load may take: schedule, drivers, laps twice, then rounds of telemetry, each at both mirrors."""
        visit = (TIMEOUTS_PER_TRY + RETRIES) * timeout
        rounds = 1 + -(-self.telemetry_files // CONCURRENT)
        return 2 * visit * (4 + rounds) + MACHINE_SECONDS


class Trial:
    """One kind of fault on one cache."""

    def __init__(self, bench: Bench, reader: Reader, row: Row, chance: random.Random, kind: Kind | None = None) -> None:
        self.bench, self.reader, self.row, self.chance = bench, reader, row, chance
        self.hops, self.timeout = (kind.hops, kind.timeout) if kind else (1 + MAX_REDIRECTS, TIMEOUT)
        self.requests = self.errors = self.equal = 0
        self.longest = self.peak = 0.0

    def right(self, table: str, either: bool = False) -> tuple[str, ...]:
        """Return the digests that a table may have."""
        if table == "schedule" or not either:
            return (self.bench.clean[table],)
        return self.bench.clean[table], self.bench.later[table]

    def load(self, name: str, settings: dict[str, Any], phase: str, *, must: bool, either: bool = False) -> bool:
        """Read all tables and judge; tells whether all of them came."""
        tables = ["schedule", *TABLES]
        answer = self.reader.ask(self.bench.most_seconds(self.timeout) * 2, do="load", id=name, tables=tables)
        self.requests += answer["requests"]
        self.longest = max(self.longest, answer["seconds"])
        self.peak = max(self.peak, answer["peak_mb"])
        self.row.tried += len(tables)
        if answer["requests"] > self.bench.most_requests(self.hops):
            self.row.wrong += 1
            self.row.say(f"{phase}: {answer['requests']} requests, at most {self.bench.most_requests(self.hops)}")
        if answer["seconds"] > self.bench.most_seconds(self.timeout):
            self.row.wrong += 1
            self.row.say(
                f"{phase}: took {answer['seconds']:.1f} s, at most {self.bench.most_seconds(self.timeout):.1f}"
            )
        for table, told in answer["tables"].items():
            self._judge(table, told, settings, phase, must, either)
        return all("digest" in told for told in answer["tables"].values())

    def _judge(
        self, table: str, told: dict[str, Any], settings: dict[str, Any], phase: str, must: bool, either: bool
    ) -> None:
        if "foreign" in told:
            self.row.wrong += 1
            self.row.say(f"{phase}: {table}: an error that is none of ours, {told['foreign']}")
        elif "error" in told:
            self.errors += 1
            if must:
                self.row.lost += 1
                self.row.say(f"{phase}: {table}: {told['error']}: {told['message'][:400]}")
            roots = tuple(url.partition("{")[0] for url in (*settings["cdn_urls"], *settings["schedule_urls"]))
            # Of a table made of other tables the error is that of the first.
            if not (told["url"] or "").startswith(roots) or told["url"] not in told["message"]:
                self.row.wrong += 1
                self.row.say(f"{phase}: {table}: an error that names no URL: {told['error']}: {told['message'][:300]}")
        elif table == "telemetry" and either:
            self.equal += 1  # of files of both versions, as they came
        elif told["digest"] in self.right(table, either):
            self.equal += 1
        else:
            self.row.wrong += 1
            self.row.say(f"{phase}: {table} is another one than in a clean run")

    def check_stored(self, name: str, phase: str, either: bool = False) -> None:
        """What is stored must be right, or absent."""
        answer = self.reader.ask(60, do="stored", id=name)
        for table, found in answer["tables"].items():
            self.row.tried += 1
            if found is not None and found not in self.right(table, either) and not (either and table == "telemetry"):
                self.row.wrong += 1
                self.row.say(f"{phase}: a {table} is stored that is not that of a clean run")

    def heals(self, name: str, settings: dict[str, Any]) -> float:
        """The fault is gone: everything must come by itself, as soon as a mirror may be asked again."""
        started = time.monotonic()
        most = TIMING.set_aside + self.bench.most_seconds(self.timeout)
        while time.monotonic() - started < most:
            before = self.row.tried
            if self.load(name, settings, "afterwards", must=False):
                return time.monotonic() - started
            self.row.tried = before
            time.sleep(0.1)
        self.row.lost += 1
        self.row.say(f"afterwards: not everything came within {most:.0f} s")
        return most


def rows(plan: Plan) -> Iterator[Row]:
    """Try one fault after the other, some at once: most of it is waiting."""
    season = Season(YEAR, events=1, size="tiny", untidy=False, seed=plan.seed % 1000)
    later = Season(YEAR, events=1, size="tiny", untidy=False, seed=plan.seed % 1000 + 1)
    key = next(key for key in season.sessions() if key.session_type == "Race")
    session = season.session(key.event, key.session_type)
    telemetry = sum(path.endswith("_tel.json") for path in session.paths())
    bench = Bench(plan, Files(season, later), [key.year, key.event, key.session_type], telemetry)
    with Canary() as canary, CdnServer(season) as sound, CdnServer(later) as sound_later:
        try:
            for _ in range(READERS):
                bench.readers.put(Reader(plan.scratch))
            _read_clean(bench, sound, sound_later)
            with ThreadPoolExecutor(READERS) as pool:
                trials = [pool.submit(_with_reader, bench, _try_kind, kind, sound, canary) for kind in _kinds(canary)]
                trials += [
                    pool.submit(_with_reader, bench, _try_mix, season),
                    pool.submit(_with_reader, bench, _try_refused, "connections refused by a closed port"),
                    pool.submit(_with_reader, bench, _try_refused, "a host that has no address"),
                    pool.submit(_with_reader, bench, _try_breaker),
                    pool.submit(_with_reader, bench, _try_lying_304),
                ]
                yield from _done(trials)
            yield _try_flights(bench)
        finally:
            while not bench.readers.empty():
                bench.readers.get().close()


def _done(trials: list[Future[Row]]) -> Iterator[Row]:
    for trial in trials:
        yield trial.result()


def _with_reader(bench: Bench, work: Any, *arguments: Any) -> Row:
    reader = bench.readers.get()
    try:
        return work(bench, reader, *arguments)
    finally:
        bench.readers.put(reader)


def _kinds(canary: "Canary") -> list[Kind]:
    return [
        Kind("latency of half a timeout", faults.late(TIMEOUT / 3), harmless=True),
        Kind("silence instead of an answer", faults.silent),
        Kind("a stall in the middle of the body", faults.stalls),
        Kind("headers one byte at a time", faults.slow_headers),
        Kind("a body one byte at a time", faults.slow_body),
        Kind("resets before the status line, amid headers, amid the body", faults.reset),
        Kind("429 without Retry-After", faults.too_many),
        Kind("429 and 503 with Retry-After", faults.too_many_wait),
        Kind("429 with absurd Retry-After: negative, 10⁹ s, year 10²⁰", faults.too_many_absurd),
        Kind("5xx of all kinds", faults.server_errors),
        Kind("statuses that no CDN should send: 206, 204, 401, 999", faults.odd_statuses),
        Kind("bodies cut off before their Content-Length", faults.truncated),
        Kind("bodies cut off without Content-Length", faults.truncated_unannounced),
        Kind("gzip, deflate, zstd and br bombs of 1 to 4 GiB", faults.bombs),
        Kind("bombs within the bounds, of sound JSON", faults.bombs_within_bounds, timeout=6),
        Kind("bodies beyond the bound: announced, endless, chunked", faults.too_large),
        Kind("headers, trailers and 1xx without end", faults.many_headers),
        Kind("malformed chunks, contradicting lengths", faults.bad_chunks),
        Kind("other protocols than HTTP", faults.not_http),
        Kind("JSON of wrong types and shapes", faults.wrong_json),
        Kind("HTML, nothing, or LFS pointers with status 200", faults.html),
        Kind("redirects to loopback, link-local, file:, nonsense", faults.redirects(canary.port), hops=1),
        Kind("redirects in a circle", faults.loops, hops=1 + MAX_REDIRECTS),
        Kind("another body under the same ETag at each try", faults.etag_stays, either=True),
        Kind("304 to requests without conditions", faults.unasked_304),
        Kind("kept connections closed after an answer or at the next request", faults.closes_kept, harmless=True),
        Kind("more than was asked for on kept connections", faults.says_more),
    ]


def _read_clean(bench: Bench, *servers: CdnServer) -> None:
    reader = bench.readers.get()
    for server, kept in zip(servers, (bench.clean, bench.later), strict=True):
        settings = bench.settings(server.cdn_urls, server.schedule_urls) | {"request_timeout": 20}
        reader.ask(60, do="open", id="clean", key=bench.key, settings=settings)
        answer = reader.ask(120, do="load", id="clean", tables=["schedule", *TABLES])
        kept |= {table: told["digest"] for table, told in answer["tables"].items()}
        stored = reader.ask(60, do="stored", id="clean")
        kept["drivers"] = stored["tables"]["drivers"]
        bench.rest_mb = answer["peak_mb"]
        reader.ask(60, do="close", id="clean")
    bench.readers.put(reader)
    assert bench.clean["laps"] != bench.later["laps"]


def _try_kind(bench: Bench, reader: Reader, kind: Kind, sound: CdnServer, canary: "Canary") -> Row:
    row = Row("cdn", kind.what)
    chance = bench.plan.chance(f"cdn {kind.what}")
    trial = Trial(bench, reader, row, chance, kind)
    mirrors = Mirrors(bench.files, chance)
    called = canary.calls
    healed = 0.0
    try:
        # The first mirror always, the second one never.
        mirrors.fault = {"a": (kind.reply, 1.0)}
        schedules = [*mirrors.schedules("a"), *sound.schedule_urls]
        waits = {"request_timeout": kind.timeout}
        settings = bench.settings([*mirrors.urls("a"), *sound.cdn_urls], schedules) | waits
        reader.ask(60, do="open", id=kind.what, key=bench.key, settings=settings)
        # Of two versions mixed, one may name a lap that the other, which the sound mirror holds, does not have.
        trial.load(kind.what, settings, "one mirror", must=not kind.either, either=kind.either)
        trial.check_stored(kind.what, "one mirror", kind.either)
        reader.ask(60, do="close", id=kind.what)

        # Both by chance.
        for number in range(bench.plan.count(3)):
            mirrors.fault = dict.fromkeys("ab", (kind.reply, 0.3))
            settings = bench.settings(mirrors.urls("a", "b"), mirrors.schedules("a", "b")) | waits
            reader.ask(60, do="open", id=kind.what, key=bench.key, settings=settings)
            trial.load(kind.what, settings, f"by chance ({number})", must=kind.harmless, either=kind.either)
            trial.check_stored(kind.what, "by chance", kind.either)
            mirrors.fault = {}
            healed = max(healed, 0.0 if kind.either else trial.heals(kind.what, settings))
            trial.check_stored(kind.what, "by chance, afterwards", kind.either)
            reader.ask(60, do="close", id=kind.what)

        # Both always; the schedule comes, so that the tables are asked for.
        mirrors.fault = dict.fromkeys("ab", (kind.reply, 1.0))
        settings = bench.settings(mirrors.urls("a", "b"), sound.schedule_urls) | waits
        reader.ask(60, do="open", id=kind.what, key=bench.key, settings=settings)
        trial.load(kind.what, settings, "both mirrors", must=kind.harmless, either=kind.either)
        trial.check_stored(kind.what, "both mirrors", kind.either)
        mirrors.fault = {}
        healed = max(healed, 0.0 if kind.either else trial.heals(kind.what, settings))
        trial.check_stored(kind.what, "afterwards", kind.either)
        reader.ask(60, do="close", id=kind.what)
    except TimeoutError as error:
        row.wrong += 1
        row.say(str(error))
    finally:
        mirrors.stop()
    if len(mirrors.requests) > trial.requests:
        row.wrong += 1
        row.say(f"{len(mirrors.requests)} requests came to the server, {trial.requests} were counted by the client")
    if "redirects to" in kind.what and canary.calls != called:
        row.leaked += canary.calls - called
        row.say(f"{canary.calls - called} connections to a host that is not configured")
    if trial.peak > bench.rest_mb + MEMORY_MB:
        row.leaked += 1
        row.say(f"{trial.peak:.0f} MB of memory, {bench.rest_mb:.0f} at rest")
    row.remark = (
        f"{trial.equal} right, {trial.errors} errors; {trial.requests} requests "
        f"(at most {bench.most_requests(kind.hops)} a load); longest {trial.longest:.1f} s, "
        f"healed within {healed:.1f} s; peak {trial.peak:.0f} MB"
    )
    return row


def _try_mix(bench: Bench, reader: Reader, season: Season) -> Row:
    row = Row("cdn", "all faults mixed at 30 %, at both mirrors")
    trial = Trial(bench, reader, row, bench.plan.chance("cdn mix"))
    slow = (faults.silent, faults.stalls, faults.slow_headers, faults.slow_body)
    others = (
        faults.reset, faults.too_many, faults.too_many_wait, faults.too_many_absurd, faults.server_errors,
        faults.odd_statuses, faults.truncated, faults.truncated_unannounced, faults.bombs, faults.many_headers,
        faults.bad_chunks, faults.not_http, faults.wrong_json, faults.html, faults.loops, faults.unasked_304,
        faults.closes_kept, faults.too_large,
    )  # fmt: skip
    healed = 0.0
    for number in range(bench.plan.count(8)):
        chance = bench.plan.chance(f"cdn mix {number}")
        mirrors = Mirrors(bench.files, chance)
        every: Reply = lambda exchange, server, chance=chance: chance.choice((*slow, *others * 2))(exchange, server)  # noqa: E731
        own = ("error", "rate_limit", "truncate", "garbage", "bad_json", "reset")
        with CdnServer(season, seed=number) as other:
            try:
                mirrors.fault = {"a": (every, 0.3)}
                other.faults.set(*(Fault(kind, 0.3 / len(own)) for kind in own))
                settings = bench.settings(
                    [*mirrors.urls("a"), *other.cdn_urls], [*mirrors.schedules("a"), *other.schedule_urls]
                )
                reader.ask(60, do="open", id="mix", key=bench.key, settings=settings)
                trial.load("mix", settings, f"mix {number}", must=False)
                trial.check_stored("mix", f"mix {number}")
                mirrors.fault = {}
                other.faults.clear()
                healed = max(healed, trial.heals("mix", settings))
                trial.check_stored("mix", f"mix {number}, afterwards")
                reader.ask(60, do="close", id="mix")
            except TimeoutError as error:
                row.wrong += 1
                row.say(str(error))
            finally:
                mirrors.stop()
    if trial.peak > bench.rest_mb + MEMORY_MB:
        row.leaked += 1
        row.say(f"{trial.peak:.0f} MB of memory, {bench.rest_mb:.0f} at rest")
    row.remark = (
        f"{bench.plan.count(8)} caches: {trial.equal} right, {trial.errors} errors; {trial.requests} requests; "
        f"longest {trial.longest:.1f} s, healed within {healed:.1f} s; peak {trial.peak:.0f} MB"
    )
    return row


def _try_refused(bench: Bench, reader: Reader, what: str) -> Row:
    """Thousands of files of a mirror that cannot be connected to, alone and before a sound one."""
    row = Row("cdn", f"thousands of files: {what}")
    count = bench.plan.count(5000)
    dead = f"http://127.0.0.1:{_closed_port()}/{{year}}" if "port" in what else "https://no-such-host.invalid/{year}"
    mirrors = Mirrors(bench.files, bench.plan.chance(what))
    body = b'{"tel": {"time": [1]}}'
    mirrors.replies["b"] = lambda exchange: exchange.send(body)
    # Until it is set aside: one request of each worker and the retries of five files; then a probe a pause.
    first = CONCURRENT + 5 * RETRIES
    try:
        for urls, failing in (([dead, *mirrors.urls("b")], False), ([dead], True)):
            settings = bench.settings(urls, mirrors.schedules("b")) | {"request_timeout": 10}
            answer = reader.ask(120, do="many", files=count, settings=settings)
            row.tried += count
            sent = len(mirrors.requests)
            pause = TIMING.set_aside_alone if failing else TIMING.set_aside
            at_dead = answer["requests"] - (0 if failing else sent)
            most = first + 2 * (1 + RETRIES) * (1 + answer["seconds"] / pause)
            if at_dead > most:
                row.wrong += 1
                row.say(f"{at_dead} requests to a dead mirror in {answer['seconds']:.1f} s, at most {most:.0f}")
            if answer["failed"] != (count if failing else 0) or (not failing and sent != count):
                row.lost += 1
                row.say(f"{answer['failed']} of {count} files failed, {sent} requests to the sound mirror")
            if failing and not all("set aside" in text or dead.partition("{")[0] in text for text in answer["first"]):
                row.wrong += 1
                row.say(f"an error that does not say why: {answer['first']}")
            ending = "alone" if failing else f"{sent} to the sound one after it"
            row.remark += f"{at_dead} requests to the dead mirror, {ending}, {answer['seconds']:.1f} s; "
    except TimeoutError as error:
        row.wrong += 1
        row.say(str(error))
    finally:
        mirrors.stop()
    row.remark = row.remark.removesuffix("; ")
    return row


def _try_breaker(bench: Bench, reader: Reader) -> Row:
    """A mirror dies and comes back, while the other one is sound: it must be set aside, and taken back."""
    row = Row("cdn", "a mirror that dies is set aside, and taken back when it answers")
    mirrors = Mirrors(bench.files, bench.plan.chance("breaker"))
    trial = Trial(bench, reader, row, mirrors.chance)
    told = []
    try:
        for number in range(bench.plan.count(4)):
            mirrors.requests.clear()
            settings = bench.settings(mirrors.urls("a", "b"), mirrors.schedules("b"))
            mirrors.fault = {"a": (faults.server_errors, 1.0)}
            name = f"breaker {number}"
            reader.ask(60, do="open", id=name, key=bench.key, settings=settings)
            trial.load(name, settings, "dead", must=True)
            while_dead = mirrors.asked("a")
            # Four files, then one request of each worker and the retries of five.
            most = 4 * (1 + RETRIES) + CONCURRENT + 5 * RETRIES + 2
            if while_dead > most:
                row.wrong += 1
                row.say(f"{while_dead} requests to the dead mirror, at most {most}")
            mirrors.fault = {}
            time.sleep(TIMING.set_aside + 0.2)
            mirrors.requests.clear()
            # The same client, another cache: the files are asked for again.
            many = reader.ask(60, do="reload", id=name, folder=str(bench.plan.scratch / f"again-{number}"))
            row.tried += len(TABLES)
            if many["tables"] != {table: {"digest": bench.clean[table]} for table in TABLES}:
                row.wrong += 1
                row.say(f"after it came back: not the tables of a clean run ({many['tables']})")
            back = mirrors.asked("a")
            if back < bench.telemetry_files:
                row.lost += 1
                row.say(f"taken back late: {back} requests to it, {mirrors.asked('b')} to the other one")
            told.append(f"{while_dead} requests while dead, {back} after it came back")
            reader.ask(60, do="close", id=name)
    except TimeoutError as error:
        row.wrong += 1
        row.say(str(error))
    finally:
        mirrors.stop()
    row.remark = "; ".join(told[:2])
    return row


def _try_lying_304(bench: Bench, reader: Reader) -> Row:
    """Files change while the server says that they have not; when it is honest again, the change must be seen."""
    row = Row("cdn", "304 that lies, under the ETag of a version that was not sent")
    mirrors = Mirrors(bench.files, bench.plan.chance("lying 304"))
    try:
        settings = bench.settings(mirrors.urls("a", "b"), mirrors.schedules("a", "b"))
        settings |= {"cache_ttl": 0.01, "cache_ttl_schedule": 3600}
        reader.ask(60, do="open", id="304", key=bench.key, settings=settings)
        tables = list(TABLES[:3])
        expected = [bench.clean, bench.clean, bench.later]
        for state, right in zip(("sound", "lying", "honest again"), expected, strict=True):
            mirrors.is_later = state != "sound"
            mirrors.fault = dict.fromkeys("ab", (faults.lying_304, 1.0)) if state == "lying" else {}
            answer = reader.ask(bench.most_seconds() * 2, do="load", id="304", tables=tables)
            row.tried += len(tables)
            row.remark += f"{answer['requests']} requests while {state}; "
            for table, told in answer["tables"].items():
                if told.get("digest") != right[table]:
                    row.wrong += 1
                    row.say(f"{state}: {table} is not what it should be ({told})")
            time.sleep(0.05)
        reader.ask(60, do="close", id="304")
    except TimeoutError as error:
        row.wrong += 1
        row.say(str(error))
    finally:
        mirrors.stop()
    row.remark = row.remark.removesuffix("; ")
    return row


def _try_flights(bench: Bench) -> Row:
    """Threads of several processes ask for the same tables while requests fail."""
    row = Row("cdn", "single flight: threads of several processes want the same tables during faults")
    readers = [bench.readers.get() for _ in range(READERS)]
    requests = threads = 0
    try:
        for number in range(bench.plan.count(5)):
            mirrors = Mirrors(bench.files, bench.plan.chance(f"flights {number}"))
            fast = (faults.reset, faults.server_errors, faults.too_many, faults.html, faults.truncated)
            every: Reply = lambda exchange, server, fast=fast: server.chance.choice(fast)(exchange, server)  # noqa: E731
            mirrors.fault = dict.fromkeys("ab", (every, 0.6))
            settings = bench.settings(mirrors.urls("a", "b"), mirrors.schedules("a", "b")) | {"request_timeout": 15}
            orders = {
                "do": "flights",
                "key": bench.key,
                "settings": settings,
                "threads": 6,
                "most_seconds": 60,
                "tables": TABLES[:3],
            }
            try:
                with ThreadPoolExecutor(READERS) as pool:
                    answers = list(pool.map(Reader.ask, readers, [120.0] * READERS, [orders] * READERS))
            finally:
                mirrors.stop()
            for answer in answers:
                threads += len(answer["read"])
                row.tried += len(answer["read"])
                for table, told in answer["read"]:
                    if told.get("digest") != bench.clean[table]:
                        row.wrong += 1
                        row.say(f"{table}: {told}")
            requests += len(mirrors.requests)
            row.tried += len(mirrors.served)
            for path, times in mirrors.served.items():
                if times != 1:
                    row.wrong += 1
                    row.say(f"{path} was served {times} times to {READERS} processes")
            names = [path.split("/")[-1] for path in mirrors.served]
            if len(names) != len(set(names)):
                row.wrong += 1
                row.say(f"served by both mirrors: {sorted(names)}")
    except TimeoutError as error:
        row.wrong += 1
        row.say(str(error))
    finally:
        for reader in readers:
            bench.readers.put(reader)
    row.remark = f"{threads} readers in {READERS} processes, {requests} requests, each file served once"
    return row


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Canary:
    """A port that nobody configured; counts who calls."""

    def __init__(self) -> None:
        self.calls = 0
        self._socket = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.calls += 1
            connection.close()

    def __enter__(self) -> "Canary":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)
