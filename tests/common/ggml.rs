//! ggml's own library, where `tools/dev/peers` put it: the oracle that bytes are compared with.

#[path = "../../tools/bench/ggml.rs"]
mod library;

pub use library::Ggml;

/// The library of npm's `@node-llama-cpp/linux-x64`, which was compiled without fused multiply-add.
pub fn load() -> Option<Ggml> {
    const LIBRARY: &str = "npm/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64/libggml-base.so";
    super::peers(LIBRARY).map(|peers| Ggml::open(&peers.join(LIBRARY)).expect("libggml-base.so loads"))
}
