"""Strict comparison of Python values: types count, and nan equals nan."""

from typing import Any


def same(before: Any, after: Any) -> bool:
    """Tell whether two values are the same in every respect that a reader could notice."""
    if type(before) is not type(after):
        return False
    if isinstance(before, dict):
        return list(before) == list(after) and all(same(value, after[key]) for key, value in before.items())
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(same, before, after))
    equal = before == after
    if not isinstance(equal, bool):
        return before is after  # an array, or pandas' NA: neither answers with a truth value
    return equal or (before != before and after != after)


def all_same(before: list[Any], after: list[Any]) -> bool:
    """Compare two columns of cells, quickly where they are plain."""
    kinds = set(map(type, before))
    if list(map(type, before)) == list(map(type, after)) and not kinds & {list, dict, tuple, float}:
        return before == after
    return same(before, after)
