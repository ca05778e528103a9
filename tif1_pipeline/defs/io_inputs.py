"""Loading what assets and ops take."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from tif1_pipeline.api import get_cache, get_config, get_reader
from tif1_pipeline.cache.base import Backend, EntryInfo, Hit
from tif1_pipeline.cache.codec import WHOLE, known_columns
from tif1_pipeline.cache.frames import from_table
from tif1_pipeline.cache.views import View
from tif1_pipeline.defs.io_entries import (
    PART_BY,
    Address,
    address_of,
    annotation_of,
    label_of,
    loops_over_partitions,
    own_partitions,
)
from tif1_pipeline.defs.io_types import Form, form_of
from tif1_pipeline.exceptions import CacheError, ConfigError, DataNotFoundError, InvalidDataError, Tif1Error
from tif1_pipeline.keys import SessionKey


@dataclass(frozen=True, slots=True)
class _Wish:
    """What an input's metadata asks for; the names are those of the metadata."""

    columns: Sequence[str] | None = None
    parts: Sequence[str] | None = None
    drivers: Sequence[str] | None = None
    partition_column: str | None = None
    allow_missing_partitions: bool = False
    errors_by_partition: bool = False

    @property
    def names(self) -> Sequence[str] | None:
        """The parts wanted, by either name."""
        return self.parts if self.drivers is None else self.drivers

    @classmethod
    def of(cls, context: dg.InputContext) -> "_Wish":
        raw = context.definition_metadata or {}
        metadata = {name: value.value if isinstance(value, dg.MetadataValue) else value for name, value in raw.items()}
        wish = cls(**{name: metadata[name] for name in cls.__slots__ if name in metadata})
        for name in ("columns", "parts", "drivers"):
            value = getattr(wish, name)
            if value is not None and not (
                isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
            ):
                raise ConfigError(f"{label_of(context)}: the input metadata {name!r} is a list of names, not {value!r}")
        if wish.parts is not None and wish.drivers is not None:
            raise ConfigError(f"{label_of(context)}: give 'parts' or 'drivers' in the input metadata, not both")
        return wish


