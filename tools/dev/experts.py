"""Makes fixtures/model/experts.json and fixtures/imatrix/experts-*: what llama.cpp's tools find for small mixtures of experts.

usage: experts.py LLAMA_BIN forge-3m-F32.gguf (needs gguf)

LLAMA_BIN is a folder with llama-perplexity, llama-imatrix and llama-completion. The models are `Tiny::with_experts` of
tests/common/tiny.rs with the vocabulary of forge-3m: the same shapes and the same weights by a formula, in F32. Keys and values are kept
in F32, so that nothing is rounded. fixtures/model/experts.json: {architecture: {"ppl": of twelve chunks, "text": greedy}}.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf

from formula import weights

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "fixtures"
TEXT = "fixtures/text/prose.txt"  # from the root: llama-imatrix writes it into its file
N_VOCAB, N_EXPERT, N_USED = 2048, 8, 3
PROMPT, N_TOKENS = "Once upon a time", 48
IN_F32 = ["-ctk", "f32", "-ctv", "f32", "-fa", "off", "-t", "4"]


def tensors(arch):
    n_ff = 48 if arch == "llama" else 24
    yield from [("token_embd", (N_VOCAB, 32)), ("output_norm", (32,)), ("output", (N_VOCAB, 32))]
    for layer in range(2):
        parts = [("attn_norm", (32,)), ("attn_output", (32, 32)), ("ffn_norm", (32,))]
        parts += [("attn_q", (32, 32)), ("attn_k", (16, 32)), ("attn_v", (16, 32)), ("ffn_gate_inp", (N_EXPERT, 32))]
        parts += [(f"ffn_{part}_exps", (N_EXPERT, n_ff, 32)) for part in ["gate", "up"]]
        parts += [("ffn_down_exps", (N_EXPERT, 32, n_ff))]
        if arch == "qwen2moe":
            parts += [("ffn_gate_inp_shexp", (32,)), ("ffn_gate_shexp", (40, 32)), ("ffn_up_shexp", (40, 32))]
            parts += [("ffn_down_shexp", (32, 40)), ("attn_q.bias", (32,)), ("attn_k.bias", (16,)), ("attn_v.bias", (16,))]
        if arch == "qwen3moe":
            parts += [("attn_q_norm", (8,)), ("attn_k_norm", (8,))]
        yield from [(f"blk.{layer}.{part}", shape) for part, shape in parts]


def write_model(path, arch, tokenizer):
    writer = gguf.GGUFWriter(path, arch)
    sizes = {"block_count": 2, "embedding_length": 32, "feed_forward_length": 48, "context_length": 512, "vocab_size": N_VOCAB}
    sizes |= {"attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 8}
    sizes |= {"expert_count": N_EXPERT, "expert_used_count": N_USED}
    if arch != "llama":
        sizes["expert_feed_forward_length"] = 24
    if arch == "qwen2moe":
        sizes["expert_shared_feed_forward_length"] = 40
    for key, value in sizes.items():
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{arch}.rope.freq_base", 10000.0)
    for field in tokenizer:
        kind = field.types[0]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type)
    for name, shape in tensors(arch):
        name = name if name.endswith(".bias") else f"{name}.weight"
        writer.add_tensor(name, weights(name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run(*command):
    result = subprocess.run([str(part) for part in command], capture_output=True, cwd=ROOT)
    if result.returncode != 0:
        sys.exit(f"{command}\n{result.stderr.decode(errors='replace')[-4000:]}")
    return result.stdout.decode(errors="replace"), result.stderr.decode(errors="replace")


def main():
    binaries, forge = (Path(argument).resolve() for argument in sys.argv[1:3])
    tokenizer = [field for name, field in gguf.GGUFReader(forge).fields.items() if name.startswith("tokenizer.")]
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for arch in ["llama", "qwen2moe", "qwen3moe"]:
            model = Path(scratch) / f"{arch}.gguf"
            write_model(model, arch, tokenizer)
            read = ["-m", model, "-f", TEXT, "-c", 128, "-b", 128, *IN_F32]
            out, err = run(binaries / "llama-perplexity", *read, "--chunks", 12)
            ppl = float(re.search(r"Final estimate: PPL = (\d+\.\d+)", out + err)[1])
            generate = ["-no-cnv", "--temp", 0, "-n", N_TOKENS, "--no-display-prompt", "--no-warmup", "--ignore-eos", *IN_F32]
            text, _ = run(binaries / "llama-completion", "-m", model, "-p", PROMPT, *generate)
            for ending in ["gguf", "dat"]:
                to = FIXTURES / f"imatrix/experts-{arch}.{ending}"
                run(binaries / "llama-imatrix", *read, "--chunks", 3, "--output-format", ending, "-o", to)
            found[arch] = {"ppl": ppl, "text": text.rstrip("\n")}
    (FIXTURES / "model/experts.json").write_text(json.dumps(found, indent=1) + "\n")


main()
