//! llama.cpp's pre-tokenizers by name: how text is cut into words before BPE, and what else the name decides.
//!
//! The patterns are those of llama.cpp 0.5 (September 2026) with its own reading of them spelled out: its categories know no kinds of
//! letter, so `\p{Lu}` and `\p{Ll}` are `\p{L}` here, and a lookahead for a category is an intersection. `\s+(?!\S)|\s+`
//! is [`Spaces::LeaveOne`].

use super::split::Spaces::{Halve, LeaveOne};
use super::split::Split::{self, CutThousands, GroupDigits, Regex, Words};

/// What the alphabet of the tokens is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// One printable character for each byte, as GPT-2 has it.
    Bytes,
    /// Characters as they are, `▁` for a space, `<0xFF>` for a byte of an unknown character.
    Visible,
    /// The same, but a run of newlines that is a token is not merged from parts.
    VisibleWithNewlines,
    /// Characters as they are; white space only separates words.
    Words,
}

/// What a name stands for.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    /// The names, values of `tokenizer.ggml.pre`.
    pub names: &'static [&'static str],
    pub splits: &'static [Split],
    pub alphabet: Alphabet,
    /// A word that is a token becomes that token, however its merges would have gone.
    pub ignore_merges: bool,
    /// Whether a text begins with the bos token where the file does not say.
    pub add_bos: bool,
    /// Whether token 11 is bos where the file does not say, as it was in the first model of this kind.
    pub has_default_bos: bool,
}

/// The pre-tokenizer of a name.
pub(super) fn by_name(name: &str) -> Option<&'static PreTokenizer> {
    TABLE.iter().find(|row| row.names.contains(&name))
}

/// Every known name.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().flat_map(|row| row.names).copied()
}

const USUAL: PreTokenizer = PreTokenizer {
    names: &[],
    splits: &[],
    alphabet: Alphabet::Bytes,
    ignore_merges: false,
    add_bos: false,
    has_default_bos: true,
};

