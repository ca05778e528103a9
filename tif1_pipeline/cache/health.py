"""Whether the cache does what it should, in a word, and why not."""

from collections.abc import Iterable
from typing import Any, Self

from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.exceptions import CacheError


class CacheHealth(str):
    """``"healthy"``, or ``"failover"`` when another file or tier stands in for one that cannot be used.

    Args:
        reasons: Why it is not healthy.

    Attributes:
        reasons: The same; empty when healthy.
    """

    __slots__ = ("reasons",)

    reasons: tuple[str, ...]

    def __new__(cls, reasons: Iterable[str] = ()) -> Self:  # noqa: D102 - see the class
        given = tuple(reasons)
        health = super().__new__(cls, "failover" if given else "healthy")
        health.reasons = given
        return health

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reasons,)


def health(tiered: Tiered) -> CacheHealth:
    """Tell whether the files can be used; one that does not exist yet is created, except in read-only mode."""
    reasons = list(tiered.failover_reasons())
    for file in tiered.files():
        try:
            if tiered.config.cache_readonly:
                file.database.exists()
            else:
                file.database.open()
        except CacheError as error:
            if error.message not in reasons:
                reasons.append(error.message)
    return CacheHealth(reasons)
