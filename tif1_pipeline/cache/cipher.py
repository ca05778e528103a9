"""Encryption of stored bytes: AES-256-GCM with the keys of the settings.

What is encrypted is bound to its place, so that bytes moved to another entry, version or part do not decrypt. Metadata
is not encrypted: keys, events, names of parts (drivers), URLs, sizes, times, and the checksum of an entry's content, by
which those who have a copy of that content can recognize it.
"""

import functools
import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tif1_pipeline.cache.codec import Blob, crc
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import CacheError, ConfigError, CorruptEntryError
from tif1_pipeline.setting_types import key_bytes

_log = logging.getLogger(__name__)

_KEY_BYTES = 32
_NONCE_BYTES = 12
OVERHEAD = _NONCE_BYTES + 16
"""Bytes that encrypted data is longer: the nonce before and the tag behind."""


class Keyring:
    """The keys in force: the first one encrypts, all decrypt.

    Args:
        keys: Of 32 bytes each.

    Attributes:
        current: Id of the key that encrypts; an id says nothing of its key.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # an optional package
        except ImportError as error:
            raise ConfigError(
                "an encryption key is set, but the package cryptography is not installed: install tif1_pipeline with "
                "its extra 'encryption', or unset cache_encryption_key and cache_encryption_key_file"
            ) from error
        unique = {_key_id(key): key for key in reversed(keys)}
        if len(unique) < len(set(keys)):
            raise ConfigError("two encryption keys have the same id, by chance: replace one")
        self.current = _key_id(keys[0])
        self._ciphers = {key_id: AESGCM(key) for key_id, key in unique.items()}

    @classmethod
    def of(cls, config: Config) -> "Keyring | None":
        """Return the keys that the settings name, those of the file last; None when there are none.

        Raises:
            ConfigError: The file cannot be read or holds no keys, or the package ``cryptography`` is missing.
        """
        keys, file = config.cache_encryption_key, config.cache_encryption_key_file
        if not keys and file is None:
            return None
        return _keyring(keys or (), file, None if file is None else _stamp(file))

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._ciphers

    def seal(self, data: bytes, context: bytes) -> bytes:
        """Encrypt with the first key."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._ciphers[self.current].encrypt(nonce, data, context)

    def open(self, key_id: str, sealed: bytes, context: bytes) -> bytes:
        """Decrypt.

        Raises:
            CacheError: There is no such key; its cause is ``no key``.
            CorruptEntryError: The bytes were changed, or belong elsewhere.
        """
        from cryptography.exceptions import InvalidTag

        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise no_key("the stored bytes", {key_id})
        if len(sealed) < OVERHEAD:
            raise CorruptEntryError(f"the encrypted bytes are only {len(sealed)} long")
        try:
            return cipher.decrypt(sealed[:_NONCE_BYTES], memoryview(sealed)[_NONCE_BYTES:], context)
        except InvalidTag:
            raise CorruptEntryError("the encrypted bytes were changed, or moved here from another entry") from None

    def seal_blob(self, blob: Blob, context: bytes) -> Blob:
        """Encrypt a part; its checksum is then that of the encrypted bytes."""
        data = self.seal(blob.data, context)
        return Blob(blob.name, data, crc(data))

    def open_blob(self, key_id: str, blob: Blob, context: bytes) -> Blob:
        """Decrypt a part; its checksum is then that of the decrypted bytes.

        Raises:
            CacheError: There is no such key; its cause is ``no key``.
            CorruptEntryError: The bytes were changed, or belong elsewhere.
        """
        data = self.open(key_id, blob.data, context)
        return Blob(blob.name, data, crc(data))


def context_of(key: str, generation: str, ordinal: int, name: str) -> bytes:
    """Return what a part's encrypted bytes are bound to."""
    return json.dumps([key, generation, ordinal, name]).encode()


def no_key(what: str, key_ids: Iterable[str | None]) -> CacheError:
    """Return the error that something is encrypted with keys that are not given."""
    ids = sorted(key_id for key_id in key_ids if key_id)
    return CacheError(
        f"{what}: encrypted with the key {', '.join(ids)}, which is not given. Add it to cache_encryption_key or "
        "cache_encryption_key_file; the first key there encrypts, the others only decrypt",
        cause="no key",
        key_ids=ids,
    )


def _key_id(key: bytes) -> str:
    return hashlib.blake2b(key, digest_size=4, person=b"tif1 key id").hexdigest()


def _stamp(path: Path) -> tuple[int, ...]:
    """Return what tells one version of the key file from another."""
    try:
        status = os.stat(path)  # noqa: PTH116 - on every encrypted read; Path.stat costs twice as much
    except OSError as error:
        raise _bad_file(path, f"it cannot be read: {error.strerror}") from None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode


# Keyed by the keys themselves, which the settings hold all the time anyway.
@functools.lru_cache(maxsize=8)
def _keyring(keys: tuple[str, ...], file: Path | None, stamp: tuple[int, ...] | None) -> Keyring:
    found = [key_bytes(key) for key in keys]
    if file is not None and stamp is not None:
        found += _keys_in(file, stamp[-1])
    return Keyring(found)


def _keys_in(path: Path, mode: int) -> list[bytes]:
    if not stat.S_ISREG(mode):
        raise _bad_file(path, "it is no regular file")
    if mode & stat.S_IRWXO:
        _log.warning("the key file %s is open to every user of this machine: chmod it to 0600", path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise _bad_file(path, f"it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _bad_file(path, "it is no text") from None
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        word = line.partition("#")[0].strip()
        if not word:
            continue
        try:
            key: Any = key_bytes(word)
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            raise _bad_file(path, f"line {number} is no key: 32 bytes as 64 hexadecimal digits or as base64 are needed")
        found.append(key)
    if not found:
        raise _bad_file(path, "there is no key in it")
    return found


def _bad_file(path: Path, what: str) -> ConfigError:
    return ConfigError(f"cache_encryption_key_file {path}: {what}", setting="cache_encryption_key_file", path=str(path))
