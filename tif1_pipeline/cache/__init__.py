"""The cache: memory over one SQLite file."""

from tif1_pipeline.cache.base import Backend, EntryInfo, Fresh, Hit, Source, Tier, Written
from tif1_pipeline.cache.cache import Cache

__all__ = ["Backend", "Cache", "EntryInfo", "Fresh", "Hit", "Source", "Tier", "Written"]
