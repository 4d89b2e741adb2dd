//! One file per family of architectures.

mod gemma;
mod gemma4;
mod gemma4_experts;
mod gpt2;
mod gpt_oss;
mod granite;
mod known;
mod llama;
pub mod parts;
mod phi;
mod quirks;
mod qwen;
mod qwen_delta;
mod qwen_delta_steps;
mod smollm3;
mod starcoder2;

use super::describe::Family;

pub use known::{LLAMA_CPP, is_known};
pub use quirks::{Queries, Quirks, Recipe, Stacks, quirks};

/// Every architecture, one line each.
pub const FAMILIES: &[Family] = &[
    llama::LLAMA,
    qwen::QWEN2,
    qwen::QWEN2VL,
    qwen::QWEN2MOE,
    qwen::QWEN3,
    qwen::QWEN3VL,
    qwen::QWEN3MOE,
    qwen_delta::QWEN3NEXT,
    qwen_delta::QWEN35,
    qwen_delta::QWEN35MOE,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma::GEMMA3,
    gemma4::GEMMA4,
    phi::PHI3,
    gpt2::GPT2,
    gpt_oss::GPT_OSS,
    granite::GRANITE,
    smollm3::SMOLLM3,
    starcoder2::STARCODER2,
];
