"""The weights of models made by a formula, as `Tiny` of tests/common/tiny.rs makes them."""

import numpy as np


def weights(name, shape):
    seed = sum((at + 1) * byte for at, byte in enumerate(name.encode()))
    index = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(seed * 1000003)
    hashed = (index * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    offset = np.float32(1.0 if "norm" in name else 0.0)
    return ((hashed.astype(np.float64) / 2**24 - 0.5).astype(np.float32) + offset).reshape(shape)


MASK = 2**64 - 1


def hashes(name, n):
    """`n` hashes of 64 bits: SplitMix64 from a seed that is FNV-1a of the name."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 & MASK
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def grid(name, shape, offset):
    """Weights of tests/common/checkpoint.rs: multiples of 1/256 below 1/2 in magnitude, which F32, BF16 and F16 hold alike.

    Matrices have values of half the size, so that what they add to the residual stream is of its size. Gains of norms are
    around `offset`, on a grid of 1/128, which BF16 has between 1 and 2.
    """
    steps = (hashes(name, int(np.prod(shape))) >> np.uint64(57)).astype(np.float32) - np.float32(64)
    is_matrix = len(shape) > 1 and not any(part in name for part in ("embed_tokens", "wte.", "wpe."))
    values = steps / np.float32(256 if is_matrix else 128)
    is_norm = ("norm" in name or ".ln_" in name) and name.endswith("weight")
    is_gain = is_norm or name.endswith(("layer_scalar", "router.scale", "per_expert_scale"))
    return (values + np.float32(offset if is_gain else 0)).reshape(shape)
