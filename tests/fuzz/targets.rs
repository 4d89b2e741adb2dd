//! What is fuzzed.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;

use ggforge::error::is_harmless;
use ggforge::gguf::{Array, File, Header, Metadata, Model, TensorSpec, Value};
use ggforge::hf::{Config, Folder, safetensors};
use ggforge::imatrix::{Entry, Imatrix, Unit};
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Cpu, Generation, Network, Residency, Sampler, Sampling};
use ggforge::quant::Format;
use ggforge::simd::Level;
use ggforge::source::TensorSource as _;
use ggforge::tokenizer::encode::{Ends, Specials, Tokenizer};
use ggforge::tokenizer::proof::Question;
use ggforge::{Error, Result, arch, tokenizer};
use serde_json::json;

use crate::chat::{bounds, tags};
use crate::common::files::FileMap;
use crate::common::mutate::{below, mutated, one_of, text};
use crate::common::tiny::Tiny;
use crate::common::{self, Paint};
use crate::{Bound, Outcome, fuzz};

/// An outcome whose message can be printed.
fn outcome<T>(n_bytes: usize, result: Result<T>) -> Outcome {
    if let Err(error) = &result {
        let text = error.to_string();
        assert!(text.chars().all(|c| is_harmless(c) || c == '\n'), "a message that could harm a terminal: {text:?}");
        assert!(!matches!(error, Error::Internal(_)), "{text}");
    }
    Outcome { n_bytes, is_accepted: result.is_ok() }
}

/// Writes a file anew. Some file systems wait for the disk where a file is cut to nothing and written again.
fn replace(path: &Path, bytes: &[u8]) {
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).expect("a temporary file");
}

fn strings(texts: &[String]) -> Value {
    Value::Array(Array::String(texts.iter().map(|text| text.clone().into_bytes()).collect()))
}

/// A header with every kind of value.
fn container() -> Vec<u8> {
    let metadata: Metadata = vec![
        ("general.architecture".into(), "llama".into()),
        ("general.alignment".into(), Value::U32(32)),
        ("a.u8".into(), Value::U8(1)),
        ("a.i64".into(), Value::I64(-1)),
        ("a.f64".into(), Value::F64(0.5)),
        ("a.bool".into(), Value::Bool(true)),
        ("a.words".into(), strings(&["x".into(), "yy".into(), String::new()])),
        ("a.numbers".into(), Value::Array(Array::U32(vec![1, 2, 3]))),
    ];
    let spec = |name: &str, format, shape: &[u64]| TensorSpec { name: name.into(), format, shape: shape.to_vec() };
    let tensors = vec![spec("token_embd.weight", Format::Q4_K, &[2, 256]), spec("blk.0.attn_q.weight", Format::F16, &[3, 5])];
    let layout = Header { metadata, tensors }.layout().expect("a sound header");
    let mut bytes = layout.header;
    bytes.resize(layout.file_bytes as usize, 0x11);
    bytes
}

#[test]
fn gguf() {
    let sound = container();
    fuzz("gguf", &Bound { per_byte: 4, base: 1 << 20 }, |random| {
        let bytes = mutated(&sound, 400, random);
        let read = File::parse("case.gguf", &bytes).map(|file| {
            for tensor in file.tensors() {
                assert!(tensor.n_weights() == 0 || file.tensor_bytes(&tensor).is_some() || !tensor.format.can_dequantize());
            }
            file.metadata().count()
        });
        outcome(bytes.len(), read)
    });
}

#[test]
fn safetensors_headers() {
    let sound = br#"{"__metadata__":{"format":"pt"},"a.weight":{"dtype":"BF16","shape":[2,5],"data_offsets":[0,20]},"b":{"dtype":"F32","shape":[],"data_offsets":[20,24]}}  "#;
    fuzz("safetensors", &Bound { per_byte: 40, base: 1 << 20 }, |random| {
        let bytes = mutated(sound, sound.len(), random);
        outcome(bytes.len(), safetensors::parse(Path::new("model.safetensors"), &bytes, 24))
    });
}

