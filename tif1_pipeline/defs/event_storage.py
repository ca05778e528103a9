"""Where Dagster's events are kept: in SQLite as by default, those of many partitions in one transaction.

A run of a hundred partitions writes two events for each of them and each asset. Dagster's storage writes each by
itself, to two files, with a new engine, connections and statements compiled anew: some 30 ms a partition and asset on
two cores, whatever the asset does. Dagster hands such events over together where it is told to.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import dagster as dg
from dagster._core.events import ASSET_EVENTS
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._serdes import ConfigurableClassData

BATCH_SIZE = "DAGSTER_EVENT_BATCH_SIZE"
"""The variable by which Dagster is told how many events to hand over together."""


class BatchedEventLogStorage(SqliteEventLogStorage):
    """Dagster's SQLite storage of events, that writes events which come together in one transaction a file.

    The files are the same: an instance can be switched to it and back. Named as ``event_log_storage`` in
    ``dagster.yaml``.

    Args:
        base_dir: Folder of the files.
        batch_size: Events that are handed over together at most, where the environment variable
            ``DAGSTER_EVENT_BATCH_SIZE`` does not say it.
        inst_data: As Dagster passes it.
    """

    def __init__(self, base_dir: str, batch_size: int = 500, inst_data: ConfigurableClassData | None = None) -> None:
        # Dagster has no other place for it, and reads it with every event.
        os.environ.setdefault(BATCH_SIZE, str(batch_size))
        super().__init__(base_dir, inst_data)

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Return what can be set in ``dagster.yaml``."""
        return {
            "base_dir": dg.Field(
                dg.StringSource,
                is_required=False,
                description="Folder of the files; by default history/runs in DAGSTER_HOME, where Dagster has them.",
            ),
            "batch_size": dg.Field(dg.IntSource, is_required=False, default_value=500),
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """Return the storage that ``dagster.yaml`` describes.

        Raises:
            dagster.DagsterInvariantViolationError: Nothing says where the files are.
        """
        base_dir = config_value.get("base_dir")
        if not base_dir and (home := os.environ.get("DAGSTER_HOME")):
            base_dir = str(Path(home) / "history" / "runs")
        if not base_dir:
            raise dg.DagsterInvariantViolationError(
                "event_log_storage in dagster.yaml does not know its folder: set DAGSTER_HOME, or give it a base_dir"
            )
        return cls(base_dir, config_value["batch_size"], inst_data)

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store events of any kinds and runs. Should it raise, Dagster stores them one by one."""
        rows = [(event, self._event_to_row(event)) for event in events if _is_of_asset(event)]
        if rows:
            self._store_in_index(rows)
        of_runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for event, row in rows:
            of_runs[event.run_id].append(row)
        for run_id, of_run in of_runs.items():
            with self.run_connection(run_id) as connection:
                connection.execute(SqlEventLogStorageTable.insert(), of_run)
        for event in events:
            if not _is_of_asset(event):
                self.store_event(event)

    def _store_in_index(self, rows: Sequence[tuple[EventLogEntry, dict[str, Any]]]) -> None:
        """Store events of assets in the file of all runs, where they are looked up by asset and partition."""
        events, ids = [event for event, _ in rows], []
        with self.index_transaction() as connection:
            for _, row in rows:
                key = connection.execute(SqlEventLogStorageTable.insert(), row).inserted_primary_key
                ids += [key.id] if key else []
            self._store_asset_event_tags(connection, events, ids)
            # What is noted of an asset is its last event of each kind: here the last of these.
            last = {
                (event.get_dagster_event().asset_key, event.dagster_event_type): (event, id_)
                for event, id_ in zip(events, ids, strict=True)
            }
            for event, id_ in last.values():
                self._store_asset_event(connection, event, id_)


def _is_of_asset(event: EventLogEntry) -> bool:
    return (
        event.is_dagster_event
        and event.dagster_event_type in ASSET_EVENTS
        and event.get_dagster_event().asset_key is not None
    )
