"""Warming: what is missing or expired of many sessions is fetched ahead, several sessions at once."""

import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.ages import is_young, max_age
from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.cache.tiered import is_compatible
from tif1_pipeline.cache.warmer import Report
from tif1_pipeline.calendar import Event, SeasonCalendar
from tif1_pipeline.cdn.base import CdnStats
from tif1_pipeline.config import Config
from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.exceptions import (
    CacheError,
    CacheLockedError,
    CacheReadOnlyError,
    CacheVersionError,
    DataNotFoundError,
    DriverNotFoundError,
    EventNotFoundError,
    InvalidDataError,
    NetworkError,
    SessionNotFoundError,
    Tif1Error,
)
from tif1_pipeline.keys import SessionKey
from tif1_pipeline.progress import progress
from tif1_pipeline.reading import Reader

if TYPE_CHECKING:
    from tif1_pipeline.cdn.client import CdnClient

TYPES = tuple(name for name, dataset in DATASETS.items() if dataset.level == "session")
"""The tables that a session has, in the order in which they are warmed: telemetry needs drivers and laps."""
DEFAULT_TYPES = ("drivers", "laps", "weather", "messages")

NOT_PUBLISHED, PASSING, LASTING = "not published", "passing", "lasting"
"""Kinds of failure: the CDN does not have it; another try may help; none will."""

_log = logging.getLogger(__name__)

_JOIN_SECONDS = 0.2
_ABANDON_SECONDS = 3.0
"""How long an interrupt waits for tables under way: their requests are dropped, a write to disk ends by itself."""


@dataclass(frozen=True, slots=True)
class Task:
    """One table to warm, or one driver's telemetry."""

    key: SessionKey
    data_type: str
    driver: str | None = None

    def about(self) -> dict[str, Any]:
        """Return what it is, as reports say it."""
        said = {
            "year": self.key.year,
            "event": self.key.event,
            "session_type": self.key.session_type,
            "data_type": self.data_type,
        }
        return said | ({"driver": self.driver} if self.driver else {})

    def failed(self, error: Exception) -> dict[str, Any]:
        """Return what the report says of it when it failed."""
        return self.about() | {"error": str(error) or type(error).__name__, "kind": kind_of(error)}


def kind_of(error: Exception) -> str:
    """Return what kind of failure an error is: one of those above."""
    if isinstance(error, DataNotFoundError):
        return NOT_PUBLISHED
    return PASSING if isinstance(error, NetworkError | CacheLockedError) else LASTING


def shortcoming(info: EntryInfo | None, data_type: str, year: int, config: Config) -> str | None:
    """Return why a table is not served as it is stored; None if it is there and fresh.

    Args:
        info: What is stored, if anything.
        data_type: The table's name.
        year: Season it is of.
        config: The settings in force.
    """
    if info is None:
        return "not stored"
    if not is_compatible(info, DATASETS[data_type].schema_version):
        return "stored by another version"
    return None if is_young(info, max_age(config, data_type, year, info.created_at)) else "expired"


