//! GGUF tensor names, spelled once, and what they say: the role of a tensor, its block, its place in a file. Knows no formats and no models.
//!
//! The roles are those that llama-quantize distinguishes, found by the same substrings, because its per-tensor choices are what we
//! promise to reproduce, for architectures too that nothing here describes. Finer roles (norm, router) exist for reports and for the
//! reason "never quantized".

use std::cmp::Ordering;

/// The token embedding.
pub const TOKEN_EMBD: &str = "token_embd.weight";
/// The head, where it is not the token embedding.
pub const OUTPUT: &str = "output.weight";
/// Learned positions.
pub const POSITION_EMBD: &str = "position_embd.weight";
/// Divisors of the rotary frequencies.
pub const ROPE_FREQS: &str = "rope_freqs.weight";
/// The same for contexts longer than the first training's, where a model has two sets.
pub const ROPE_FACTORS_LONG: &str = "rope_factors_long.weight";
/// The same for shorter contexts.
pub const ROPE_FACTORS_SHORT: &str = "rope_factors_short.weight";
/// A token embedding for each layer.
pub const PER_LAYER_TOKEN_EMBD: &str = "per_layer_token_embd.weight";

/// The name of a tensor of a layer: `blk.N.` before it.
pub fn in_block(block: usize, name: &str) -> String {
    format!("blk.{block}.{name}")
}

/// What a tensor does in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Token embedding table, also per-layer tables.
    TokenEmbd,
    /// The head: hidden state to logits.
    Output,
    /// Query projection.
    AttnQ,
    /// Key projection.
    AttnK,
    /// Value projection.
    AttnV,
    /// Query, key and value fused.
    AttnQkv,
    /// Key and value, expanded from a latent vector.
    AttnKvB,
    /// Projection of the attention result.
    AttnOutput,
    /// Feed-forward gate, also stacked and shared experts.
    FfnGate,
    /// Feed-forward up projection, also stacked and shared experts.
    FfnUp,
    /// Feed-forward down projection, also stacked and shared experts.
    FfnDown,
    /// Weight of a normalisation.
    Norm,
    /// Chooses experts.
    Router,
    /// Learned positions or token types.
    Position,
    /// Frequency factors of rotary positions.
    RopeFreqs,
    /// Anything else.
    Other,
}

/// Substrings that decide, in this order: the first that occurs in the name wins.
const BY_SUBSTRING: &[(&str, Role)] = &[
    ("_norm.weight", Role::Norm),
    ("ffn_gate_inp.weight", Role::Router),
    ("attn_qkv.weight", Role::AttnQkv),
    ("attn_kv_b.weight", Role::AttnKvB),
    ("attn_v.weight", Role::AttnV),
    ("attn_k.weight", Role::AttnK),
    ("attn_q.weight", Role::AttnQ),
    ("attn_output.weight", Role::AttnOutput),
    ("ffn_up", Role::FfnUp),
    ("ffn_gate", Role::FfnGate),
    ("ffn_down", Role::FfnDown),
    ("rope_freqs", Role::RopeFreqs),
    ("rope_factors", Role::RopeFreqs),
];

impl Role {
    /// The role of the tensor with this GGUF name.
    pub fn of(name: &str) -> Role {
        match name {
            OUTPUT => Role::Output,
            TOKEN_EMBD | PER_LAYER_TOKEN_EMBD => Role::TokenEmbd,
            POSITION_EMBD | "token_types.weight" => Role::Position,
            _ => BY_SUBSTRING.iter().find(|(part, _)| name.contains(part)).map_or(Role::Other, |&(_, role)| role),
        }
    }

    /// True for the projections that carry values: they decide quality more than their size suggests.
    pub fn carries_values(self) -> bool {
        matches!(self, Role::AttnV | Role::AttnQkv | Role::AttnKvB)
    }

    /// The field's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Role::TokenEmbd => "token_embd",
            Role::Output => "output",
            Role::AttnQ => "attn_q",
            Role::AttnK => "attn_k",
            Role::AttnV => "attn_v",
            Role::AttnQkv => "attn_qkv",
            Role::AttnKvB => "attn_kv_b",
            Role::AttnOutput => "attn_output",
            Role::FfnGate => "ffn_gate",
            Role::FfnUp => "ffn_up",
            Role::FfnDown => "ffn_down",
            Role::Norm => "norm",
            Role::Router => "router",
            Role::Position => "position",
            Role::RopeFreqs => "rope_freqs",
            Role::Other => "other",
        }
    }
}

/// True for a tensor that holds a matrix of every expert.
pub fn is_stack(name: &str) -> bool {
    name.contains("_exps.")
}

/// The block that a tensor belongs to: `blk.12.ffn_up.weight` -> 12.
pub fn block_of(name: &str) -> Option<u32> {
    let rest = name.strip_prefix("blk.")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

/// The order in which tensors are written: those of no block first, then block by block, each by name.
///
/// It depends on nothing but the names, so the order of shards cannot change an output. llama-quantize writes the same order.
pub fn file_order(a: &str, b: &str) -> Ordering {
    block_of(a).cmp(&block_of(b)).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_follow_the_names() {
        for (name, role) in [
            ("token_embd.weight", Role::TokenEmbd),
            ("output.weight", Role::Output),
            ("output_norm.weight", Role::Norm),
            ("blk.0.attn_v.weight", Role::AttnV),
            ("blk.0.attn_v.bias", Role::Other),
            ("blk.0.attn_k_norm.weight", Role::Norm),
            ("blk.0.attn_qkv.weight", Role::AttnQkv),
            ("blk.3.ffn_down_exps.weight", Role::FfnDown),
            ("blk.3.ffn_up_shexp.weight", Role::FfnUp),
            ("blk.3.ffn_gate_inp.weight", Role::Router),
            ("position_embd.weight", Role::Position),
            ("rope_freqs.weight", Role::RopeFreqs),
            ("blk.1.ssm_out.weight", Role::Other),
        ] {
            assert_eq!(Role::of(name), role, "{name}");
        }
    }

    #[test]
    fn blocks_are_read_from_names_and_nothing_else() {
        assert_eq!(block_of("blk.12.ffn_up.weight"), Some(12));
        for name in ["token_embd.weight", "blk.", "blk.x.y", "blk.-1.y", "blk.99999999999.y", "enc.blk.3.y"] {
            assert_eq!(block_of(name), None, "{name}");
        }
    }

    #[test]
    fn order_is_by_block_number_not_by_text() {
        let mut names = ["blk.10.a", "blk.2.b", "token_embd.weight", "blk.2.a", "output.weight"];
        names.sort_by(|a, b| file_order(a, b));
        assert_eq!(names, ["output.weight", "token_embd.weight", "blk.2.a", "blk.2.b", "blk.10.a"]);
    }
}
