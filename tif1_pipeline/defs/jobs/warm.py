"""The nightly warm-up: what will be asked for next is fetched before anybody asks."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from tif1_pipeline.defs.assets.source import CDN_POOL
from tif1_pipeline.defs.automation import NETWORK_RETRIES
from tif1_pipeline.defs.jobs.common import Report, op_output, perform, try_again
from tif1_pipeline.defs.jobs.warm_up import AHEAD, WarmConfig, WarmUp
from tif1_pipeline.defs.resources import TimingDataResource
from tif1_pipeline.exceptions import Tif1Error
from tif1_pipeline.warming import PASSING, kind_of


def _op(name: str, description: str, warm: Callable[[WarmUp], None], priority: int = 0) -> dg.OpDefinition:
    @dg.op(
        name=name,
        description=description,
        out=op_output(),
        pool=CDN_POOL,
        tags={"dagster/priority": str(priority)},
    )
    def warm_op(context: dg.OpExecutionContext, config: WarmConfig, timing_data: TimingDataResource) -> dict[str, Any]:
        def work() -> Report:
            warming = WarmUp(context, timing_data, config)
            try:
                warm(warming)
            except Tif1Error as error:
                if kind_of(error) == PASSING:
                    _try_again(context, error.message)
                raise
            report = warming.outcome.as_report()
            if report.problem is not None and warming.outcome.failures(PASSING):
                _try_again(context, report.problem)
            return report

        return perform(context, config, work)

    return warm_op


def _try_again(context: dg.OpExecutionContext, problem: str) -> None:
    seconds = NETWORK_RETRIES.calculate_delay(context.retry_number + 1)
    try_again(context, problem, times=NETWORK_RETRIES.max_retries, seconds=seconds)


# Apart, so that each is tried whatever becomes of the others.
refresh_calendars = _op(
    "refresh_calendars",
    "Fetches the calendars of this season, the next one, and those of recent sessions, if missing or expired.",
    WarmUp.refresh_calendars,
    priority=1,  # the others read them
)
warm_upcoming_event = _op(
    "warm_upcoming_event",
    "Fetches what is missing or expired of the running or coming race weekend: of sessions that have begun the tables, "
    f"of the others {', '.join(AHEAD)} as soon as they are published.",
    lambda warming: warming.warm("the upcoming event", warming.of_upcoming()),
)
warm_recent_sessions = _op(
    "warm_recent_sessions",
    "Fetches what is missing or expired of the sessions that began in the time of the setting warm_recent.",
    lambda warming: warming.warm("recent sessions", warming.of_recent()),
)
warm_frequent_sessions = _op(
    "warm_frequent_sessions",
    "Fetches what is missing or expired of the sessions that are read often, and no more telemetry than was read.",
    lambda warming: warming.warm("what is used most", warming.of_frequent()),
)


@dg.config_mapping
def _for_all_ops(config: WarmConfig) -> dg.RunConfig:
    ops = (refresh_calendars, warm_upcoming_event, warm_recent_sessions, warm_frequent_sessions)
    return dg.RunConfig(ops={op.name: config for op in ops})


@dg.job(
    config=_for_all_ops,
    description="Fetches what will be asked for next: the calendars, the upcoming event, recent sessions, and those "
    "read often. What is stored and fresh is left alone. A table that is not published yet is no failure; a CDN that "
    "cannot be reached is one, after all the others were tried, and is retried.",
    tags={"tif1/reason": "nightly-warm"},
)
def nightly_warm_job() -> None:  # noqa: D103
    refresh_calendars()
    warm_upcoming_event()
    warm_recent_sessions()
    warm_frequent_sessions()