class Warming:
    """Fetches what is missing or expired of sessions, and leaves alone what is stored and fresh.

    A table that cannot be had or not be stored is reported as failed, with the reason, and the others go on. An
    interrupt drops what is under way within seconds and keeps what was stored; the same call goes on from there.

    Args:
        reader: Reads the calendars.
        cache: What is warmed.
        config: The settings in force.
    """

    def __init__(self, reader: Reader, cache: Cache, config: Config) -> None:
        self._reader = reader
        self._cache = cache
        self._config = config
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End the calls that run, from another thread: what is under way is dropped, what was stored is kept."""
        self._stopped.set()

    def season(self, year: int, *, data_types: Sequence[str] | None = None, max_workers: int = 4) -> Report:
        """Warm the sessions of a season that have begun.

        Args:
            year: Season.
            data_types: Which of :data:`TYPES`; :data:`DEFAULT_TYPES` by default.
            max_workers: Sessions under way at once.

        Returns:
            As all calls, succeeded and skipped (tables fetched, and found stored and fresh), failed (a list of year,
            event, session_type, data_type, driver where it is about one, error and its kind), seconds, requests, bytes.

        Raises:
            InvalidDataError: An unknown type, or less than one worker.
            EventNotFoundError: There is no such season.
            NetworkError: The calendar is not stored and the CDN cannot be reached.
            CacheError: The cache is switched off.
        """
        types, run = _checked(data_types), self._begin(max_workers)
        keys = [key for event in run.calendar(year).events for key in _begun(event)]
        return run.warm(str(year), {key: _tables(key, types) for key in keys})

    def event(
        self,
        year: int,
        event: Any,
        session_type: str | None = None,
        *,
        data_types: Sequence[str] | None = None,
        max_workers: int = 4,
    ) -> Report:
        """Warm the sessions of an event that have begun, or one session, begun or not.

        Raises:
            SessionNotFoundError: The event has no such session.
        """
        types, run = _checked(data_types), self._begin(max_workers)
        found = run.calendar(year).find(event)
        return run.warm(found.partition, {key: _tables(key, types) for key in _chosen(found, session_type)})

    def types(self, data_types: Sequence[str], year: int, event: Any = None, *, max_workers: int = 4) -> Report:
        """Warm tables of some types, of a season or of one of its events."""
        if event is None:
            return self.season(year, data_types=data_types, max_workers=max_workers)
        return self.event(year, event, data_types=data_types, max_workers=max_workers)

    def drivers(
        self,
        drivers: Sequence[str],
        year: int,
        event: Any,
        session_type: str | None = None,
        *,
        max_workers: int = 4,
    ) -> Report:
        """Warm the telemetry of some drivers alone, in one session, or in the sessions of an event that have begun.

        Args:
            drivers: Codes or numbers; one that a session does not have is reported as failed there.
            year: Season.
            event: Event.
            session_type: Session; all of the event by default.
            max_workers: Sessions under way at once.
        """
        if isinstance(drivers, str):
            raise InvalidDataError(f"drivers={drivers!r} is a text: give a list, [{drivers!r}]")
        run = self._begin(max_workers)
        found = run.calendar(year).find(event)
        codes = dict.fromkeys(str(driver).strip().upper() for driver in drivers)
        return run.warm(
            f"{found.partition}, {', '.join(codes)}",
            {key: [Task(key, "telemetry", code) for code in codes] for key in _chosen(found, session_type)},
        )

    def frequent(self, min_access_count: int = 5, *, max_workers: int = 4) -> Report:
        """Warm the sessions that were read at least so often: the default types, and those stored of them.

        Where telemetry of some drivers alone is stored, theirs alone is warmed.
        """
        run = self._begin(max_workers)
        sessions: dict[SessionKey, list[Task]] = {}
        for row in self._cache.list_sessions(sort_by="access_count"):
            if row["access_count"] < min_access_count:
                continue
            try:
                key = run.calendar(row["year"]).find(row["event"]).key(row["session_type"])
            except (EventNotFoundError, SessionNotFoundError) as error:  # the calendar has changed, or never had it
                names = SessionKey(row["year"], row["event"], row["session_type"])
                run.failed.append((-1, Task(names, ", ".join(row["data_types"])).failed(error)))
                continue
            sessions[key] = self.kept(key, {*DEFAULT_TYPES, *row["data_types"]})
        return run.warm("what is used most", sessions)

    def tables(self, what: str, sessions: Mapping[SessionKey, Sequence[Task]], *, max_workers: int = 4) -> Report:
        """Warm given tables, those of a session in their order.

        Args:
            what: What they are, for the progress bar.
            sessions: The tables by session.
            max_workers: Sessions under way at once.
        """
        return self._begin(max_workers).warm(what, sessions)

    def kept(self, key: SessionKey, types: Collection[str]) -> list[Task]:
        """Return the tables of these types of a session, but of telemetry no more than is stored of it."""
        entry = key.entry("telemetry")
        tasks = [Task(key, name) for name in TYPES if name in types]
        if "telemetry" not in types or self._cache.info(entry) is not None:
            return tasks
        parts = [found["key"].removeprefix(f"{entry}/") for found in self._cache.search(f"{entry}/*")]
        drivers = [Task(key, "telemetry", part) for part in parts if "/" not in part]
        return [task for task in tasks if task.data_type != "telemetry"] + drivers

    def _begin(self, max_workers: int) -> "_Run":
        if max_workers < 1:
            raise InvalidDataError(f"max_workers={max_workers}: at least one is needed", max_workers=max_workers)
        if not self._config.cache_enabled:
            raise CacheError("nothing can be warmed while the setting cache_enabled is off", setting="cache_enabled")
        return _Run(self._reader, self._cache, self._config, max_workers, self._stopped)


class _Run:
    """One warming call: its counts, its threads, and a CDN client that can be closed under them."""

    def __init__(
        self, reader: Reader, cache: Cache, config: Config, max_workers: int, stopped: threading.Event
    ) -> None:
        self._calendar_reader = reader
        self._cache = cache
        self._config = config
        self._max_workers = max_workers
        # A client of its own: closing it ends the requests of this call and of nobody else.
        self._reader = Reader(config, cache, self._get_client)
        self._client: CdnClient | None = None
        self._calendars: dict[int, SeasonCalendar] = {}
        self._drivers: dict[SessionKey, list[dict[str, Any]]] = {}
        self._stats = CdnStats()
        self._started = time.perf_counter()
        self._lock = threading.Lock()
        self._stopped = stopped
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._succeeded = self._skipped = 0
        self.failed: list[tuple[int, dict[str, Any]]] = []

    def calendar(self, year: int) -> SeasonCalendar:
        """Return a season's calendar, fetched at most once, and counted."""
        if year not in self._calendars:
            table = self._calendar_reader.schedule(year, stats=self._stats).value
            self._calendars[year] = SeasonCalendar.from_table(year, table)
        return self._calendars[year]

    def warm(self, what: str, sessions: Mapping[SessionKey, Sequence[Task]]) -> Report:
        """Do the tasks: those of one session one after another, several sessions at once."""
        tasks = [task for of_session in sessions.values() for task in of_session]
        order = {task: number for number, task in enumerate(tasks)}
        pending = deque(of_session for of_session in sessions.values() if of_session)
        with progress(f"warming {what}:", total=len(tasks)) as advance:

            def work() -> None:
                try:
                    while not self._stopping.is_set():
                        with self._lock:
                            of_session = pending.popleft() if pending else ()
                        if not of_session:
                            return
                        for task in of_session:
                            self._do(task, order[task])
                            advance(1)
                except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
                    self._error = error
                    self._stopping.set()

            # Daemons, because the interpreter waits at its end for the threads of an executor, and one that waits
            # for what another process fetches cannot be told to stop.
            threads = [
                threading.Thread(target=work, name=f"tif1-warming-{number}", daemon=True)
                for number in range(min(self._max_workers, len(sessions)))
            ]
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    while thread.is_alive():
                        thread.join(_JOIN_SECONDS)
                        if self._stopped.is_set():
                            raise CacheError("warming was stopped; what is stored is kept, run it again to go on")  # noqa: TRY301
            except BaseException:  # KeyboardInterrupt above all
                self._abandon(threads)
                raise
        self._close_client()
        if self._error is not None:
            raise self._error
        return {
            "succeeded": self._succeeded,
            "skipped": self._skipped,
            "failed": [item for _, item in sorted(self.failed, key=lambda pair: pair[0])],
            "seconds": time.perf_counter() - self._started,
            "requests": self._stats.requests,
            "bytes": self._stats.bytes,
        }

    def _abandon(self, threads: Sequence[threading.Thread]) -> None:
        self._stopping.set()
        until = time.monotonic() + _ABANDON_SECONDS
        running = [thread for thread in threads if thread.is_alive()]
        while running and time.monotonic() < until:
            self._close_client()  # again, because a table may begin another request just then
            running[0].join(0.05)
            running = [thread for thread in running if thread.is_alive()]

    # ---- one task, in a thread

    def _do(self, task: Task, number: int) -> None:
        if self._stopping.is_set():
            return
        try:
            done = self._bring(task)
        except CacheVersionError:  # nothing can be read from the file or stored there
            raise
        except Exception as error:  # noqa: BLE001 - one table must not end the others; a fault of ours is logged
            if not isinstance(error, Tif1Error):
                _log.exception("warming %s of %s failed", task.data_type, task.key)
            with self._lock:
                self.failed.append((number, task.failed(error)))
            return
        with self._lock:
            if done:
                self._succeeded += 1
            else:
                self._skipped += 1

    def _bring(self, task: Task) -> bool:
        """Make what the task names current; returns whether anything had to be done."""
        since = datetime.now(UTC)
        degraded = self._cache.get_degraded()
        if task.driver is not None:
            if self._is_driver_current(task, task.driver):
                return False
            self._refuse_readonly()
            code = self._code(task.key, task.driver)
            if code != task.driver and self._is_driver_current(task, code):
                return False
            hit = self._reader.driver_telemetry(task.key, code, stats=self._stats)
            current = self._is_driver_current(task, code, since)
        else:
            # How old that may be follows from the calendar, which the reader knows; it takes no request.
            derived = task.data_type == "session_info"
            if not derived and self._is_current(self._cache.info(task.key.entry(task.data_type)), task):
                return False
            self._refuse_readonly()
            # Without columns: nobody wants the value here.
            hit = self._reader.table(task.key, task.data_type, columns=(), stats=self._stats)
            if derived and hit.tier != "cdn":
                return False
            current = self._is_current(self._cache.info(task.key.entry(task.data_type)), task, since)
        if current:
            return True
        if hit.tier != "cdn":
            raise NetworkError("what is stored has expired and could not be refreshed; the log says why")
        after = self._cache.get_degraded()
        causes = [cause for cause, times in after.items() if times > degraded.get(cause, 0)]
        raise CacheError(
            f"it was fetched but could not be stored ({'; '.join(causes) or 'it was removed at once'}); "
            "the log says why, and `tif1-pipeline doctor` what to do"
        )

    def _refuse_readonly(self) -> None:
        if self._config.cache_readonly:
            raise CacheReadOnlyError("not fetched, because it could not be stored: the setting cache_readonly is on")

    def _is_current(self, info: EntryInfo | None, task: Task, since: datetime | None = None) -> bool:
        """Tell whether what is stored is fresh, or was stored or confirmed since a moment."""
        if info is not None and since is not None and info.created_at >= since:
            return is_compatible(info, DATASETS[task.data_type].schema_version)
        return shortcoming(info, task.data_type, task.key.year, self._config) is None

    def _is_driver_current(self, task: Task, code: str, since: datetime | None = None) -> bool:
        entry = task.key.entry("telemetry")
        whole = self._cache.info(entry)
        if whole is not None and is_compatible(whole, DATASETS["telemetry"].schema_version):
            return code in whole.parts and self._is_current(whole, task, since)
        return self._is_current(self._cache.info(entry.of_part(code)), task, since)

    def _code(self, key: SessionKey, driver: str) -> str:
        if key not in self._drivers:  # a session is one thread's
            self._drivers[key] = self._reader.table(key, "drivers", stats=self._stats).value.to_pylist()
        for row in self._drivers[key]:
            if driver in (row["Driver"], row["DriverNumber"]):
                return row["Driver"]
        raise DriverNotFoundError(
            f"no driver {driver[:40]!r} in the {key}; there are "
            + ", ".join(row["Driver"] for row in self._drivers[key] if row["Driver"]),
            driver=driver[:40],
            session=key.partition,
        )

    # ---- the CDN client

    def _get_client(self) -> "CdnClient":
        with self._lock:
            if self._stopping.is_set():
                raise NetworkError("the warming was interrupted")
            if self._client is None:
                from tif1_pipeline.cdn.client import CdnClient  # not at the top: its imports are slow

                self._client = CdnClient(self._config)
            return self._client

    def _close_client(self) -> None:
        if self._client is not None:
            self._client.close()


