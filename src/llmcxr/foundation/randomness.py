"""Random streams that depend on names, never on order: the same key gives the same stream in any worker."""

from __future__ import annotations

import hashlib

import numpy as np


def stream(*key: str | int) -> np.random.Generator:
    """A generator determined by `key` alone, e.g. `stream(seed, "anatomy", patient_id)`."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
