"""Simulated CDN: invented seasons in exactly the layout of the real files, and a server with switchable faults."""

from tif1_pipeline.simulator.faults import Fault
from tif1_pipeline.simulator.season import Season
from tif1_pipeline.simulator.server import CdnServer
from tif1_pipeline.simulator.serving import serve

__all__ = ["CdnServer", "Fault", "Season", "serve"]
