//! Tables as data, and their writers.
