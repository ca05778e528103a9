"""JSON texts of values that come back exactly as they were: what JSON would change is refused."""

import json
import math
from typing import Any

from tif1_pipeline.exceptions import InvalidDataError


def dump(value: Any) -> bytes:
    """Return the canonical text of a value: no spaces, UTF-8, keys in the order of the value.

    Raises:
        InvalidDataError: JSON would return the value changed (a tuple as a list, a number as a key …), or not at all.
    """
    try:
        check(value, "value")
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (RecursionError, UnicodeEncodeError, ValueError) as error:
        raise InvalidDataError(f"the value cannot be stored as JSON: {error}") from error


def load(text: bytes) -> Any:
    """Return a new copy of the value."""
    return json.loads(text)


def check(value: Any, where: str) -> None:
    """Refuse a value that JSON would change.

    Raises:
        InvalidDataError: Names the place in the value.
    """
    # Subclasses (OrderedDict, numpy.float64, an enum) would come back as the plain type.
    kind = type(value)
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise InvalidDataError(
                    f"{where} has the key {key!r} of type {type(key).__name__}, which JSON returns as text: use texts"
                )
            check(item, f"{where}[{key!r}]")
    elif kind is list:
        for index, item in enumerate(value):
            check(item, f"{where}[{index}]")
    elif kind is float:
        if not math.isfinite(value):
            raise InvalidDataError(f"{where} is {value}, which JSON cannot say: use None or a text")
    elif value is not None and kind not in (str, int, bool):
        raise InvalidDataError(
            f"{where} is of type {kind.__module__}.{kind.__qualname__}, which the cache cannot return unchanged: store "
            "a pandas or polars DataFrame, an Arrow table, or dicts with text keys, lists, texts, numbers, booleans"
        )
