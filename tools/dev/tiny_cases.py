"""The tiny models of tiny_models.py: for every class that converts, what sets its members apart.

Widths are multiples of 32, so that every block format of 32 applies; vocabularies are no multiple of 16. Windows and original contexts
are shorter than the 64 tokens that are evaluated, so that leaving one out shows; so are soft caps below the scores.
"""

import re
from dataclasses import dataclass, field

N_CHUNKS, N_CTX = 12, 64
POSITIONS = [20, 63]
# Tokens of fixtures/families/bpe and fixtures/families/spm.
N_BPE, N_SPM = 301, 308

SIZES = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=N_BPE,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=False,
    bos_token_id=297,
    eos_token_id=298,
    pad_token_id=299,
)
SPM = dict(vocab_size=N_SPM, bos_token_id=1, eos_token_id=2, pad_token_id=0)


@dataclass
class Case:
    """One model."""

    class_name: str
    config_name: str
    sizes: dict
    tokenizer: str = "bpe"
    stored: str = "BF16"
    gain: int = 1
    n_tokens: int = 0
    layouts: tuple = ("transformers 4", "transformers 5")
    # What is replaced in the name of a tensor, since it differs between layouts.
    renames: list = field(default_factory=list)
    # Fields of config.json that real models have and transformers does not save.
    more: dict = field(default_factory=dict)
    # Whether tensors of all experts are made of what other layouts have for each.
    has_parts: bool = True
    # Further arguments of the converter.
    options: tuple = ()
    # The layer whose tensors stand once more in a block that foretells more tokens, which transformers neither saves nor reads.
    draft_like: int | None = None

    def __post_init__(self):
        text = self.sizes.get("text_config", self.sizes)
        self.n_tokens = self.n_tokens or text["vocab_size"]

    @property
    def is_tied(self):
        return self.sizes.get("tie_word_embeddings", True)

    def config(self, transformers):
        return getattr(transformers, self.config_name)(**self.sizes)

    @staticmethod
    def part_shape(shape, n_parts):
        """Of the equal parts that a tensor consists of. What is hashed is the number of dimensions, not their sizes."""
        return list(shape) if n_parts == 1 else [n_parts_rows(shape, n_parts), shape[-1]]


def n_parts_rows(shape, n_parts):
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return rows // n_parts


def canonical(name, case):
    """The name that the formula sees."""
    for old, new in case.renames:
        name = name.replace(old, new)
    return name


PACKED = re.compile(r"(.*)\.mlp\.experts\.(gate_up_proj|down_proj)$")


def parts_of(name, shape):
    """The tensors of single experts that a packed one consists of, in their order; None where it is not packed."""
    packed = PACKED.fullmatch(name)
    if not packed:
        return None
    kinds = {"gate_up_proj": ["gate_proj", "up_proj"], "down_proj": ["down_proj"]}[packed[2]]
    return [f"{packed[1]}.mlp.experts.{expert}.{kind}.weight" for expert in range(shape[0]) for kind in kinds]


def llama(**changes):
    return SIZES | changes


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
LINEAR = dict(rope_type="linear", factor=4.0)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
WITHOUT_PREFIX = [["language_model.", ""]]
WITH_PACKED = ("transformers 4", "transformers 5", "packed experts")

GEMMA = SIZES | SPM | dict(head_dim=32, num_key_value_heads=1, hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True)
GEMMA2 = GEMMA | dict(
    num_hidden_layers=3,
    attn_logit_softcapping=3.0,
    final_logit_softcapping=4.0,
    sliding_window=16,
    query_pre_attn_scalar=32,
)
GEMMA3 = GEMMA | dict(
    head_dim=16,
    num_hidden_layers=7,
    query_pre_attn_scalar=16,
    sliding_window=16,
    rope_theta=1e6,
    rope_local_base_freq=1e4,
)
GEMMA3_FEW = GEMMA3 | dict(num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"])


def longrope(n_factors, original):
    short = [1.0 + 0.125 * i for i in range(n_factors)]
    return dict(
        max_position_embeddings=256,
        original_max_position_embeddings=original,
        rope_scaling=dict(type="longrope", short_factor=short, long_factor=[1.5 + i for i in range(n_factors)]),
    )


PHI3 = SIZES | SPM | dict(sliding_window=None)
PHI4_MINI = SIZES | dict(tie_word_embeddings=True, partial_rotary_factor=0.75, sliding_window=262144)
GPT2 = dict(
    n_embd=64, n_layer=2, n_head=4, n_positions=256, vocab_size=N_BPE, layer_norm_epsilon=1e-5, bos_token_id=297, eos_token_id=298
)
WITH_N_CTX = dict(layouts=("transformers 4", "transformers 5", "with n_ctx"), more=dict(n_ctx=256))
GRANITE = dict(embedding_multiplier=6.0, residual_multiplier=0.4, attention_multiplier=0.07, logits_scaling=3.0)
STARCODER2 = {name: size for name, size in SIZES.items() if name != "rms_norm_eps"} | dict(norm_epsilon=1e-5)
QWEN_VL = SIZES | dict(num_key_value_heads=2)
# Three value heads share a key head, so that an order of heads and its inverse differ.
DELTA = SIZES | dict(
    num_hidden_layers=5,
    head_dim=32,
    linear_conv_kernel_dim=4,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    linear_num_key_heads=2,
    linear_num_value_heads=6,
)
SECTIONS = dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5, mrope_section=[3, 3, 2], mrope_interleaved=True)
# What transformers saves is without the blocks that foretell more tokens.
NO_MTP = dict(gain=0, options=("--no-mtp",))
V5 = ("transformers 5",)
DELTA_TYPES = ["full_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention"]
QWEN35_VISION = dict(
    depth=1, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64, num_position_embeddings=16
)
VISION_TOKENS = dict(image_token_id=290, video_token_id=291, vision_start_token_id=292, vision_end_token_id=293)

