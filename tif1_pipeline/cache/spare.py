"""Memory of a large frame that is gone, kept for the next one.

Whoever loads one partition after the other has the system map and clear the memory of each anew: a fifth of the time of
reading a race's telemetry, and more where a hypervisor has taken back what was free.
"""

import ctypes
import weakref

import numpy as np

_LEAST, _MOST = 4 << 20, 64 << 20
"""Bytes of what is kept; a race's telemetry takes 56 million."""

_kept: list[np.ndarray] = []
"""What was given back last, if it was not taken since."""


def take(size: int) -> np.ndarray:
    """Return so many bytes of any content, to be kept for the next one when nothing refers to them any more."""
    if not _LEAST <= size <= _MOST:
        return np.empty(size, np.uint8)
    try:
        piece = _kept.pop()
    except IndexError:
        piece = None
    if piece is None or not size <= len(piece) <= 2 * size:
        piece = np.empty(size, np.uint8)
    # Arrays refer to the owner of their memory alone, so that is not the piece: it goes with the last of them.
    owner = (ctypes.c_char * len(piece)).from_buffer(piece.data)
    weakref.finalize(owner, _keep, piece).atexit = False
    return np.frombuffer(memoryview(owner), np.uint8, size)


def forget() -> None:
    """Keep nothing."""
    _kept.clear()


def _keep(piece: np.ndarray) -> None:
    _kept[:] = [piece]
