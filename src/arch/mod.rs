//! HF -> GGUF as data: one short file per family. No I/O.

pub mod rule;

pub use rule::Transform;
