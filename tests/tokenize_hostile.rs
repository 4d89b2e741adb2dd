//! Vocabularies that contradict themselves, and ones that are made to be slow or large: a typed error or a tokenizer that works, never a
//! panic, a hang, or heap without measure.

mod common;
#[path = "common/heap.rs"]
mod heap;

use std::time::Duration;

use common::Paint;
use ggforge::error::{Error, Fault, is_harmless};
use ggforge::gguf::{Array, File, Header, Metadata, Value};
use ggforge::tokenizer::encode::{Ends, Specials, Tokenizer};
use heap::peak_bytes;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
const BOS: &str = "tokenizer.ggml.bos_token_id";

const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// A file of metadata alone.
#[derive(Clone)]
struct Vocab(Metadata);

impl Vocab {
    fn of(model: &str, tokens: &[impl AsRef<[u8]>]) -> Vocab {
        Vocab(Vec::new()).with("general.architecture", "llama".into()).with(MODEL, model.into()).with(TOKENS, strings(tokens))
    }

    /// With the value of `key` replaced or added.
    fn with(mut self, key: &str, value: Value) -> Vocab {
        self.0.retain(|(other, _)| other != key);
        self.0.push((key.to_owned(), value));
        self
    }

    fn without(mut self, key: &str) -> Vocab {
        self.0.retain(|(other, _)| other != key);
        self
    }

    /// Reads it, within the heap that its size justifies.
    fn read(&self) -> ggforge::Result<Tokenizer> {
        /// Tables of merges and pieces have some 50 bytes for a token or merge of 10; special tokens take an automaton.
        const HEAP_PER_BYTE: u64 = 64;
        /// Patterns and classes of the pre-tokenizers.
        const HEAP_BASE_BYTES: u64 = 32 << 20;
        let layout = Header { metadata: self.0.clone(), tensors: Vec::new() }.layout().expect("a header");
        let file = File::parse("case.gguf", &layout.header).expect("a sound container");
        let (result, peak) = peak_bytes(|| Tokenizer::from_metadata(&file));
        let bound = HEAP_PER_BYTE * layout.header.len() as u64 + HEAP_BASE_BYTES;
        assert!(peak <= bound, "{peak} bytes of heap for {} bytes of metadata", layout.header.len());
        result
    }

    #[track_caller]
    fn sound(&self) -> Tokenizer {
        self.read().unwrap_or_else(|e| panic!("{e}"))
    }

    #[track_caller]
    fn fault(&self) -> Fault {
        match self.read() {
            Err(error @ Error::Malformed { fault, .. }) => {
                let text = error.to_string();
                assert!(text.starts_with("case.gguf: tokenizer.ggml.") && text.chars().all(is_harmless), "{text}");
                fault
            }
            Err(error) => panic!("another error: {error}"),
            Ok(_) => panic!("no error"),
        }
    }
}

fn strings<T: AsRef<[u8]>>(texts: &[T]) -> Value {
    Value::Array(Array::String(texts.iter().map(|text| text.as_ref().to_vec()).collect()))
}

/// GPT-2's character for each byte.
fn alphabet() -> Vec<String> {
    let mut others = '\u{100}'..;
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    (0..=255).map(|byte| if printable(byte) { char::from(byte) } else { others.next().expect("a character") }.to_string()).collect()
}

/// Byte-level BPE with a token for every byte and a few more.
fn gpt2() -> Vocab {
    let mut tokens = alphabet();
    tokens.extend(["aa", "aaaa", "ab", "<s>"].map(str::to_owned));
    Vocab::of("gpt2", &tokens).with(PRE, "gpt-2".into()).with(MERGES, strings(&["a a", "aa aa", "a b"]))
}

/// SentencePiece with a token for every byte and a few more.
fn llama() -> Vocab {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁", "a", "aa", "▁a", "b"].map(str::to_owned));
    let n = tokens.len();
    let types = [2, CONTROL, CONTROL].into_iter().chain([BYTE; 256]).chain([1; 5]).collect();
    let scores = (0..n).map(|id| -(id as f32)).collect();
    Vocab::of("llama", &tokens).with(TYPES, Value::Array(Array::I32(types))).with(SCORES, Value::Array(Array::F32(scores)))
}

