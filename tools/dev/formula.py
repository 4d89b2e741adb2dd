"""The weights of models made by a formula, as `Tiny` of tests/common/tiny.rs makes them."""

import numpy as np


def weights(name, shape):
    seed = sum((at + 1) * byte for at, byte in enumerate(name.encode()))
    index = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(seed * 1000003)
    hashed = (index * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    offset = np.float32(1.0 if "norm" in name else 0.0)
    return ((hashed.astype(np.float64) / 2**24 - 0.5).astype(np.float32) + offset).reshape(shape)
