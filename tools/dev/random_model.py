"""Writes a Hugging Face folder of a known shape with random bf16 weights, for measuring speed and memory.

usage: random_model.py OUTPUT_DIR [--layers N] [--shards N]

The shape is Llama-3.2-1B's (1.24 billion parameters with its 16 layers): real row lengths, tied embedding, GQA 32/8, llama3 rope
scaling. The weights are Gaussian with a standard deviation of 0.02, from a fixed seed. The tokenizer is that of fixtures/hf/forge-3m;
the rest of the vocabulary is padding.
"""

import argparse
import json
import shutil
import struct
from pathlib import Path

import numpy as np

HIDDEN, FFN, HEADS, HEADS_KV, HEAD_DIM, VOCAB = 2048, 8192, 32, 8, 64, 128256


def config(layers):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 2046,
        "eos_token_id": 2047,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "max_position_embeddings": 131072,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": HEADS_KV,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": VOCAB,
    }


def tensors(layers):
    """Name -> shape, in the order of the file."""
    named = {"model.embed_tokens.weight": [VOCAB, HIDDEN]}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        named[prefix + "input_layernorm.weight"] = [HIDDEN]
        named[prefix + "mlp.down_proj.weight"] = [HIDDEN, FFN]
        named[prefix + "mlp.gate_proj.weight"] = [FFN, HIDDEN]
        named[prefix + "mlp.up_proj.weight"] = [FFN, HIDDEN]
        named[prefix + "post_attention_layernorm.weight"] = [HIDDEN]
        named[prefix + "self_attn.k_proj.weight"] = [HEADS_KV * HEAD_DIM, HIDDEN]
        named[prefix + "self_attn.o_proj.weight"] = [HIDDEN, HEADS * HEAD_DIM]
        named[prefix + "self_attn.q_proj.weight"] = [HEADS * HEAD_DIM, HIDDEN]
        named[prefix + "self_attn.v_proj.weight"] = [HEADS_KV * HEAD_DIM, HIDDEN]
    named["model.norm.weight"] = [HIDDEN]
    return named


def write_shard(path, named, random):
    header, offset = {}, 0
    for name, shape in named.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for shape in named.values():
            for rows in np.array_split(np.arange(int(np.prod(shape))), max(1, int(np.prod(shape)) // (1 << 24))):
                weights = random.standard_normal(len(rows), dtype=np.float32) * np.float32(0.02)
                file.write((weights.view(np.uint32) >> 16).astype("<u2").tobytes())


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("output", type=Path)
    arguments.add_argument("--layers", type=int, default=16)
    arguments.add_argument("--shards", type=int, default=2)
    options = arguments.parse_args()

    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "config.json").write_text(json.dumps(config(options.layers), indent=1))
    tokenizer = Path(__file__).parents[2] / "fixtures/hf/forge-3m"
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]:
        shutil.copyfile(tokenizer / name, options.output / name)

    named, random = tensors(options.layers), np.random.default_rng(20)
    weight_map = {}
    for shard, names in enumerate(np.array_split(list(named), options.shards)):
        name = f"model-{shard + 1:05}-of-{options.shards:05}.safetensors" if options.shards > 1 else "model.safetensors"
        write_shard(options.output / name, {str(tensor): named[str(tensor)] for tensor in names}, random)
        weight_map |= {str(tensor): name for tensor in names}
    if options.shards > 1:
        total = sum(2 * int(np.prod(shape)) for shape in named.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (options.output / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


if __name__ == "__main__":
    main()
