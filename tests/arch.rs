//! Names, shapes, order and metadata of Llama-family models equal what llama.cpp's converter writes.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use ggforge::arch::{self, Facts, MappedTensor, Size};
use ggforge::error::{Error, Fault, Place};
use ggforge::gguf::{Metadata, Value};
use ggforge::hf::{Config, Folder, UnreadableTensor};
use ggforge::quant::Format;
use ggforge::rows::{Origin, RowMap};
use ggforge::source::{SourceTensor, TensorSource};
use serde_json::{Value as Json, json};

/// A value as `fixtures/reference` describes it.
fn described(value: &Value) -> Json {
    match value {
        Value::U32(n) => json!({"type": "UINT32", "value": n}),
        Value::I32(n) => json!({"type": "INT32", "value": n}),
        Value::F32(n) => json!({"type": "FLOAT32", "value": f64::from(*n)}),
        Value::String(text) => json!({"type": "STRING", "value": std::str::from_utf8(text).unwrap()}),
        other => panic!("{other:?} is not among the keys tested here"),
    }
}

fn config(fields: Json) -> Config {
    Config::parse("model/config.json", fields.to_string().as_bytes()).unwrap()
}

/// Llama-3-8B's own config.json, as far as it matters.
fn llama_3_8b() -> Json {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": false
    })
}

fn with(mut fields: Json, changes: Json) -> Json {
    fields.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    fields
}

fn tensor(name: &str, shape: &[u64]) -> SourceTensor {
    let size_bytes = Format::BF16.tensor_bytes(shape).unwrap();
    SourceTensor { name: name.to_owned(), format: Format::BF16, shape: shape.to_vec(), file: 0, offset_bytes: 0, size_bytes }
}