static TABLE: &[PreTokenizer] = &[
    PreTokenizer { names: &["default"], splits: &[Regex(r"[\p{P}\$\+<=>\^~\|]+"), GPT2, Regex(r"\p{N}+"), THREE_DIGITS], ..USUAL },
    PreTokenizer {
        names: &["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
        splits: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..USUAL
    },
    PreTokenizer { names: &["dbrx", "smaug-bpe"], splits: &[LLAMA3], ..USUAL },
    PreTokenizer { names: &["chatglm-bpe"], splits: &[LLAMA3], has_default_bos: false, ..USUAL },
    PreTokenizer { names: &["glm4", "glm5"], splits: &[LLAMA3], ignore_merges: true, has_default_bos: false, ..USUAL },
    PreTokenizer { names: &["jais-2"], splits: &[JAIS2], ..USUAL },
    PreTokenizer {
        names: &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
        ],
        splits: &[GPT2],
        ..USUAL
    },
    PreTokenizer {
        names: &["jina-v1-en", "jina-v2-code", "roberta-bpe", "mpt", "olmo", "jais", "exaone4", "trillion", "granite-docling"],
        splits: &[GPT2],
        ..USUAL
    },
    PreTokenizer {
        names: &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        splits: &[ONE_DIGIT, GPT2],
        ..USUAL
    },
    PreTokenizer { names: &["falcon"], splits: &[Regex(r"[\p{P}\$\+<=>\^~\|`]+"), GPT2, THREE_DIGITS], ..USUAL },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "megrez", "hunyuan", "solar-open", "grok-2"],
        splits: &[QWEN2],
        ..USUAL
    },
    PreTokenizer { names: &["qwen35"], splits: &[QWEN35], ..USUAL },
    PreTokenizer { names: &["ufakzeka"], splits: &[UFAKZEKA], ..USUAL },
    PreTokenizer { names: &["laguna"], splits: &[LINES, QWEN2], ..USUAL },
    PreTokenizer { names: &["minicpm5"], splits: &[UP_TO_THREE_DIGITS, MINICPM5], ignore_merges: true, ..USUAL },
    PreTokenizer { names: &["seed-coder"], splits: &[SEED_CODER], ..USUAL },
    PreTokenizer { names: &["bailingmoe", "bailingmoe2", "llada-moe"], splits: &[BAILING_MOE], ..USUAL },
    PreTokenizer { names: &["exaone-moe"], splits: &[EXAONE_MOE], ..USUAL },
    PreTokenizer { names: &["tekken"], splits: &[TEKKEN], ignore_merges: true, add_bos: true, ..USUAL },
    PreTokenizer { names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], splits: &[GPT4O], ..USUAL },
    PreTokenizer { names: &["granite-embed-multi-97m"], splits: &[GRANITE_EMBED_MULTI], ignore_merges: true, ..USUAL },
    PreTokenizer { names: &["tiny_aya", "cohere2moe"], splits: &[GroupDigits, TINY_AYA], ..USUAL },
    PreTokenizer { names: &["youtu"], splits: &[YOUTU_EAST_ASIAN, YOUTU], ignore_merges: true, ..USUAL },
    PreTokenizer { names: &["kimi-k2"], splits: &[KIMI_K2], ..USUAL },
    PreTokenizer {
        names: &["deepseek-llm"],
        splits: &[NEWLINE, DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, Regex(r"\s+$"), DEEPSEEK_EAST_ASIAN, Regex(r"\p{N}+")],
        ..USUAL
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        splits: &[NEWLINE, Regex(r"\s?\p{L}+"), Regex(r"\s?\p{P}+"), DEEPSEEK_EAST_ASIAN, ONE_DIGIT],
        ..USUAL
    },
    PreTokenizer {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        splits: &[UP_TO_THREE_DIGITS, HAN_AND_KANA, DEEPSEEK3],
        ..USUAL
    },
    PreTokenizer { names: &["spark2_5"], splits: &[UP_TO_THREE_DIGITS, HAN_AND_KANA, SPARK2_5, ONE_DIGIT], ..USUAL },
    PreTokenizer { names: &["afmoe"], splits: &[GroupDigits, AFMOE_EAST_ASIAN, DEEPSEEK3], ..USUAL },
    PreTokenizer { names: &["poro-chat", "bloom", "gpt3-finnish"], splits: &[BLOOM], ..USUAL },
    PreTokenizer { names: &["viking"], splits: &[BLOOM, ONE_DIGIT], ..USUAL },
    PreTokenizer { names: &["superbpe"], splits: &[Regex(r"\p{N}+"), CutThousands], ..USUAL },
    PreTokenizer {
        names: &["chameleon"],
        splits: &[
            Regex("<sentinel:[0-9]+>"),
            Regex("IMGIMG[A-I]{1,4}Z"),
            Regex(r"[\t\n]|    |  "),
            ONE_DIGIT,
            Regex(r"[\p{P}!-/:-@\[-`{-~]"),
            GPT2,
        ],
        add_bos: true,
        ..USUAL
    },
    // llama.cpp adds bos here even where the file says not to; that is decided where the file is read.
    PreTokenizer {
        names: &["gemma4", "granite-embed-multi-311m"],
        splits: &[LINES],
        alphabet: Alphabet::VisibleWithNewlines,
        add_bos: true,
        ..USUAL
    },
    PreTokenizer { names: &["sarvam-moe"], splits: &[LINES], alphabet: Alphabet::Visible, ..USUAL },
    PreTokenizer { names: &["whitespace"], splits: &[Regex(r"\S+")], alphabet: Alphabet::Words, ..USUAL },
];

const NEWLINE: Split = Regex(r"[\r\n]");
const LINES: Split = Regex(r"[^\n]+|[\n]+");
const ONE_DIGIT: Split = Regex(r"\p{N}");
const UP_TO_THREE_DIGITS: Split = Regex(r"\p{N}{1,3}");
const THREE_DIGITS: Split = Regex("[0-9][0-9][0-9]");

const GPT2: Split = Words(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+", LeaveOne);

const LLAMA3: Split = Words(
    r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    LeaveOne,
);

const JAIS2: Split = Words(
    r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    Halve,
);

const QWEN2: Split = Words(
    r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    LeaveOne,
);

const QWEN35: Split = Words(
    r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+",
    LeaveOne,
);

const UFAKZEKA: Split = Words(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+", LeaveOne);

const MINICPM5: Split = Words(
    r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    LeaveOne,
);

const SEED_CODER: Split = Words(
    r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+",
    LeaveOne,
);

const BAILING_MOE: Split = Words(
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]",
    LeaveOne,
);

const EXAONE_MOE: Split = Words(
    r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]",
    LeaveOne,
);

