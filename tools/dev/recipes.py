"""Makes fixtures/recipes/*.txt: the type that llama-quantize chooses for every tensor, per model shape, preset and option.

    target/peers/venv/bin/python tools/dev/recipes.py --llama-quantize PATH [MODEL...]

The models are headers only: GGUF files of the true names, shapes and hyperparameters whose data is a hole in a sparse file,
which `llama-quantize --dry-run` never reads. Weights are declared BF16, so that a choice of F16 can be told from "left alone".

A file holds the facts, the cases (one command line each), the code letter of each type, then a line per tensor: name, shape
(row-major), type in the source, and one letter per case. `!` stands for a case that llama-quantize refuses, `?` for a type
whose blocks do not fit the row: it would abort.
"""

import argparse
import pathlib
import re
import string
import struct
import subprocess
import tempfile

import gguf
import numpy as np

PRESETS = (
    "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q2_K_S Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ1_S IQ1_M "
    "IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ3_XXS IQ3_XS IQ3_S IQ3_M IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4_MOE Q1_0 Q2_0"
).split()

OPTIONS = [
    "--pure Q4_K_M",
    "--pure --imatrix IQ2_XS",
    "--leave-output-tensor Q4_K_M",
    "--output-tensor-type q8_0 Q4_K_M",
    "--token-embedding-type f16 Q4_K_S",
    "--token-embedding-type q8_0 --output-tensor-type bf16 Q6_K",
    "--pure --output-tensor-type f16 Q5_K_S",
    r"--tensor-type attn_v=q8_0 --tensor-type blk\.[0-3]\.ffn_down=q6_k Q4_K_M",
    r"--tensor-type blk\.0\.attn_v=q8_0 --tensor-type ATTN_K=iq4_nl Q3_K_M",
    "--tensor-type output=q4_0 --tensor-type embd=q5_1 --imatrix IQ3_XXS",
]

CASES = PRESETS + [f"--imatrix {preset}" for preset in PRESETS] + OPTIONS

CODES = dict(
    zip(
        "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL "
        "IQ4_XS TQ1_0 TQ2_0 MXFP4 Q1_0 Q2_0".split(),
        string.ascii_letters,
    )
)

NAMES = {kind.name: kind for kind in gguf.GGMLQuantizationType}
NEW_SIZES = {"Q1_0": (128, 18), "Q2_0": (64, 18)}  # younger than the package