/// The tensors of a Llama model of this shape, by name.
fn llama_tensors(n_layer: u64, n_embd: u64, n_ff: u64, n_kv: u64, n_vocab: u64) -> Vec<SourceTensor> {
    let mut tensors = vec![
        tensor("lm_head.weight", &[n_vocab, n_embd]),
        tensor("model.embed_tokens.weight", &[n_vocab, n_embd]),
        tensor("model.norm.weight", &[n_embd]),
    ];
    for i in 0..n_layer {
        for (name, shape) in [
            ("input_layernorm", &[n_embd][..]),
            ("mlp.down_proj", &[n_embd, n_ff]),
            ("mlp.gate_proj", &[n_ff, n_embd]),
            ("mlp.up_proj", &[n_ff, n_embd]),
            ("post_attention_layernorm", &[n_embd]),
            ("self_attn.k_proj", &[n_kv, n_embd]),
            ("self_attn.o_proj", &[n_embd, n_embd]),
            ("self_attn.q_proj", &[n_embd, n_embd]),
            ("self_attn.v_proj", &[n_kv, n_embd]),
        ] {
            tensors.push(tensor(&format!("model.layers.{i}.{name}.weight"), shape));
        }
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors
}

fn small_config() -> Json {
    with(
        llama_3_8b(),
        json!({"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
               "num_key_value_heads": 2, "vocab_size": 10}),
    )
}

fn small_tensors() -> Vec<SourceTensor> {
    llama_tensors(2, 16, 24, 8, 10)
}

fn map(fields: Json, tensors: &[SourceTensor]) -> Result<Vec<MappedTensor>, Error> {
    map_with(fields, tensors, &[])
}

fn map_with(fields: Json, tensors: &[SourceTensor], unreadable: &[UnreadableTensor]) -> Result<Vec<MappedTensor>, Error> {
    let config = config(fields);
    let described = arch::find(&config)?.read(&config)?;
    described.notes()?;
    Ok(described.map_tensors(tensors, unreadable, None)?.tensors)
}

#[track_caller]
fn fault(result: Result<impl std::fmt::Debug, Error>) -> (Fault, Place) {
    match result {
        Err(Error::Malformed { fault, place, .. }) => (fault, place),
        other => panic!("expected a fault, found {other:?}"),
    }
}

#[test]
fn four_models_equal_the_converter() {
    for name in ["forge-3m", "forge-23m", "stories260K", "tinystories-656K"] {
        let path = match name {
            "forge-3m" => common::fixture("hf/forge-3m"),
            _ => match common::shared(&format!("models/{name}")) {
                Some(path) => path,
                None => continue,
            },
        };
        let reference = common::json(&common::fixture(&format!("reference/{name}.json")));
        let folder = Folder::open(&path).unwrap();
        let model = arch::find(folder.config()).unwrap().read(folder.config()).unwrap();
        let mapped = model.map_tensors(folder.tensors(), folder.unreadable(), None).unwrap().tensors;

        // JSON objects keep no order here, so the order is compared through the fixture's text.
        let expected: Vec<(String, Vec<u64>)> = tensors_in_order(&reference);
        let fastest_first = |shape: &[u64]| shape.iter().rev().copied().collect::<Vec<u64>>();
        let found: Vec<(String, Vec<u64>)> = mapped.iter().map(|t| (t.name.clone(), fastest_first(&t.shape))).collect();
        assert_eq!(found, expected, "{name}");

        let facts = Facts {
            arch: "llama",
            model_id: &folder.model_id(),
            config: folder.config(),
            card: folder.card(),
            generation: folder.generation_config(),
            size: Size::of(mapped.iter().map(|tensor| (tensor.name.as_str(), &tensor.shape[..]))),
            name: None,
        };
        let mut metadata = arch::general(&facts);
        metadata.extend(model.metadata().unwrap());
        let expected = reference["metadata"].as_object().unwrap();
        for (key, value) in &metadata {
            assert_eq!(Some(&described(value)), expected.get(key), "{name}: {key}");
        }
        // What others add: the plan and the tokenizer.
        let others = ["general.file_type", "general.quantization_version", "tokenizer."];
        let missing = expected.keys().filter(|key| !metadata.iter().any(|(found, _)| found == *key));
        let missing: Vec<&String> = missing.filter(|key| !others.iter().any(|start| key.starts_with(start))).collect();
        assert!(missing.is_empty(), "{name}: {missing:?}");
    }
}

fn tensors_in_order(reference: &Json) -> Vec<(String, Vec<u64>)> {
    let tensors = reference["file_types"]["F32"].as_object().unwrap();
    let dims = |described: &Json| described[1].as_array().unwrap().iter().map(|dim| dim.as_u64().unwrap()).collect();
    tensors.iter().map(|(name, described)| (name.clone(), dims(described))).collect()
}

#[test]
fn llama_3_8b_has_the_tensors_that_llama_cpp_expects() {
    let source = llama_tensors(32, 4096, 14336, 1024, 128_256);
    let mapped = map(llama_3_8b(), &source).unwrap();
    assert_eq!(mapped.len(), 291);
    let mut expected = BTreeSet::from([
        ("token_embd.weight".to_owned(), vec![128_256, 4096]),
        ("output_norm.weight".to_owned(), vec![4096]),
        ("output.weight".to_owned(), vec![128_256, 4096]),
    ]);
    for i in 0..32 {
        for (name, shape) in [
            ("attn_norm", vec![4096]),
            ("attn_q", vec![4096, 4096]),
            ("attn_k", vec![1024, 4096]),
            ("attn_v", vec![1024, 4096]),
            ("attn_output", vec![4096, 4096]),
            ("ffn_norm", vec![4096]),
            ("ffn_gate", vec![14336, 4096]),
            ("ffn_up", vec![14336, 4096]),
            ("ffn_down", vec![4096, 14336]),
        ] {
            expected.insert((format!("blk.{i}.{name}.weight"), shape));
        }
    }
    assert_eq!(mapped.iter().map(|t| (t.name.clone(), t.shape.clone())).collect::<BTreeSet<_>>(), expected);

    for tensor in &mapped {
        let Origin::Parts(parts) = &tensor.origin else { panic!("{} is computed", tensor.name) };
        let expected = match tensor.name.rsplit('.').nth(1).unwrap() {
            "attn_q" => RowMap::RopeHeads { n_head: 32 },
            "attn_k" => RowMap::RopeHeads { n_head: 8 },
            _ => RowMap::Range { first: 0 },
        };
        assert!(parts.len() == 1 && parts[0].rows == expected, "{}", tensor.name);
        assert_eq!(source[parts[0].tensor].shape, tensor.shape);
    }
    // The order is the source's: layer 10 comes before layer 2.
    let indices = mapped.iter().map(|t| t.origin.tensors().next().unwrap_or(0));
    assert!(indices.is_sorted());
}

#[test]
fn every_fault_of_the_tensors_is_named() {
    let layer = "model.layers.1.mlp.up_proj.weight";
    let mut tensors = small_tensors();
    assert_eq!(map(small_config(), &tensors).unwrap().len(), tensors.len());

    tensors.retain(|tensor| tensor.name != layer);
    assert_eq!(fault(map(small_config(), &tensors)), (Fault::MissingTensor, Place::Tensor(layer.into())));

    tensors.push(tensor(layer, &[24, 15]));
    assert_eq!(fault(map(small_config(), &tensors)), (Fault::ShapeMismatch, Place::Tensor(layer.into())));

    for extra in ["model.layers.2.input_layernorm.weight", "model.layers.01.mlp.up_proj.weight", "../../etc/passwd", "adapter.a"] {
        let mut tensors = small_tensors();
        tensors.push(tensor(extra, &[16]));
        assert_eq!(fault(map(small_config(), &tensors)), (Fault::UnmappedTensor, Place::Tensor(extra.into())));
    }

    let mut tensors = small_tensors();
    tensors.push(tensor("model.layers.0.self_attn.rotary_emb.inv_freq", &[2]));
    assert_eq!(map(small_config(), &tensors).unwrap().len(), tensors.len() - 1, "inv_freq is left out");

    let mut tensors = small_tensors();
    tensors[0].shape[0] = 0;
    assert_eq!(fault(map(small_config(), &tensors)).0, Fault::ShapeMismatch, "a dimension of zero");
}

#[test]
fn a_tensor_in_a_type_that_is_not_converted_is_refused_when_the_model_needs_it() {
    let map_with = |tensors: &[SourceTensor], unreadable: &[UnreadableTensor]| map_with(small_config(), tensors, unreadable);
    let unreadable = |name: &str| vec![UnreadableTensor { name: name.to_owned(), dtype: "F8_E4M3" }];
    let needed = "model.norm.weight";
    let tensors: Vec<SourceTensor> = small_tensors().into_iter().filter(|tensor| tensor.name != needed).collect();
    let error = map_with(&tensors, &unreadable(needed)).unwrap_err().to_string();
    assert!(error.contains("model.norm.weight is stored as F8_E4M3"), "{error}");
    assert!(map_with(&small_tensors(), &unreadable("model.layers.0.self_attn.rotary_emb.inv_freq")).is_ok());
    let extra = map_with(&small_tensors(), &unreadable("x"));
    assert_eq!(fault(extra), (Fault::UnmappedTensor, Place::Tensor("x".into())));

    let mut tensors = small_tensors();
    tensors[0].format = Format::I8;
    let error = map_with(&tensors, &[]).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains("I8")), "{error}");
}

