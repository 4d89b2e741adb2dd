//! Rounding that looks at what a tensor is multiplied with.
//!
//! ```text
//! x: what goes into a matrix ──> Moments H = mean x xᵀ ──> Factor ──> round: blocks with the least (q - w) H (q - w)ᵀ
//! ```
//!
//! [`calibrate`] takes a whole model through a text, a layer at a time (`layers`): what goes into each matrix (`inputs`), the blocks of it,
//! and whether held-out text says that they are better. The matrices of experts have inputs of their own (`experts`), and are judged
//! together (`stacks`). Where the types themselves are to be chosen (`offers`), every matrix is made in several, `costs` finds by how much
//! scores diverge for each, and `aim` picks one of each for a number of bytes. Finished matrices may be kept for another run (`kept`). The
//! result is an [`Overlay`]: the pipeline copies its blocks as it copies any tensor.
//!
//! A format's blocks keep their layout, so whatever reads the format reads them; only which of its values stand for a weight is chosen
//! otherwise. What a format can hold is its [`Lattice`](crate::quant::Lattice): levels of each weight (`grid`), or the points of a grid for
//! four or eight weights together (`points`). IQ1_S and IQ1_M have none: they keep ggml's rounding, by the importance of the same text.

// The index is a column, and often indexes several arrays.
#![allow(clippy::needless_range_loop)]

mod aim;
mod choice;
mod costs;
mod experts;
mod factor;
mod fit;
mod grid;
mod group;
mod inputs;
mod kept;
mod layers;
mod metric;
mod moments;
mod offers;
mod overlay;
mod points;
mod round;
mod scales;
mod stacks;

pub use choice::{Choice, Method};
pub use experts::Reached;
pub use factor::Factor;
pub use layers::{Calibrated, Folders, calibrate};
pub use moments::{Moments, balanced, blended};
pub use offers::{Aim, Bound, Chosen};
pub use overlay::Overlay;
pub use round::round;
