#!/usr/bin/env python3
"""Writes src/quant/iq/grids.rs: the grid points of the IQ formats, read off the weights that ggml makes of crafted blocks.

    tools/dev/peers && tools/dev/grids.py

Every block has scale 1, smallest sub-block scale and no signs, and names the grid points in order; what `to_float` returns is then
a multiple of the points' values.
"""
import ctypes
import os
import struct
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(os.environ.get("GGFORGE_PEERS", ROOT / "target/peers"))
LIBRARY = PEERS / "npm/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64/libggml-base.so"
ONE = struct.pack("<e", 1.0)


def iq2_xxs(points):
    return ONE + b"".join(struct.pack("<4BI", *points[i : i + 4], 0) for i in range(0, 32, 4))


def iq2_xs(points):
    return ONE + struct.pack("<32H", *points) + bytes(8)


def iq2_s(points):
    high = [sum((points[4 * i + l] >> 8) << (2 * l) for l in range(4)) for i in range(8)]
    return ONE + bytes(p & 255 for p in points) + bytes(32) + bytes(high) + bytes(8)


def iq1_s(points):
    high = [sum((points[4 * i + l] >> 8) << (3 * l) for l in range(4)) for i in range(8)]
    return ONE + bytes(p & 255 for p in points) + struct.pack("<8H", *high)


def iq3_xxs(points):
    return ONE + bytes(points) + bytes(32)


def iq3_s(points):
    high = [sum((points[8 * i + l] >> 8) << l for l in range(8)) for i in range(8)]
    return ONE + bytes(p & 255 for p in points) + bytes(high) + bytes(32) + bytes(4)


# name: number of points, weights per point, block maker
GRIDS = {
    "IQ1_S": (2048, 8, iq1_s),
    "IQ2_XXS": (256, 8, iq2_xxs),
    "IQ2_XS": (512, 8, iq2_xs),
    "IQ2_S": (1024, 8, iq2_s),
    "IQ3_XXS": (256, 4, iq3_xxs),
    "IQ3_S": (512, 4, iq3_s),
}


def points_of(ggml, n_points, point_len, make):
    """The levels of every point, and the weights that the levels stand for."""
    dequantize = getattr(ggml, f"dequantize_row_{make.__name__}")
    weights, per_block = [], 256 // point_len
    for first in range(0, n_points, per_block):
        block = make(list(range(first, first + per_block)))
        out = (ctypes.c_float * 256)()
        dequantize(block, out, ctypes.c_int64(256))
        weights += out
    levels = sorted(set(weights))
    return [[levels.index(w) for w in weights[i : i + point_len]] for i in range(0, len(weights), point_len)], levels


def main():
    ggml = ctypes.CDLL(str(LIBRARY))
    text = [
        "//! The grid points of the IQ formats: a facts-only table, written by `tools/dev/grids.py` from what ggml's `to_float` returns.",
        "//!",
        "//! A point is the levels of its 8 weights, 2 bits each, or of its 4 weights, 3 bits each; the first weight is lowest. The order",
        "//! of the points is that of the indices in a file.",
    ]
    for name, (n_points, point_len, make) in GRIDS.items():
        points, levels = points_of(ggml, n_points, point_len, make)
        bits = 2 if point_len == 8 else 3
        codes = [sum(level << (bits * i) for i, level in enumerate(point)) for point in points]
        assert len(codes) == n_points == len(set(codes)) and len(levels) <= 1 << bits, name
        print(name, n_points, levels)
        text += ["", f"pub(super) const {name}: [u16; {n_points}] = ["]
        text += [f"0x{code:04x}," for code in codes]
        text += ["];"]
    path = ROOT / "src/quant/iq/grids.rs"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(text) + "\n")
    subprocess.run(["rustfmt", "--edition", "2024", "--config-path", ROOT, path], check=True)


main()