GPT_OSS = SIZES | dict(
    head_dim=32,
    num_hidden_layers=3,
    num_local_experts=4,
    num_experts_per_tok=2,
    intermediate_size=96,
    sliding_window=16,
    rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=32.0, beta_slow=1.0),
)
UNROUNDED = GPT_OSS | dict(rope_scaling=GPT_OSS["rope_scaling"] | dict(truncate=False))

# The last layer of six sees all, with heads twice as wide and one of keys; some layers use the keys of others.
GEMMA4 = GEMMA | dict(
    bos_token_id=2,
    eos_token_id=1,
    head_dim=16,
    num_key_value_heads=2,
    num_hidden_layers=7,
    layer_types=["sliding_attention"] * 2 + ["full_attention"] + ["sliding_attention"] * 2 + ["full_attention"] * 2,
    sliding_window=16,
    vocab_size_per_layer_input=N_SPM,
    hidden_size_per_layer_input=0,
    final_logit_softcapping=5.0,
    global_head_dim=32,
)
del GEMMA4["rope_theta"]
GEMMA4_SMALL = GEMMA4 | dict(hidden_size_per_layer_input=32, num_kv_shared_layers=4, use_double_wide_mlp=True)
GEMMA4_LARGE = GEMMA4 | dict(attention_k_eq_v=True, num_global_key_value_heads=1)
GEMMA4_MIXED = GEMMA4_LARGE | dict(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32)
OF_GEMMA4 = dict(tokenizer="merged", layouts=("transformers 5",))

