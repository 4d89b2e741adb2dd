//! The `ggforge` program: a thin face over the library's public API.

fn main() {}