fn bert() -> Vocab {
    Vocab::of("bert", &["[UNK]", "▁a", "b", "▁!"]).with("tokenizer.ggml.unknown_token_id", Value::U32(0))
}

fn t5() -> Vocab {
    let scores = Value::Array(Array::F32(vec![0.0, 0.0, 0.0, -1.0, -2.0, -2.5]));
    Vocab::of("t5", &["<pad>", "</s>", "<unk>", "▁a", "b", "▁"])
        .with(TYPES, Value::Array(Array::I32(vec![CONTROL, CONTROL, 2, 1, 1, 1])))
        .with(SCORES, scores)
}

fn all() -> [Vocab; 4] {
    [gpt2(), llama(), bert(), t5()]
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, Specials::Parse, Ends::Omit)
}

#[test]
fn tables_that_contradict_each_other_are_refused() {
    let types = |types: &[i32]| Value::Array(Array::I32(types.to_vec()));
    let scores = |scores: &[f32]| Value::Array(Array::F32(scores.to_vec()));
    for vocab in all() {
        assert_eq!(vocab.clone().without(TOKENS).fault(), Fault::TokenizerInvalid);
        assert_eq!(vocab.clone().with(TOKENS, strings::<&str>(&[])).fault(), Fault::TokenizerInvalid);
        assert_eq!(vocab.clone().with(TOKENS, types(&[1, 2])).fault(), Fault::ValueType);
        assert_eq!(vocab.clone().with(TYPES, types(&[1])).fault(), Fault::TokenizerInvalid);
        assert_eq!(vocab.clone().with(TYPES, types(&[1; 300])).fault(), Fault::TokenizerInvalid);
        assert_eq!(vocab.clone().with(TYPES, Value::Array(Array::U8(vec![1; 6]))).fault(), Fault::ValueType);
        assert_eq!(vocab.clone().with(SCORES, scores(&[1.0])).fault(), Fault::TokenizerInvalid);
        assert_eq!(vocab.clone().with(SCORES, Value::Array(Array::I8(vec![1; 6]))).fault(), Fault::ValueType);
        assert_eq!(vocab.clone().with(SCORES, Value::F32(1.0)).fault(), Fault::ValueType);
        assert_eq!(vocab.clone().with("tokenizer.ggml.add_bos_token", Value::U8(1)).fault(), Fault::ValueType);
        assert_eq!(vocab.without(MODEL).fault(), Fault::TokenizerInvalid);
    }
    assert_eq!(t5().with(SCORES, scores(&[0.0, 0.0, f32::NAN, 0.0, 0.0, 0.0])).fault(), Fault::TokenizerInvalid);
    assert_eq!(t5().with(TYPES, types(&[1, 1, 1, 99, 1, 1])).fault(), Fault::TokenizerInvalid);
    assert_eq!(t5().with(TYPES, types(&[1, 1, 1, -1, 1, 1])).fault(), Fault::TokenizerInvalid);
    assert_eq!(gpt2().without(MERGES).fault(), Fault::TokenizerInvalid);
    assert_eq!(gpt2().with(MERGES, strings(&["a a", "ab"])).fault(), Fault::MergeInvalid);
    assert_eq!(gpt2().with(MERGES, strings(&["a "])).fault(), Fault::MergeInvalid);
    assert_eq!(gpt2().with(MERGES, Value::Array(Array::U32(vec![1]))).fault(), Fault::ValueType);
}

