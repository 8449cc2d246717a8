"""Random streams by name, so that changing one part of a scenario leaves the others' draws as they were."""

from __future__ import annotations

import hashlib

import numpy as np


def stream_seed(seed: int, *names: str) -> int:
    """A 128-bit seed from the scenario's seed and the stream's name; the same on every platform."""
    text = "/".join((str(seed), *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def rng(seed: int, *names: str) -> np.random.Generator:
    """The generator of the stream ``names`` under ``seed``."""
    return np.random.Generator(np.random.PCG64(stream_seed(seed, *names)))
