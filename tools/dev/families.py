"""Makes fixtures/model/families.json: transformers' float32 logits for small models made by a formula, one or more per architecture.

usage: families.py (needs torch and transformers)

The models are those of tests/common/tiny.rs: the same shapes and the same weights, named as in GGUF. {case: {"tokens": [ids],
"logits": [of the last token]}}, and for Llama 3.1's frequencies the divisors as "rope_freqs".
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from formula import weights

OUT = Path(__file__).parents[2] / "fixtures/model/families.json"
SIZES = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=64,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position_embeddings=64,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {"type": "longrope", "short_factor": [1.0, 1.25, 1.5, 2.0], "long_factor": [1.5, 2.0, 4.0, 8.0]}
MOE = dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=24)
GEMMA = SIZES | dict(head_dim=8, tie_word_embeddings=True, hidden_activation="gelu_pytorch_tanh")
GEMMA3 = GEMMA | dict(rope_theta=1e6, rope_local_base_freq=1e4, query_pre_attn_scalar=8, sliding_window=8)
GPT2 = dict(n_embd=32, n_layer=2, n_head=4, n_inner=48, n_positions=64, vocab_size=64, layer_norm_epsilon=1e-5)
CASES = {
    "llama": (LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, rope_scaling=LLAMA3), 40),
    "llama-experts": (MixtralConfig(**SIZES, num_local_experts=8, num_experts_per_tok=3), 40),
    "qwen2moe": (Qwen2MoeConfig(**SIZES, **MOE, shared_expert_intermediate_size=40), 40),
    "qwen3moe": (Qwen3MoeConfig(**SIZES, **MOE, head_dim=8, norm_topk_prob=True), 40),
    "qwen2": (Qwen2Config(**SIZES), 40),
    "qwen2-linear": (Qwen2Config(**SIZES, rope_scaling=LINEAR), 40),
    "qwen2-yarn": (Qwen2Config(**SIZES, rope_scaling=YARN), 40),
    "qwen3": (Qwen3Config(**SIZES, head_dim=8), 40),
    "gemma": (GemmaConfig(**GEMMA), 40),
    "gemma3": (Gemma3TextConfig(**GEMMA3, layer_types=["sliding_attention", "full_attention"]), 40),
    "gpt2": (GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2), 40),
    "phi3": (Phi3Config(**SIZES), 40),
    "phi3-short": (Phi3Config(**SIZES, rope_scaling=LONG, original_max_position_embeddings=16), 12),
    "phi3-long": (Phi3Config(**SIZES, rope_scaling=LONG, original_max_position_embeddings=16), 40),
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.w2": "ffn_down_exps",
    "block_sparse_moe.experts.w3": "ffn_up_exps",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
# Norms of what is added.
GEMMA3_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GPT2_NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
EXPERT = re.compile(r"(?<=experts)\.(\d+)")


def gguf_name(name, config):
    names = NAMES | {"gemma3_text": GEMMA3_NAMES, "gpt2": GPT2_NAMES}.get(config.model_type, {})
    stem, kind = name.rsplit(".", 1)
    if stem in names:
        return f"{names[stem]}.{kind}"
    layer, part = stem.removeprefix("model.layers.").removeprefix("transformer.h.").split(".", 1)
    return f"blk.{layer}.{names[part]}.{kind}"


def parameter(name, shape, config):
    """The weights of transformers' parameter. Experts are stacked in GGUF."""
    expert = EXPERT.search(name)
    if expert:
        return weights(gguf_name(EXPERT.sub("", name), config), (8, *shape))[int(expert[1])]
    in_gguf = gguf_name(name, config)
    if config.model_type == "gpt2" and ".c_" in name:
        shape = shape[::-1]
    return as_transformers_has_it(in_gguf, weights(in_gguf, shape), config)


def as_transformers_has_it(name, w, config):
    """Llama's files hold the two dimensions of a rotated pair side by side, transformers half a head apart. Gemma's hold 1 more than its
    gains of norms, GPT-2's the transposes of its matrices."""
    if config.model_type.startswith("gemma") and "norm" in name:
        return w - np.float32(1.0)
    if config.model_type == "gpt2" and w.ndim == 2 and name.startswith("blk."):
        return np.ascontiguousarray(w.T)
    if config.model_type not in ("llama", "mixtral") or not any(part in name for part in ("attn_q.", "attn_k.")):
        return w
    head_dim = config.hidden_size // config.num_attention_heads
    pairs = w.reshape(-1, head_dim // 2, 2, *w.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(w.shape)


def run(config, n_tokens):
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, place in model.named_parameters():
            place.copy_(torch.from_numpy(parameter(name, tuple(place.shape), config)))
        tokens = [(7 * i * i + 3 * i + 5) % 64 for i in range(n_tokens)]
        logits = model(torch.tensor([tokens])).logits[0, -1]
    case = {"tokens": tokens, "logits": [float(f"{x:.7g}") for x in logits.tolist()]}
    if config.model_type == "llama":
        rope = model.model.rotary_emb
        natural = 1.0 / 10000.0 ** (torch.arange(0, 8, 2, dtype=torch.float32) / 8)
        case["rope_freqs"] = (natural / rope.inv_freq).tolist()
    return case


torch.set_num_threads(1)
lines = [f"{json.dumps(name)}: {json.dumps(run(*case), separators=(',', ':'))}" for name, case in CASES.items()]
OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
