"""Random numbers that depend on names alone: the same in every process and in any order of access."""

from hashlib import blake2b

import numpy as np


def hash_number(*names: object) -> int:
    """Return 64 bits that depend on the names alone (Python's own ``hash`` of text differs between processes)."""
    return int.from_bytes(blake2b("\x1f".join(map(str, names)).encode(), digest_size=8).digest(), "little")


def generator(*names: object) -> np.random.Generator:
    """Return a random generator that depends on the names alone."""
    return np.random.Generator(np.random.SFC64(hash_number(*names)))


def chance(*names: object) -> float:
    """Return one number in [0, 1) that depends on the names alone."""
    return hash_number(*names) / 2**64
