"""Makes fixtures/reference/experts-imatrix.json: what llama-quantize writes for a model of four experts and an importance matrix in
which one expert was never reached. `tests/weighted.rs` makes the same model and matrix by the same formula.

usage: reference_experts.py PEERS (needs `tools/dev/peers full`; PEERS is target/peers)
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter

from reference import fold_lists, tensors

FILE_TYPES = ["Q8_0", "Q4_0", "Q5_1", "Q4_K_S", "Q6_K", "Q2_K_S", "IQ3_XXS", "IQ4_XS"]
N_EXPERT, N_EMBD, N_FF = 4, 256, 512
SHAPES = {
    "token_embd.weight": (64, N_EMBD),
    "output_norm.weight": (N_EMBD,),
    "blk.0.attn_v.weight": (N_EMBD, N_EMBD),
    "blk.0.ffn_gate_inp.weight": (N_EXPERT, N_EMBD),
    "blk.0.ffn_down_exps.weight": (N_EXPERT, N_EMBD, N_FF),
    "blk.0.ffn_up_exps.weight": (N_EXPERT, N_FF, N_EMBD),
}
COUNTS = [10, 0, 5, 1]
MASK = (1 << 64) - 1


class Paint:
    """SplitMix64, as in tools/bench/paint.rs."""

    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = ((self.state ^ (self.state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def bell(self):
        bits = self.next()
        return (sum(bits >> (16 * i) & 0xFFFF for i in range(4)) - 2 * 0xFFFF) / 65536

    def bells(self, shape):
        return np.array([self.bell() for _ in range(int(np.prod(shape)))], dtype=np.float32).reshape(shape)


def write_model(path):
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(N_EXPERT)
    writer.add_expert_used_count(2)
    for seed, (name, shape) in enumerate(SHAPES.items()):
        writer.add_tensor(name, Paint(seed).bells(shape))
    finish(writer)


def write_matrix(path):
    writer = GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["formula"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for seed, (name, shape) in enumerate(SHAPES.items()):
        if name.startswith("blk.0.ffn_gate_inp") or not name.startswith("blk."):
            continue
        counts = COUNTS if len(shape) == 3 else [7]
        sums = Paint(100 + seed).bells((len(counts), shape[-1]))
        writer.add_tensor(f"{name}.in_sum2", sums * sums)
        writer.add_tensor(f"{name}.counts", np.array(counts, dtype=np.float32).reshape(-1, 1))
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    quantize = Path(sys.argv[1]) / "build/bin/llama-quantize"
    made = {}
    with tempfile.TemporaryDirectory() as scratch:
        model, matrix, output = (Path(scratch) / name for name in ["model.gguf", "matrix.gguf", "output.gguf"])
        write_model(model)
        write_matrix(matrix)
        for file_type in FILE_TYPES:
            subprocess.run([quantize, "--imatrix", matrix, model, output, file_type], check=True, capture_output=True)
            made[file_type] = tensors(GGUFReader(output))
    path = Path(__file__).parents[2] / "fixtures/reference/experts-imatrix.json"
    path.write_text(fold_lists(json.dumps({"file_types": made}, indent=1)) + "\n")
    print(path)


if __name__ == "__main__":
    main()
