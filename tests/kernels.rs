//! The CUDA kernels, run on the CPU: the same sources, compiled by g++ with `kernels/shim.h`. Launches are those of `kernels/LAUNCH.md`.

#[path = "kernels/attention.rs"]
mod attention;
#[path = "kernels/banks.rs"]
mod banks;
mod common;
#[path = "kernels/formats.rs"]
mod formats;
#[path = "kernels/products.rs"]
mod products;
#[path = "kernels/rows.rs"]
mod rows;
#[path = "kernels/shim.rs"]
mod shim;
