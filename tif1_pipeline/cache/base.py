"""The contract of the cache: what goes in, what comes out, and what a failure does.

Tiers are asked in order, memory then disk, and a hit fills the tiers above it. A tier that fails is logged with its
reason, counted and skipped; the caller gets the data from the next one. An entry is visible whole or not at all, also
to other processes and after a kill. A read never writes: access times and counts are kept in memory and written in
batches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tif1_pipeline.cache.early import EarlyParts

Backend = Literal["pandas", "polars", "arrow", "json"]
"""What a value is: a pandas or polars frame, an Arrow table, or anything that JSON can say."""

Tier = Literal["memory", "disk", "cdn"]

Observer = Callable[[str, str, str | None, float], None]
"""Told of a look-up: key, data type, tier (None for a miss) and seconds."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where an entry's data came from, and what identifies that version of it."""

    url: str | None = None
    etag: str | None = None
    last_modified: str | None = None


OUTDATED = datetime.fromtimestamp(0, UTC)
"""Age of an entry that is to be fetched anew at its next use, whatever its TTL; until then it is what there is."""


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """Metadata of one entry.

    Attributes:
        key: The stored key.
        year: Season, for Formula 1 entries.
        event: Slug of the event.
        session_type: Slug of the session type.
        data_type: ``laps``, ``telemetry`` …, or an asset's name.
        backend: What was stored; tables can be read as any kind of table.
        created_at: When this version was stored or last found current (UTC, aware); :data:`OUTDATED` for one that is
            known not to be current any more.
        accessed_at: Last read (UTC, aware), as far as it is flushed.
        access_count: Reads, as far as they are flushed.
        size_bytes: Uncompressed, in memory.
        compressed_size: Stored.
        rows: Rows of a table; 1 for a JSON value.
        parts: Names of the parts that can be read alone; ``("",)`` for an entry of one part.
        schema_version: Of the dataset.
        library_version: Of this package.
        format_version: Of the stored form.
        source: Origin.
        checksum: Over the stored bytes of all parts.
        pinned: Not for cleanup to evict.
        generation: Differs for every version ever stored under the key.
        encryption: Which key the stored bytes are encrypted with; None for plain ones.
    """

    key: str
    year: int | None
    event: str | None
    session_type: str | None
    data_type: str
    backend: Backend
    created_at: datetime
    accessed_at: datetime
    access_count: int
    size_bytes: int
    compressed_size: int
    rows: int
    parts: tuple[str, ...]
    schema_version: int
    library_version: str
    format_version: int
    source: Source
    checksum: str
    pinned: bool
    generation: str
    encryption: str | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A value that was found, and where."""

    value: Any
    tier: Tier
    info: EntryInfo | None


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a write.

    Attributes:
        stored: Whether the disk tier has it.
        reason: Why it has not, in words.
        info: The entry's metadata, when stored.
        seconds: Time of encoding and committing.
    """

    stored: bool
    reason: str | None
    info: EntryInfo | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Fresh:
    """What a fetch brought: a new value, or the word that the stored one is current (``not_modified``).

    The memory of the value is the cache's from then on: whoever made it must not change it any more. ``early`` are
    parts of the table that were given to be encoded while others were being fetched.
    """

    value: Any
    source: Source = Source()
    not_modified: bool = False
    early: "EarlyParts | None" = None