class Model:
    """Facts and tensors of a model that is only declared."""

    def __init__(self, arch, layers, embd, ff, heads, heads_kv, vocab, **keys):
        self.arch, self.layers, self.heads, self.heads_kv = arch, layers, heads, heads_kv
        self.keys = {"block_count": layers, "context_length": 2048, "embedding_length": embd, "feed_forward_length": ff}
        self.keys |= {"attention.head_count": heads, "attention.head_count_kv": heads_kv}
        norm_eps = "layer_norm_epsilon" if arch in ("falcon", "gpt2") else "layer_norm_rms_epsilon"
        self.keys |= {f"attention.{norm_eps}": 1e-5, "vocab_size": vocab} | keys
        self.tensors = []

    def add(self, name, *shape):
        self.tensors.append((name, shape))

    def write(self, path):
        writer = gguf.GGUFWriter(path, self.arch)
        for key, value in self.keys.items():
            add = {float: writer.add_float32, list: writer.add_array, str: writer.add_string}.get(type(value), writer.add_uint32)
            add(f"{self.arch}.{key}", value)
        end = 0
        for name, shape in self.tensors:
            kind = source_type(shape)
            size = int(np.prod(shape)) * (4 if kind == "F32" else 2)
            raw = gguf.GGMLQuantizationType[kind]
            writer.add_tensor_info(name, list(shape), np.dtype(np.float16), size, raw_dtype=raw)
            end += -(-size // 32) * 32
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        header = path.stat().st_size
        with open(path, "r+b") as file:
            file.truncate(-(-header // 32) * 32 + end)


def source_type(shape):
    return "F32" if len(shape) == 1 else "BF16"


def llama(layers, embd, ff, heads, heads_kv, vocab, *, arch="llama", tied=False, experts=0, expert_ff=0, head_dim=None, bias=False, qk_norm=False, rope=False, **keys):
    if experts:
        keys |= {"expert_count": experts, "expert_used_count": min(8, experts // 4) or 1}
    if expert_ff:
        keys["expert_feed_forward_length"] = expert_ff
    model = Model(arch, layers, embd, ff, heads, heads_kv, vocab, **keys)
    dim = head_dim or embd // heads
    model.add("token_embd.weight", vocab, embd)
    if rope:
        model.add("rope_freqs.weight", dim // 2)
    for i in range(layers):
        model.add(f"blk.{i}.attn_norm.weight", embd)
        for part, rows in (("q", heads * dim), ("k", heads_kv * dim), ("v", heads_kv * dim)):
            model.add(f"blk.{i}.attn_{part}.weight", rows, embd)
            if bias:
                model.add(f"blk.{i}.attn_{part}.bias", rows)
        if qk_norm:
            model.add(f"blk.{i}.attn_q_norm.weight", dim)
            model.add(f"blk.{i}.attn_k_norm.weight", dim)
        model.add(f"blk.{i}.attn_output.weight", embd, heads * dim)
        model.add(f"blk.{i}.ffn_norm.weight", embd)
        add_ffn(model, i, embd, expert_ff or ff, experts)
    model.add("output_norm.weight", embd)
    if not tied:
        model.add("output.weight", vocab, embd)
    return model


def add_ffn(model, i, embd, ff, experts):
    stack, suffix = ((experts,), "_exps") if experts else ((), "")
    if experts:
        model.add(f"blk.{i}.ffn_gate_inp.weight", experts, embd)
    model.add(f"blk.{i}.ffn_gate{suffix}.weight", *stack, ff, embd)
    model.add(f"blk.{i}.ffn_up{suffix}.weight", *stack, ff, embd)
    model.add(f"blk.{i}.ffn_down{suffix}.weight", *stack, embd, ff)


def fused(arch, layers, embd, ff, heads, heads_kv, vocab, *, gate_in_up=1, tied=False, positions=0, biases=False, **keys):
    """Models whose query, key and value are one tensor."""
    model = Model(arch, layers, embd, ff, heads, heads_kv, vocab, **keys)
    dim = embd // heads
    model.add("token_embd.weight", vocab, embd)
    if positions:
        model.add("position_embd.weight", positions, embd)
    for i in range(layers):
        shapes = {
            "attn_qkv": ((heads + 2 * heads_kv) * dim, embd),
            "attn_output": (embd, embd),
            "ffn_up": (gate_in_up * ff, embd),
            "ffn_down": (embd, ff),
        }
        model.add(f"blk.{i}.attn_norm.weight", embd)
        for name, shape in shapes.items():
            model.add(f"blk.{i}.{name}.weight", *shape)
            if biases:
                model.add(f"blk.{i}.{name}.bias", shape[0])
    model.add("output_norm.weight", embd)
    if not tied:
        model.add("output.weight", vocab, embd)
    return model


def deepseek2_lite():
    """A dense first layer, shared experts, latent attention with its key and value expanded from one tensor."""
    keys = {"attention.kv_lora_rank": 512, "attention.key_length": 192, "attention.value_length": 128, "leading_dense_block_count": 1}
    keys |= {"expert_count": 64, "expert_used_count": 6, "expert_feed_forward_length": 1408, "expert_shared_count": 2}
    model = Model("deepseek2", 27, 2048, 10944, 16, 16, 102400, **keys)
    model.add("token_embd.weight", 102400, 2048)
    for i in range(27):
        model.add(f"blk.{i}.attn_norm.weight", 2048)
        model.add(f"blk.{i}.attn_q.weight", 3072, 2048)
        model.add(f"blk.{i}.attn_kv_a_mqa.weight", 576, 2048)
        model.add(f"blk.{i}.attn_kv_a_norm.weight", 512)
        model.add(f"blk.{i}.attn_kv_b.weight", 4096, 512)
        model.add(f"blk.{i}.attn_output.weight", 2048, 2048)
        model.add(f"blk.{i}.ffn_norm.weight", 2048)
        add_ffn(model, i, 2048, 1408 if i else 10944, 64 if i else 0)
        if i:
            model.add(f"blk.{i}.ffn_gate_shexp.weight", 2816, 2048)
            model.add(f"blk.{i}.ffn_up_shexp.weight", 2816, 2048)
            model.add(f"blk.{i}.ffn_down_shexp.weight", 2048, 2816)
    model.add("output_norm.weight", 2048)
    model.add("output.weight", 102400, 2048)
    return model


def lfm2():
    """A hybrid: attention in 6 of 16 layers, so that block numbers and counts differ."""
    attention = {2, 5, 8, 10, 12, 14}
    heads_kv = [8 if i in attention else 0 for i in range(16)]
    model = Model("lfm2", 16, 1024, 4608, 16, heads_kv, 65536, **{"shortconv.l_cache": 3})
    model.add("token_embd.weight", 65536, 1024)
    model.add("token_embd_norm.weight", 1024)
    for i in range(16):
        model.add(f"blk.{i}.attn_norm.weight", 1024)
        if i in attention:
            for part, rows in (("q", 1024), ("k", 512), ("v", 512), ("output", 1024)):
                model.add(f"blk.{i}.attn_{part}.weight", rows, 1024)
        else:
            model.add(f"blk.{i}.shortconv.conv.weight", 1024, 3)
            model.add(f"blk.{i}.shortconv.in_proj.weight", 3072, 1024)
            model.add(f"blk.{i}.shortconv.out_proj.weight", 1024, 1024)
        model.add(f"blk.{i}.ffn_norm.weight", 1024)
        add_ffn(model, i, 1024, 4608, 0)
    return model


MODELS = {
    "forge-3m": lambda: llama(4, 256, 768, 4, 2, 2048, tied=True),
    "forge-23m": lambda: llama(8, 512, 1536, 8, 4, 8192, tied=True),
    "stories260k": lambda: llama(5, 64, 172, 8, 4, 512, tied=True),
    "llama-3.2-1b": lambda: llama(16, 2048, 8192, 32, 8, 128256, tied=True, rope=True),
    "llama-3-8b": lambda: llama(32, 4096, 14336, 32, 8, 128256),
    "llama-2-70b": lambda: llama(80, 8192, 28672, 64, 8, 32000),
    "mixtral-8x7b": lambda: llama(32, 4096, 14336, 32, 8, 32000, experts=8),
    "qwen3-30b-a3b": lambda: llama(48, 2048, 6144, 32, 4, 151936, arch="qwen3moe", experts=128, expert_ff=768, head_dim=128, qk_norm=True),
    "qwen2.5-0.5b": lambda: llama(24, 896, 4864, 14, 2, 151936, arch="qwen2", tied=True, bias=True),
    "rows-of-100": lambda: llama(10, 100, 300, 5, 1, 1000),
    "phi-3-mini": lambda: fused("phi3", 32, 3072, 8192, 32, 32, 32064, gate_in_up=2),
    "gpt-2": lambda: fused("gpt2", 12, 768, 3072, 12, 12, 50257, positions=1024, biases=True, tied=True),
    "falcon-7b": lambda: fused("falcon", 32, 4544, 18176, 71, 1, 65024),
    "deepseek-v2-lite": deepseek2_lite,
    "lfm2-350m": lfm2,
}


def run(quantize, path, imatrix, case):
    *options, preset = case.split(" ")
    options = [word for option in options for word in ((option, str(imatrix)) if option == "--imatrix" else (option,))]
    done = subprocess.run([quantize, *options, "--dry-run", path, preset], capture_output=True, text=True)
    output = done.stdout + done.stderr
    if done.returncode:
        assert "no tensor type fallback is defined" in output, output
        return None
    line = re.compile(r"^\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\S+), size = .*?(?:\((\w+)\))?$", re.M)
    return {name: (after or before).upper() for name, before, after in line.findall(output)}


def make(name, model, quantize, folder, out):
    path, imatrix = folder / f"{name}.gguf", folder / "one.dat"
    model.write(path)
    entry = b"nothing.weight"
    imatrix.write_bytes(struct.pack("<ii", 1, len(entry)) + entry + struct.pack("<iif", 1, 1, 1.0))
    columns = [run(quantize, path, imatrix, case) for case in CASES]
    path.unlink()

    first = lambda value: value[0] if isinstance(value, list) else value
    facts = {"arch": model.arch, "layers": model.layers, "heads": model.heads, "heads_kv": first(model.heads_kv)}
    facts["experts"] = model.keys.get("expert_count", 0)
    lines = [f"facts {' '.join(f'{k}={v}' for k, v in facts.items())}"]
    lines += [f"case {case}" for case in CASES]
    lines += [f"codes {' '.join(f'{code}={kind}' for kind, code in CODES.items())}"]
    for tensor, shape in model.tensors:
        letters = "".join(letter(chosen, tensor, shape[-1]) for chosen in columns)
        lines.append(f"tensor {tensor} {'x'.join(map(str, shape))} {source_type(shape)} {letters}")
    (out / f"{name}.txt").write_text("\n".join(lines) + "\n")
    print(name, len(model.tensors), "tensors,", columns.count(None), "cases refused")


def letter(chosen, tensor, row_len):
    if chosen is None:
        return "!"
    block_len, _ = gguf.GGML_QUANT_SIZES[NAMES[chosen[tensor]]] if chosen[tensor] in NAMES else NEW_SIZES[chosen[tensor]]
    return "?" if row_len % block_len else CODES[chosen[tensor]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--llama-quantize", required=True)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    args = parser.parse_args()
    out = pathlib.Path(__file__).parents[2] / "fixtures" / "recipes"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            make(name, MODELS[name](), args.llama_quantize, pathlib.Path(folder), out)


if __name__ == "__main__":
    main()
