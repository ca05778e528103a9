"""Encrypting what is stored already, with another key or for the first time, and decrypting it for good."""

import logging
import sqlite3

from tif1_pipeline.cache.cipher import Keyring, context_of, no_key
from tif1_pipeline.cache.codec import Blob, verify
from tif1_pipeline.cache.database import Database
from tif1_pipeline.cache.failures import check_numbers, is_locked
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.exceptions import CacheError, CacheLockedError, CacheReadOnlyError, CorruptEntryError
from tif1_pipeline.progress import progress

_log = logging.getLogger(__name__)

_OTHERS = "SELECT id, key, generation FROM entries WHERE encryption IS NOT ? ORDER BY id"
_KEYS = "SELECT DISTINCT encryption FROM entries WHERE encryption IS NOT NULL"
_ENTRY = "SELECT key, encryption FROM entries WHERE id = ? AND generation = ? AND encryption IS NOT ?"
_PARTS = "SELECT id, ordinal, name, checksum FROM parts WHERE entry_id = ? ORDER BY ordinal"


def rotate(tiered: Tiered, decrypt: bool) -> int:
    """Encrypt every entry with the first of the keys in force, or decrypt them all.

    One transaction for each entry, which keeps its generation: others read and write meanwhile, and what was
    interrupted is completed by the next call. What another process stores meanwhile under other settings stays as it
    is. Corrupt entries are removed, as a read would do.

    When everything is encrypted the file is rebuilt, because former versions of entries may stand in its free pages;
    that takes as much disk space again, and writers wait for it.

    Args:
        tiered: The cache.
        decrypt: Store the entries plainly instead.

    Returns:
        The number of entries that were changed.

    Raises:
        CacheReadOnlyError: The setting ``cache_readonly`` is on.
        CacheError: No key is set, or entries need keys that are not given (cause ``no key``, nothing was changed), or
            the file could not be rebuilt, to be done by another call.
    """
    if tiered.config.cache_readonly:
        raise CacheReadOnlyError(
            f"{tiered.path} is opened read-only: switch cache_readonly off to encrypt or decrypt it"
        )
    keyring = Keyring.of(tiered.config)
    if keyring is None and not decrypt:
        raise CacheError(
            "there is no key to encrypt with: set cache_encryption_key or cache_encryption_key_file", cause="no key"
        )
    target = None if decrypt or keyring is None else keyring.current
    timeout = tiered.config.cache_lock_timeout.total_seconds()
    databases = [file.database for file in tiered.files() if file.database.exists()]
    found = [(database, *entry) for database in databases for entry in _look(database, keyring, target, timeout)]
    number = 0
    with progress("Decrypting entries" if decrypt else "Encrypting entries", total=len(found)) as advance:
        for database, id_, key, generation in found:
            number += _change(database, keyring, id_, key, generation, target, timeout)
            advance(1)
    if target is not None:
        for database in databases:
            _wipe(database, timeout)
    return number


def _look(
    database: Database, keyring: Keyring | None, target: str | None, timeout: float
) -> list[tuple[int, str, str]]:
    """Return the entries to change, when there are keys to all of them."""
    with database.raw(timeout) as connection:
        unknown = {row[0] for row in connection.execute(_KEYS) if keyring is None or row[0] not in keyring}
        if unknown:
            raise no_key(f"nothing was changed in {database.path}, entries cannot be decrypted", unknown)
        return connection.execute(_OTHERS, (target,)).fetchall()


def _change(
    database: Database,
    keyring: Keyring | None,
    id_: int,
    key: str,
    generation: str,
    target: str | None,
    timeout: float,
) -> int:
    # A connection for each entry: the file may be replaced meanwhile, by a restore.
    with database.raw(timeout) as connection:
        connection.execute("PRAGMA secure_delete=ON")  # what is replaced is overwritten with zeros
        if target is None:  # the keys may be taken away afterwards, and a power cut must not bring back what needs them
            connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN IMMEDIATE")
        row = connection.execute(_ENTRY, (id_, generation, target)).fetchone()
        if row is None or row[0] != key:  # replaced, removed or changed meanwhile
            connection.execute("ROLLBACK")
            return 0
        former = row[1]
        if former is not None and (keyring is None or former not in keyring):
            connection.execute("ROLLBACK")
            raise no_key(f"{key} is left as it is", {former})
        try:
            size = sum(
                _change_part(connection, keyring, former, target, (key, generation), part)
                for part in connection.execute(_PARTS, (id_,)).fetchall()
            )
        except CorruptEntryError as error:
            connection.execute("ROLLBACK")
            _log.warning("the cache entry %s is corrupt and is removed, to be fetched again: %s", key, error)
            connection.execute("DELETE FROM entries WHERE id = ? AND generation = ?", (id_, generation))
            return 0
        connection.execute("UPDATE entries SET encryption = ?, compressed_size = ? WHERE id = ?", (target, size, id_))
        connection.execute("COMMIT")
        return 1


def _change_part(
    connection: sqlite3.Connection,
    keyring: Keyring | None,
    former: str | None,
    target: str | None,
    entry: tuple[str, str],
    part: tuple[int, int, str, str],
) -> int:
    """Store one part anew; returns its size."""
    id_, ordinal, name, checksum = part
    check_numbers(id_)
    context = context_of(*entry, ordinal, name)
    with connection.blobopen("parts", "data", id_, readonly=True) as stored:
        blob = Blob(name, stored.read(), checksum)
    if former is None:
        verify(blob)  # else a new checksum would make corrupt data look sound
    elif keyring is not None:
        blob = keyring.open_blob(former, blob, context)
    if target is not None and keyring is not None:
        blob = keyring.seal_blob(blob, context)
    connection.execute(
        "UPDATE parts SET data = ?, size = ?, checksum = ? WHERE id = ?",
        (blob.data, len(blob.data), blob.checksum, id_),
    )
    return len(blob.data)


def _wipe(database: Database, timeout: float) -> None:
    """Rid the file of what is in its free space, and its log of former pages."""
    path = database.path
    with database.raw(timeout) as connection:
        connection.execute("PRAGMA secure_delete=ON")
        try:
            connection.execute("VACUUM")
            busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.Error as error:
            if is_locked(error):
                busy = 1
            else:
                raise CacheError(
                    f"all entries of {path} are encrypted, but the file could not be rebuilt, and former versions of "
                    f"them may still stand in its free space: {error}. Rebuilding takes as much disk space again; make "
                    "room, then rotate again",
                    path=str(path),
                    cause=getattr(error, "sqlite_errorname", type(error).__name__),
                ) from error
    if busy:
        raise CacheLockedError(
            f"all entries of {path} are encrypted, but others kept the file in use for more than {timeout:g} s, so "
            "that former versions of them may still stand in its log or free space: rotate again when it is less used",
            path=str(path),
            cause="locked",
        )