#[test]
fn configs() {
    let configs = [
        json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
            "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 64, "hidden_act": "silu",
            "max_position_embeddings": 2048, "rope_theta": 10000.0, "tie_word_embeddings": true,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 1024}}),
        json!({"architectures": ["Gemma3ForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16,
            "num_hidden_layers": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "vocab_size": 64, "sliding_window": 8,
            "sliding_window_pattern": 6, "query_pre_attn_scalar": 16, "max_position_embeddings": 64, "rope_local_base_freq": 10000.0,
            "hidden_activation": "gelu_pytorch_tanh", "layer_types": ["sliding_attention", "full_attention"]}),
        json!({"architectures": ["Phi3ForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
            "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 64, "sliding_window": 2047,
            "max_position_embeddings": 64, "original_max_position_embeddings": 16,
            "rope_scaling": {"type": "longrope", "long_factor": [1.0, 2.0], "short_factor": [1.0, 1.0]}}),
        json!({"architectures": ["Qwen2_5_VLForConditionalGeneration"], "text_config": {"hidden_size": 64, "intermediate_size": 128,
            "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 64,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}}),
    ];
    let configs = configs.map(|config| config.to_string().into_bytes());
    // The hyperparameters of every layer, of which a config.json can claim 512.
    fuzz("configs", &Bound { per_byte: 64, base: 8 << 20 }, |random| {
        let sound = one_of(random, &configs);
        let bytes = mutated(sound, sound.len(), random);
        let read = Config::parse("config.json", &bytes).and_then(|config| arch::find(&config)?.read(&config).map(drop));
        outcome(bytes.len(), read)
    });
}

/// A folder of two shards, one of whose files is changed, up to where its tensors get their names.
#[test]
fn folders() {
    let scratch = common::scratch();
    let header = |name: &str| {
        let text = format!(r#"{{"{name}":{{"dtype":"F16","shape":[2,4],"data_offsets":[0,16]}}}} "#);
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &[0x11; 16]].concat()
    };
    let [first, second] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let map = json!({"model.embed_tokens.weight": first, "model.layers.0.self_attn.q_proj.weight": second});
    let config = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 4, "intermediate_size": 8, "num_attention_heads": 2,
        "num_hidden_layers": 1, "rms_norm_eps": 1e-5, "vocab_size": 2, "max_position_embeddings": 16});
    let files: [(&str, Vec<u8>); 5] = [
        ("config.json", config.to_string().into_bytes()),
        ("generation_config.json", json!({"top_k": 5, "temperature": 0.5}).to_string().into_bytes()),
        ("model.safetensors.index.json", json!({"metadata": {"total_size": 32}, "weight_map": map}).to_string().into_bytes()),
        (first, header("model.embed_tokens.weight")),
        (second, header("model.layers.0.self_attn.q_proj.weight")),
    ];
    let write = |name: &str, bytes: &[u8]| replace(&scratch.path().join(name), bytes);
    files.iter().for_each(|(name, bytes)| write(name, bytes));
    fuzz("folders", &Bound { per_byte: 64, base: 1 << 20 }, |random| {
        let (name, sound) = one_of(random, &files);
        let bytes = mutated(sound, sound.len(), random);
        write(name, &bytes);
        let read = Folder::open(scratch.path()).map(|folder| {
            // The tensors are no whole model: any error is right.
            drop(arch::find(folder.config()).and_then(|found| {
                let described = found.read(folder.config())?;
                described.map_tensors(folder.tensors(), folder.unreadable(), None)
            }));
        });
        write(name, sound);
        outcome(bytes.len() + 1024, read)
    });
}

/// A small byte-level tokenizer, and one of SentencePiece's.
fn tokenizer_files() -> [FileMap; 2] {
    let split = json!({"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}| ?\\p{L}+|\\s+(?!\\S)"}, "behavior": "Isolated", "invert": false});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
    let added = json!([{"id": 6, "content": "<s>", "special": true, "lstrip": true, "rstrip": false, "single_word": false, "normalized": false}]);
    let tokenizer = json!({"added_tokens": added, "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "abab": 3, "Ġ": 4, "Ġa": 5}, "merges": ["a b", ["ab", "ab"], "Ġ a"]}});
    let config =
        json!({"bos_token": "<s>", "add_bos_token": true, "eos_token": {"content": "<s>"}, "chat_template": "{{ messages }}"});
    let of_json =
        FileMap::default().with("tokenizer.json", tokenizer.to_string()).with("tokenizer_config.json", config.to_string());
    let mut pieces = Vec::new();
    let pieces_of_model: [(&str, f32, u8); 6] =
        [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("▁", -1.0, 1), ("▁a", -1.5, 1), ("<0x41>", 0.0, 6)];
    for (piece, score, kind) in pieces_of_model {
        let mut message = vec![0x0a, piece.len() as u8];
        message.extend_from_slice(piece.as_bytes());
        message.push(0x15);
        message.extend_from_slice(&score.to_le_bytes());
        message.extend_from_slice(&[0x18, kind]);
        pieces.extend_from_slice(&[0x0a, message.len() as u8]);
        pieces.extend_from_slice(&message);
    }
    [of_json, FileMap::default().with("tokenizer.model", pieces)]
}

#[test]
fn tokenizer_folders() {
    let files = tokenizer_files();
    fuzz("tokenizer folders", &Bound { per_byte: 64, base: 32 << 20 }, |random| {
        let mut files = one_of(random, &files).clone();
        let names: Vec<String> = files.0.keys().cloned().collect();
        let name = one_of(random, &names);
        let sound = files.0[name].clone();
        files.0.insert(name.clone(), mutated(&sound, sound.len(), random));
        let n_bytes = files.0.values().map(Vec::len).sum();
        outcome(n_bytes, tokenizer::read(&files, 7, tokenizer::Options::default()))
    });
}

/// Metadata of a vocabulary of each kind.
fn vocabularies() -> Vec<Vec<u8>> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let mut of_bytes: Vec<String> = (0x21..0x7fu8).map(|byte| char::from(byte).to_string()).collect();
    of_bytes.extend(["Ġ", "Ċ", "aa", "aaaa", "Ġa", "<s>"].map(str::to_owned));
    let n = of_bytes.len();
    let types = |n: usize, last: i32| Value::Array(Array::I32([vec![1; n - 1], vec![last]].concat()));
    let scores = |n: usize| Value::Array(Array::F32((0..n).map(|id| -(id as f32)).collect()));
    let merges = ["a a", "aa aa", "Ġ a"].map(str::to_owned);
    let mut pieces: Vec<String> = ["<unk>", "▁", "a", "aa", "▁a", "b", "<s>"].map(str::to_owned).to_vec();
    let vocabulary = |model: &str, more: Vec<(String, Value)>| {
        let mut metadata: Metadata = vec![("general.architecture".into(), "llama".into()), (key("model"), model.into())];
        metadata.extend(more);
        Header { metadata, tensors: Vec::new() }.layout().expect("a sound header").header
    };
    let gpt2 = vocabulary(
        "gpt2",
        vec![
            (key("tokens"), strings(&of_bytes)),
            (key("token_type"), types(n, 3)),
            (key("merges"), strings(&merges)),
            (key("pre"), "llama-bpe".into()),
            (key("bos_token_id"), Value::U32(n as u32 - 1)),
            (key("add_bos_token"), Value::Bool(true)),
        ],
    );
    let of = |pieces: &[String]| {
        vec![
            (key("tokens"), strings(pieces)),
            (key("scores"), scores(pieces.len())),
            (key("token_type"), types(pieces.len(), 4)),
            (key("unknown_token_id"), Value::U32(0)),
            (key("add_space_prefix"), Value::Bool(true)),
        ]
    };
    let (llama, t5) = (vocabulary("llama", of(&pieces)), vocabulary("t5", of(&pieces)));
    pieces[0] = "[UNK]".into();
    vec![gpt2, llama, t5, vocabulary("bert", of(&pieces))]
}

#[test]
fn vocabularies_with_a_text() {
    let sound = vocabularies();
    fuzz("vocabularies", &Bound { per_byte: 64, base: 40 << 20 }, |random| {
        let sound = one_of(random, &sound);
        let (bytes, text) = (mutated(sound, sound.len(), random), text(random));
        let n_bytes = bytes.len() + text.len();
        let read = File::parse("case.gguf", &bytes).and_then(|file| Tokenizer::from_metadata(&file)).map(|tokenizer| {
            for specials in [Specials::Parse, Specials::Literal] {
                let ids = tokenizer.encode(&text, specials, Ends::Omit);
                assert!(ids.iter().all(|&id| id < tokenizer.n_tokens()), "an id that no token has");
            }
        });
        outcome(n_bytes, read)
    });
}

/// Templates for one feature each.
fn templates() -> Vec<Vec<u8>> {
    let features = common::json(&common::fixture("chat/features.json"));
    let templates = features["templates"].as_object().expect("templates").values();
    templates.map(|entry| entry["template"].as_str().expect("a template").as_bytes().to_vec()).collect()
}

/// What the program does to a template itself, and to what comes back through the pipe.
#[test]
fn chat_templates_around_their_child() {
    let templates = templates();
    let texts = [bounds::Rendered::Text("a\n\"é".into()), bounds::Rendered::Error("b".into())];
    let answer = serde_json::to_vec(&texts).expect("JSON");
    let files = tokenizer_files();
    let vocabulary = tokenizer::read(&files[0], 7, tokenizer::Options::default()).expect("a sound tokenizer");
    let mut question = Question::read(&files[0], &vocabulary.metadata()).expect("files").expect("a tokenizer.json");
    question.conversations = vec!["a".into(), "é".into()];
    let question = question.to_bytes();
    fuzz("chat templates around their child", &Bound { per_byte: 64, base: 1 << 20 }, |random| {
        let template = one_of(random, &templates);
        let bytes = mutated(template, template.len(), random);
        let text = String::from_utf8_lossy(&bytes);
        let is_accepted = bounds::check(&text).is_ok();
        let rewritten = tags::rewritten(&text);
        assert!(rewritten.len() <= 20 * text.len() + 1024, "a template of {} bytes becomes one of {}", text.len(), rewritten.len());
        let answer = mutated(&answer, answer.len(), random);
        let _ = bounds::texts(&answer);
        let question = mutated(&question, question.len(), random);
        if let Some(read) = Question::from_bytes(&question) {
            assert!(read.to_bytes() == question, "another question");
        }
        Outcome { n_bytes: bytes.len() + answer.len() + 2 * question.len(), is_accepted }
    });
}

/// In a child like that of the program: whatever the template does, there is an answer for each conversation, or one of the limits
/// ended it.
#[test]
fn chat_templates_in_their_child() {
    let templates = templates();
    let conversation = json!({"messages": [{"role": "user", "content": "Why?"}], "tools": null, "bos_token": "<s>"});
    fuzz("chat templates in their child", &Bound { per_byte: 1024, base: 8 << 20 }, |random| {
        let template = one_of(random, &templates);
        let bytes = mutated(template, template.len(), random);
        let template = String::from_utf8_lossy(&bytes);
        let now = "2026-03-05T07:08:09";
        let request = json!({"template": template, "conversations": [conversation, conversation], "now": now}).to_string();
        let limits = [256 << 20, 1, u64::from(std::process::id())].map(|number| number.to_string());
        let mut command = common::ggforge();
        command.arg("--render-chat-template").args(limits).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("a child");
        child.stdin.take().expect("a pipe").write_all(request.as_bytes()).expect("a child that reads");
        let output = child.wait_with_output().expect("an end");
        let is_answered = output.status.success();
        if is_answered {
            assert_eq!(bounds::texts(&output.stdout).map(|texts| texts.len()), Ok(2), "{template}");
        } else {
            // SIGABRT, SIGSEGV, SIGXCPU: memory, stack and time.
            let signal = output.status.signal();
            assert!(matches!(signal, Some(6 | 11 | 24)), "{}: {template}", output.status);
        }
        Outcome { n_bytes: request.len() + output.stdout.len(), is_accepted: is_answered }
    });
}

#[test]
fn importance_matrices() {
    let mut matrix = Imatrix {
        path: Default::default(),
        entries: Default::default(),
        datasets: vec!["text".into()],
        chunk_count: 3,
        chunk_size: 512,
        unit: Unit::Tokens,
    };
    for (name, n_matrices) in [("blk.0.ffn_down.weight", 1), ("blk.0.ffn_up_exps.weight", 3)] {
        let sums = (0..8 * n_matrices).map(|i| i as f32).collect();
        matrix.entries.insert(name.to_owned(), Entry::new(sums, vec![1536; n_matrices]).expect("sound sums"));
    }
    let mut gguf = Vec::new();
    matrix.write_gguf(&mut gguf).expect("a sound matrix");
    let single: Vec<_> =
        matrix.entries.iter().filter(|(name, _)| !name.contains("exps")).map(|(n, e)| (n.clone(), e.clone())).collect();
    matrix.entries = single.into_iter().collect();
    let files = [gguf, matrix.to_dat().expect("a sound matrix")];
    fuzz("importance matrices", &Bound { per_byte: 24, base: 1 << 20 }, |random| {
        let sound = one_of(random, &files);
        let bytes = mutated(sound, 512, random);
        outcome(bytes.len(), Imatrix::parse("case.imatrix", &bytes))
    });
}

#[test]
fn models_with_four_tokens() {
    let scratch = common::scratch();
    let models = ["llama", "qwen2", "gemma2", "gemma3", "gpt2", "phi3"].map(Tiny::new);
    let models: Vec<Vec<u8>> = models
        .iter()
        .chain(&["llama", "qwen2moe", "qwen3moe"].map(Tiny::with_experts))
        .map(|tiny| std::fs::read(tiny.write(scratch.path(), "sound")).expect("a temporary file"))
        .collect();
    let cpu = Cpu::new(Engine::detect(), 1, Activations::F32).expect("a pool of one thread");
    let path = scratch.path().join("case.gguf");
    // Angles, keys and values of four positions, at the largest widths that a header may claim and the tensors bear out.
    fuzz("models", &Bound { per_byte: 64, base: 16 << 20 }, |random| {
        let sound = one_of(random, &models);
        let bytes = mutated(sound, 2048, random);
        replace(&path, &bytes);
        let mut run = || {
            let model = Model::open(&path)?;
            let residency = *one_of(random, &[Residency::Resident, Residency::Streamed]);
            let network = Network::open(&cpu, &model, 8, residency)?;
            let mut generation = Generation::start(&network, &[1, 2], Sampler::new(Sampling::default())?)?;
            (0..4).try_for_each(|_| generation.next_token().map(drop))
        };
        let result = run();
        outcome(bytes.len(), result)
    });
}

#[test]
fn blocks_of_every_format() {
    let formats: Vec<Format> = Format::ALL.iter().copied().filter(|format| format.can_dequantize()).collect();
    let levels: Vec<Level> = Level::available();
    fuzz("blocks", &Bound { per_byte: 64, base: 8 << 20 }, |random| {
        let format = *one_of(random, &formats);
        let n_blocks = 1 + below(random, 3);
        let blocks: Vec<u8> = (0..n_blocks * format.block_bytes()).map(|_| random.next() as u8).collect();
        let weights: Vec<Vec<u32>> = levels
            .iter()
            .map(|&level| {
                let mut weights = vec![0.0; n_blocks * format.block_len()];
                format.dequantize(level, &blocks, &mut weights);
                // One NaN is as good as another.
                weights.iter().map(|w| if w.is_nan() { u32::MAX } else { w.to_bits() }).collect()
            })
            .collect();
        assert!(weights.iter().all(|of_level| *of_level == weights[0]), "{format} at one level is not {format} at another");
        Outcome { n_bytes: blocks.len(), is_accepted: true }
    });
}

#[test]
fn weights_for_every_format() {
    let formats: Vec<Format> = Format::ALL.iter().copied().filter(|f| f.can_quantize() && !f.is_for_activations()).collect();
    let levels: Vec<Level> = Level::available();
    let number = |random: &mut Paint| match below(random, 12) {
        0 => f32::from_bits(random.next() as u32),
        1 => *one_of(random, &[0.0, -0.0, f32::MAX, f32::MIN_POSITIVE, 1e-40, 65504.0, f32::INFINITY, f32::NAN]),
        _ => random.next() as i32 as f32 * 1e-11,
    };
    // The tables of the grids are made once.
    fuzz("weights", &Bound { per_byte: 64, base: 8 << 20 }, |random| {
        let format = *one_of(random, &formats);
        let odd = below(random, 2) == 0;
        let weights: Vec<f32> = (0..256).map(|_| if odd { number(random) } else { random.next() as i32 as f32 * 1e-11 }).collect();
        let importance: Vec<f32> = (0..256).map(|_| (random.next() as u32) as f32 * 1e-8).collect();
        let importance = (format.needs_importance() || below(random, 2) == 0).then_some(&importance[..]);
        let made: Vec<_> = levels
            .iter()
            .map(|&level| {
                let mut blocks = vec![0; format.row_bytes(256).expect("whole blocks") as usize];
                format.quantize_rows(level, &weights, 256, importance, &mut blocks).map(|()| blocks).map_err(|fault| fault.index)
            })
            .collect();
        assert!(made.iter().all(|of_level| *of_level == made[0]), "{format} at one level is not {format} at another");
        if let Ok(blocks) = &made[0] {
            let mut back = vec![0.0; 256];
            format.dequantize(levels[0], blocks, &mut back);
            assert!(
                weights.iter().all(|w| w.is_finite()) && back.iter().all(|w| w.is_finite()),
                "{format}: a NaN or an infinity in a file"
            );
        }
        Outcome { n_bytes: 256 * 4, is_accepted: made[0].is_ok() }
    });
}
