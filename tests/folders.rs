//! Model folders as training tools, savers and fine-tunes leave them: what is meant is converted and said, what cannot be is refused by name.

use std::path::Path;

use ggforge::Error;
use ggforge::gguf::Value;
use ggforge::hf::Folder;
use ggforge::plan::{self, ConvertOptions, Origin, Plan};
use ggforge::source::TensorSource;
use serde_json::{Map, Value as Json, json};

mod common;
use common::checkpoint::{self, Case};

type Tensors = Vec<(String, Vec<u64>, Vec<f32>)>;

fn case(name: &str) -> Case {
    checkpoint::cases().into_iter().find(|case| case.name == name).expect("a fixture of the name")
}

/// Plans the conversion of a case after a change.
fn planned(name: &str, change: impl FnOnce(&mut Map<String, Json>, &mut Tensors)) -> Result<(Plan, Vec<String>), Error> {
    let scratch = common::scratch();
    let (case, folder) = (case(name), scratch.path().join("model"));
    case.write_changed(&case.layouts()[0], &folder, change);
    let folder = plan::open_folder(&folder)?;
    let plan = plan::convert(&folder, &ConvertOptions::default())?;
    let origins = plan.outputs[0].tensors.iter().map(|tensor| origin(&tensor.name, &tensor.origin, &folder)).collect();
    Ok((plan, origins))
}

/// Which bytes of the source a tensor is made of, whatever they are called there.
fn origin(name: &str, origin: &Origin, folder: &Folder) -> String {
    let Origin::Parts(parts) = origin else { return format!("{name}: {origin:?}") };
    let part = |part: &ggforge::rows::Part| {
        let source = &folder.tensors()[part.tensor];
        let mut bytes = vec![0; source.size_bytes as usize];
        folder.files()[source.file].read_exact_at(&mut bytes, source.offset_bytes).unwrap();
        format!("{} rows {:?} {:?} of {}", part.n_rows, part.rows, part.edit, common::described::sha256(&bytes))
    };
    format!("{name}: {}", parts.iter().map(part).collect::<Vec<_>>().join(", "))
}

fn rename(tensors: &mut Tensors, rename: impl Fn(&str) -> String) {
    tensors.iter_mut().for_each(|tensor| tensor.0 = rename(&tensor.0));
}

/// The message of a refusal.
#[track_caller]
fn refusal(result: Result<(Plan, Vec<String>), Error>) -> String {
    match result {
        Err(Error::Unsupported { what, hint }) => format!("{what}; {hint}"),
        other => panic!("{:?}", other.map(|(plan, _)| plan.warnings)),
    }
}

fn key(plan: &Plan, suffix: &str) -> Option<Value> {
    let found = plan.outputs[0].metadata.iter().find(|(key, _)| key.split_once('.').is_some_and(|(_, rest)| rest == suffix));
    found.map(|(_, value)| value.clone())
}

#[test]
fn what_savers_put_before_names_is_taken_off_and_said() {
    let (expected_plan, expected) = planned("llama", |_, _| {}).unwrap();
    assert_eq!(expected_plan.warnings, Vec::<String>::new());
    let before = |prefix: &'static str| move |name: &str| format!("{prefix}{name}");
    type Renaming = Box<dyn Fn(&str) -> String>;
    let renamings: [(&str, Renaming, bool); 7] = [
        ("_orig_mod.model.", Box::new(before("_orig_mod.")), true),
        ("module.model.", Box::new(before("module.")), true),
        ("base_model.model.model.", Box::new(before("base_model.model.")), true),
        ("language_model.model.", Box::new(before("language_model.")), true),
        ("model.language_model.", Box::new(|name| name.replacen("model.", "model.language_model.", 1)), true),
        ("without", Box::new(|name| name.trim_start_matches("model.").to_owned()), true),
        ("", Box::new(str::to_owned), false),
    ];
    for (told, renaming, is_said) in &renamings {
        let (plan, found) = planned("llama", |_, tensors| rename(tensors, renaming)).unwrap();
        assert_eq!(found, expected, "{told}");
        assert_eq!(plan.outputs[0].metadata, expected_plan.outputs[0].metadata, "{told}");
        let is_told = plan.warnings.len() == 1 && plan.warnings[0].contains(told);
        assert!(if *is_said { is_told } else { plan.warnings.is_empty() }, "{told}: {:?}", plan.warnings);
    }
    // A class without a head is saved without the root, and nothing needs to be said.
    let bare = planned("llama", |config, tensors| {
        config.insert("architectures".into(), json!(["LlamaModel"]));
        rename(tensors, |name| name.trim_start_matches("model.").to_owned());
    });
    let (plan, found) = bare.unwrap();
    assert_eq!((found, plan.warnings), (expected, vec![]));
}

