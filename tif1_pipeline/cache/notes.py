"""What an exported file says of the entry it holds: written by export, read and checked by import."""

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from tif1_pipeline.cache import tree
from tif1_pipeline.cache.base import Backend, EntryInfo, Source
from tif1_pipeline.exceptions import InvalidDataError
from tif1_pipeline.keys import EntryKey

FORMAT = 1
"""Raised when former versions cannot read an exported file any more."""
NOTES = "tif1_pipeline"
"""Where a file says what entry it holds: in a Parquet file's metadata, and in a JSON file."""
_TEXT = 1 << 16


def notes_of(info: EntryInfo, **more: Any) -> str:
    """Return what a file says of its entry, as JSON.

    Args:
        info: The entry.
        **more: What the file's form adds.
    """
    notes = {
        "format": FORMAT,
        "key": info.key,
        "data_type": info.data_type,
        "year": info.year,
        "event": info.event,
        "session_type": info.session_type,
        "part": tree.part_of(info),
        "backend": info.backend,
        "schema_version": info.schema_version,
        "library_version": info.library_version,
        "created_at": info.created_at.isoformat(),
        "url": info.source.url,
        "etag": info.source.etag,
        "last_modified": info.source.last_modified,
        "pinned": info.pinned,
    }
    return json.dumps(notes | more, ensure_ascii=False)


class Notes:
    """What a file says of its entry, checked.

    Raises:
        InvalidDataError: It says something else than an exported file does.
    """

    def __init__(self, text: bytes | dict[str, Any]) -> None:
        try:
            self._values = text if isinstance(text, dict) else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidDataError(f"its metadata is no JSON: {error}") from error
        if not isinstance(self._values, dict):
            raise InvalidDataError("its metadata is no JSON object")
        if (version := self._get("format", int)) != FORMAT:
            raise InvalidDataError(f"is of format {version}, this version of tif1_pipeline reads {FORMAT}")
        self.key = EntryKey(
            self._text("key"),
            self._text("data_type"),
            self._get("year", int, optional=True),
            self._text("event", optional=True),
            self._text("session_type", optional=True),
            self._text("part", optional=True),
            self._get("pinned", bool),
        )
        if self.key.year is not None and not 0 <= self.key.year <= 9999:
            raise InvalidDataError(f"its metadata has the year {self.key.year}")
        self.schema_version: int = self._get("schema_version", int)
        if not 0 <= self.schema_version < 1 << 31:
            raise InvalidDataError(f"its metadata has the schema_version {self.schema_version}")
        self.library_version = self._text("library_version", empty=False)
        backend = self._text("backend")
        if backend not in ("pandas", "polars", "arrow", "json"):
            raise InvalidDataError(f"its metadata has the backend {backend!r}")
        self.backend: Backend = backend
        self.source = Source(*(self._text(name, optional=True) for name in ("url", "etag", "last_modified")))
        self.created_at = self._moment("created_at")

    def part_by(self, schema: pa.Schema) -> str | None:
        """Return the column that the table is split by."""
        name = self._text("part_by", optional=True)
        if name is not None and name not in schema.names:
            raise InvalidDataError(f"its metadata names the column {name!r}, which it does not have")
        return name

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its parts."""
        parts = self._get("parts", list)
        if not all(isinstance(part, str) for part in parts):
            raise InvalidDataError("its metadata has parts that are no texts")
        return tuple(parts)

    def _get(self, name: str, type_: type, *, optional: bool = False) -> Any:
        value = self._values.get(name)
        if not (type(value) is type_ or (optional and value is None)):
            raise InvalidDataError(f"its metadata has no {name} of type {type_.__name__}")
        return value

    def _text(self, name: str, *, optional: bool = False, empty: bool = True) -> Any:
        value = self._get(name, str, optional=optional)
        if value is not None and (len(value) > _TEXT or not (value or empty)):
            raise InvalidDataError(f"its metadata has a {name} of {len(value)} characters")
        return value

    def _moment(self, name: str) -> datetime:
        try:
            moment = datetime.fromisoformat(self._text(name))
        except ValueError as error:
            raise InvalidDataError(f"its metadata has no time {name}") from error
        if moment.tzinfo is None:
            raise InvalidDataError(f"its metadata has a {name} without a time zone")
        now = datetime.now(UTC)
        return min(moment.astimezone(UTC), now)  # what is from the future would never expire