const TEKKEN: Split = Words(
    r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
    LeaveOne,
);

const GPT4O: Split = Words(
    r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+(?:'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))?|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*(?:'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
    LeaveOne,
);

const GRANITE_EMBED_MULTI: Split = Words(
    r"[^\r\n\p{L}\p{N}]?[[\p{L}\p{M}]&&[^a-z]]*[[\p{L}\p{M}]&&[^A-Z]]+(?:'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))?|[^\r\n\p{L}\p{N}]?[[\p{L}\p{M}]&&[^a-z]]+[[\p{L}\p{M}]&&[^A-Z]]*(?:'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
    LeaveOne,
);

const TINY_AYA: Split = Words(
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+(?:'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
    LeaveOne,
);

const YOUTU: Split = Words(
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+(?:'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
    LeaveOne,
);

/// Hangul, punctuation, Bopomofo, and Han with kana.
const YOUTU_EAST_ASIAN: Split = Regex(
    r"[\u{AC00}-\u{D7A3}\u{3131}-\u{318E}]+|[！…“”‘’—：；，\u{3001}-\u{303F}\u{FE30}-\u{FE4F}]+|[\u{3105}-\u{312F}]+|[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+",
);

/// Han ideographs apart from the letters around them; these ranges hold no more than llama.cpp's.
const KIMI_K2: Split = Words(
    r"[\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{20000}-\u{2A6DF}\u{2A700}-\u{2EBEF}\u{F900}-\u{FAFF}\u{2F800}-\u{2FA1F}]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{20000}-\u{2A6DF}\u{2A700}-\u{2EBEF}\u{F900}-\u{FAFF}\u{2F800}-\u{2FA1F}]]+(?:'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    LeaveOne,
);

/// Letters of scripts that know upper and lower case.
const DEEPSEEK_LETTERS: Split = Regex(
    r"\s?[A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+",
);

/// Without U+3000, which llama.cpp has turned into plain white space before it looks.
const DEEPSEEK_PUNCTUATION: Split = Regex(r"\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3001}\u{3002}]+");

/// Without the white space in this range, for the same reason.
const DEEPSEEK_EAST_ASIAN: Split = Regex(r"[[\u{800}-\u{9FA5}\u{AC00}-\u{D7FF}]&&\S]+");

const HAN_AND_KANA: Split = Regex(r"[\u{4E00}-\u{9FA5}\u{3040}-\u{30FF}]+");

const DEEPSEEK3: Split = Words(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"##,
    LeaveOne,
);

const SPARK2_5: Split = Words(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]"##,
    LeaveOne,
);

/// Scripts written without spaces. The range from U+8C48 is llama.cpp's; its authors may have meant U+F900, which looks the same.
const AFMOE_EAST_ASIAN: Split = Regex(
    r"[\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{8C48}-\u{FAFF}\u{3040}-\u{30FF}\u{FF65}-\u{FF9F}\u{2F00}-\u{2FDF}\u{E40}-\u{EFF}\u{1780}-\u{17FF}\u{1000}-\u{109F}\u{AA60}-\u{AA7F}\u{A9E0}-\u{A9FF}\u{1100}-\u{11FF}]+",
);

const BLOOM: Split = Regex(r" ?[^(\s|.,!?\u{2026}\u{3002}\u{FF0C}\u{3001}\u{964}\u{6D4}\u{60C})]+");

#[cfg(test)]
mod tests {
    use super::super::split::Splitter;
    use super::*;

    #[test]
    fn every_pattern_compiles_and_no_name_is_twice() {
        let mut seen = std::collections::HashSet::new();
        for row in TABLE {
            Splitter::new(row.splits);
            assert!(row.names.iter().all(|name| seen.insert(*name)), "a name of {:?} is taken", row.names);
        }
        assert_eq!(seen.len(), names().count());
    }
}
