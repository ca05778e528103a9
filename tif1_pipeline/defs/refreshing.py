"""Bringing a stored table up to date by a conditional request, with a failure that is not hidden by what is stored."""

from collections.abc import Callable
from datetime import timedelta
from typing import Literal

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.base import EntryInfo, Fresh, Source
from tif1_pipeline.cache.tiered import is_compatible
from tif1_pipeline.cdn.base import Validators
from tif1_pipeline.datasets import Dataset
from tif1_pipeline.defs.io_metadata import data_version_of
from tif1_pipeline.exceptions import CacheError, Tif1Error
from tif1_pipeline.fetch import FetchedTable
from tif1_pipeline.keys import EntryKey


def refresh(
    cache: Cache,
    entry: EntryKey,
    dataset: Dataset,
    fetch: Callable[[Validators | None], FetchedTable],
    max_age: timedelta | None,
) -> Literal["stored", "changed", "unchanged"]:
    """Fetch a table if it is missing or too old, and store it; if it did not change, note that it is current.

    Args:
        cache: Where it belongs.
        entry: Its key; that of a part is stored whole.
        dataset: What it is.
        fetch: Asks the CDN, given the validators of what is stored.
        max_age: Younger ones are left as they are.

    Raises:
        DataNotFoundError: The CDN does not have it; what is stored stays.
        Tif1Error: It could not be fetched, or not be stored; what is stored stays.
    """
    before = _usable(cache, entry, dataset)
    failures: list[Tif1Error | None] = []

    def ask(stored: EntryInfo | None) -> Fresh:
        held = stored.source if stored and (stored.source.etag or stored.source.last_modified) else None
        try:
            fetched = fetch(Validators(held.etag, held.last_modified) if held else None)
        except Tif1Error as error:
            failures.append(error)  # a reader is served what is stored, and not told
            raise
        failures.append(None)
        source = Source(fetched.url, fetched.validators.etag, fetched.validators.last_modified)
        return Fresh(fetched.table, source, fetched.not_modified)

    part_by = None if entry.part else dataset.part_by
    cache.read_through(entry, ask, part_by=part_by, schema_version=dataset.schema_version, max_age=max_age)
    if failures and (error := failures[-1]):
        raise error
    after = _usable(cache, entry, dataset)
    if after is None or (failures and before and _state(before) == _state(after)):
        reasons = ", ".join(cache.get_degraded()) or "the log says why"
        raise CacheError(f"the cache could not store {entry} ({reasons})", key=entry.text)
    if before is None:
        return "stored"
    return "unchanged" if data_version_of(before) == data_version_of(after) else "changed"


def _usable(cache: Cache, entry: EntryKey, dataset: Dataset) -> EntryInfo | None:
    info = cache.info(entry)
    return info if info and is_compatible(info, dataset.schema_version) else None


def _state(info: EntryInfo) -> tuple[object, ...]:
    return info.generation, info.created_at
