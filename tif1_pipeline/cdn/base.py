"""What the CDN client takes and gives."""

from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, Literal, TypeVar

from tif1_pipeline.exceptions import Tif1Error

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CdnFile:
    """One file of a season: the unescaped names of its folders and itself; no names mean the season's schedule."""

    year: int
    names: tuple[str, ...] = ()

    @property
    def is_schedule(self) -> bool:
        """Whether this is the season's schedule, which has mirrors of its own."""
        return not self.names

    def __str__(self) -> str:
        return f"{self.year} schedule" if self.is_schedule else f"{self.year}/" + "/".join(self.names)


@dataclass(frozen=True, slots=True)
class Validators:
    """What identifies a version of a file: sent back to ask "has it changed?"."""

    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a file, as one mirror has it.

    Attributes:
        validators: What identifies it.
        url: Where it came from; None where that is not known, then its ETag is not compared.
    """

    validators: Validators
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Probed:
    """What a mirror says of a file, without its body.

    Attributes:
        state: Compared with the version that the caller holds; ``changed`` where it holds none, ``unknown`` where the
            two cannot be compared.
        version: The version that the mirror has.
    """

    state: Literal["unchanged", "changed", "unknown"]
    version: Version


@dataclass(frozen=True, slots=True)
class Fetched(Generic[T]):
    """One fetched file.

    Attributes:
        value: What the decoder made of the body; None when ``not_modified``.
        validators: ETag and Last-Modified of the answer.
        url: Where it came from.
        size_bytes: Bytes of the body after inflating.
        not_modified: The server answered 304: what the caller holds is current.
    """

    value: T | None
    validators: Validators
    url: str
    size_bytes: int = 0
    not_modified: bool = False


@dataclass(slots=True)
class CdnStats:
    """Counters that a caller hands in and reads; safe to share between threads.

    Attributes:
        requests: Requests sent, retries among them.
        bytes: Bytes of bodies as they came over the wire.
        retries: Requests that were a further try of the same URL.
        seconds: Wall time of the calls.
    """

    requests: int = 0
    bytes: int = 0
    retries: int = 0
    seconds: float = 0.0
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def add(self, *, requests: int = 0, bytes: int = 0, retries: int = 0, seconds: float = 0.0) -> None:
        """Count."""
        with self._lock:
            self.requests += requests
            self.bytes += bytes
            self.retries += retries
            self.seconds += seconds


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the client waits, in seconds.

    Attributes:
        wait_initial: Longest wait before the first retry; it doubles with each further one.
        wait_max: Longest wait before any retry.
        retry_after_max: A mirror that asks for a longer wait than this is given up for the file at hand.
        set_aside: How long a failing mirror is left alone before one request probes it.
        set_aside_alone: The same when no other mirror is left.
    """

    wait_initial: float = 0.5
    wait_max: float = 8.0
    retry_after_max: float = 30.0
    set_aside: float = 60.0
    set_aside_alone: float = 5.0


Outcome = Fetched[T] | Tif1Error
ProbeOutcome = Probed | Tif1Error
