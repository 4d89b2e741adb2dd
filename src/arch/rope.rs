//! Frequency factors, which GGUF stores as a tensor: Llama 3.1's, and those of heads of which only a part is turned.

use super::config_numbers::InConfig;
use super::sizes::Hparams;
use crate::hf::Scaling;
use crate::names::ROPE_FREQS;

/// The divisor of a pair that is not turned, as llama.cpp's converter writes it.
const NOT_TURNED: f32 = 1e30;

/// One divisor per rotary frequency, `head_dim / 2` of them; `None` unless the model stretches its frequencies Llama 3.1's way, or
/// turns a part of each head: then 1 for its pairs.
///
/// A wave shorter than `original / high` keeps its frequency (1), one longer than `original / low` is stretched by `factor`, and
/// between them the two are blended by `smooth = (original / wave - low) / (high - low)`.
///
/// In f32, as llama.cpp's converter computes them. Its powers come from a vector library that is off by one unit in the last place
/// here and there; ours are rounded correctly. For Llama 3's own base of 500 000 and heads of 64 and 128 the two agree bit for bit.
pub(super) fn rope_freqs(numbers: &InConfig<'_>, hparams: &Hparams) -> Option<(&'static str, Vec<f32>)> {
    if let Scaling::Proportional { part } = numbers.rope.scaling {
        let rope = hparams.rope()?;
        let n_pairs = rope.n_rot / 2;
        let n_turned = (rope.n_rot as f64 * part / 2.0) as usize;
        return Some((ROPE_FREQS, (0..n_pairs).map(|pair| if pair < n_turned { 1.0 } else { NOT_TURNED }).collect()));
    }
    let Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_len } = numbers.rope.scaling else {
        return None;
    };
    let rope = hparams.rope()?;
    let wave_long = (original_context_len / low_freq_factor) as f32;
    let wave_short = (original_context_len / high_freq_factor) as f32;
    let original = original_context_len as f32;
    let base = f64::from(rope.freq_base as f32);
    let factors = (0..rope.n_rot).step_by(2).map(|i| {
        let exponent = i as f32 / rope.n_rot as f32;
        let freq = 1.0 / (base.powf(f64::from(exponent)) as f32);
        // Products with reciprocals where one would write quotients: that is what PyTorch evaluates, and the rounding differs.
        let wave = (1.0 / freq) * std::f64::consts::TAU as f32;
        if wave < wave_short {
            1.0
        } else if wave > wave_long {
            factor as f32
        } else {
            let smooth = ((1.0 / wave) * original - low_freq_factor as f32) / (high_freq_factor - low_freq_factor) as f32;
            1.0 / ((1.0 - smooth) / factor as f32 + smooth)
        }
    });
    Some((ROPE_FREQS, factors.collect()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::hf::Config;

    fn factors(head_dim: u32, theta: f64, factor: f64) -> Vec<f32> {
        let json = format!(
            r#"{{"architectures": ["LlamaForCausalLM"], "hidden_size": {}, "num_attention_heads": 8, "head_dim": {head_dim},
                "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 8, "rope_theta": {theta}, "rope_scaling": {{
                "rope_type": "llama3", "factor": {factor}, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192}}}}"#,
            8 * head_dim
        );
        let config = Config::parse(Path::new("config.json"), json.as_bytes()).unwrap();
        let found = crate::arch::find(&config).unwrap();
        let numbers = InConfig::new(&config, found.family, found.class).unwrap();
        rope_freqs(&numbers, &numbers.hparams().unwrap()).unwrap().1
    }

    /// What convert_hf_to_gguf.py writes (PyTorch 2.11): ones, the blended values by their bits, then the factor.
    #[test]
    fn factors_equal_the_reference_bit_for_bit() {
        let blended_1b = [0x3fd35ec2, 0x4052b46f, 0x411aaaee];
        let blended_8b = [0x3f9a8ed5, 0x3fc6d64a, 0x4001af1d, 0x402c732e, 0x406bcace, 0x40a83c06];
        for (head_dim, factor, n_ones, blended) in [(64, 32.0, 15, &blended_1b[..]), (128, 8.0, 29, &blended_8b[..])] {
            let found = factors(head_dim, 500_000.0, factor);
            let n_rest = head_dim as usize / 2 - n_ones - blended.len();
            let bits = blended.iter().map(|&bits| f32::from_bits(bits));
            let ones = std::iter::repeat_n(1.0, n_ones);
            let expected: Vec<f32> = ones.chain(bits).chain(std::iter::repeat_n(factor as f32, n_rest)).collect();
            assert_eq!(found, expected, "head_dim {head_dim}");
        }
    }
}
