"""One hash of all kernel sources: a partial run is only resumed with the kernels it was begun with."""

from __future__ import annotations

import hashlib

from gpu_calibrate.launches.kernels import FILES, source


def kernels_hash() -> str:
    """The first 16 hex digits of SHA-256 over the hashes of all kernels, in the order of their names."""
    joined = " ".join(f"{name}:{source(name).hash}" for name in sorted(FILES))
    return hashlib.sha256(joined.encode()).hexdigest()[:16]