#[test]
fn the_head_may_be_tied() {
    let without = |name: &str| small_tensors().into_iter().filter(|tensor| tensor.name != name).collect::<Vec<_>>();
    let tied = with(small_config(), json!({"tie_word_embeddings": true}));
    let names = |mapped: Vec<MappedTensor>| mapped.into_iter().map(|tensor| tensor.name).collect::<Vec<_>>();

    let found = names(map(tied.clone(), &without("lm_head.weight")).unwrap());
    assert!(found.contains(&"token_embd.weight".to_owned()) && !found.contains(&"output.weight".to_owned()));
    // Saved with the head's copy only: that one matrix is the embedding.
    let found = names(map(tied.clone(), &without("model.embed_tokens.weight")).unwrap());
    assert!(found.contains(&"token_embd.weight".to_owned()) && !found.contains(&"output.weight".to_owned()));
    // Both are there: both are kept, as the converter does.
    assert!(names(map(tied, &small_tensors()).unwrap()).contains(&"output.weight".to_owned()));

    let missing = fault(map(small_config(), &without("lm_head.weight")));
    assert_eq!(missing, (Fault::MissingTensor, Place::Tensor("lm_head.weight".into())));
    let missing = fault(map(small_config(), &without("model.embed_tokens.weight")));
    assert_eq!(missing, (Fault::MissingTensor, Place::Tensor("model.embed_tokens.weight".into())));
}