#[test]
fn two_names_of_one_tensor_are_not_one() {
    let doubled = planned("llama", |_, tensors| {
        rename(tensors, |name| format!("module.{name}"));
        let (_, shape, weights) = tensors.iter().find(|tensor| tensor.0.ends_with("norm.weight")).unwrap().clone();
        tensors.push(("model.norm.weight".to_owned(), shape, weights));
    });
    let message = doubled.unwrap_err().to_string();
    assert!(message.contains("norm.weight") && message.contains("the same tensor as"), "{message}");
}

#[test]
fn an_activation_that_the_architecture_does_not_have_is_refused_by_name() {
    let with = |act: Json| planned("llama", |config, _| drop(config.insert("hidden_act".into(), act)));
    for act in ["relu", "gelu", "relu2"] {
        let message = refusal(with(json!(act)));
        assert!(message.contains("hidden_act") && message.contains(act) && message.contains("silu"), "{message}");
    }
    for act in [json!("silu"), json!("swish"), json!("SiLU"), Json::Null] {
        assert!(with(act.clone()).is_ok(), "{act}");
    }
    assert!(planned("llama", |config, _| drop(config.remove("hidden_act"))).is_ok());
    let gpt2 = refusal(planned("gpt2", |config, _| drop(config.insert("activation_function".into(), json!("relu")))));
    assert!(gpt2.contains("activation_function") && gpt2.contains("relu"), "{gpt2}");
}

#[test]
fn a_window_is_written_and_what_llama_cpp_makes_of_it_is_said() {
    let window = |value: Option<Json>| {
        planned("mistral", |config, _| match value {
            Some(value) => drop(config.insert("sliding_window".into(), value)),
            None => drop(config.remove("sliding_window")),
        })
    };
    let (plan, _) = window(Some(json!(16))).unwrap();
    assert_eq!(key(&plan, "attention.sliding_window"), Some(Value::U32(16)));
    assert!(
        plan.warnings.iter().any(|warning| warning.contains("last 16 tokens") && warning.contains("llama.cpp")),
        "{:?}",
        plan.warnings
    );
    // Nothing is beyond the window; or the class's own, which is longer than the context.
    for value in [Some(Json::Null), Some(json!(256)), None] {
        let (plan, _) = window(value).unwrap();
        assert_eq!((key(&plan, "attention.sliding_window"), plan.warnings), (None, vec![]));
    }
    // Llama's class does not look at the field.
    let (plan, _) = planned("llama", |config, _| drop(config.insert("sliding_window".into(), json!(16)))).unwrap();
    assert_eq!((key(&plan, "attention.sliding_window"), plan.warnings), (None, vec![]));
}

