"""What the assets are handed: the reader of timing data."""

import dagster as dg

from tif1_pipeline import api
from tif1_pipeline.cache import Cache
from tif1_pipeline.reading import Reader


class TimingDataResource(dg.ConfigurableResource):
    """Timing data through the cache and from the CDN, with the settings of the process (environment ``TIF1_*``).

    Attributes:
        cache_path: Cache file; None for the one of the settings. Give the IO manager the same.
    """

    cache_path: str | None = None

    @property
    def cache(self) -> Cache:
        """The cache itself, as :attr:`reader` one a process."""
        return api.get_cache(self.cache_path)

    @property
    def reader(self) -> Reader:
        """The reader; one a process, so that its memory tier and connections outlive the run."""
        return api.get_reader(self.cache_path)
