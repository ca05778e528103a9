"""One session of timing data, read through the cache as its attributes are used."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from tif1_pipeline.cache.frames import from_table
from tif1_pipeline.exceptions import DriverNotFoundError
from tif1_pipeline.keys import SessionKey
from tif1_pipeline.progress import progress
from tif1_pipeline.reading import Reader, rows_of

if TYPE_CHECKING:
    import pyarrow as pa

FrameBackend = Literal["pandas", "polars"]
_LOADABLE = ("laps", "telemetry", "weather", "messages")


class Session:
    """One session; :func:`tif1_pipeline.get_session` makes it.

    Nothing is fetched before it is asked for. Frames are the caller's own: changing one never changes the cache.

    Args:
        key: Which session.
        reader: Reads its tables.
        backend: Kind of the frames.
        bypass: Reads tables straight from the CDN.
    """

    def __init__(self, key: SessionKey, reader: Reader, backend: FrameBackend, bypass: Reader) -> None:
        self.key = key
        self.backend: FrameBackend = backend
        self._reader = reader
        self._bypass = bypass
        self._held: dict[str, pa.Table] = {}

    @property
    def year(self) -> int:
        """Season."""
        return self.key.year

    @property
    def event(self) -> str:
        """Name of the event."""
        return self.key.event

    @property
    def session_type(self) -> str:
        """Full name of the session type."""
        return self.key.session_type

    def __repr__(self) -> str:
        return f"<Session {self.key}>"

    # ---- tables

    @property
    def laps(self) -> Any:
        """One row a lap; columns as in ``datasets.LAPS``.

        Raises:
            DataNotFoundError: The CDN does not have it (yet).
            NetworkError: It is not cached and the CDN cannot be reached.
            InvalidDataError: No mirror has a sound copy.
        """
        return self._frame("laps")

    @property
    def telemetry(self) -> Any:
        """One row a sample of all laps; columns and units as in ``datasets.TELEMETRY``. Errors as ``laps``."""
        return self._frame("telemetry")

    @property
    def weather(self) -> Any:
        """One row a minute; columns and units as in ``datasets.WEATHER``. Errors as ``laps``."""
        return self._frame("weather")

    @property
    def messages(self) -> Any:
        """One row a race control message; columns as in ``datasets.MESSAGES``. Errors as ``laps``."""
        return self._frame("messages")

    @property
    def drivers_df(self) -> Any:
        """One row a driver; columns as in ``datasets.DRIVERS``. Errors as ``laps``."""
        return self._frame("drivers")

    @property
    def corners(self) -> Any:
        """One row a corner of the circuit; columns as in ``datasets.CORNERS``. Errors as ``laps``."""
        return self._frame("corners")

    @property
    def drivers(self) -> list[str]:
        """Three-letter codes of the session's drivers. Errors as ``laps``."""
        return self._table("drivers")["Driver"].to_pylist()

    @property
    def info(self) -> dict[str, Any]:
        """What the session is, where and when: the fields of ``datasets.SESSION_INFO``."""
        return self._table("session_info").to_pylist()[0]

    # ---- parts of tables

    def get_telemetry(self, *, enable_cache: bool = True) -> Any:
        """Return all telemetry; with ``enable_cache=False`` straight from the CDN. Errors as ``laps``."""
        if enable_cache:
            return self.telemetry
        return self._bypass.table(self.key, "telemetry", self.backend).value

    def get_driver_laps(self, driver: str) -> Any:
        """Return one driver's rows of ``laps``.

        Raises:
            DriverNotFoundError: The session has no such driver.
        """
        code = self._driver(driver)
        return from_table(rows_of(self._table("laps"), "Driver", [code]), self.backend)

    def get_driver_telemetry(self, driver: str) -> Any:
        """Return one driver's telemetry; no other driver's is fetched or read.

        Raises:
            DriverNotFoundError: The session has no such driver.
            DataNotFoundError: No telemetry of this driver is published.
        """
        return self._reader.driver_telemetry(self.key, self._driver(driver), as_=self.backend).value

    def get_lap_telemetry(self, driver: str, lap: int) -> Any:
        """Return the telemetry of one lap; no other lap is fetched.

        Raises:
            DriverNotFoundError: The session has no such driver.
            DataNotFoundError: No telemetry of this lap is published.
        """
        return self._reader.driver_telemetry(self.key, self._driver(driver), int(lap), self.backend).value

    # ---- loading ahead

    def load(
        self, *, laps: bool = True, telemetry: bool = True, weather: bool = True, messages: bool = True
    ) -> "Session":
        """Fetch what is not cached yet, at once and with a progress bar on a terminal; return the session.

        Raises:
            Tif1Error: The first table that could not be had, after the others were stored.
        """
        wanted = [name for name, want in zip(_LOADABLE, (laps, telemetry, weather, messages), strict=True) if want]
        with progress(f"{self.key}, files fetched:") as advance, ThreadPoolExecutor(max(1, len(wanted))) as pool:
            futures = [pool.submit(self._table, name, lambda _: advance(1)) for name in wanted]
        for future in futures:
            future.result()
        return self

    async def load_async(
        self, *, laps: bool = True, telemetry: bool = True, weather: bool = True, messages: bool = True
    ) -> "Session":
        """Do as :meth:`load`, in a thread, so that the event loop goes on."""
        import asyncio  # not at the top: who reads without it does not wait for its import

        return await asyncio.to_thread(self.load, laps=laps, telemetry=telemetry, weather=weather, messages=messages)

    # ---- helpers

    def _frame(self, dataset: str) -> Any:
        if self._reader is not self._bypass:
            return self._reader.table(self.key, dataset, self.backend).value
        return from_table(self._table(dataset), self.backend)

    def _table(self, dataset: str, on_done: Callable[[Any], None] | None = None) -> "pa.Table":
        if self._reader is not self._bypass:
            return self._reader.table(self.key, dataset, on_done=on_done).value
        # Without a cache the session itself holds what it fetched: each use of `.laps` must not fetch anew.
        if dataset not in self._held:
            self._held[dataset] = self._bypass.table(self.key, dataset, on_done=on_done).value
        return self._held[dataset]

    def _driver(self, driver: str) -> str:
        asked = str(driver).strip().upper()
        rows = self._table("drivers").to_pylist()
        for row in rows:
            if asked in (row["Driver"], row["DriverNumber"]):
                return row["Driver"]
        raise DriverNotFoundError(
            f"no driver {str(driver)[:40]!r} in the {self.key}; there are {', '.join(row['Driver'] for row in rows)}",
            driver=str(driver)[:40],
            session=self.key.partition,
        )
