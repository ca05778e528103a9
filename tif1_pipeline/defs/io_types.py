"""What an annotation asks for, and what a delivered value is."""

import sys
import typing
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import pyarrow as pa

from tif1_pipeline.cache.base import Backend

SUPPORTED = (
    "pandas and polars frames, Arrow tables, and what JSON can say "
    "(dict with text keys, list, str, int, float, bool, None), alone or as {partition key: value}"
)


_MAPPINGS = {dict, Mapping}


@dataclass(frozen=True, slots=True)
class Form:
    """What an input is annotated as.

    Attributes:
        backend: Kind of value; None loads it as it was stored.
        lazy: A ``polars.LazyFrame``.
        optional: What is missing loads as None.
        is_mapping: Some kind of dict.
        item: For ``dict[str, X]``, what X is.
    """

    backend: Backend | None = None
    lazy: bool = False
    optional: bool = False
    is_mapping: bool = False
    item: "Form | None" = None

    @property
    def is_frame(self) -> bool:
        """Whether it is some kind of table."""
        return self.backend in {"pandas", "polars", "arrow"}


def form_of(annotation: Any) -> Form:
    """Return what an annotation asks for; anything unknown is loaded as stored, and Dagster checks the type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Union:  # Dagster itself refuses every union but Optional
        inner = form_of(next(argument for argument in arguments if argument is not type(None)))
        return replace(inner, optional=True)
    if origin in _MAPPINGS and len(arguments) == 2:
        return Form("json", is_mapping=True, item=form_of(arguments[1]))
    if not isinstance(origin or annotation, type):
        return Form()
    kind: type = origin or annotation
    if issubclass(kind, pd.DataFrame):
        return Form("pandas")
    if issubclass(kind, pa.Table):
        return Form("arrow")
    # Not imported here: whoever annotates or delivers polars frames has imported it.
    if polars := sys.modules.get("polars"):
        if issubclass(kind, polars.DataFrame):
            return Form("polars")
        if issubclass(kind, polars.LazyFrame):
            return Form("polars", lazy=True)
    if kind in _MAPPINGS:
        return Form("json", is_mapping=True)
    if kind is list:
        # Dagster annotates each value of a fan-in as the list it becomes; only of frames is that sure.
        inner = form_of(arguments[0]) if arguments else Form()
        return inner if inner.is_frame else Form()
    if kind in {str, int, float, bool}:
        return Form("json")
    return Form()


def is_table(value: Any) -> bool:
    """Whether a value is a pandas or polars frame or an Arrow table."""
    return form_of(type(value)).is_frame


def is_stream(value: Any) -> bool:
    """Whether a value can only be a stream of (partition key, value) pairs: iterable, and nothing one stores.

    A list of pairs is none: with one partition it could not be told from a JSON list.
    """
    return isinstance(value, Iterable) and not isinstance(value, Mapping | Sequence | Set) and not is_table(value)