#[test]
fn biases_are_permuted_like_their_weights() {
    let mut tensors = small_tensors();
    for i in 0..2 {
        for (name, len) in [("q_proj", 16), ("k_proj", 8), ("v_proj", 8), ("o_proj", 16)] {
            tensors.push(tensor(&format!("model.layers.{i}.self_attn.{name}.bias"), &[len]));
        }
        for (name, len) in [("gate_proj", 24), ("up_proj", 24), ("down_proj", 16)] {
            tensors.push(tensor(&format!("model.layers.{i}.mlp.{name}.bias"), &[len]));
        }
    }
    let mapped = map(small_config(), &tensors).unwrap();
    let rows_of = |name: &str| match mapped.iter().find(|tensor| tensor.name == name).map(|tensor| &tensor.origin) {
        Some(Origin::Parts(parts)) => parts[0].rows,
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(rows_of("blk.1.attn_q.bias"), RowMap::RopeHeads { n_head: 4 });
    assert_eq!(rows_of("blk.1.attn_k.bias"), RowMap::RopeHeads { n_head: 2 });
    for name in ["attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
        assert_eq!(rows_of(&format!("blk.0.{name}.bias")), RowMap::Range { first: 0 });
    }
    // The flags make them obligatory.
    for (flag, first) in [("attention_bias", "self_attn.q_proj"), ("mlp_bias", "mlp.gate_proj")] {
        let missing = fault(map(with(small_config(), json!({flag: true})), &small_tensors()));
        assert_eq!(missing, (Fault::MissingTensor, Place::Tensor(format!("model.layers.0.{first}.bias"))));
    }
}

#[test]
fn llama_3_scaling_becomes_a_tensor() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192});
    let mapped = map(with(small_config(), json!({"rope_scaling": scaling})), &small_tensors()).unwrap();
    assert_eq!((mapped[0].name.as_str(), &mapped[0].shape[..]), ("rope_freqs.weight", &[2][..]));
    let Origin::Computed(factors) = &mapped[0].origin else { panic!("{:?}", mapped[0].origin) };
    assert!(factors[0] == 1.0 && factors[1] > 1.0 && factors[1] < 8.0, "a short wave is kept, a middling one blended: {factors:?}");
    assert_eq!(mapped[1].name, "output.weight", "the source's tensors follow in their order");
}

fn metadata(fields: Json) -> Metadata {
    let config = config(fields);
    arch::find(&config).unwrap().read(&config).unwrap().metadata().unwrap()
}

fn rope_keys(fields: Json) -> Vec<(String, Value)> {
    metadata(fields).into_iter().filter(|(key, _)| key.contains(".rope.")).collect()
}

