//! The types that tensors may get where they are chosen by what they cost.

use super::choose::parse_format;
use crate::error::{Error, Result};
use crate::quant::Format;
use crate::quant::Format::{
    IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K,
    Q6_K, Q8_0,
};

/// Types to choose from. Rows of whole super-blocks have others than rows that are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Menu {
    super_blocks: Vec<Format>,
    blocks: Vec<Format>,
}

/// A set by its name.
struct Set {
    name: &'static str,
    super_blocks: &'static [Format],
    /// For rows that are no whole super-blocks.
    blocks: &'static [Format],
}

/// `k` is what every runtime reads, and reads fast; for rows that no K type fits it has the types of 32 weights. In `iq` are the grids,
/// which are slower on CPUs and which some runtimes do not read.
const SETS: &[Set] = &[
    Set { name: "k", super_blocks: &[Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0], blocks: &[Q4_0, Q5_0, Q8_0] },
    Set { name: "legacy", super_blocks: &[Q4_0, Q4_1, Q5_0, Q5_1, Q8_0], blocks: &[Q4_0, Q4_1, Q5_0, Q5_1, Q8_0] },
    Set {
        name: "iq",
        super_blocks: &[IQ2_XXS, IQ2_XS, IQ2_S, Q2_K, IQ3_XXS, IQ3_S, Q3_K, IQ4_XS, IQ4_NL, Q4_K, Q5_K, Q6_K, Q8_0],
        blocks: &[Q4_0, IQ4_NL, Q5_0, Q8_0],
    },
    Set {
        name: "all",
        super_blocks: &[
            IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, Q2_K, IQ3_XXS, IQ3_S, Q3_K, IQ4_XS, MXFP4, Q4_0, IQ4_NL, Q4_K, Q4_1, Q5_0, Q5_K,
            Q5_1, Q6_K, Q8_0,
        ],
        blocks: &[MXFP4, Q4_0, IQ4_NL, Q4_1, Q5_0, Q5_1, Q8_0],
    },
];

impl Default for Menu {
    /// The set `k`.
    fn default() -> Menu {
        Menu { super_blocks: SETS[0].super_blocks.to_vec(), blocks: SETS[0].blocks.to_vec() }
    }
}

impl Menu {
    /// Reads names of sets (`k`, `legacy`, `iq`, `all`) and of types, separated by commas.
    ///
    /// # Errors
    /// `Usage` for a name that is none, for a type that cannot be written, or that is no type of blocks.
    pub fn parse(text: &str) -> Result<Menu> {
        let mut menu = Menu { super_blocks: Vec::new(), blocks: Vec::new() };
        for name in text.split(',').map(str::trim) {
            if let Some(set) = SETS.iter().find(|set| set.name.eq_ignore_ascii_case(name)) {
                menu.super_blocks.extend(set.super_blocks);
                menu.blocks.extend(set.blocks);
                continue;
            }
            let format = parse_format(name).map_err(|error| {
                let sets = SETS.iter().map(|set| set.name).collect::<Vec<_>>().join(", ");
                Error::usage(format!("{name:?} is no set of types ({sets}), and an {error}"))
            })?;
            if !format.can_quantize() || format.is_for_activations() || format.block_len() == 1 {
                return Err(Error::usage(format!("{format} is no type of blocks that can be written, so it cannot be chosen")));
            }
            menu.super_blocks.push(format);
            menu.blocks.push(format);
        }
        for formats in [&mut menu.super_blocks, &mut menu.blocks] {
            formats.sort_by_key(|format| (weights_in_bytes(*format), format.id()));
            formats.dedup();
        }
        Ok(menu)
    }

    /// Of two types: the smaller, and the one for what is sensitive. For rows that the smaller does not fit, one of 32 weights is in its
    /// place.
    pub fn of_two(small: Format, large: Format) -> Menu {
        let fitting = if small.block_len() <= 32 {
            small
        } else if small == IQ4_XS {
            IQ4_NL
        } else {
            Q4_0
        };
        Menu { super_blocks: vec![small, large], blocks: vec![fitting, large] }
    }

    /// The types for rows of `n_cols` weights, smallest first; none where no type's blocks fit.
    pub fn for_rows(&self, n_cols: usize) -> Vec<Format> {
        let formats = if n_cols.is_multiple_of(SUPER_BLOCK_LEN) { &self.super_blocks } else { &self.blocks };
        formats.iter().copied().filter(|format| n_cols > 0 && n_cols.is_multiple_of(format.block_len())).collect()
    }
}

/// Weights of a super-block.
const SUPER_BLOCK_LEN: usize = 256;

/// Bytes of as many weights as are whole blocks of every type.
fn weights_in_bytes(format: Format) -> usize {
    SUPER_BLOCK_LEN / format.block_len() * format.block_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_and_types_can_be_mixed() {
        assert_eq!(Menu::parse("k").unwrap(), Menu::default());
        let menu = Menu::parse("Q8_0, iq4_xs,q4_0,Q8_0").unwrap();
        assert_eq!(menu.for_rows(512), [IQ4_XS, Q4_0, Q8_0]);
        assert_eq!(menu.for_rows(96), [Q4_0, Q8_0]);
        assert_eq!(menu.for_rows(100), []);
        let menu = Menu::parse("legacy,IQ3_S").unwrap();
        assert_eq!(menu.for_rows(256)[0], IQ3_S);
        assert_eq!(Menu::of_two(Q4_K, Q8_0).for_rows(96), [Q4_0, Q8_0]);
        assert_eq!(Menu::of_two(IQ4_XS, Q8_0).for_rows(96), [IQ4_NL, Q8_0]);
    }

    #[test]
    fn every_set_is_in_order_and_can_be_written() {
        for set in SETS {
            for (formats, n_cols) in [(set.super_blocks, 256_usize), (set.blocks, 32)] {
                assert!(
                    formats.iter().all(|format| format.can_quantize() && n_cols.is_multiple_of(format.block_len())),
                    "{}",
                    set.name
                );
                assert!(formats.is_sorted_by_key(|format| weights_in_bytes(*format)), "{}", set.name);
                assert_eq!(Menu::parse(set.name).unwrap().for_rows(n_cols).len(), formats.len(), "{}", set.name);
            }
        }
    }

    #[test]
    fn what_no_tensor_can_be_chosen_to_be_is_refused() {
        for text in ["", "k,", "Q9_9", "F16", "F32", "Q8_K", "Q8_1", "I8", "F64"] {
            assert!(matches!(Menu::parse(text), Err(Error::Usage(_))), "{text}");
        }
        assert!(
            Menu::parse("kk")
                .unwrap_err()
                .to_string()
                .contains("\"kk\" is no set of types (k, legacy, iq, all), and an unknown tensor type")
        );
    }
}