# ---- what to warm


def _checked(data_types: Sequence[str] | None) -> list[str]:
    if isinstance(data_types, str):
        raise InvalidDataError(f"data_types={data_types!r} is a text: give a list, [{data_types!r}]")
    wanted = set(DEFAULT_TYPES if data_types is None else data_types)
    if unknown := sorted(wanted - set(TYPES)):
        raise InvalidDataError(
            f"there is no data type {', '.join(map(repr, unknown))} to warm; choose from {', '.join(TYPES)}",
            data_types=unknown,
        )
    return [name for name in TYPES if name in wanted]


def _tables(key: SessionKey, types: Iterable[str]) -> list[Task]:
    return [Task(key, name) for name in types]


def _chosen(event: Event, session_type: str | None) -> list[SessionKey]:
    return _begun(event) if session_type is None else [event.key(session_type)]


def _begun(event: Event) -> list[SessionKey]:
    """Return the sessions that have begun; one whose start is not known counts as begun."""
    now = datetime.now(UTC)
    return [key for key, start in starts_of(event) if start is None or start <= now]


def starts_of(event: Event) -> Iterator[tuple[SessionKey, datetime | None]]:
    """Give the sessions of an event with their starts (UTC), as exactly as they are known."""
    for session, key in zip(event.sessions, event.session_keys, strict=True):
        local = session.date or event.date
        yield key, session.date_utc or (local.replace(tzinfo=UTC) if local else None)
