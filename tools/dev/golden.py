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
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13,
    "Q6_K": 14, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19, "IQ4_NL": 20, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23,
    "IQ1_M": 29, "BF16": 30, "TQ1_0": 34, "TQ2_0": 35, "MXFP4": 39, "NVFP4": 40, "Q1_0": 41, "Q2_0": 42,
}
ROW_LEN = 768
MASK = (1 << 64) - 1


def paint(seed):
    """SplitMix64, as tests/common/paint.rs."""
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


def main():
    ggml = ctypes.CDLL(str(LIBRARY))
    ggml.ggml_get_type_traits.restype = ctypes.POINTER(TypeTraits)
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + 3 * [ctypes.c_int64] + [ctypes.c_void_p]
    ggml.ggml_version.restype = ggml.ggml_commit.restype = ctypes.c_char_p
    ggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    row = (ctypes.c_float * ROW_LEN)(*painted_row())
    importance = (ctypes.c_float * ROW_LEN)(*painted_importance())

    lines = []
    for name, type_id in FORMATS.items():
        traits = ggml.ggml_get_type_traits(type_id).contents
        needs = ggml.ggml_quantize_requires_imatrix(type_id)
        blocks = ctypes.create_string_buffer(ROW_LEN // traits.block_len * traits.block_bytes)
        weighted = ctypes.create_string_buffer(len(blocks))
        for to, columns in ((blocks, importance if needs else None), (weighted, importance)):
            written = ggml.ggml_quantize_chunk(type_id, row, to, 0, 1, ROW_LEN, columns)
            assert written == len(to), name
        weights = (ctypes.c_float * ROW_LEN)()
        if type_id == 0:
            ctypes.memmove(weights, blocks, written)
        else:
            traits.to_float(blocks, weights, ROW_LEN)
        files = [("blocks", blocks.raw), ("weights", struct.pack(f"<{ROW_LEN}f", *weights))]
        if needs or weighted.raw != blocks.raw:
            files.append(("weighted", weighted.raw))
        for kind, content in files:
            file = ROOT / "fixtures/golden" / f"{name}.{kind}"
            file.write_bytes(content)
            lines.append(f"{hashlib.sha256(content).hexdigest()}  {file.name}\n")

    (ROOT / "fixtures/golden/SHA256SUMS").write_text("".join(lines))
    print(f"{len(FORMATS)} formats from ggml {ggml.ggml_version().decode()} ({ggml.ggml_commit().decode()})")


main()
