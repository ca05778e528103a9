"""What the pandas frame of a table is like, kept for each table header that was met.

Arrow works that out anew for every frame it makes, from what pandas has noted in the schema: nearly half the time of
reading a race's laps. It depends on the header alone, but for integers and flags that have nulls in one table and none
in another.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_MOST = 64
_LARGEST = 1 << 18
"""Bytes of a header; one of a race's laps has 26,000."""

_kept: dict[tuple[bytes, tuple[str, ...] | None], "Template"] = {}


@dataclass(eq=False, slots=True)
class Template:
    """A frame without its rows.

    Attributes:
        columns: The labels.
        dtypes: Of the columns.
        index: Without values.
        attrs: The frame's.
        plan: How others are made, once one was.
    """

    columns: "pd.Index"
    dtypes: tuple[Any, ...]
    index: "pd.Index"
    attrs: dict[Any, Any]
    plan: Any = None

    @classmethod
    def of(cls, frame: "pd.DataFrame") -> "Template":
        """Return the one of a frame."""
        return cls(frame.columns.copy(), tuple(frame.dtypes), frame.index[:0].copy(), frame.attrs)


def find(header: bytes, columns: tuple[str, ...] | None = None) -> Template | None:
    """Return what the frames of a header are like, or of some of its columns; None if none was made yet."""
    return _kept.get((header, columns))


def keep(template: Template, header: bytes, columns: tuple[str, ...] | None = None) -> Template:
    """Keep what the frame of a header is like, which others are made by; returns it."""
    if len(header) <= _LARGEST:
        while len(_kept) >= _MOST:
            _kept.pop(next(iter(list(_kept))), None)
        _kept[header, columns] = template
    return template


def forget() -> None:
    """Keep none."""
    _kept.clear()
