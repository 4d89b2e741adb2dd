//! The CUDA kernels, run on the CPU: the same sources, compiled by g++ with `kernels/shim.h`. Launches are those of `kernels/LAUNCH.md`.

mod common;
#[path = "kernels/formats.rs"]
mod formats;
#[path = "kernels/shim.rs"]
mod shim;