class InputLoader:
    """Loads one input of one step.

    Args:
        context: The input.
        path: The cache file; None is the one of the settings.
    """

    def __init__(self, context: dg.InputContext, path: Path | None) -> None:
        self._context = context
        self._path = path
        self._cache = get_cache(path)
        self._wish = _Wish.of(context)

    def load(self) -> Any:
        """Return the value, as the input is annotated.

        Raises:
            CacheError: It is not stored.
        """
        context = self._context
        form = form_of(annotation_of(context))
        partitions = own_partitions(context)
        if partitions is None:
            return self._one(None, form)
        item = self._item(form, list(partitions))
        if item is not None:
            return self._each(partitions, form, item)
        if not partitions:
            return self._none(form)
        if len(partitions) == 1:
            return self._one(next(iter(partitions)), form)
        if form.is_frame:
            return self._concatenated(partitions, form)
        raise ConfigError(
            f"{label_of(context)}: the input maps to {len(partitions)} partitions, and its annotation has no place for "
            "them: annotate it as dict[str, …] or as a kind of frame"
        )

    def _item(self, form: Form, partitions: list[str]) -> Form | None:
        """Return the form of one partition's value where the input is a dict by partition, else None."""
        context = self._context
        if len(partitions) != 1:
            # Of no partition at all, as for the first of a self-dependent asset, Dagster's own IO managers make None.
            unannotated = form.backend is None and bool(partitions)
            return form.item or (Form() if form.is_mapping or unannotated else None)
        if form.item is None or form.item.is_frame:
            return form.item
        own = context.has_partition_key and context.partition_key == partitions[0]
        return None if own and not loops_over_partitions(context) else form.item

    def _one(self, partition: str | None, form: Form) -> Any:
        hit = self._find(partition, form.backend, tolerant=form.optional)
        if hit is None:
            return None
        return hit.value.lazy() if form.lazy else hit.value

    def _each(self, partitions: Mapping[str, Any], form: Form, item: Form) -> Any:
        values = {}
        for partition in partitions:
            try:
                hit = self._find(partition, item.backend, tolerant=form.optional or item.optional)
            except Tif1Error as error:
                if not self._wish.errors_by_partition:
                    raise
                values[partition] = error
                continue
            if hit is not None:
                values[partition] = hit.value.lazy() if item.lazy else hit.value
            elif item.optional:
                values[partition] = None
        return (values or None) if form.optional else values

    def _concatenated(self, partitions: Mapping[str, Any], form: Form) -> Any:
        """Return the partitions' tables as one."""
        tables = []
        for partition in partitions:
            hit = self._find(partition, "arrow", tolerant=form.optional)
            if hit is not None:
                tables.append(self._with_partition(hit.value, partition))
        if not tables:
            return self._none(form)
        try:
            # Permissive: a column may be missing here and integer there, as far as no value is lost.
            table = pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()
        except pa.ArrowException as error:
            raise ConfigError(
                f"{label_of(self._context)}: the tables of its partitions do not fit into one: {error}. Annotate the "
                "input as dict[str, …], or ask for the columns in common with the input metadata 'columns'"
            ) from error
        frame = from_table(table, form.backend or "arrow")
        return frame.lazy() if form.lazy else frame

    def _none(self, form: Form) -> None:
        """Return what no partition at all is, if the annotation has a place for it."""
        if not form.optional and form.backend is not None:
            label = label_of(self._context)
            raise CacheError(f"{label}: there is no partition to load: annotate the input as Optional[…] to get None")

    def _with_partition(self, table: pa.Table, partition: str) -> pa.Table:
        name = self._wish.partition_column
        if name is None:
            return table
        if name in table.column_names:
            raise ConfigError(
                f"{label_of(self._context)}: it has a column {name!r} already, choose another 'partition_column'"
            )
        repeated = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), len(table)), [partition])
        return table.append_column(name, repeated)

    def _find(self, partition: str | None, backend: Backend | None, *, tolerant: bool) -> Hit | None:
        """Return the value of one partition; None where it is missing and the input tolerates that."""
        address = address_of(self._context, partition)
        if backend is None and address.dataset is not None:
            backend = "pandas"  # whoever fetched it; what a notebook gets, too
        tolerant = tolerant or self._wish.allow_missing_partitions
        try:
            hit = self._read(address, backend)
        except InvalidDataError as error:
            raise InvalidDataError(
                f"{address.label} does not load as this input asks: {error.message}. Change the input's annotation or "
                "its metadata",
                **error.details,
            ) from error
        if hit is None and address.dataset is not None and backend is not None:
            try:
                hit = self._fetch_again(address, backend)
            except DataNotFoundError:
                if not tolerant:
                    raise
        if hit is None and not tolerant:
            raise CacheError(self._missing(address), key=address.entry.text)
        return hit

    def _read(self, address: Address, backend: Backend | None) -> Hit | None:
        """Read an entry, no more of it than asked for."""
        columns, names = self._wish.columns, self._wish.names
        if backend is None or names is not None:
            info = self._cache.info(address.entry)
            if info is None:
                return None
            backend = backend or info.backend
            if names is not None and info.parts == (WHOLE,):
                return self._read_rows(address, info, backend)
            if names is not None:
                self._note_absent(address, set(names) - set(info.parts))
                names = [name for name in names if name in info.parts]
        return self._cache.read(
            address.entry, backend, columns=columns, parts=names, schema_version=address.schema_version
        )

    def _read_rows(self, address: Address, info: EntryInfo, backend: Backend) -> Hit | None:
        """Read the rows of some parts of a table that is not stored in parts."""
        column = self._part_column(address)
        columns = None
        # Which columns are a pandas frame's index shows when it is read; it must not get lost.
        if self._wish.columns is not None and info.backend != "pandas":
            columns = [*self._wish.columns, column]
        hit = self._cache.read(address.entry, "arrow", columns=columns, schema_version=address.schema_version)
        return hit and Hit(self._pruned(address, hit.value, backend), hit.tier, hit.info)

    def _fetch_again(self, address: Address, backend: Backend) -> Hit:
        """Fetch a Formula 1 table that cleanup has evicted, or that nobody has materialized yet."""
        self._context.log.info(f"{address.label} is not stored: fetching it")
        reader = get_reader(self._path)
        if isinstance(address.session, SessionKey):
            hit = reader.table(address.session, address.entry.data_type)
        else:
            hit = reader.schedule(address.session)
        return Hit(self._pruned(address, hit.value, backend), hit.tier, hit.info)

    def _pruned(self, address: Address, table: pa.Table, backend: Backend) -> Any:
        """Return the rows of the wanted parts and the wanted columns of a whole table."""
        names = self._wish.names
        if names is not None:
            column = known_columns(table.schema, [self._part_column(address)])[0]
            self._note_absent(address, set(names) - {str(name) for name in table.column(column).unique().to_pylist()})
            table = table.filter(pc.field(column).cast(pa.string()).isin(names))
        columns = View.of(backend, self._wish.columns, None).columns_of(table.schema)
        return from_table(table if columns is None else table.select(columns), backend)

    def _note_absent(self, address: Address, names: set[str]) -> None:
        # No error: a driver who sat a session out must not fail whoever compares drivers over a season.
        if names:
            self._context.log.warning(f"{address.label} has no rows of {', '.join(sorted(names))}")

    def _part_column(self, address: Address) -> str:
        column = "Driver" if self._wish.drivers is not None else address.part_by
        if column is None:
            raise ConfigError(
                f"{address.label}: the input metadata 'parts' says which rows, but not of which column: give the asset "
                f"the metadata {{{PART_BY!r}: <column>}}"
            )
        return column

    def _missing(self, address: Address) -> str:
        file = self._path or get_config().cache_path
        if self._cache.info(address.entry) is not None:
            return (
                f"{address.label} is stored in the cache {file} but cannot be read: it is locked or of another version "
                "of tif1_pipeline. The log says more; materializing it again replaces it"
            )
        text = f"{address.label} is not in the cache {file}"
        if not self._context.has_asset_key:
            return f"{text}: outputs of ops are kept for their run only; run the job again"
        asset = self._context.asset_key.to_user_string()
        command = f"dagster asset materialize -m <module of the definitions> --select {shlex.quote(asset)}"
        if address.partition is not None:
            command += f" --partition {shlex.quote(address.partition)}"
        return (
            f"{text}: it was never materialized into this file, or was removed. Materialize it, in the web UI or with "
            f"`{command}`"
        )
