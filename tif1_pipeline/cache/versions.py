"""Entries that were written by other versions of this package."""

import sqlalchemy as sa

from tif1_pipeline import __version__
from tif1_pipeline.cache import entries, removal
from tif1_pipeline.cache.codec import FORMAT_VERSION
from tif1_pipeline.cache.schema import ENTRIES
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.datasets import DATASETS

_MAJOR = __version__.split(".")[0]
_MAJOR_OF_ENTRY = sa.func.substr(
    ENTRIES.c.library_version, 1, sa.func.instr(ENTRIES.c.library_version.concat("."), ".") - 1
)
# A pinned entry is somebody else's asset, even where it is called like one of our tables: it has no schema of ours.
_SCHEMA = sa.case(
    (ENTRIES.c.pinned, None),
    *((ENTRIES.c.data_type == name, dataset.schema_version) for name, dataset in DATASETS.items()),
)
_READABLE = sa.and_(
    ENTRIES.c.format_version == FORMAT_VERSION,
    _MAJOR_OF_ENTRY == _MAJOR,
    ENTRIES.c.schema_version == sa.func.coalesce(_SCHEMA, ENTRIES.c.schema_version),
)
_NEWER = sa.or_(
    ENTRIES.c.format_version > FORMAT_VERSION,
    sa.cast(_MAJOR_OF_ENTRY, sa.Integer) > int(_MAJOR),
    ENTRIES.c.schema_version > sa.func.coalesce(_SCHEMA, ENTRIES.c.schema_version),
)


def is_compatible(tiered: Tiered) -> bool:
    """Tell whether this version of the package can read every entry."""
    query = sa.select(sa.exists().where(sa.not_(_READABLE)))
    return not any(unreadable for (unreadable,) in entries.query(tiered, query))


def upgrade(tiered: Tiered) -> int:
    """Remove the entries that this version cannot read and that are in nothing newer than it; returns their number.

    What a newer version wrote stays: it shares the file and reads on.
    """
    return len(removal.remove_where(tiered, sa.and_(sa.not_(_READABLE), sa.not_(_NEWER))))