#[test]
fn yarn_lengthens_heads_as_transformers_does() {
    let own = 1.0 + 0.1 * 8.0_f64.ln();
    let yarn = |extra: Json| {
        planned("llama", |config, _| {
            let mut scaling = json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64});
            scaling.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            config.insert("rope_scaling".into(), scaling);
        })
    };
    let mscale = |mscale: f64| 1.0 + 0.1 * mscale * 8.0_f64.ln();
    for (extra, wanted) in [
        (json!({}), None),
        (json!({"attention_factor": 1.5}), Some(1.5)),
        (json!({"attention_factor": 1.0}), Some(1.0)),
        (json!({"mscale": 0.7, "mscale_all_dim": 1.0}), Some(mscale(0.7) / mscale(1.0))),
        (json!({"mscale": 1.0, "mscale_all_dim": 1.0}), Some(1.0)),
        (json!({"mscale": 0.7}), None),
        (json!({"truncate": true, "beta_fast": 4.0, "beta_slow": 2.0}), None),
    ] {
        let (plan, _) = yarn(extra.clone()).unwrap();
        let beside = wanted.map(|wanted| Value::F32((wanted / own) as f32));
        assert_eq!(key(&plan, "rope.scaling.attn_factor"), beside, "{extra}");
        assert_eq!(key(&plan, "rope.scaling.original_context_length"), Some(Value::U32(64)));
        assert_eq!(plan.warnings, Vec::<String>::new(), "{extra}");
    }
    let (plan, _) = yarn(json!({"truncate": false})).unwrap();
    assert!(plan.warnings.len() == 1 && plan.warnings[0].contains("truncate"), "{:?}", plan.warnings);
    // Without a length of its own, it is the one that the model takes.
    let (plan, _) = yarn(json!({"original_max_position_embeddings": null})).unwrap();
    assert_eq!(key(&plan, "rope.scaling.original_context_length"), Some(Value::U32(256)));
    let old = planned("llama", |config, _| {
        let scaling =
            json!({"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 4, "beta_slow": 2});
        config.insert("rope_scaling".into(), scaling);
    });
    assert_eq!(key(&old.unwrap().0, "rope.scaling.yarn_beta_fast"), Some(Value::F32(4.0)));
}

#[test]
fn weights_decide_what_is_quantized_not_what_is_said_beside_them() {
    for method in ["bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", "torchao"] {
        let said = json!({"quant_method": method, "bits": 4, "load_in_4bit": false});
        let (plan, _) = planned("llama", |config, _| drop(config.insert("quantization_config".into(), said))).unwrap();
        assert!(plan.warnings.len() == 1 && plan.warnings[0].contains(method), "{:?}", plan.warnings);
    }
    let (plan, _) = planned("llama", |config, _| drop(config.insert("quantization_config".into(), json!({})))).unwrap();
    assert_eq!(plan.warnings, Vec::<String>::new());
    let quantized = planned("llama", |config, tensors| {
        config.insert("quantization_config".into(), json!({"quant_method": "gptq"}));
        rename(tensors, |name| name.replace("q_proj.weight", "q_proj.qweight"));
    });
    let message = refusal(quantized);
    assert!(message.contains("already quantized (gptq)"), "{message}");
}

#[test]
fn an_adapter_that_is_not_merged_is_named_as_one() {
    let adapter = planned("llama", |_, tensors| {
        tensors.push(("model.layers.0.self_attn.q_proj.lora_A.default.weight".into(), vec![4, 64], vec![0.0; 256]));
        rename(tensors, |name| name.replace("q_proj.weight", "q_proj.base_layer.weight"));
    });
    let saved = planned("llama", |_, tensors| {
        rename(tensors, |name| name.replace("lm_head.weight", "lm_head.modules_to_save.default.weight"));
    });
    for result in [adapter, saved] {
        let message = refusal(result);
        assert!(message.contains("adapter") && message.contains("merge"), "{message}");
    }
    let (plan, _) = planned("llama", |_, tensors| {
        tensors.push(("v_head.summary.weight".into(), vec![1, 64], vec![0.0; 64]));
        tensors.push(("v_head.summary.bias".into(), vec![1], vec![0.0]));
    })
    .unwrap();
    assert!(plan.warnings.len() == 1 && plan.warnings[0].contains("2 tensors of v_head"), "{:?}", plan.warnings);
}

#[test]
fn the_class_is_checked_before_a_weight_file_is_looked_for() {
    let scratch = common::scratch();
    let case = case("llama");
    let folder = scratch.path().join("model");
    case.write_changed(&case.layouts()[0], &folder, |config, _| {
        drop(config.insert("architectures".into(), json!(["Qwen9ForCausalLM"])))
    });
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    let opened = |path: &Path| match plan::open_folder(path) {
        Err(Error::Unsupported { what, hint }) => format!("{what}; {hint}"),
        other => panic!("{other:?}"),
    };
    let message = opened(&folder);
    assert!(message.contains("Qwen9ForCausalLM") && message.contains("SmolLM3ForCausalLM"), "{message}");
}

#[test]
fn an_unknown_class_is_told_what_it_lacks() {
    let strange = planned("llama", |config, tensors| {
        config.insert("architectures".into(), json!(["Qwen9ForCausalLM"]));
        for layer in 0..2 {
            tensors.push((format!("model.layers.{layer}.self_attn.sinks"), vec![4], vec![0.0; 4]));
        }
    });
    let message = refusal(strange);
    let told = "the nearest is llama (";
    assert!(
        message.contains(told) && message.contains("no rule for 1 of its") && message.contains("model.layers.N.self_attn.sinks"),
        "{message}"
    );
}

/// A checkpoint whose head shares the embedding's matrix, and whose config.json does not say so: llama.cpp takes it so, too.
#[test]
fn without_a_head_and_a_word_on_it_the_embedding_is_the_output() {
    let headless = |config: &mut Map<String, Json>, tensors: &mut Tensors| {
        config.remove("tie_word_embeddings");
        tensors.retain(|tensor| !tensor.0.starts_with("lm_head"));
    };
    let (plan, _) = planned("llama", headless).unwrap();
    assert!(!plan.outputs[0].tensors.iter().any(|tensor| tensor.name == "output.weight"));
    let said = "there is no lm_head.weight, and config.json does not say tie_word_embeddings: the token embedding is the output";
    assert!(plan.warnings.iter().any(|warning| warning.contains(said)), "{:?}", plan.warnings);
    // What config.json says holds, and a head in a type that cannot be read is no missing head.
    let untied = planned("llama", |config, tensors| {
        headless(config, tensors);
        config.insert("tie_word_embeddings".into(), json!(false));
    });
    assert!(untied.unwrap_err().to_string().contains("lm_head.weight"));
    let packed = planned("llama", |config, tensors| {
        headless(config, tensors);
        tensors.push(("lm_head.qweight".into(), vec![4, 4], vec![0.0; 16]));
    });
    assert!(packed.is_err());
}

#[test]
fn a_text_config_without_classes_has_those_of_the_whole() {
    let nested = planned("llama", |config, _| {
        let mut text = config.clone();
        text.insert("architectures".into(), Json::Null);
        *config = Map::from_iter([
            ("architectures".to_owned(), config["architectures"].clone()),
            ("text_config".to_owned(), text.into()),
        ]);
    });
    assert!(nested.is_ok(), "{:?}", nested.err());
}
