"""Pictures as metadata: small ones inside the event itself, so that the UI shows them without a file server."""

import base64
import logging
from collections.abc import Callable, Mapping

import dagster as dg

from tif1_pipeline.api import get_config

_log = logging.getLogger(__name__)

# Every materialization keeps its pictures in the event log, and the UI loads them with each page of events.
LARGEST = 100 * 1024
"""Bytes that the pictures of one call may have together, as they are stored."""


def pictures(draw: Mapping[str, Callable[[], bytes]]) -> dict[str, dg.MetadataValue]:
    """Return pictures as metadata of an asset or an op; none if the setting ``plots`` is off.

    A picture that cannot be drawn, or that is too large beside the others, becomes a line of text that says so: what
    was materialized is right without it.

    Args:
        draw: For each name of metadata the function that returns its PNG, without arguments.
    """
    if not get_config().plots:
        return {}
    shown: dict[str, dg.MetadataValue] = {}
    room = LARGEST
    for name, function in draw.items():
        try:
            image = f"![{_alt_text(name)}](data:image/png;base64,{base64.b64encode(function()).decode()})"
        except Exception as error:  # noqa: BLE001 - a picture is never a reason to lose a table
            _log.warning("The picture %s could not be drawn: %s", name, error, exc_info=True)
            image = f"could not be drawn ({type(error).__name__}); the log says why"
        if len(image) > room:
            _log.warning("The picture %s is left out: %d bytes are too many", name, len(image))
            image = f"left out: {len(image) / 1024:.0f} KiB are too large for the event log"
        room -= len(image)
        shown[name] = dg.MetadataValue.md(image)
    return shown


def _alt_text(name: str) -> str:
    # Brackets would end it.
    text = name.replace("_", " ").translate(str.maketrans("[]\\", "()/"))
    return text[:1].upper() + text[1:]