#[test]
fn special_ids_lie_in_the_vocabulary_or_are_none() {
    for vocab in all() {
        assert_eq!(vocab.clone().with(BOS, Value::U32(4_000_000_000)).fault(), Fault::SpecialIdRange);
        assert_eq!(vocab.clone().with(BOS, Value::U32(300)).fault(), Fault::SpecialIdRange);
        assert_eq!(vocab.clone().with(BOS, Value::I32(1)).fault(), Fault::ValueType);
        let none = vocab.with(BOS, Value::U32(u32::MAX)).with("tokenizer.ggml.add_bos_token", Value::Bool(true)).sound();
        assert_eq!(none.bos(), None);
        assert!(none.warnings().iter().any(|warning| warning.contains("begin")), "{:?}", none.warnings());
        assert!(!none.encode("a", Specials::Parse, Ends::Add).is_empty());
    }
}

#[test]
fn what_is_not_known_is_named() {
    let unknown = |vocab: Vocab| match vocab.read() {
        Err(error @ Error::Unsupported { .. }) => error.to_string(),
        other => panic!("{:?}", other.err()),
    };
    assert!(unknown(gpt2().with(MODEL, "plamo2\u{1b}".into())).contains("plamo2\\u{1b}"));
    assert!(unknown(gpt2().with(PRE, "%s%n".into())).contains("%s%n"));
    let general = gpt2().without(PRE).sound();
    assert!(general.warnings()[0].contains(PRE), "{:?}", general.warnings());
}

#[test]
fn a_vocabulary_of_one_token_works() {
    for model in ["gpt2", "llama", "bert", "t5"] {
        let tokenizer = Vocab::of(model, &["a"]).with(MERGES, strings::<&str>(&[])).with(PRE, "default".into()).sound();
        for text in ["", "a", " a b\n", "é"] {
            assert!(tokenizer.encode(text, Specials::Parse, Ends::Add).iter().all(|id| *id == 0), "{model}: {text:?}");
        }
        assert_eq!((tokenizer.piece(7, Specials::Parse), tokenizer.token_text(1)), (Vec::new(), None));
    }
}

#[test]
fn of_equal_tokens_the_lowest_id_is_used() {
    let mut tokens = alphabet();
    tokens.extend(["dup", "du", "dup"].map(str::to_owned));
    let tokenizer = Vocab::of("gpt2", &tokens).with(PRE, "gpt-2".into()).with(MERGES, strings(&["d u", "du p"])).sound();
    assert_eq!(ids(&tokenizer, "dup"), [256]);
    assert!(tokenizer.warnings()[0].contains("258") && tokenizer.warnings()[0].contains("256"), "{:?}", tokenizer.warnings());
    for model in ["llama", "bert", "t5"] {
        let tokenizer = Vocab::of(model, &["<unk>", "▁x", "▁x", "▁x"]).sound();
        assert!(tokenizer.warnings()[0].starts_with("2 tokens"), "{:?}", tokenizer.warnings());
        assert_eq!(ids(&tokenizer, if model == "t5" { "\u{2581}x" } else { "x" }), [1], "{model}");
    }
}

#[test]
fn odd_tokens_are_kept_as_they_are() {
    let long = "a".repeat(1 << 20);
    let odd: [&[u8]; 8] = [b"<0x-1>", b"<0xZZ>", b"", b"", b"\xff\xfe", b"\xe2\x96", long.as_bytes(), b"<0x41>"];
    for kind in [1, CONTROL, USER_DEFINED, BYTE] {
        for model in ["gpt2", "llama", "bert", "t5"] {
            let types = Value::Array(Array::I32(vec![kind; odd.len()]));
            let vocab = Vocab::of(model, &odd).with(TYPES, types).with(PRE, "gpt-2".into()).with(MERGES, strings::<&str>(&[]));
            let tokenizer = vocab.sound();
            let names_it = tokenizer.warnings().iter().any(|warning| warning.contains("1048576 bytes"));
            assert_eq!(names_it, model == "bert" || model == "t5", "{:?}", tokenizer.warnings());
            for text in ["", "a", "<0x-1>", "é▁", "[EMPTY_2]", &long, &long[1..]] {
                soon(|| tokenizer.encode(text, Specials::Parse, Ends::Add));
                soon(|| tokenizer.encode(text, Specials::Literal, Ends::Add));
            }
            assert_eq!(tokenizer.token_text(2), Some(&b"[EMPTY_2]"[..]));
            if kind == BYTE {
                assert_eq!(tokenizer.decode(&[0, 1, 2, 4, 7], Specials::Parse), b"A", "{model}");
            }
            if kind == CONTROL {
                assert_eq!(tokenizer.decode(&[0, 4], Specials::Parse), b"<0x-1>\xff\xfe", "{model}");
                assert_eq!(tokenizer.decode(&[0, 4], Specials::Literal), b"", "{model}");
            }
        }
    }
}

