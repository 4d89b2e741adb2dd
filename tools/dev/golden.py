#!/usr/bin/env python3
"""Writes fixtures/golden: what ggml makes of one painted row in every format, and what it reads back.

    tools/dev/peers && tools/dev/golden.py

Per format FORMAT.blocks (ggml_quantize_chunk) and FORMAT.weights (to_float, f32 little-endian); FORMAT.weighted are the blocks with
`painted_importance`, where that makes a difference. The input is the formula of `painted_row`, which tests/formats.rs repeats. Formats
that ggml quantizes only with an importance matrix get it for FORMAT.blocks too.
"""
import ctypes
import hashlib
import os
import struct
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(os.environ.get("GGFORGE_PEERS", ROOT / "target/peers"))
LIBRARY = PEERS / "npm/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64/libggml-base.so"
FORMATS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q8_1": 9, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
    "Q5_K": 13, "Q6_K": 14, "Q8_K": 15, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19, "IQ4_NL": 20, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23,
    "IQ1_M": 29, "BF16": 30, "TQ1_0": 34, "TQ2_0": 35, "MXFP4": 39, "NVFP4": 40, "Q1_0": 41, "Q2_0": 42,
}
ROW_LEN = 768
MASK = (1 << 64) - 1


def paint(seed):
    """SplitMix64, as tools/bench/paint.rs."""
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def bell(bits):
    return (sum((bits >> (16 * i)) & 0xFFFF for i in range(4)) - 2 * 0xFFFF) / 65536.0


def painted_row():
    """Bell-shaped weights; each run of 32 has one of four magnitudes, and every eighth run is zero."""
    numbers = paint(2026)
    return [0.0 if i // 32 % 8 == 7 else bell(next(numbers)) / 2 ** (4 + i // 32 % 4) for i in range(ROW_LEN)]


def painted_importance():
    """Between 1/65536 and 1."""
    numbers = paint(2027)
    return [((next(numbers) & 0xFFFF) + 1) / 65536.0 for _ in range(ROW_LEN)]


class TypeTraits(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("block_len", ctypes.c_int64), ("interleave", ctypes.c_int64), ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float", ctypes.c_void_p),
    ]


class Ggml:
    """The library. What activations are quantized to is not in its tables and has functions of its own."""

    def __init__(self):
        self.library = library = ctypes.CDLL(str(LIBRARY))
        library.ggml_get_type_traits.restype = ctypes.POINTER(TypeTraits)
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + 3 * [ctypes.c_int64] + [ctypes.c_void_p]
        library.ggml_version.restype = library.ggml_commit.restype = ctypes.c_char_p
        library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool

    def quantize(self, name, row, importance):
        traits = self.traits(name)
        blocks = ctypes.create_string_buffer(ROW_LEN // traits.block_len * traits.block_bytes)
        if name in ("Q8_1", "Q8_K"):
            self.library[f"quantize_row_q{name[1:]}_ref"](row, blocks, ctypes.c_int64(ROW_LEN))
        else:
            written = self.library.ggml_quantize_chunk(FORMATS[name], row, blocks, 0, 1, ROW_LEN, importance)
            assert written == len(blocks), name
        return blocks.raw

    def dequantize(self, name, blocks):
        if name == "F32":
            return blocks
        if name == "Q8_1":  # which ggml never reads
            return b"".join(struct.pack("<32f", *(d * q for q in qs)) for d, _, *qs in struct.iter_unpack("<ee32b", blocks))
        weights = (ctypes.c_float * ROW_LEN)()
        to_float = self.library.dequantize_row_q8_K if name == "Q8_K" else self.traits(name).to_float
        to_float(blocks, weights, ctypes.c_int64(ROW_LEN))
        return struct.pack(f"<{ROW_LEN}f", *weights)

    def needs_importance(self, name):
        return self.library.ggml_quantize_requires_imatrix(FORMATS[name])

    def traits(self, name):
        return self.library.ggml_get_type_traits(FORMATS[name]).contents


def main():
    ggml = Ggml()
    row = (ctypes.c_float * ROW_LEN)(*painted_row())
    importance = (ctypes.c_float * ROW_LEN)(*painted_importance())

    lines = []
    for name in FORMATS:
        needs = ggml.needs_importance(name)
        blocks = ggml.quantize(name, row, importance if needs else None)
        files = {"blocks": blocks, "weights": ggml.dequantize(name, blocks)}
        weighted = ggml.quantize(name, row, importance)
        if needs or weighted != blocks:
            files["weighted"] = weighted
        for kind, content in files.items():
            file = ROOT / "fixtures/golden" / f"{name}.{kind}"
            file.write_bytes(content)
            lines.append(f"{hashlib.sha256(content).hexdigest()}  {file.name}\n")

    (ROOT / "fixtures/golden/SHA256SUMS").write_text("".join(lines))
    version, commit = ggml.library.ggml_version().decode(), ggml.library.ggml_commit().decode()
    print(f"{len(FORMATS)} formats from ggml {version} ({commit})")


main()
