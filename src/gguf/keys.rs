//! Every metadata key, spelled once.
//!
//! Keys of an architecture are stored here without their prefix: [`of`] puts it before them. Types matter: llama.cpp's getters accept
//! one exact type each, so counts and ids are u32, epsilons and frequencies f32, flags bool; exceptions are noted at the key.

/// The full spelling of an architecture's own key: `of("llama", BLOCK_COUNT)` is `llama.block_count`.
pub fn of(arch: &str, key: &str) -> String {
    format!("{arch}.{key}")
}

/// The full spelling of a numbered `general` key: `general.base_model.0.name` for `numbered(GENERAL_BASE_MODEL, 0, "name")`.
pub fn numbered(prefix: &str, index: usize, field: &str) -> String {
    format!("{prefix}.{index}.{field}")
}

macro_rules! keys {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => { $($(#[$doc])* pub const $name: &str = $text;)* };
}

// What the file is.
keys! {
    /// The architecture's name, which prefixes its own keys. A string; every model has it.
    GENERAL_ARCHITECTURE = "general.architecture";
    /// `model`, `adapter`, `mmproj`, …: a string.
    GENERAL_TYPE = "general.type";
    /// llama.cpp's file type id.
    GENERAL_FILE_TYPE = "general.file_type";
    /// Version of the block formats, 2; required when any tensor is quantized.
    GENERAL_QUANTIZATION_VERSION = "general.quantization_version";
    /// Alignment of tensor data in bytes: a power of two.
    GENERAL_ALIGNMENT = "general.alignment";
}

// Where it comes from: strings, but for the counts and the string arrays.
keys! {
    /// The model's name for people.
    GENERAL_NAME = "general.name";
    /// Who made the model.
    GENERAL_AUTHOR = "general.author";
    /// Version of the model.
    GENERAL_VERSION = "general.version";
    /// The organisation behind the model.
    GENERAL_ORGANIZATION = "general.organization";
    /// The family's name, without size, version and fine-tune.
    GENERAL_BASENAME = "general.basename";
    /// What it was fine-tuned for: `Instruct`.
    GENERAL_FINETUNE = "general.finetune";
    /// Free text.
    GENERAL_DESCRIPTION = "general.description";
    /// Who quantized it.
    GENERAL_QUANTIZED_BY = "general.quantized_by";
    /// Number of parameters for people: `8B`, `8x7B`.
    GENERAL_SIZE_LABEL = "general.size_label";
    /// SPDX expression.
    GENERAL_LICENSE = "general.license";
    /// Name of a licence that SPDX does not list.
    GENERAL_LICENSE_NAME = "general.license.name";
    /// Where that licence can be read.
    GENERAL_LICENSE_LINK = "general.license.link";
    /// Home page.
    GENERAL_URL = "general.url";
    /// Repository.
    GENERAL_REPO_URL = "general.repo_url";
    /// Digital object identifier.
    GENERAL_DOI = "general.doi";
    /// Universally unique identifier.
    GENERAL_UUID = "general.uuid";
    /// Home page of what it was converted from.
    GENERAL_SOURCE_URL = "general.source.url";
    /// Digital object identifier of what it was converted from.
    GENERAL_SOURCE_DOI = "general.source.doi";
    /// Universally unique identifier of what it was converted from.
    GENERAL_SOURCE_UUID = "general.source.uuid";
    /// Repository of what it was converted from.
    GENERAL_SOURCE_REPO_URL = "general.source.repo_url";
    /// Number of base models.
    GENERAL_BASE_MODEL_COUNT = "general.base_model.count";
    /// Prefix of the numbered keys of a base model.
    GENERAL_BASE_MODEL = "general.base_model";
    /// Number of data sets.
    GENERAL_DATASET_COUNT = "general.dataset.count";
    /// Prefix of the numbered keys of a data set.
    GENERAL_DATASET = "general.dataset";
    /// String array.
    GENERAL_TAGS = "general.tags";
    /// String array of language codes.
    GENERAL_LANGUAGES = "general.languages";
}

// Sampling defaults of the model's maker.
keys! {
    /// Order of the samplers: a string.
    GENERAL_SAMPLING_SEQUENCE = "general.sampling.sequence";
    /// i32.
    GENERAL_SAMPLING_TOP_K = "general.sampling.top_k";
    /// f32.
    GENERAL_SAMPLING_TOP_P = "general.sampling.top_p";
    /// f32.
    GENERAL_SAMPLING_MIN_P = "general.sampling.min_p";
    /// f32.
    GENERAL_SAMPLING_XTC_PROBABILITY = "general.sampling.xtc_probability";
    /// f32.
    GENERAL_SAMPLING_XTC_THRESHOLD = "general.sampling.xtc_threshold";
    /// f32.
    GENERAL_SAMPLING_TEMP = "general.sampling.temp";
    /// i32.
    GENERAL_SAMPLING_PENALTY_LAST_N = "general.sampling.penalty_last_n";
    /// f32.
    GENERAL_SAMPLING_PENALTY_REPEAT = "general.sampling.penalty_repeat";
    /// i32.
    GENERAL_SAMPLING_MIROSTAT = "general.sampling.mirostat";
    /// f32.
    GENERAL_SAMPLING_MIROSTAT_TAU = "general.sampling.mirostat_tau";
    /// f32.
    GENERAL_SAMPLING_MIROSTAT_ETA = "general.sampling.mirostat_eta";
}

// The architecture's hyperparameters, to be prefixed by `of`.
keys! {
    /// Tokens of context it was trained for.
    CONTEXT_LENGTH = "context_length";
    /// Width of the residual stream.
    EMBEDDING_LENGTH = "embedding_length";
    /// Width of what each block gets of the tokens; 0 for nothing.
    EMBEDDING_LENGTH_PER_LAYER_INPUT = "embedding_length_per_layer_input";
    /// Number of transformer blocks.
    BLOCK_COUNT = "block_count";
    /// Inner width of the feed-forward network: one u32, or one per block.
    FEED_FORWARD_LENGTH = "feed_forward_length";
    /// Tokens in the vocabulary.
    VOCAB_SIZE = "vocab_size";
    /// Blocks at the end that belong to a draft head (multi-token prediction).
    NEXTN_PREDICT_LAYERS = "nextn_predict_layers";
    /// Number of experts.
    EXPERT_COUNT = "expert_count";
    /// Experts that one token uses.
    EXPERT_USED_COUNT = "expert_used_count";
    /// Inner width of one expert.
    EXPERT_FEED_FORWARD_LENGTH = "expert_feed_forward_length";
    /// Inner width of the expert that every token uses.
    EXPERT_SHARED_FEED_FORWARD_LENGTH = "expert_shared_feed_forward_length";
    /// Factor on the weights of experts.
    EXPERT_WEIGHTS_SCALE = "expert_weights_scale";
    /// Whether the weights of the chosen experts are made to add up to 1: bool.
    EXPERT_WEIGHTS_NORM = "expert_weights_norm";
    /// What makes weights of router scores: 1 for softmax, 2 for sigmoid.
    EXPERT_GATING_FUNC = "expert_gating_func";
    /// Query heads: one u32, or one per block.
    ATTENTION_HEAD_COUNT = "attention.head_count";
    /// Key and value heads: one u32, or one per block. Equal to the query heads where absent.
    ATTENTION_HEAD_COUNT_KV = "attention.head_count_kv";
    /// Width of a key head, where it is not `embedding_length / head_count`.
    ATTENTION_KEY_LENGTH = "attention.key_length";
    /// Width of a value head, where it is not `embedding_length / head_count`.
    ATTENTION_VALUE_LENGTH = "attention.value_length";
    /// Width of a key head in blocks with a window.
    ATTENTION_KEY_LENGTH_SWA = "attention.key_length_swa";
    /// Width of a value head in blocks with a window.
    ATTENTION_VALUE_LENGTH_SWA = "attention.value_length_swa";
    /// Blocks at the end that use the keys and values of others.
    ATTENTION_SHARED_KV_LAYERS = "attention.shared_kv_layers";
    /// Epsilon of LayerNorm.
    ATTENTION_LAYER_NORM_EPSILON = "attention.layer_norm_epsilon";
    /// Epsilon of RMSNorm.
    ATTENTION_LAYER_NORM_RMS_EPSILON = "attention.layer_norm_rms_epsilon";
    /// Tokens that sliding-window attention sees.
    ATTENTION_SLIDING_WINDOW = "attention.sliding_window";
    /// Which blocks have the window: a bool for each, or a u32 `n` for all but every `n`-th.
    ATTENTION_SLIDING_WINDOW_PATTERN = "attention.sliding_window_pattern";
    /// Factor on the scores of attention, instead of the root of the width of a head: f32.
    ATTENTION_SCALE = "attention.scale";
    /// Tokens that the convolution of a state-space layer sees.
    SSM_CONV_KERNEL = "ssm.conv_kernel";
    /// Width of a state; of a delta net, that of a key head.
    SSM_STATE_SIZE = "ssm.state_size";
    /// Groups of states; of a delta net, key heads.
    SSM_GROUP_COUNT = "ssm.group_count";
    /// Time steps; of a delta net, value heads.
    SSM_TIME_STEP_RANK = "ssm.time_step_rank";
    /// Inner width; of a delta net, all values of a token.
    SSM_INNER_SIZE = "ssm.inner_size";
    /// Which blocks have a state instead of attention: a bool for each.
    ATTENTION_RECURRENT_LAYERS = "attention.recurrent_layers";
    /// Of so many blocks the last has attention, where no list says it.
    FULL_ATTENTION_INTERVAL = "full_attention_interval";
    /// Bound that the scores of tokens approach.
    FINAL_LOGIT_SOFTCAPPING = "final_logit_softcapping";
    /// Layers that images are added to: u32.
    N_DEEPSTACK_LAYERS = "n_deepstack_layers";
    /// Divisor of the scores of tokens: f32.
    LOGIT_SCALE = "logit_scale";
    /// Factor on what each step adds: f32.
    RESIDUAL_SCALE = "residual_scale";
    /// Factor on the embedding: f32.
    EMBEDDING_SCALE = "embedding_scale";
    /// Bound of the scores of attention: f32.
    ATTN_LOGIT_SOFTCAPPING = "attn_logit_softcapping";
    /// Base of the rotary frequencies in blocks with a window.
    ROPE_FREQ_BASE_SWA = "rope.freq_base_swa";
    /// Rotated dimensions per head in blocks with a window.
    ROPE_DIMENSION_COUNT_SWA = "rope.dimension_count_swa";
    /// Rotated dimensions per head; llama.cpp insists on the head width.
    ROPE_DIMENSION_COUNT = "rope.dimension_count";
    /// Pairs that follow time, height and width: i32 array of 4.
    ROPE_DIMENSION_SECTIONS = "rope.dimension_sections";
    /// Base of the rotary frequencies.
    ROPE_FREQ_BASE = "rope.freq_base";
    /// `none`, `linear`, `yarn` or `longrope`: a string.
    ROPE_SCALING_TYPE = "rope.scaling.type";
    /// By how much the context was stretched: f32.
    ROPE_SCALING_FACTOR = "rope.scaling.factor";
    /// Context length before stretching.
    ROPE_SCALING_ORIGINAL_CONTEXT_LENGTH = "rope.scaling.original_context_length";
    /// Factor on attention: f32.
    ROPE_SCALING_ATTN_FACTOR = "rope.scaling.attn_factor";
    /// bool.
    ROPE_SCALING_FINETUNED = "rope.scaling.finetuned";
    /// f32.
    ROPE_SCALING_YARN_LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier";
    /// f32.
    ROPE_SCALING_YARN_EXT_FACTOR = "rope.scaling.yarn_ext_factor";
    /// f32.
    ROPE_SCALING_YARN_ATTN_FACTOR = "rope.scaling.yarn_attn_factor";
    /// f32.
    ROPE_SCALING_YARN_BETA_FAST = "rope.scaling.yarn_beta_fast";
    /// Whether YaRN's bounds are rounded to whole pairs, as they are where nothing is said: bool. Read here only.
    ROPE_SCALING_YARN_TRUNCATE = "rope.scaling.yarn_truncate";
    /// f32.
    ROPE_SCALING_YARN_BETA_SLOW = "rope.scaling.yarn_beta_slow";
}

// The vocabulary.
keys! {
    /// `llama` (SentencePiece), `gpt2` (byte-level BPE), `bert`, …: a string.
    TOKENIZER_MODEL = "tokenizer.ggml.model";
    /// llama.cpp's name of the pre-tokenizer: a string.
    TOKENIZER_PRE = "tokenizer.ggml.pre";
    /// Every token's text: string array.
    TOKENIZER_TOKENS = "tokenizer.ggml.tokens";
    /// Every token's score: f32 array.
    TOKENIZER_SCORES = "tokenizer.ggml.scores";
    /// Every token's kind: array of i32, not u32.
    TOKENIZER_TOKEN_TYPE = "tokenizer.ggml.token_type";
    /// Number of BERT's token types.
    TOKENIZER_TOKEN_TYPE_COUNT = "tokenizer.ggml.token_type_count";
    /// BPE merges, `left right`, best first: string array.
    TOKENIZER_MERGES = "tokenizer.ggml.merges";
    /// Begin of sequence.
    TOKENIZER_BOS_TOKEN_ID = "tokenizer.ggml.bos_token_id";
    /// End of sequence.
    TOKENIZER_EOS_TOKEN_ID = "tokenizer.ggml.eos_token_id";
    /// End of turn.
    TOKENIZER_EOT_TOKEN_ID = "tokenizer.ggml.eot_token_id";
    /// End of message.
    TOKENIZER_EOM_TOKEN_ID = "tokenizer.ggml.eom_token_id";
    /// Stands for text that no token covers.
    TOKENIZER_UNKNOWN_TOKEN_ID = "tokenizer.ggml.unknown_token_id";
    /// Separator. The misspelling is what llama.cpp reads.
    TOKENIZER_SEPARATOR_TOKEN_ID = "tokenizer.ggml.seperator_token_id";
    /// Padding.
    TOKENIZER_PADDING_TOKEN_ID = "tokenizer.ggml.padding_token_id";
    /// Classification token of BERT kinds.
    TOKENIZER_CLS_TOKEN_ID = "tokenizer.ggml.cls_token_id";
    /// Mask token of BERT kinds.
    TOKENIZER_MASK_TOKEN_ID = "tokenizer.ggml.mask_token_id";
    /// Fill in the middle: before the prefix.
    TOKENIZER_FIM_PRE_TOKEN_ID = "tokenizer.ggml.fim_pre_token_id";
    /// Fill in the middle: before the suffix.
    TOKENIZER_FIM_SUF_TOKEN_ID = "tokenizer.ggml.fim_suf_token_id";
    /// Fill in the middle: before the middle.
    TOKENIZER_FIM_MID_TOKEN_ID = "tokenizer.ggml.fim_mid_token_id";
    /// Fill in the middle: padding.
    TOKENIZER_FIM_PAD_TOKEN_ID = "tokenizer.ggml.fim_pad_token_id";
    /// Fill in the middle: repository name.
    TOKENIZER_FIM_REP_TOKEN_ID = "tokenizer.ggml.fim_rep_token_id";
    /// Fill in the middle: file separator.
    TOKENIZER_FIM_SEP_TOKEN_ID = "tokenizer.ggml.fim_sep_token_id";
    /// The older name of [`TOKENIZER_FIM_PRE_TOKEN_ID`].
    TOKENIZER_PREFIX_TOKEN_ID = "tokenizer.ggml.prefix_token_id";
    /// The older name of [`TOKENIZER_FIM_SUF_TOKEN_ID`].
    TOKENIZER_SUFFIX_TOKEN_ID = "tokenizer.ggml.suffix_token_id";
    /// The older name of [`TOKENIZER_FIM_MID_TOKEN_ID`].
    TOKENIZER_MIDDLE_TOKEN_ID = "tokenizer.ggml.middle_token_id";
    /// bool.
    TOKENIZER_ADD_BOS_TOKEN = "tokenizer.ggml.add_bos_token";
    /// bool.
    TOKENIZER_ADD_EOS_TOKEN = "tokenizer.ggml.add_eos_token";
    /// bool.
    TOKENIZER_ADD_SEP_TOKEN = "tokenizer.ggml.add_sep_token";
    /// bool.
    TOKENIZER_ADD_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix";
    /// bool.
    TOKENIZER_REMOVE_EXTRA_WHITESPACES = "tokenizer.ggml.remove_extra_whitespaces";
    /// Text is lowered in case before it is tokenized: bool.
    TOKENIZER_NORMALIZER_LOWERCASE = "tokenizer.ggml.normalizer.lowercase";
    /// Accents are stripped before text is tokenized: bool.
    TOKENIZER_NORMALIZER_STRIP_ACCENTS = "tokenizer.ggml.normalizer.strip_accents";
    /// SentencePiece's normalisation table: u8 array.
    TOKENIZER_PRECOMPILED_CHARSMAP = "tokenizer.ggml.precompiled_charsmap";
    /// The whole tokenizer.json: a string.
    TOKENIZER_HUGGINGFACE_JSON = "tokenizer.huggingface.json";
    /// The chat template: a string.
    TOKENIZER_CHAT_TEMPLATE = "tokenizer.chat_template";
    /// Names of further chat templates, each at `tokenizer.chat_template.{name}`: string array.
    TOKENIZER_CHAT_TEMPLATES = "tokenizer.chat_templates";
}

// What ties the shards of a split model together.
keys! {
    /// Index of this shard, from 0: a u16.
    SPLIT_NO = "split.no";
    /// Number of shards: a u16.
    SPLIT_COUNT = "split.count";
    /// Number of tensors in all shards together: an i32.
    SPLIT_TENSORS_COUNT = "split.tensors.count";
}

// Importance matrices: in a file that is one, and in a model that was quantized with one.
keys! {
    /// The texts that the matrix was computed from: string array.
    IMATRIX_DATASETS = "imatrix.datasets";
    /// Chunks of text that it was computed on.
    IMATRIX_CHUNK_COUNT = "imatrix.chunk_count";
    /// Tokens per chunk.
    IMATRIX_CHUNK_SIZE = "imatrix.chunk_size";
    /// The matrix's file name: a string.
    QUANTIZE_IMATRIX_FILE = "quantize.imatrix.file";
    /// The text that the matrix was computed from: a string.
    QUANTIZE_IMATRIX_DATASET = "quantize.imatrix.dataset";
    /// Tensors that the matrix has values for.
    QUANTIZE_IMATRIX_ENTRIES_COUNT = "quantize.imatrix.entries_count";
    /// Chunks of text that the matrix was computed on.
    QUANTIZE_IMATRIX_CHUNKS_COUNT = "quantize.imatrix.chunks_count";
}

// What calibration keeps for another run: ours.
keys! {
    /// Of how blocks are made: a u32.
    CHECKPOINT_VERSION = "ggforge.checkpoint.version";
    /// A checksum of the model: a u32.
    CHECKPOINT_MODEL = "ggforge.checkpoint.model";
    /// A checksum of the text in chunks: a u32.
    CHECKPOINT_TEXT = "ggforge.checkpoint.text";
    /// The tensors that the matrices are of: strings.
    CHECKPOINT_MATRICES = "ggforge.checkpoint.matrices";
    /// The first row of each in its tensor: u32.
    CHECKPOINT_FIRST_ROWS = "ggforge.checkpoint.first_rows";
    /// The damping of each, 0 for rounding by importance: f32.
    CHECKPOINT_LAMBDAS = "ggforge.checkpoint.lambdas";
    /// What held-out text loses by each: f64.
    CHECKPOINT_ERRORS = "ggforge.checkpoint.errors";
    /// What it would lose by rounding by importance: f64.
    CHECKPOINT_PLAIN_ERRORS = "ggforge.checkpoint.plain_errors";
}

// How a model was calibrated: ours, since ggml knows no such thing.
keys! {
    /// How blocks were made: a string.
    CALIBRATION_METHOD = "ggforge.calibration.method";
    /// The texts that went through the model, `self` for what it wrote: strings.
    CALIBRATION_TEXTS = "ggforge.calibration.texts";
    /// The SHA-256 of each text, of `self` that of its tokens as little-endian u32: strings of hexadecimal digits.
    CALIBRATION_SHA256 = "ggforge.calibration.sha256";
    /// Tokens of each text that went through: u32 each.
    CALIBRATION_N_TOKENS = "ggforge.calibration.tokens";
    /// Chunks of all texts, those held out included: a u32.
    CALIBRATION_CHUNK_COUNT = "ggforge.calibration.chunk_count";
    /// Tokens per chunk: a u32.
    CALIBRATION_CHUNK_SIZE = "ggforge.calibration.chunk_size";
    /// By how much scores were expected to diverge from the source's when types were chosen, in nats a token: an f32.
    CALIBRATION_PREDICTED_KLD = "ggforge.calibration.predicted_kld";
}
