"""Derived tables that Dagster believes in and the cache has lost are made again."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote

import dagster as dg

from tif1_pipeline import api
from tif1_pipeline.cache import Cache
from tif1_pipeline.defs.jobs.common import hindrance
from tif1_pipeline.defs.resources import TimingDataResource
from tif1_pipeline.exceptions import CacheError

DERIVED = dg.AssetSelection.tag("tif1/source", "derived")
"""What is stored by the IO manager, pinned, and cannot be fetched."""

_A_TICK = 100
"""Partitions of each asset that are requested in one tick at most."""
_A_RUN = 25
"""Partitions in a run at most, as in a backfill of sessions."""
_RUNS = 20
"""Runs that are requested in one tick at most."""
_FEW = 10
"""So many lost partitions are requested even if they are most of what there is."""
_TRIES = 4
_WAIT_SECONDS = 3600
"""Time until the second request for a partition; until the third four times as long, and so on."""
_VERSION = 2
_PREFIX = "asset:"
_PARTITION = "dagster/partition"
_START = "dagster/asset_partition_range_start"
_END = "dagster/asset_partition_range_end"
_UNDER_WAY = dg.RunsFilter(
    statuses=[
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ]
)

Asked = dict[str, dict[str, tuple[int, float]]]
"""By asset and partition how often it was requested since it was last seen stored, and when the last time."""


@dataclass
class _Asset:
    """A derived asset.

    Attributes:
        key: Its key.
        partitions: All partition keys, in their order.
        upstream: Derived assets that it is made from.
        lost: Partitions that were materialized and are not stored, in their order.
        ids: The storage ids of their latest materializations.
        wanted: Those that are requested now.
    """

    key: dg.AssetKey
    partitions: Sequence[str]
    upstream: Sequence[dg.AssetKey]
    lost: list[str] = field(default_factory=list)
    ids: Mapping[str, int] = field(default_factory=dict)
    wanted: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.key.to_user_string()


@dg.sensor(
    asset_selection=DERIVED,
    minimum_interval_seconds=max(1, round(api.get_config().repair_interval.total_seconds())),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Every repair_interval (10 min by default): a partition of a derived asset that was materialized, and whose "
        "table is not in the cache any more (cleared as corrupt, removed by hand, or missing in a backup that was "
        "restored), is requested again: "
        f"again if that is of no use, {_TRIES} times in a day; at most {_A_TICK} partitions of an asset a tick. Where "
        f"more than {_FEW} and more than half are gone at once it waits: that looks like another cache. Running by "
        "default: what depends on such a table fails without it; its switch in the UI stops it."
    ),
)
def repair_sensor(
    context: dg.SensorEvaluationContext, timing_data: TimingDataResource
) -> dg.SensorResult | dg.SkipReason:
    """Compare what Dagster has materialized with what the cache holds, and request what is missing."""
    if reason := hindrance(timing_data.cache):
        return dg.SkipReason(f"nothing can be stored: {reason}")
    assets = _assets(context)
    try:
        materialized = _find_losses(assets, context.instance, timing_data.cache)
    except CacheError as error:
        return dg.SkipReason(f"what is stored cannot be told: {error}")
    lost = sum(len(asset.lost) for asset in assets)
    if not lost:
        return dg.SensorResult(
            skip_reason=dg.SkipReason(f"all {materialized:,} materialized partitions of derived assets are stored"),
            cursor=_written({}),
        )
    said = [f"{lost:,} of {materialized:,} materialized partitions of derived assets are not stored"]
    if reason := _doubt(lost, materialized, timing_data.cache):
        said.append(reason)
        context.log.warning("; ".join(said))
        return dg.SkipReason("; ".join(said))
    asked, now = _read(context.cursor), time.time()
    said += _choose(assets, asked, context.instance, now)
    requests = list(_requests(assets, asked))[:_RUNS]
    for asset in assets:
        # Forgets what is stored again, and what there was no room for in this tick.
        requested = {key for request in requests if asset.key in request.assets for key in request.partitions}
        known = asked.get(asset.name, {})
        asked[asset.name] = {key: known[key] for key in asset.lost if key in known} | {
            key: (_tries(known, key) + 1, now) for key in asset.lost if key in requested
        }
    number = sum(len(request.assets) * len(request.partitions) for request in requests)
    said.append(f"{number} are requested, in {len(requests)} runs")
    context.log.info("; ".join(said))
    return dg.SensorResult(
        run_requests=[request.as_run_request() for request in requests],
        skip_reason=None if requests else dg.SkipReason("; ".join(said)),
        cursor=_written(asked),
    )


# ---- what is missing


def _assets(context: dg.SensorEvaluationContext) -> list[_Asset]:
    """Return the derived assets with partitions, each after what it is made from."""
    assert context.repository_def is not None  # noqa: S101 - Dagster gives it to every sensor
    graph = context.repository_def.asset_graph
    derived = DERIVED.resolve(graph)
    return [
        _Asset(key, partitions.get_partition_keys(), sorted(graph.get(key).parent_keys & derived))
        for key in graph.toposorted_asset_keys
        if key in derived and (partitions := graph.get(key).partitions_def) is not None
    ]


def _find_losses(assets: Iterable[_Asset], instance: dg.DagsterInstance, cache: Cache) -> int:
    """Note what is lost; returns how many partitions are materialized."""
    # In this order: what is stored after the first look was materialized after it, too.
    materialized = {asset.key: instance.get_materialized_partitions(asset.key) for asset in assets}
    stored = _stored(cache)
    number = 0
    for asset in assets:
        # Without those that the calendar does not have any more: nobody can request them.
        believed = [key for key in asset.partitions if key in materialized[asset.key]]
        asset.lost = [key for key in believed if (asset.key, key) not in stored]
        number += len(believed)
        if asset.lost:
            asset.ids = instance.get_latest_storage_id_by_partition(
                asset.key, dg.DagsterEventType.ASSET_MATERIALIZATION, set(asset.lost)
            )
    return number


def _stored(cache: Cache) -> set[tuple[dg.AssetKey, str]]:
    """Return what the IO manager has stored; the keys are read as ``io_entries`` writes them."""
    found = set()
    for row in cache.search(f"{_PREFIX}*"):
        path, at, partition = row["key"].removeprefix(_PREFIX).partition("@")
        if at:
            found.add((dg.AssetKey([unquote(name) for name in path.split(".")]), unquote(partition)))
    return found


def _doubt(lost: int, materialized: int, cache: Cache) -> str | None:
    """Return why the loss is rather one of the cache than of tables; None if it can be made good."""
    file = cache.get_cache_file()
    if not cache.get_size_mb():
        reason = "there is no cache file"
    elif lost > _FEW and lost > materialized / 2:
        reason = "those are most of them"
    else:
        return None
    return (
        f"nothing is requested, because {reason}: is {file} the right one, and its disk mounted? If it is, and was "
        "cleared on purpose, materialize them in the UI"
    )


# ---- what is requested


def _choose(assets: Sequence[_Asset], asked: Asked, instance: dg.DagsterInstance, now: float) -> Iterator[str]:
    """Choose what to request; yields what is not, and why."""
    under_way = _under_way(assets, instance)
    busy: set[dg.AssetKey] = set()
    for asset in assets:
        running = under_way[asset.key]
        known = asked.get(asset.name, {})
        waiting = [key for key in asset.lost if key in running]
        idle = [key for key in asset.lost if key not in running]
        wanted = [key for key in idle if _is_due(known.get(key), now)]
        later = [key for key in idle if key not in wanted and _tries(known, key) < _TRIES]
        given_up = [key for key in idle if _tries(known, key) >= _TRIES]
        if wanted and (upstream := next((key for key in asset.upstream if key in busy), None)):
            yield f"{asset.name} waits for {upstream.to_user_string()}"
        else:
            asset.wanted = wanted[:_A_TICK]
        if asset.wanted or running:
            busy.add(asset.key)
        if waiting:
            yield f"{len(waiting)} of {asset.name} are under way"
        if later:
            yield f"{len(later)} of {asset.name} were requested before, and are again later (first {later[0]})"
        if given_up:
            yield (
                f"{len(given_up)} of {asset.name} were requested {_TRIES} times, which did not bring them back (first "
                f"{given_up[0]}): see their last run, and materialize them by hand"
            )


def _tries(known: Mapping[str, tuple[int, float]], key: str) -> int:
    return known[key][0] if key in known else 0


def _is_due(asked: tuple[int, float] | None, now: float) -> bool:
    if asked is None:
        return True
    tries, at = asked
    # A time that lies ahead was noted by a clock that was wrong.
    return tries < _TRIES and not at <= now < at + _WAIT_SECONDS * 4 ** (tries - 1)


def _under_way(assets: Sequence[_Asset], instance: dg.DagsterInstance) -> dict[dg.AssetKey, set[str]]:
    """Return the partitions that runs which are not finished are about, by asset."""
    found: dict[dg.AssetKey, set[str]] = {asset.key: set() for asset in assets}
    for run in instance.get_runs(_UNDER_WAY):
        one, first, last = (run.tags.get(name) for name in (_PARTITION, _START, _END))
        for asset in assets:
            if run.asset_selection is not None and asset.key not in run.asset_selection:
                continue
            if one is not None:
                found[asset.key].add(one)
            elif first in asset.partitions and last in asset.partitions:
                ends = asset.partitions.index(first), asset.partitions.index(last)
                found[asset.key] |= set(asset.partitions[ends[0] : ends[1] + 1])
    return found


@dataclass
class _Request:
    """A run: some assets, and the same partitions, which follow each other, of each."""

    partitions: Sequence[str]
    assets: list[dg.AssetKey] = field(default_factory=list)
    newest: int = 0
    tries: int = 0

    def as_run_request(self) -> dg.RunRequest:
        first, last = self.partitions[0], self.partitions[-1]
        names = "+".join(key.to_user_string() for key in self.assets)
        tags = {"tif1/reason": "repair"}
        if first != last:
            tags |= {_START: first, _END: last}
        return dg.RunRequest(
            # Should the cursor be lost: the same loss is not run for again at once.
            run_key=f"repair:{names}:{first}...{last}:{self.newest}:{self.tries + 1}",
            asset_selection=self.assets,
            partition_key=first if first == last else None,
            tags=tags,
        )


def _requests(assets: Iterable[_Asset], asked: Asked) -> Iterable[_Request]:
    """Return the runs for what is wanted: what several assets have lost alike goes into one."""
    found: dict[tuple[str, ...], _Request] = {}
    for asset in assets:
        for partitions in _ranges(asset):
            request = found.setdefault(tuple(partitions), _Request(partitions))
            request.assets.append(asset.key)
            request.newest = max(request.newest, *(asset.ids[key] for key in partitions))
            request.tries = max(request.tries, *(_tries(asked.get(asset.name, {}), key) for key in partitions))
    return found.values()


def _ranges(asset: _Asset) -> Iterator[list[str]]:
    """Split what is wanted of an asset where its partitions do not follow each other, or are too many for a run."""
    number_of = {key: number for number, key in enumerate(asset.partitions)}
    some: list[str] = []
    for key in asset.wanted:
        if some and (number_of[key] != number_of[some[-1]] + 1 or len(some) == _A_RUN):
            yield some
            some = []
        some.append(key)
    if some:
        yield some


# ---- the cursor


def _read(cursor: str | None) -> Asked:
    with suppress(TypeError, ValueError, KeyError, AttributeError):
        state = json.loads(cursor or "")
        if state["version"] == _VERSION:
            return {
                str(name): {str(key): (int(tries), float(at)) for key, (tries, at) in of_asset.items()}
                for name, of_asset in state["asked"].items()
            }
    return {}


def _written(asked: Asked) -> str:
    return json.dumps({"version": _VERSION, "asked": {name: keys for name, keys in asked.items() if keys}})
