"""The simulated CDN as a command: generates or reads, serves until it is interrupted."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import TextIO, cast

from tif1_pipeline.exceptions import ConfigError
from tif1_pipeline.simulator.faults import Fault, FaultKind
from tif1_pipeline.simulator.season import Season
from tif1_pipeline.simulator.server import CdnServer


def parse_fault(text: str) -> Fault:
    """Read a fault from the command line: ``error=0.05``, ``latency=1:0.2`` (seconds), ``error=0.1:500`` (status).

    After ``rate_limit=0.1:`` stand the seconds of Retry-After.

    Raises:
        ConfigError: It is not of this form.
    """
    kind, _, rest = text.partition("=")
    rate, _, extra = rest.partition(":")
    try:
        fault = Fault(cast(FaultKind, kind.strip()), float(rate or 1))
        if not extra:
            return fault
        if kind == "rate_limit":
            return Fault("rate_limit", fault.rate, retry_after=float(extra))
        if kind == "error":
            return Fault("error", fault.rate, status=int(extra))
        return Fault(fault.kind, fault.rate, seconds=float(extra))
    except ValueError:
        raise ConfigError(f"{text!r} is no fault; write it like error=0.05 or latency=1:0.2", fault=text) from None


def serve(
    directory: str | Path | None = None,
    *,
    years: Iterable[int] = (2025,),
    events: int | None = None,
    size: str = "full",
    untidy: bool = True,
    seed: int = 0,
    host: str = "127.0.0.1",
    port: int = 0,
    faults: Iterable[str | Fault] = (),
    ready_file: str | Path | None = None,
    stop: threading.Event | None = None,
    output: TextIO | None = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM; prints the URL and the environment variables that point clients to it.

    Args:
        directory: Serve these files; ``None`` generates seasons.
        years: Seasons to generate.
        events: Grands Prix a season; ``None`` for whole calendars.
        size: ``full``, ``small`` or ``tiny``.
        untidy: Make the files as untidy as the real ones.
        seed: Decides what is invented and which requests the faults hit.
        host: Address to listen on.
        port: Port, 0 for a free one.
        faults: Faults, as :func:`parse_fault` reads them.
        ready_file: Where the port is written once requests are answered; removed at the end.
        stop: Ends it too, for callers with threads.
        output: Where to print, standard output by default.

    Raises:
        ConfigError: A bad size, fault or directory.
        OSError: The port is taken.
    """
    chosen = [parse_fault(fault) if isinstance(fault, str) else fault for fault in faults]
    content = directory or [Season(year, seed=seed, events=events, size=size, untidy=untidy) for year in years]
    stop = stop or threading.Event()
    out = output or sys.stdout
    server = CdnServer(content, host=host, port=port, seed=seed, faults=chosen)
    with _signals(stop.set), server:
        lines = (
            f"Simulated CDN at {server.url} (Ctrl-C ends it). Clients find it with",
            f"  export TIF1_CDN_URLS='{server.cdn_urls[0]}'",
            f"  export TIF1_SCHEDULE_URLS='{server.schedule_urls[0]}'",
        )
        out.write("\n".join(lines) + "\n")
        out.flush()
        with _ready(ready_file, server.port):
            # In slices: a wait without limit would not let signal handlers run on every platform.
            while not stop.wait(1.0):
                pass
        out.write(f"Answered {server.requests.total:,} requests.\n")


@contextlib.contextmanager
def _signals(act: Callable[[], None]) -> Iterator[None]:
    """Call ``act`` on Ctrl-C and SIGTERM, where this thread may say so."""

    def handle(_: int, __: FrameType | None) -> None:
        act()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _ready(path: str | Path | None, port: int) -> Iterator[None]:
    if path is None:
        yield
        return
    file = Path(path)
    # Whole or not at all: a script may look while it is written.
    partial = file.with_name(file.name + ".part")
    partial.write_text(f"{port}\n", encoding="ascii")
    partial.replace(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
