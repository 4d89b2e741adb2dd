//! A Hugging Face model folder: config.json, safetensors shards and index, tokenizer files. Knows nothing of GGUF.
