"""Randomness has names.

``stream(seed, "order", epoch)`` is an independent generator for every list of names. Two arms with one seed share the
order of batches, the sampled targets and the initial weights of every module they share; resuming needs no saved
generator, because a stream is found again by its name.
"""

from __future__ import annotations

import hashlib

import numpy as np

from vlbench.canon import canonical


def key(seed: int, *names: str | int) -> int:
    """A 128-bit key for these names, equal on every machine and for every version of NumPy and Python."""
    return int.from_bytes(hashlib.sha256(canonical([seed, *names]).encode()).digest()[:16], "big")


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """A counter-based generator (Philox) of its own for these names."""
    return np.random.Generator(np.random.Philox(key=key(seed, *names)))


def seed_for(seed: int, *names: str | int) -> int:
    """A 63-bit seed for generators that take an integer, such as torch's."""
    return key(seed, *names) & (2**63 - 1)
