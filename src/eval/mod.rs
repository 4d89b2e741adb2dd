//! Measuring: what quantizing cost.
//!
//! | module | measures |
//! |---|---|
//! | [`tensor_error`] | the weights themselves, tensor by tensor |
//!
//! Does not print: progress goes to a callback, results are data.

pub mod tensor_error;
