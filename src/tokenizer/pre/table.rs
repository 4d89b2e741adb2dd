//! What llama.cpp knows about pre-tokenizers, as data: the names its loader accepts with what each does, and the steps in
//! tokenizer.json that each name stands for.
//!
//! The expressions are those of the models' own tokenizer.json files, because that is what is compared; llama.cpp's own may be spelled
//! otherwise. A new pre-tokenizer is a line in [`NAMES`] and, where its steps are known, one in [`STRUCTURES`].

/// A name for `tokenizer.ggml.pre`, and what llama.cpp's loader does when it reads it.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::tokenizer) struct Name {
    pub name: &'static str,
    /// The first name with the same expressions.
    pub like: &'static str,
    /// A bos token is added unless the file says otherwise.
    pub adds_bos: bool,
    /// A word that is a token is taken as it is, without merging.
    pub ignores_merges: bool,
    /// Spaces before punctuation are removed from decoded text.
    pub cleans_spaces: bool,
}

impl Name {
    /// True when both cut and merge text alike.
    pub fn same_effect(&self, other: &Name) -> bool {
        self.like == other.like && self.ignores_merges == other.ignores_merges
    }
}

const fn name(name: &'static str, like: &'static str, adds_bos: bool, ignores_merges: bool, cleans_spaces: bool) -> Name {
    Name { name, like, adds_bos, ignores_merges, cleans_spaces }
}

/// Every name for byte-level BPE.
#[rustfmt::skip]
pub(super) const NAMES: &[Name] = &[
    //    name, like, adds_bos, ignores_merges, cleans_spaces
    name("default", "default", false, false, true),
    name("llama-bpe", "llama-bpe", true, true, true),
    name("llama3", "llama-bpe", true, true, true),
    name("llama-v3", "llama-bpe", true, true, true),
    name("falcon3", "llama-bpe", true, true, true),
    name("falcon-h1", "llama-bpe", true, true, true),
    name("pixtral", "llama-bpe", true, true, true),
    name("midm-2.0", "llama-bpe", true, true, true),
    name("lfm2", "llama-bpe", true, true, true),
    name("jina-v5-nano", "llama-bpe", true, true, true),
    name("smaug-bpe", "llama-bpe", false, false, true),
    name("dbrx", "llama-bpe", false, false, true),
    name("chatglm-bpe", "llama-bpe", false, false, true),
    name("glm4", "llama-bpe", false, true, true),
    name("glm5", "llama-bpe", false, true, true),
    name("gpt-2", "gpt-2", false, false, true),
    name("phi-2", "gpt-2", false, false, true),
    name("jina-es", "gpt-2", false, false, true),
    name("jina-de", "gpt-2", false, false, true),
    name("jina-v2-es", "gpt-2", false, false, true),
    name("jina-v2-de", "gpt-2", false, false, true),
    name("jina-v1-en", "gpt-2", false, false, true),
    name("jina-v2-code", "gpt-2", false, false, true),
    name("roberta-bpe", "gpt-2", false, false, true),
    name("gigachat", "gpt-2", false, false, true),
    name("a.x-4.0", "gpt-2", false, false, true),
    name("mellum", "gpt-2", false, false, true),
    name("modern-bert", "gpt-2", false, false, true),
    name("exaone4", "gpt-2", false, false, true),
    name("mpt", "gpt-2", false, false, true),
    name("olmo", "gpt-2", false, false, true),
    name("jais", "gpt-2", false, false, true),
    name("trillion", "gpt-2", false, false, false),
    name("granite-docling", "gpt-2", false, false, false),
    name("smollm", "smollm", false, false, false),
    name("command-r", "smollm", false, false, false),
    name("starcoder", "smollm", false, false, true),
    name("refact", "smollm", false, false, true),
    name("codeshell", "smollm", false, false, true),
    name("exaone", "smollm", false, false, true),
    name("minerva-7b", "smollm", false, false, true),
    name("mellum2", "smollm", false, false, true),
    name("qwen2", "qwen2", false, false, false),
    name("deepseek-r1-qwen", "qwen2", false, false, false),
    name("kormo", "qwen2", false, false, false),
    name("f2llmv2", "qwen2", false, false, false),
    name("hunyuan", "qwen2", false, false, false),
    name("solar-open", "qwen2", false, false, false),
    name("grok-2", "qwen2", false, false, false),
    name("stablelm2", "qwen2", false, false, true),
    name("megrez", "qwen2", false, false, true),
    name("qwen35", "qwen35", false, false, false),
    name("tekken", "tekken", true, true, false),
    name("gpt-4o", "gpt-4o", false, false, false),
    name("llama4", "gpt-4o", false, false, false),
    name("kanana2", "gpt-4o", false, false, false),
    name("talkie", "gpt-4o", false, false, false),
    name("minimax-m2", "gpt-4o", false, false, false),
    name("deepseek-llm", "deepseek-llm", false, false, false),
    name("deepseek-coder", "deepseek-coder", false, false, false),
    name("deepseek-v3", "deepseek-v3", false, false, false),
    name("hunyuan-dense", "deepseek-v3", false, false, false),
    name("joyai-llm", "deepseek-v3", false, false, false),
    name("hy_v4", "deepseek-v3", false, false, false),
    name("falcon", "falcon", false, false, true),
    name("bloom", "bloom", false, false, true),
    name("gpt3-finnish", "bloom", false, false, true),
    name("poro-chat", "bloom", false, false, false),
    name("viking", "viking", false, false, false),
    name("bailingmoe", "bailingmoe", false, false, false),
    name("bailingmoe2", "bailingmoe", false, false, false),
    name("llada-moe", "bailingmoe", false, false, false),
    name("tiny_aya", "tiny_aya", false, false, false),
    name("cohere2moe", "tiny_aya", false, false, false),
    name("minicpm5", "minicpm5", false, true, true),
    name("youtu", "youtu", false, true, false),
    name("granite-embed-multi-97m", "granite-embed-multi-97m", false, true, false),
    name("jais-2", "jais-2", false, false, true),
    name("exaone-moe", "exaone-moe", false, false, true),
    name("chameleon", "chameleon", true, false, false),
    name("seed-coder", "seed-coder", false, false, false),
    name("spark2_5", "spark2_5", false, false, false),
    name("superbpe", "superbpe", false, false, false),
    name("ufakzeka", "ufakzeka", false, false, false),
    name("kimi-k2", "kimi-k2", false, false, false),
    name("afmoe", "afmoe", false, false, false),
    name("laguna", "laguna", false, false, false),
];

