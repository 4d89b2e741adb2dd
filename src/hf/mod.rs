//! A Hugging Face model folder: config.json, safetensors shards and index, tokenizer files. Knows nothing of GGUF.
//!
//! Every file here is a stranger's: each is opened only inside the folder, only when it is a regular file, and read only up to a named
//! limit; JSON is bounded in depth and never has a key twice.

mod card;
mod config;
mod folder;
mod index;
mod instead;
pub mod json;
pub mod mxfp4;
mod open;
pub mod safetensors;

pub use card::Card;
pub use config::{Config, Rope, Rounding, Scaling, yarn_length};
pub use folder::{Folder, UnreadableTensor};
pub(crate) use instead::instead;
