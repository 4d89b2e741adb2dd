//! The host side of `kernels/`: what runs them on an NVIDIA GPU.
//!
//! Nothing of CUDA is needed to build this, and only NVIDIA's driver to use it: its library is opened when a GPU is asked for
//! ([`Driver::start`]), and the kernels lie compiled in the program. Every way in which a machine can lack a usable GPU is an
//! [`Error::Gpu`](crate::Error::Gpu) that says what is missing and what to do; none is a panic.

mod arenas;
mod backend;
mod can;
mod device;
mod images;
mod kernels;
mod measure;
mod modules;
mod probe;
mod ranges;
mod room;
mod sizes;
mod staging;

pub use backend::{Cuda, Operand, Products, Rows, Weight};
pub use can::{check, head_dims_max, runs};
pub use measure::{AttentionSizes, Timed, Work};
pub use probe::{Driver, FUNCTIONS, Gpu, capability_min};
