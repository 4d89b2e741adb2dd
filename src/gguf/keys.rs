//! Every metadata key, spelled once.

/// The architecture's name, which prefixes its own keys.
pub const GENERAL_ARCHITECTURE: &str = "general.architecture";
/// llama.cpp's file type id, a u32.
pub const GENERAL_FILE_TYPE: &str = "general.file_type";
/// Version of the block formats, 2; required when any tensor is quantized.
pub const GENERAL_QUANTIZATION_VERSION: &str = "general.quantization_version";
/// Alignment of tensor data in bytes, a u32.
pub const GENERAL_ALIGNMENT: &str = "general.alignment";