/// The name for what resembles nothing.
pub(super) const FALLBACK: &Name = &NAMES[0];

/// Steps of a pre-tokenizer in tokenizer.json, and a name for them.
pub(super) struct Structure {
    pub name: &'static str,
    /// Expressions whose matches are isolated, and [`BYTES`].
    pub steps: &'static [&'static str],
    /// Models of this name normalize text to NFC; llama.cpp never does.
    pub is_nfc: bool,
    /// Models of this name spell the split as removing what does not match.
    pub is_inverted: bool,
}

const fn structure(name: &'static str, steps: &'static [&'static str]) -> Structure {
    Structure { name, steps, is_nfc: false, is_inverted: false }
}

impl Structure {
    const fn nfc(self) -> Structure {
        Structure { is_nfc: true, ..self }
    }

    const fn inverted(self) -> Structure {
        Structure { is_inverted: true, ..self }
    }
}

/// The step that turns bytes into GPT-2's alphabet; no expression is spelled like it.
pub(super) const BYTES: &str = "(bytes";

/// Names with known steps; among equals the usual one first.
pub(super) const STRUCTURES: &[Structure] = &[
    structure("gpt-2", &[GPT2, BYTES]),
    structure("olmo", &[GPT2, BYTES]).nfc(),
    structure("smollm", &[DIGIT, GPT2, BYTES]),
    structure("starcoder", &[DIGIT, GPT2, BYTES]),
    structure("command-r", &[DIGIT, GPT2, BYTES]).nfc(),
    structure("llama-bpe", &[LLAMA3, BYTES]),
    structure("smaug-bpe", &[LLAMA3, BYTES]),
    structure("dbrx", &[LLAMA3, BYTES]).inverted(),
    structure("dbrx", &[CL100K, BYTES]).inverted(),
    structure("qwen2", &[QWEN2, BYTES]).nfc(),
    structure("stablelm2", &[QWEN2, BYTES]),
    structure("qwen35", &[QWEN35, BYTES]).nfc(),
    structure("tekken", &[TEKKEN, BYTES]),
    structure("gpt-4o", &[GPT4O, BYTES]),
    structure("deepseek-llm", &[LINE_END, DEEPSEEK_WORD, DEEPSEEK_SIGNS, SPACE_AT_END, CJK_HANGUL, DIGIT, BYTES]),
    structure("deepseek-llm", &[LINE_END, DEEPSEEK_WORD, DEEPSEEK_SIGNS, SPACE_AT_END, CJK_HANGUL, DIGITS, BYTES]),
    structure("deepseek-coder", &[LINE_END, r"\s?\p{L}+", r"\s?\p{P}+", CJK_HANGUL, DIGIT, BYTES]),
    structure("deepseek-v3", &[DIGITS_3, CJK_KANA, DEEPSEEK3, BYTES]),
    structure("spark2_5", &[DIGITS_3, CJK_KANA, SPARK, DIGIT, BYTES]),
    structure("falcon", &[FALCON_SIGNS, GPT2, BYTES, DIGITS, "[0-9][0-9][0-9]"]),
    structure("bloom", &[BLOOM, BYTES]),
    structure("poro-chat", &[BLOOM, BYTES]),
    structure("viking", &[BLOOM, DIGIT, BYTES]),
    structure("bailingmoe", &[BAILING, BYTES]),
    structure("seed-coder", &[SEED_CODER, BYTES]),
    structure("minicpm5", &[DIGITS_3, MINICPM5, BYTES]),
    structure("tiny_aya", &[r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O, BYTES]),
    structure("jais-2", &[JAIS2, BYTES]),
    structure("exaone-moe", &[EXAONE_MOE, BYTES]),
    structure("ufakzeka", &[UFAKZEKA, BYTES]),
    structure("kimi-k2", &[KIMI, BYTES]),
];

const DIGIT: &str = r"\p{N}";
const DIGITS: &str = r"\p{N}+";
const DIGITS_3: &str = r"\p{N}{1,3}";
const LINE_END: &str = r"[\r\n]";
const SPACE_AT_END: &str = r"\s+$";
const CJK_HANGUL: &str = "[一-龥ࠀ-一가-퟿]+";
const CJK_KANA: &str = "[一-龥぀-ゟ゠-ヿ]+";

/// GPT-2's expression, which a `ByteLevel` step brings along.
pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
pub(super) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// tiktoken's spelling of the same.
const CL100K: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const QWEN35: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const KIMI: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_WORD: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_SIGNS: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
/// One or more of what Hugging Face's library takes for punctuation.
const FALCON_SIGNS: &str = r"[\p{P}!-/:-@\[-`{-~]+";
const BLOOM: &str = r" ?[^(\s|[.,!?…。，、।۔،])]+";
const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