#[test]
fn both_spellings_of_rope_give_the_same_keys() {
    let key = |suffix: &str| format!("llama.rope.{suffix}");
    let base = (key("freq_base"), Value::F32(500_000.0));
    let dimensions = (key("dimension_count"), Value::U32(4));
    let linear = |theta: bool| {
        let mut section = json!({"rope_type": "linear", "factor": 2.5});
        if theta {
            section["rope_theta"] = json!(500_000.0);
        }
        section
    };
    let expected = vec![
        (key("scaling.type"), Value::from("linear")),
        (key("scaling.factor"), Value::F32(2.5)),
        base.clone(),
        dimensions.clone(),
    ];
    assert_eq!(rope_keys(with(small_config(), json!({"rope_scaling": linear(false)}))), expected);
    let old_type = json!({"rope_scaling": {"type": "linear", "factor": 2.5}});
    assert_eq!(rope_keys(with(small_config(), old_type)), expected);
    assert_eq!(rope_keys(with(small_config(), json!({"rope_theta": null, "rope_parameters": linear(true)}))), expected);
    let by_layer = json!({"rope_theta": null, "rope_parameters": {"full_attention": linear(true)}});
    assert_eq!(rope_keys(with(small_config(), by_layer)), expected);

    let yarn = json!({"rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 2048,
                                       "attention_factor": 0.5, "beta_fast": 32, "beta_slow": 1}});
    let expected = vec![
        (key("scaling.type"), Value::from("yarn")),
        (key("scaling.factor"), Value::F32(4.0)),
        (key("scaling.original_context_length"), Value::U32(2048)),
        // Readers multiply it with YaRN's own factor.
        (key("scaling.attn_factor"), Value::F32((0.5 / (1.0 + 0.1 * 4.0_f64.ln())) as f32)),
        (key("scaling.yarn_beta_fast"), Value::F32(32.0)),
        (key("scaling.yarn_beta_slow"), Value::F32(1.0)),
        base.clone(),
        dimensions.clone(),
    ];
    assert_eq!(rope_keys(with(small_config(), yarn)), expected);

    for without_keys in [json!({"rope_scaling": null}), json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2}})] {
        assert_eq!(rope_keys(with(small_config(), without_keys)), [base.clone(), dimensions.clone()]);
    }
}

#[test]
fn what_config_json_leaves_out_is_what_the_model_class_assumes() {
    let value = |metadata: &Metadata, suffix: &str| {
        let key = format!("llama.{suffix}");
        metadata.iter().find(|(found, _)| *found == key).map(|(_, value)| value.clone())
    };
    let mut fields = small_config();
    for field in ["num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta"] {
        fields.as_object_mut().unwrap().remove(field);
    }
    let llama = metadata(fields.clone());
    assert_eq!(value(&llama, "attention.head_count_kv"), Some(Value::U32(4)));
    assert_eq!(value(&llama, "context_length"), Some(Value::U32(2048)));
    assert_eq!(value(&llama, "attention.layer_norm_rms_epsilon"), Some(Value::F32(1e-6)));
    assert_eq!(value(&llama, "rope.freq_base"), Some(Value::F32(10_000.0)));
    assert_eq!(value(&llama, "attention.key_length"), Some(Value::U32(4)));

    let mistral = with(fields, json!({"architectures": ["MistralForCausalLM"], "num_attention_heads": 16, "hidden_size": 64}));
    let keys = metadata(mistral.clone());
    assert_eq!(value(&keys, "attention.head_count_kv"), Some(Value::U32(8)));
    assert_eq!(value(&keys, "context_length"), Some(Value::U32(131_072)));
    assert_eq!(value(&keys, "attention.key_length"), None);
    assert_eq!(value(&keys, "rope.dimension_count"), Some(Value::U32(4)));
    let keys = metadata(with(mistral, json!({"head_dim": 8, "num_key_value_heads": null})));
    assert_eq!(value(&keys, "attention.value_length"), Some(Value::U32(8)));
    assert_eq!(value(&keys, "attention.head_count_kv"), Some(Value::U32(16)));
}

#[test]
fn hyperparameters_outside_their_range_are_refused_by_field() {
    let cases = [
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(600)),
        ("num_hidden_layers", json!(4_294_967_295_u64)),
        ("num_attention_heads", json!(0)),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(18)),
        ("num_key_value_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(8)),
        ("intermediate_size", json!(0)),
        ("max_position_embeddings", json!(0)),
        ("vocab_size", json!(0)),
        ("vocab_size", json!(1_000_000_000)),
        ("head_dim", json!(0)),
        ("head_dim", json!(3)),
        ("head_dim", json!(2_147_483_648_u64)),
        ("rms_norm_eps", json!(-1e-5)),
        ("rms_norm_eps", json!(2)),
        ("rope_theta", json!(0)),
        ("rope_theta", json!(-1)),
    ];
    for (field, value) in cases {
        let result = map(with(small_config(), json!({field: value})), &small_tensors());
        assert_eq!(fault(result), (Fault::HparamRange, Place::Field(field.into())), "{field} = {value}");
    }
    let scaling = |changes: Json| with(json!({"rope_type": "llama3", "factor": 8}), changes);
    for (field, value) in
        [("factor", 0.0), ("low_freq_factor", 0.0), ("high_freq_factor", 1.0), ("original_max_position_embeddings", -1.0)]
    {
        let result = map(with(small_config(), json!({"rope_scaling": scaling(json!({field: value}))})), &small_tensors());
        assert_eq!(fault(result), (Fault::HparamRange, Place::Field(format!("rope_scaling.{field}"))));
    }
}