/// A charsmap whose root has the given children: byte, bits beside the byte, base.
fn charsmap(units: &[(usize, u32)], n_units: usize, replacements: &[u8]) -> Vec<u8> {
    let mut array = vec![0_u32; n_units];
    for (at, bits) in units {
        array[*at] = *bits;
    }
    let array: Vec<u8> = array.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    [&(array.len() as u32).to_le_bytes()[..], &array, replacements].concat()
}

#[test]
fn normalisation_rules_stay_inside_their_table() {
    let with = |bytes: Vec<u8>| t5().with(CHARSMAP, Value::Array(Array::U8(bytes)));
    // 'x' (0x78) becomes "b": the root's base is 256, its child is unit 256 ^ 0x78, that one's base leads to unit 512.
    let child = 256 ^ 0x78;
    let base = |base: usize| (base as u32) << 10;
    let x = 1 << 8 | 0x78 | base(child ^ 512);
    let rules = charsmap(&[(0, base(256)), (child, x), (512, 1 << 31 | 1)], 768, b"\0b\0");
    assert_eq!(ids(&with(rules.clone()).sound(), "\u{2581}ax"), [3, 4]);

    for len in 0..rules.len() {
        let cut = with(rules[..len].to_vec());
        let valid_without_the_last_zero = len + 1 == rules.len();
        assert_eq!(cut.fault(), Fault::CharsmapInvalid, "{len} of {} bytes, {valid_without_the_last_zero}", rules.len());
    }
    let outside = charsmap(&[(0, base(256)), (child, x), (512, 1 << 31 | 9)], 768, b"\0b\0");
    assert_eq!(with(outside).fault(), Fault::CharsmapInvalid);
    let far = charsmap(&[(0, base(1 << 20))], 768, b"\0");
    assert_eq!(with(far).fault(), Fault::CharsmapInvalid);
    // A child whose own base is that of the root: 'x' leads to itself for ever.
    let circle = charsmap(&[(0, base(256)), (child, 0x78 | base(child ^ 256))], 512, b"\0");
    assert_eq!(with(circle).fault(), Fault::CharsmapInvalid);
    // 300 children below one another, each by the byte 1.
    let mut chain = vec![(0, base(1 << 12))];
    for depth in 0..300_usize {
        let at = ((1 << 12) + 2 * depth) ^ 1;
        chain.push((at, 1 | base(at ^ ((1 << 12) + 2 * (depth + 1)))));
    }
    assert_eq!(with(charsmap(&chain, 1 << 13, b"\0")).fault(), Fault::CharsmapInvalid);
    assert!(with(charsmap(&chain[..200], 1 << 13, b"\0")).read().is_ok());

    let mut random = Paint::new(1);
    for _ in 0..300 {
        let mut bytes = rules.clone();
        for _ in 0..1 + random.next() % 4 {
            let at = random.next() as usize % bytes.len();
            bytes[at] = random.next() as u8;
        }
        if let Ok(tokenizer) = with(bytes).read() {
            ids(&tokenizer, "xaxx\u{2581}bx\u{7f}y");
        }
    }
}

/// Runs within seconds what quadratic time would make hours.
#[track_caller]
fn soon<T>(run: impl FnOnce() -> T) -> T {
    let before = common::cpu_time();
    let result = run();
    let took = common::cpu_time() - before;
    assert!(took < Duration::from_secs(20), "{took:?}");
    result
}

