"""What goes wrong at one mirror, and the error that a file's faults add up to."""

from typing import Literal

from tif1_pipeline.cdn.base import CdnFile
from tif1_pipeline.exceptions import DataNotFoundError, InvalidDataError, NetworkError, Tif1Error


class MirrorError(Exception):
    """One mirror did not give the file. Never leaves this folder: callers see the Tif1Error of all mirrors together.

    Attributes:
        kind: ``missing`` (the mirror answered that it has no such file), ``network`` or ``invalid``.
        retryable: The same request may well succeed a moment later.
        retry_after: Seconds the mirror asked to wait before that, if it did.
        blames_mirror: Counts against the mirror's health. A missing file does not, nor one that does not decode: that
            is the publisher's doing, and the other mirrors copy the same file.
    """

    def __init__(
        self,
        kind: Literal["missing", "network", "invalid"],
        reason: str,
        *,
        retryable: bool = False,
        retry_after: float | None = None,
        blames_mirror: bool = True,
    ) -> None:
        super().__init__(reason)
        self.kind = kind
        self.retryable = retryable
        self.retry_after = retry_after
        self.blames_mirror = blames_mirror
        self.tries = 1

    def __str__(self) -> str:
        reason = super().__str__()
        return reason if self.tries == 1 else f"{reason} ({self.tries} tries)"


def error_of(file: CdnFile, failed: list[tuple[str, str, MirrorError]]) -> Tif1Error:
    """Return the error for a file that no mirror gave.

    Args:
        file: The file.
        failed: Per mirror asked: its host, the URL, and what went wrong.
    """
    told = "; ".join(f"{host}: {fault}" for host, _, fault in failed)
    setting = "schedule_urls" if file.is_schedule else "cdn_urls"
    kinds = [fault.kind for _, _, fault in failed]
    if "invalid" in kinds:
        cls, host, url, cause = InvalidDataError, *failed[kinds.index("invalid")]
        message = f"no usable data came from {url} ({told}); try again later, or put another mirror first in {setting}"
    elif "network" in kinds:
        cls, host, url, cause = NetworkError, *failed[kinds.index("network")]
        message = f"could not be fetched from {url} ({told}); check the connection and try again"
    else:
        cls, host, url, cause = DataNotFoundError, *failed[0]
        message = (
            f"no mirror has it at {url} ({told}); check the names, and note that a session's files are published, one "
            "by one, some 30 minutes after its end"
        )
    mirrors = [{"mirror": host, "url": url, "reason": str(fault)} for host, url, fault in failed]
    details = {"url": url, "mirror": host, "file": str(file), "year": file.year, "mirrors": mirrors}
    # Some mirror was reached and does not have it, whatever the others say: enough for a caller that only guessed.
    error = cls(f"{file}: {message}", **details, missing_somewhere="missing" in kinds)
    error.__cause__ = cause
    return error