CASES = {
    "llama": Case("LlamaForCausalLM", "LlamaConfig", llama(), stored="F32"),
    "llama-3": Case(
        "LlamaForCausalLM", "LlamaConfig", llama(rope_scaling=LLAMA3, rope_theta=5e5, head_dim=32, tie_word_embeddings=True)
    ),
    "llama-biases": Case("LlamaForCausalLM", "LlamaConfig", llama(attention_bias=True, mlp_bias=True), stored="F16"),
    "llama-linear": Case("LlamaForCausalLM", "LlamaConfig", llama(rope_scaling=LINEAR)),
    "llama-yarn": Case("LlamaForCausalLM", "LlamaConfig", llama(rope_scaling=YARN)),
    "llama-spm": Case("LlamaForCausalLM", "LlamaConfig", llama(**SPM), tokenizer="spm"),
    "mistral": Case("MistralForCausalLM", "MistralConfig", llama(sliding_window=None, head_dim=32)),
    "mistral-window": Case("MistralForCausalLM", "MistralConfig", llama(sliding_window=16, head_dim=16)),
    "mixtral": Case(
        "MixtralForCausalLM",
        "MixtralConfig",
        llama(num_local_experts=4, num_experts_per_tok=2, intermediate_size=64, sliding_window=None),
        layouts=WITH_PACKED,
        renames=[["mlp.", "block_sparse_moe."], ["gate_proj", "w1"], ["up_proj", "w3"], ["down_proj", "w2"]],
    ),
    "qwen2": Case("Qwen2ForCausalLM", "Qwen2Config", llama(rope_theta=1e6)),
    "qwen2-tied": Case("Qwen2ForCausalLM", "Qwen2Config", llama(tie_word_embeddings=True)),
    "qwen2-yarn": Case("Qwen2ForCausalLM", "Qwen2Config", llama(rope_scaling=YARN)),
    "qwen2-embedding": Case("Qwen2Model", "Qwen2Config", llama(tie_word_embeddings=True)),
    "qwen2moe": Case(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        llama(**EXPERTS, shared_expert_intermediate_size=64, norm_topk_prob=False),
        layouts=WITH_PACKED,
    ),
    "qwen3": Case("Qwen3ForCausalLM", "Qwen3Config", llama(head_dim=32, tie_word_embeddings=True)),
    "qwen3-untied": Case("Qwen3ForCausalLM", "Qwen3Config", llama(head_dim=16, rope_theta=1e6)),
    "qwen3-embedding": Case("Qwen3Model", "Qwen3Config", llama(head_dim=32, tie_word_embeddings=True)),
    "qwen3moe": Case(
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig", llama(**EXPERTS, head_dim=32, norm_topk_prob=True), layouts=WITH_PACKED
    ),
    "qwen3next": Case(
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        DELTA | EXPERTS | dict(shared_expert_intermediate_size=64),
        layouts=WITH_PACKED,
        **NO_MTP,
    ),
    "qwen3next-mtp": Case(
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        DELTA | EXPERTS | dict(shared_expert_intermediate_size=64, num_hidden_layers=4),
        layouts=V5,
        gain=0,
        draft_like=3,
    ),
    "qwen35-mtp": Case(
        "Qwen3_5ForCausalLM",
        "Qwen3_5TextConfig",
        DELTA | dict(rope_parameters=SECTIONS, mtp_num_hidden_layers=1),
        layouts=V5,
        gain=0,
        draft_like=3,
    ),
    "qwen35": Case("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", DELTA | dict(rope_parameters=SECTIONS), layouts=V5, **NO_MTP),
    "qwen35-types": Case(
        "Qwen3_5ForCausalLM",
        "Qwen3_5TextConfig",
        DELTA
        | dict(layer_types=DELTA_TYPES, linear_num_value_heads=2, linear_conv_kernel_dim=3, head_dim=96, tie_word_embeddings=True)
        | dict(linear_key_head_dim=32, linear_value_head_dim=32),
        layouts=V5,
        **NO_MTP,
    ),
    "qwen35moe": Case(
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeTextConfig",
        DELTA | EXPERTS | dict(shared_expert_intermediate_size=64, rope_parameters=SECTIONS),
        layouts=("transformers 5", "packed experts"),
        **NO_MTP,
    ),
    "gemma": Case("GemmaForCausalLM", "GemmaConfig", GEMMA, tokenizer="spm", gain=0),
    "gemma2": Case("Gemma2ForCausalLM", "Gemma2Config", GEMMA2, tokenizer="spm", gain=0),
    "gemma2-scale": Case("Gemma2ForCausalLM", "Gemma2Config", GEMMA2 | dict(query_pre_attn_scalar=20), tokenizer="spm", gain=0),
    "gemma3": Case("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA3, tokenizer="spm", gain=0),
    "gemma3-types": Case(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        GEMMA3_FEW | dict(rope_scaling=dict(rope_type="linear", factor=8.0), query_pre_attn_scalar=20, final_logit_softcapping=5.0),
        tokenizer="spm",
        gain=0,
    ),
    "gemma3-trimmed": Case(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        GEMMA3 | dict(vocab_size=320, bos_token_id=297, eos_token_id=298, pad_token_id=299),
        gain=0,
        n_tokens=N_BPE,
    ),
    "gemma4": Case("Gemma4ForCausalLM", "Gemma4TextConfig", GEMMA4_SMALL, **OF_GEMMA4),
    "gemma4-large": Case("Gemma4ForCausalLM", "Gemma4TextConfig", GEMMA4_LARGE, **OF_GEMMA4),
    "gemma4-mixed": Case("Gemma4ForCausalLM", "Gemma4TextConfig", GEMMA4_MIXED, **OF_GEMMA4, has_parts=False),
    # Ids of images are beyond the vocabulary: in a text they would be read as padding.
    "gemma4-vision": Case(
        "Gemma4ForConditionalGeneration",
        "Gemma4Config",
        dict(
            text_config=GEMMA4_SMALL,
            vision_config=dict(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=16,
                position_embedding_size=64,
            ),
            tie_word_embeddings=True,
        ),
        renames=WITHOUT_PREFIX,
        **OF_GEMMA4,
    ),
    "gemma4-unified": Case(
        "Gemma4UnifiedForConditionalGeneration",
        "Gemma4UnifiedConfig",
        dict(
            # The converter wants the name of what this class has not.
            text_config={name: size for name, size in GEMMA4_LARGE.items() if "per_layer_input" not in name}
            | dict(moe_intermediate_size=None),
            vision_config=dict(patch_size=4, pooling_kernel_size=2, mm_embed_dim=64, mm_posemb_size=16, output_proj_dims=64),
            tie_word_embeddings=True,
        ),
        renames=WITHOUT_PREFIX,
        **OF_GEMMA4,
    ),
    "phi": Case("Phi3ForCausalLM", "Phi3Config", PHI3 | dict(sliding_window=16), tokenizer="spm"),
    "phi-whole": Case("Phi3ForCausalLM", "Phi3Config", PHI3 | SIZES | dict(sliding_window=None), tokenizer="bpe-gpt2"),
    "phi-short": Case("Phi3ForCausalLM", "Phi3Config", PHI3 | longrope(8, 128), tokenizer="spm"),
    "phi-long": Case("Phi3ForCausalLM", "Phi3Config", PHI3 | longrope(8, 32), tokenizer="spm"),
    "phi-partial": Case("Phi3ForCausalLM", "Phi3Config", PHI4_MINI | longrope(6, 32), tokenizer="bpe-gpt2"),
    "gpt2": Case("GPT2LMHeadModel", "GPT2Config", GPT2, stored="F32", **WITH_N_CTX),
    "gpt2-inner": Case("GPT2LMHeadModel", "GPT2Config", GPT2 | dict(n_inner=96), **WITH_N_CTX),
    "gpt-oss": Case("GptOssForCausalLM", "GptOssConfig", UNROUNDED, has_parts=False),
    "gpt-oss-types": Case(
        "GptOssForCausalLM",
        "GptOssConfig",
        GPT_OSS | dict(layer_types=["full_attention", "sliding_attention", "sliding_attention"], rope_theta=150000.0),
        has_parts=False,
    ),
    "gpt-oss-mxfp4": Case("GptOssForCausalLM", "GptOssConfig", GPT_OSS, layouts=("in MXFP4",)),
    "granite": Case("GraniteForCausalLM", "GraniteConfig", llama(**GRANITE, tie_word_embeddings=True)),
    "granite-untied": Case("GraniteForCausalLM", "GraniteConfig", llama(**GRANITE, attention_bias=True, mlp_bias=True)),
    "smollm3": Case(
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        llama(num_hidden_layers=5, use_sliding_window=False, sliding_window=None, tie_word_embeddings=True),
    ),
    "starcoder2": Case("Starcoder2ForCausalLM", "Starcoder2Config", STARCODER2 | dict(tie_word_embeddings=True)),
    "starcoder2-window": Case("Starcoder2ForCausalLM", "Starcoder2Config", STARCODER2 | dict(sliding_window=16)),
    "gemma3-vision": Case(
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        dict(
            text_config=GEMMA3,
            vision_config=dict(
                hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
            ),
            mm_tokens_per_image=1,
            boi_token_index=300,
            eoi_token_index=301,
            image_token_index=302,
            tie_word_embeddings=True,
        ),
        tokenizer="spm",
        gain=0,
        renames=WITHOUT_PREFIX,
    ),
    "qwen2.5-vision": Case(
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        dict(
            text_config=SIZES | dict(rope_scaling=dict(type="mrope", mrope_section=[2, 3, 3])),
            vision_config=dict(
                depth=1, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64, fullatt_block_indexes=[0]
            ),
            tie_word_embeddings=False,
            **VISION_TOKENS,
        ),
        renames=WITHOUT_PREFIX,
    ),
    "qwen3-vision": Case(
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLConfig",
        dict(
            text_config=SIZES
            | dict(head_dim=32, rope_scaling=dict(rope_type="default", mrope_section=[8, 4, 4], mrope_interleaved=True)),
            vision_config=dict(
                depth=1,
                hidden_size=32,
                intermediate_size=64,
                num_heads=2,
                out_hidden_size=64,
                num_position_embeddings=16,
                deepstack_visual_indexes=[0],
            ),
            tie_word_embeddings=False,
            **VISION_TOKENS,
        ),
        renames=WITHOUT_PREFIX,
    ),
    "qwen35-vision": Case(
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5Config",
        dict(
            text_config=DELTA | dict(rope_parameters=SECTIONS, num_hidden_layers=4),
            vision_config=QWEN35_VISION,
            tie_word_embeddings=False,
            **VISION_TOKENS,
        ),
        layouts=V5,
        renames=WITHOUT_PREFIX,
        **NO_MTP,
    ),
    "qwen35moe-vision": Case(
        "Qwen3_5MoeForConditionalGeneration",
        "Qwen3_5MoeConfig",
        dict(
            text_config=DELTA
            | EXPERTS
            | dict(shared_expert_intermediate_size=64, rope_parameters=SECTIONS, num_hidden_layers=4),
            vision_config=QWEN35_VISION,
            tie_word_embeddings=False,
            **VISION_TOKENS,
        ),
        layouts=V5,
        renames=WITHOUT_PREFIX,
        **NO_MTP,
    ),
}