#[test]
fn long_words_take_no_quadratic_time() {
    const N: usize = 1 << 20;
    let text = "a".repeat(N);
    assert_eq!(soon(|| ids(&gpt2().sound(), &text)), vec![257; N / 4]);
    assert_eq!(soon(|| ids(&llama().sound(), &text)).len(), 1 + N / 2);
    assert_eq!(soon(|| ids(&bert().sound(), &text)), [0], "no token goes on with a");
    assert_eq!(soon(|| ids(&t5().sound(), &text)), [2], "unknown characters in a row are one token");
    let blanks = format!("{0}b{0}\n", " \t\u{3000}".repeat(N / 4));
    for pre in ["llama-bpe", "jais-2", "deepseek-llm", "tiny_aya", "superbpe", "chameleon", "exaone-moe"] {
        let tokenizer = gpt2().with(PRE, pre.into()).sound();
        assert_eq!(tokenizer.decode(&soon(|| ids(&tokenizer, &blanks)), Specials::Parse), blanks.as_bytes(), "{pre}");
        let digits = "1".repeat(N);
        assert_eq!(soon(|| ids(&tokenizer, &digits)).len(), N, "{pre}");
    }
}

#[test]
fn many_special_tokens_take_no_quadratic_time() {
    let mut tokens = alphabet();
    tokens.extend((0..20_000).map(|n| format!("<extra_{n}>")));
    let types = (0..tokens.len()).map(|id| if id < 256 { 1 } else { CONTROL }).collect();
    let tokenizer = Vocab::of("gpt2", &tokens)
        .with(PRE, "gpt-2".into())
        .with(MERGES, strings::<&str>(&[]))
        .with(TYPES, Value::Array(Array::I32(types)))
        .sound();
    let text = "no <extra_x> here ".repeat(50_000) + "<extra_77>";
    let found = soon(|| ids(&tokenizer, &text));
    assert_eq!((found.len(), found.last()), (50_000 * 18 + 1, Some(&(256 + 77))));
}

/// A finder's fastest form takes quadratic time to build for such a token: an hour for a megabyte.
#[test]
fn one_long_special_token_takes_no_quadratic_time() {
    const N: usize = 1 << 20;
    let with = |special: &[String]| {
        let mut tokens = alphabet();
        tokens.extend_from_slice(special);
        let types = (0..tokens.len()).map(|id| if id < 256 { 1 } else { CONTROL }).collect();
        let vocab = Vocab::of("gpt2", &tokens).with(PRE, "gpt-2".into()).with(MERGES, strings::<&str>(&[]));
        vocab.with(TYPES, Value::Array(Array::I32(types)))
    };
    let long = "a".repeat(N);
    let tokenizer = soon(|| with(std::slice::from_ref(&long)).sound());
    assert_eq!(soon(|| ids(&tokenizer, &format!("{long}{long}"))), [256, 256]);
    assert_eq!(soon(|| ids(&tokenizer, &long[1..])).len(), N - 1);
    // Tokens within each other, up to the limit: each place of the longest ends a thousand of the others.
    let mut nested: Vec<String> = (1..1500).map(|n| "a".repeat(n)).collect();
    nested.push("a".repeat(3 * N - N / 4));
    let tokenizer = soon(|| with(&nested).sound());
    assert_eq!(soon(|| ids(&tokenizer, &"a".repeat(1499 * 3 + 7))), [256 + 1498, 256 + 1498, 256 + 1498, 256 + 6]);
    // Many different ones, which were once looked for one by one.
    let many: Vec<String> = (0..30_000).map(|n| format!("<{n}{}>", "x".repeat(100))).collect();
    let tokenizer = soon(|| with(&many).sound());
    let text = format!("{}{}", "<1x> ".repeat(200_000), many[29_999]);
    assert_eq!(soon(|| ids(&tokenizer, &text)).last(), Some(&(256 + 29_999)));
    let error = with(&["a".repeat(4 * N + 1)]).read().err().expect("too many bytes");
    assert!(matches!(error, Error::Limit { .. }), "{error}");
}