#[test]
fn what_is_not_supported_is_named_with_what_is() {
    let unsupported = |changes: Json| match map(with(small_config(), changes), &small_tensors()) {
        Err(Error::Unsupported { what, hint }) => format!("{what}; {hint}"),
        other => panic!("{other:?}"),
    };
    let text = unsupported(json!({"architectures": ["Qwen9ForCausalLM"]}));
    assert!(
        text.contains("Qwen9ForCausalLM") && text.contains("LlamaForCausalLM") && text.contains("MistralForCausalLM"),
        "{text}"
    );
    let text = unsupported(json!({"rope_scaling": {"rope_type": "su", "long_factor": [1, 1], "short_factor": [1, 1]}}));
    assert!(text.contains("su") && text.contains("yarn"), "{text}");
    for classes in [json!(null), json!([]), json!("LlamaForCausalLM"), json!([1])] {
        let result = map(with(small_config(), json!({"architectures": classes})), &small_tensors());
        assert_eq!(fault(result), (Fault::ConfigField, Place::Field("architectures".into())));
    }
}

/// Every config.json of the shared data: Llama-family ones give keys, others a typed refusal, none a panic.
#[test]
fn real_config_files_are_read_or_refused_by_class() {
    let Some(folder) = common::shared("configs") else { return };
    let (mut n_read, mut n_refused) = (0, 0);
    for publisher in std::fs::read_dir(folder).unwrap() {
        for file in std::fs::read_dir(publisher.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if !path.to_str().unwrap().ends_with("config.json") || path.to_str().unwrap().contains("tokenizer") {
                continue;
            }
            match read_one(&path) {
                Ok(metadata) => {
                    n_read += 1;
                    assert!(metadata.iter().any(|(key, _)| key.ends_with(".block_count")), "{}", path.display());
                }
                Err(Error::Unsupported { .. } | Error::Malformed { fault: Fault::ConfigField, .. }) => n_refused += 1,
                // `Infinity`, which Python writes and JSON does not have.
                Err(Error::Malformed { fault: Fault::Json, .. }) if path.to_str().unwrap().contains("Nemotron-H") => n_refused += 1,
                Err(other) => panic!("{}: {other}", path.display()),
            }
        }
    }
    assert!(n_read >= 5 && n_refused >= 20, "{n_read} read, {n_refused} refused");
}

fn read_one(path: &Path) -> Result<Metadata, Error> {
    let config = Config::parse(path, &std::fs::read(path).unwrap())?;
    let described = arch::find(&config)?.read(&config)?;
    described.notes()?;
    described.metadata()
}

#[test]
fn real_llama_3_1_8b_gives_the_keys_of_the_converter() {
    let Some(path) = common::shared("configs/aiconfigurator/meta-llama--Meta-Llama-3.1-8B.config.json") else { return };
    let found: Vec<(String, Json)> =
        read_one(&path).unwrap().iter().map(|(key, value)| (key.clone(), described(value)["value"].clone())).collect();
    let expected = [
        ("llama.block_count", json!(32)),
        ("llama.context_length", json!(131_072)),
        ("llama.embedding_length", json!(4096)),
        ("llama.feed_forward_length", json!(14336)),
        ("llama.attention.head_count", json!(32)),
        ("llama.attention.head_count_kv", json!(8)),
        ("llama.rope.freq_base", json!(500_000.0)),
        ("llama.attention.layer_norm_rms_epsilon", json!(f64::from(1e-5_f32))),
        ("llama.attention.key_length", json!(128)),
        ("llama.attention.value_length", json!(128)),
        ("llama.vocab_size", json!(128_256)),
        ("llama.rope.dimension_count", json!(128)),
    ];
    assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), value)));
}
