//! Vocabularies: read from Hugging Face files, written as GGUF metadata.