#[test]
fn text_comes_back_from_vocabularies_that_have_every_byte() {
    let mut random = Paint::new(7);
    let tokenizers = [gpt2().sound(), gpt2().with(PRE, "qwen2".into()).sound(), llama().sound()];
    for _ in 0..400 {
        let n = random.next() % 60;
        let mut text = String::new();
        for _ in 0..n {
            let r = random.next();
            let any = char::from_u32((r >> 8) as u32 % 0x11_0000).filter(|c| *c != '\u{2581}');
            match r % 4 {
                0 => text.extend(any),
                1 => text.push(*[' ', '\n', '\t', '1', '\'', '.'].get((r >> 8) as usize % 6).expect("one of six")),
                _ => text.push(*['a', 'a', 'b', 'é'].get((r >> 8) as usize % 4).expect("one of four")),
            }
        }
        for tokenizer in &tokenizers {
            let ids = tokenizer.encode(&text, Specials::Literal, Ends::Omit);
            assert_eq!(String::from_utf8_lossy(&tokenizer.decode(&ids, Specials::Literal)), text);
        }
    }
}

#[test]
fn random_vocabularies_and_texts_do_no_harm() {
    let mut random = Paint::new(3);
    let parts = ["a", "b", "▁", "Ġ", "<", ">", "0x", "41", "\n", "é", "<s>", " ", "中", "\u{301}", "unused", "aa"];
    let word = |random: &mut Paint, n: u64| -> Vec<u8> {
        let mut text = Vec::new();
        for _ in 0..random.next() % n {
            match random.next() % 20 {
                0 => text.push(random.next() as u8),
                r => text.extend(parts[(r as usize + random.next() as usize) % parts.len()].as_bytes()),
            }
        }
        text
    };
    let mut n_sound = 0;
    for round in 0..600 {
        let model = ["gpt2", "gemma4", "llama", "bert", "t5"][round % 5];
        let tokens: Vec<Vec<u8>> = (0..1 + random.next() % 40).map(|_| word(&mut random, 6)).collect();
        let merges: Vec<Vec<u8>> =
            (0..random.next() % 30).map(|_| [word(&mut random, 4), b" ".to_vec(), word(&mut random, 4)].concat()).collect();
        let merges: Vec<Vec<u8>> = merges.into_iter().filter(|_| !random.next().is_multiple_of(8)).collect();
        let types = tokens.iter().map(|_| (random.next() % 7) as i32).collect();
        let scores = tokens.iter().map(|_| (random.uniform() * 8.0 - 4.0).round() as f32).collect();
        let pre = ["gpt-2", "llama-bpe", "deepseek-v3", "gemma4", "whitespace", "kimi-k2"][random.next() as usize % 6];
        let vocab = Vocab::of(model, &tokens)
            .with(PRE, pre.into())
            .with(MERGES, strings(&merges))
            .with(TYPES, Value::Array(Array::I32(types)))
            .with(SCORES, Value::Array(Array::F32(scores)))
            .with("tokenizer.ggml.add_space_prefix", Value::Bool(random.next().is_multiple_of(2)))
            .with("tokenizer.ggml.remove_extra_whitespaces", Value::Bool(random.next().is_multiple_of(2)))
            .with("tokenizer.ggml.add_eos_token", Value::Bool(random.next().is_multiple_of(2)));
        let Ok(tokenizer) = vocab.read() else { continue };
        n_sound += 1;
        for _ in 0..5 {
            let text = String::from_utf8_lossy(&word(&mut random, 40)).into_owned();
            for specials in [Specials::Parse, Specials::Literal] {
                let ids = tokenizer.encode(&text, specials, Ends::Add);
                assert!(ids.iter().all(|id| *id < tokenizer.n_tokens()));
                tokenizer.decode(&ids, specials);
                assert_eq!(ids, tokenizer.encode(&text, specials, Ends::Add));
            }
        }
    }
    assert!(n_sound > 200, "{n_sound} of 600 random vocabularies are sound");
}
