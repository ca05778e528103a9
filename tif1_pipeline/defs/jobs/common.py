"""What ops share: their options, how they say what they did, and what becomes of their failures."""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from pydantic import Field

from tif1_pipeline import api
from tif1_pipeline.cache import Cache
from tif1_pipeline.exceptions import Tif1Error

OUTCOME = "outcome"
"""Name of the op at the end of a job that fails the run for what the ops before it could not do."""

AFTER = {"after": dg.In(dg.Nothing)}
"""Inputs of an op that comes after others and takes nothing from them."""

PROBLEM = "problem"
"""In what an op returns: what it could not do, as text."""

_ROWS = 50
_LONGEST_CELL = 200

Number = int | float


class OpConfig(dg.Config):
    """Options that every op has."""

    dry_run: bool = Field(default=False, description="Say what would be done, and change nothing.")


def op_output() -> dg.Out:
    """Return the definition of an op's output: its counts, kept in memory, never in the cache that is maintained."""
    return dg.Out(dict, io_manager_key="op_io_manager")


@dataclass
class Report:
    """What an op has done.

    Attributes:
        counts: Numbers, which the UI plots over time.
        metadata: What else people should see.
        handed_on: What the ops after it need.
        problem: What could not be done; the run fails for it when everything else is done.
    """

    counts: Mapping[str, Number]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    handed_on: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


def skipped(reason: str) -> Report:
    """Return the report of an op that leaves things as they are."""
    return Report({"skipped": 1}, {"reason": reason})


def perform(context: dg.OpExecutionContext, config: OpConfig, work: Callable[[], Report]) -> dict[str, Any]:
    """Do an op's work, show what it did, and return it for the ops that follow.

    Where the run ends with the op :data:`OUTCOME`, a failure is reported there, and the ops in between do their work:
    a CDN that is down is no reason to go without the day's backup. In any other run the op itself fails.

    Raises:
        Failure: What the work raised, or its problem.
    """
    started = time.perf_counter()
    try:
        report = work()
    except dg.RetryRequested:
        raise
    except Exception as error:
        if not _ends_with_outcome(context):
            if isinstance(error, Tif1Error):
                raise _failure(error.message, error.details) from error
            raise
        context.log.exception(f"{context.op.name} failed; the run goes on and fails at its end")
        report = Report({}, problem=_text(error))
    counts = {**report.counts, "seconds": round(time.perf_counter() - started, 3)}
    metadata = {**counts, **report.metadata}
    if config.dry_run:
        metadata["dry_run"] = True
    if report.problem is not None:
        if not _ends_with_outcome(context):
            raise _failure(report.problem, metadata)
        metadata[PROBLEM] = report.problem
    context.add_output_metadata(metadata)
    return {**counts, **report.handed_on, "op": context.op.name, "dry_run": config.dry_run, PROBLEM: report.problem}


def _ends_with_outcome(context: dg.OpExecutionContext) -> bool:
    return any(node.name == OUTCOME for node in context.job_def.nodes)


def _failure(text: str, metadata: Mapping[str, Any]) -> dg.Failure:
    shown = {name: value for name, value in metadata.items() if isinstance(value, int | float | str | dg.MetadataValue)}
    return dg.Failure(text, metadata=shown, allow_retries=False)


def _text(error: Exception) -> str:
    known = isinstance(error, Tif1Error | dg.Failure)
    return str(error) if known else f"{type(error).__name__}: {error}"


def try_again(context: dg.OpExecutionContext, problem: str, *, times: int, seconds: float) -> None:
    """Have the op tried again, unless it was often enough or the setting ``offline`` is on; returns if so.

    Not by a retry policy of the op: under one, Dagster tries again what was terminated, too.

    Args:
        context: Of the op.
        problem: Why.
        times: Further tries at most.
        seconds: Until the next.

    Raises:
        RetryRequested: It is tried again.
    """
    if context.retry_number < times and not api.get_config().offline:
        context.log.warning(f"{problem}; it is tried again in {seconds:,.0f} s")
        raise dg.RetryRequested(times, seconds) from dg.Failure(problem)


def hindrance(cache: Cache) -> str | None:
    """Return why the cache must not be changed now; None if it may be."""
    if reason := disabled():
        return reason
    config = api.get_config()
    if config.cache_readonly:
        return "the setting cache_readonly is on"
    if config.cache_fallback_dir is not None and (reasons := cache.check_health().reasons):
        return f"the fallback folder stands in for the cache: {'; '.join(reasons)}"
    return None


def disabled() -> str | None:
    """Return why there is no cache to speak of; None if there is one."""
    return None if api.get_config().cache_enabled else "the setting cache_enabled is off"


def markdown_table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> dg.MarkdownMetadataValue:
    """Return a table for the UI, of the first rows; what is left out is counted."""
    listed = list(rows)
    lines = [names, ["---"] * len(names), *([_cell(value) for value in row] for row in listed[:_ROWS])]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if len(listed) > _ROWS:
        text += f"\n\n… and {len(listed) - _ROWS:,} more"
    return dg.MetadataValue.md(text)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.3f}"
    text = " ".join(str(value).split())
    text = text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 1] + "…"
    # Names and errors come from elsewhere: neither cells, links nor HTML may break out of the table.
    return re.sub(r"([\\|`\[_*])", r"\\\1", text).replace("<", "&lt;")
