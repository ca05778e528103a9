"""Names of things: which session is meant, where the CDN keeps it, and under which key the cache does.

One home for the ways a session is written: partition key ``"2025 São Paulo Grand Prix Race"``, CDN folder
``São%20Paulo%20Grand%20Prix/Race``, cache key ``2025_sao_paulo_race_laps_pandas``.
"""

import re
import unicodedata
from dataclasses import dataclass
from urllib.parse import quote

from tif1_pipeline.exceptions import InvalidDataError, SessionNotFoundError

FIRST_SEASON = 2018

SESSION_SHORT_FORMS = {
    "FP1": "Practice 1",
    "FP2": "Practice 2",
    "FP3": "Practice 3",
    "Q": "Qualifying",
    "S": "Sprint",
    "SS": "Sprint Shootout",
    "SQ": "Sprint Qualifying",
    "R": "Race",
}
SESSION_TYPES = tuple(SESSION_SHORT_FORMS.values())


def fold(text: str) -> str:
    """Return the text without accents, case and punctuation, words parted by one space: how names are compared."""
    plain = text
    if not text.isascii():  # few names are not
        decomposed = unicodedata.normalize("NFKD", text)
        plain = "".join(char for char in decomposed if not unicodedata.combining(char))
    return " ".join(re.findall(r"[^\W_]+", plain.casefold()))


def slug(text: str) -> str:
    """Return the text as it stands in cache keys: lower case, no accents, one underscore between words."""
    return fold(text).replace(" ", "_")


def event_slug(event: str) -> str:
    """Return an event's part of a cache key: its slug without "Grand Prix"."""
    return slug(event).removesuffix("_grand_prix")


_SESSION_BY_FOLDED = {fold(name): name for name in SESSION_TYPES} | {
    fold(short): name for short, name in SESSION_SHORT_FORMS.items()
}


def session_name(session_type: str) -> str:
    """Return the full name of a session type given by name or short form, in any case.

    Raises:
        SessionNotFoundError: It is none of the session types.
    """
    name = _SESSION_BY_FOLDED.get(fold(session_type))
    if name is None:
        choices = ", ".join(f"{full} ({short})" for short, full in SESSION_SHORT_FORMS.items())
        raise SessionNotFoundError(
            f"there is no session type {session_type!r}; choose one of {choices}", session_type=session_type
        )
    return name


def generate_cache_key(year: int, event: str, session_type: str, data_type: str, backend: str = "pandas") -> str:
    """Return ``"{year}_{event}_{session_type}_{data_type}_{backend}"``, e.g. ``2025_monaco_race_laps_pandas``.

    The event is taken as it is written; the cache resolves other spellings before it builds its stored keys.
    """
    session = _SESSION_BY_FOLDED.get(fold(session_type), session_type)
    return "_".join((str(year), event_slug(event), slug(session), slug(data_type), slug(backend)))


def path_segment(name: str) -> str:
    """Percent-encode one name as one segment of a URL path.

    Raises:
        InvalidDataError: The name is empty, a dot segment, or holds control characters: no file of the CDN is called
            so, and such a name would reach another place than the one meant.
    """
    # Cc: control characters; Cs: halves of a surrogate pair, which have no encoding.
    if name.strip(". ") == "" or any(unicodedata.category(char) in {"Cc", "Cs"} for char in name):
        raise InvalidDataError(f"{name[:80]!r} cannot be the name of a file or folder on the CDN", name=name[:80])
    return quote(name, safe="")


@dataclass(frozen=True, slots=True)
class EntryKey:
    """What one cache entry is called, and what it is about.

    Attributes:
        text: The stored key, unique in a cache.
        data_type: ``laps``, ``telemetry`` …; the asset's name for assets of other kinds.
        year: Season, for Formula 1 entries.
        event: Slug of the event, for entries of an event or session.
        session_type: Slug of the session type, for entries of a session.
        part: Which part of a table this entry holds, when it holds a part alone (``VER``, ``VER/10``).
        pinned: Never evicted by cleanup, because it cannot be fetched again.
    """

    text: str
    data_type: str
    year: int | None = None
    event: str | None = None
    session_type: str | None = None
    part: str | None = None
    pinned: bool = False

    def of_part(self, part: str) -> "EntryKey":
        """Return the key of the entry that holds this part of the table alone."""
        return EntryKey(f"{self.text}/{part}", self.data_type, self.year, self.event, self.session_type, part)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, order=True)
class SessionKey:
    """One session of one event, by its full names: ``SessionKey(2025, "Monaco Grand Prix", "Race")``."""

    year: int
    event: str
    session_type: str

    @property
    def event_partition(self) -> str:
        """Partition key of the event."""
        return f"{self.year} {self.event}"

    @property
    def partition(self) -> str:
        """Partition key of the session."""
        return f"{self.year} {self.event} {self.session_type}"

    @classmethod
    def parse(cls, partition: str) -> "SessionKey":
        """Read a session partition key.

        Raises:
            SessionNotFoundError: It is not of the form ``"2025 Monaco Grand Prix Race"``.
        """
        year, _, rest = partition.partition(" ")
        # Longest first: "Sprint Qualifying" ends with another session's name.
        for name in sorted(SESSION_TYPES, key=len, reverse=True):
            if rest.endswith(f" {name}") and re.fullmatch(r"\d{4}", year):
                return cls(int(year), rest.removesuffix(f" {name}"), name)
        raise SessionNotFoundError(
            f"{partition!r} is no session partition; it reads like '2025 Monaco Grand Prix Race'", partition=partition
        )

    def entry(self, data_type: str) -> EntryKey:
        """Return the cache key of one table of this session."""
        return EntryKey(
            generate_cache_key(self.year, self.event, self.session_type, data_type),
            data_type,
            self.year,
            event_slug(self.event),
            slug(self.session_type),
        )

    def __str__(self) -> str:
        return self.partition


def schedule_entry(year: int) -> EntryKey:
    """Return the cache key of a season's calendar."""
    return EntryKey(f"{year}_schedule", "schedule", year)
