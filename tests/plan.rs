//! Plans: what is carried over, what is copied, what is refused, all before a weight is read.

mod common;

use std::fs;
use std::path::PathBuf;

use ggforge::gguf::{Header, Metadata, Model, TensorSpec, Value, keys};
use ggforge::hf::Folder;
use ggforge::imatrix::{CHUNK_SIZE_DEFAULT, Entry, Imatrix};
use ggforge::plan::recipe::{PRESETS, preset};
use ggforge::plan::{ConvertOptions, NameOverride, Overrides, Plan, QuantizeOptions, convert, paths_in_folder, quantize};
use ggforge::quant::Format;
use ggforge::{Error, Result, error::Fault};

struct Input {
    metadata: Metadata,
    tensors: Vec<TensorSpec>,
}

impl Input {
    /// One block of a llama, in the order in which converters write it.
    fn llama(format: Format) -> Input {
        let mut metadata: Metadata = vec![
            (keys::GENERAL_ARCHITECTURE.to_owned(), "llama".into()),
            (keys::GENERAL_FILE_TYPE.to_owned(), Value::U32(0)),
            (keys::GENERAL_QUANTIZATION_VERSION.to_owned(), Value::U32(2)),
            ("someone.else".to_owned(), Value::String(vec![0xff, 0x00, b'x'])),
        ];
        for (key, number) in [(keys::BLOCK_COUNT, 1), (keys::EMBEDDING_LENGTH, 256), (keys::ATTENTION_HEAD_COUNT, 4)] {
            metadata.push((keys::of("llama", key), Value::U32(number)));
        }
        let spec = |name: &str, format, shape: &[u64]| TensorSpec { name: name.to_owned(), format, shape: shape.to_vec() };
        let tensors = vec![
            spec("token_embd.weight", format, &[512, 256]),
            spec("blk.0.attn_q.weight", format, &[256, 256]),
            spec("blk.0.attn_norm.weight", Format::F32, &[256]),
            spec("output_norm.weight", Format::F32, &[256]),
        ];
        Input { metadata, tensors }
    }

    fn model(self) -> (tempfile::TempDir, Model) {
        let folder = tempfile::tempdir().unwrap();
        let path: PathBuf = folder.path().join("in.gguf");
        let layout = Header { metadata: self.metadata, tensors: self.tensors }.layout().unwrap();
        let mut bytes = layout.header;
        bytes.resize(layout.file_bytes as usize, 0);
        fs::write(&path, bytes).unwrap();
        (folder, Model::open(&path).unwrap())
    }

    fn plan(self, type_name: &str, overrides: Overrides, allow_requantize: bool) -> Result<Plan> {
        let (_folder, model) = self.model();
        quantize(
            &model,
            &QuantizeOptions {
                presets: vec![preset(type_name).unwrap()],
                overrides,
                imatrix: None,
                calibration: None,
                allow_requantize,
            },
        )
    }
}

fn fault(result: Result<Plan>) -> Fault {
    match result {
        Err(Error::Malformed { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_in_its_type_already_is_copied() {
    let plan = Input::llama(Format::F32).plan("F32", Overrides::default(), false).unwrap();
    let output = &plan.outputs[0];
    assert_eq!(plan.warnings, Vec::<String>::new());
    assert_eq!(output.file_type, "F32");
    let names: Vec<&str> = output.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["output_norm.weight", "token_embd.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.weight"]);
    let sources: Vec<usize> = output.tensors.iter().flat_map(|tensor| tensor.origin.tensors()).collect();
    assert_eq!(sources, [3, 0, 2, 1]);
    assert!(output.tensors.iter().all(|tensor| tensor.format == Format::F32));
}

#[test]
fn metadata_is_carried_over_and_the_file_type_replaced() {
    let plan = Input::llama(Format::F16).plan("F16", Overrides::default(), false).unwrap();
    let metadata = &plan.outputs[0].metadata;
    let keys_found: Vec<&str> = metadata.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys_found.len(), Input::llama(Format::F16).metadata.len());
    assert_eq!(keys_found[keys_found.len() - 2..], [keys::GENERAL_QUANTIZATION_VERSION, keys::GENERAL_FILE_TYPE]);
    assert_eq!(metadata.last().unwrap().1, Value::U32(1));
    assert!(metadata.contains(&("someone.else".to_owned(), Value::String(vec![0xff, 0x00, b'x']))));
}

#[test]
fn what_is_quantized_already_is_left_alone_unless_asked() {
    match Input::llama(Format::Q4_0).plan("F32", Overrides::default(), false) {
        Err(Error::Usage(text)) => assert!(text.contains("token_embd.weight") && text.contains("--allow-requantize"), "{text}"),
        other => panic!("{other:?}"),
    }
    let plan = Input::llama(Format::Q4_0).plan("Q8_0", Overrides::default(), true).unwrap();
    assert_eq!(plan.warnings, ["Q8_0: 2 tensors were quantized before and keep the errors of that"]);
    // The same format again needs no permission: its bytes are copied.
    let plan = Input::llama(Format::Q4_0).plan("Q4_0", Overrides { pure: true, ..Overrides::default() }, false).unwrap();
    assert_eq!(plan.outputs[0].tensors[1].format, Format::Q4_0);
}

#[test]
fn an_override_without_effect_is_reported() {
    let by_name = vec![NameOverride::parse("ffn_latent=Q8_0").unwrap()];
    let plan = Input::llama(Format::F32).plan("F32", Overrides { by_name, ..Overrides::default() }, false).unwrap();
    assert_eq!(plan.warnings, ["tensor type ffn_latent changes no tensor"]);
}

#[test]
fn a_format_that_cannot_be_written_yet_is_refused_by_name() {
    if let Err(Error::Unsupported { what, .. }) = Input::llama(Format::F32).plan("IQ2_XXS", Overrides::default(), false) {
        assert!(what.contains("token_embd.weight") || what.contains("attn_q"), "{what}");
    } else {
        panic!("IQ2_XXS needs an importance matrix at least");
    }
}

#[test]
fn impossible_models_are_refused() {
    let mut empty = Input::llama(Format::F32);
    empty.tensors.clear();
    assert_eq!(fault(empty.plan("F32", Overrides::default(), false)), Fault::NoTensors);

    let mut deep = Input::llama(Format::F32);
    deep.metadata.last_mut().unwrap().1 = Value::U32(3);
    assert_eq!(fault(deep.plan("F32", Overrides::default(), false)), Fault::HparamRange);
}

#[test]
fn a_tensor_without_weights_is_refused() {
    let (folder, model) = Input::llama(Format::F32).model();
    drop(model);
    // No writer makes such a file, so the last tensor's only dimension is overwritten: name, u32 1, u64 256.
    let path = folder.path().join("in.gguf");
    let mut bytes = fs::read(&path).unwrap();
    let name = b"output_norm.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4;
    assert_eq!(bytes[at..at + 8], 256u64.to_le_bytes());
    bytes[at..at + 8].fill(0);
    fs::write(&path, bytes).unwrap();
    let options = QuantizeOptions { presets: vec![preset("F32").unwrap()], ..QuantizeOptions::default() };
    assert_eq!(fault(quantize(&Model::open(&path).unwrap(), &options)), Fault::ZeroDim);
}

#[test]
fn types_are_given_once_each() {
    let (_folder, model) = Input::llama(Format::F32).model();
    for names in [&[][..], &["F32", "F32"][..]] {
        let presets = names.iter().map(|name| preset(name).unwrap()).collect();
        let options = QuantizeOptions { presets, ..QuantizeOptions::default() };
        assert!(matches!(quantize(&model, &options), Err(Error::Usage(_))));
    }
}

/// A plan for a fixture; `presets` may be empty.
fn converted(options: ConvertOptions) -> Plan {
    convert(&Folder::open(common::fixture("hf/forge-3m")).unwrap(), &options).unwrap()
}

#[test]
fn a_folder_becomes_what_converter_and_quantizer_make_of_it() {
    let reference = common::json(&common::fixture("reference/forge-3m.json"));
    let file_types = reference["file_types"].as_object().unwrap();
    let presets = file_types.keys().map(|name| preset(name).unwrap()).collect();
    let plan = converted(ConvertOptions { presets, ..ConvertOptions::default() });
    assert_eq!(plan.outputs.len(), file_types.len());
    for output in &plan.outputs {
        let tensors = file_types[&output.file_type].as_object().unwrap();
        assert_eq!(output.tensors.len(), tensors.len());
        for tensor in &output.tensors {
            let dims: Vec<u64> = tensor.shape.iter().rev().copied().collect();
            let expected = &tensors[&tensor.name];
            assert_eq!(
                serde_json::json!([tensor.format.name(), dims]),
                serde_json::json!([expected[0], expected[1]]),
                "{}",
                tensor.name
            );
        }
        // As llama-quantize orders them: its files and ours can be compared as a whole.
        let keys: Vec<&str> = output.metadata.iter().map(|(key, _)| key.as_str()).collect();
        let expected: Vec<&String> = reference["quantized_metadata"].as_object().unwrap().keys().collect();
        assert_eq!(keys, expected, "{}", output.file_type);
    }
}

#[test]
fn without_a_type_the_weights_stay_as_they_are() {
    let plan = converted(ConvertOptions { name: Some("Mine".to_owned()), ..ConvertOptions::default() });
    assert_eq!(plan.outputs[0].file_type, "BF16");
    assert!(plan.outputs[0].metadata.contains(&(keys::GENERAL_NAME.to_owned(), "Mine".into())));
    assert_eq!(paths_in_folder(&plan, "out".as_ref()), [PathBuf::from("out/forge-3M-BF16.gguf")]);
    let summary = plan.outputs[0].summary();
    assert_eq!(summary.by_format.iter().map(|total| total.format).collect::<Vec<_>>(), [Format::BF16, Format::F32]);
    assert!((16.0..16.02).contains(&summary.bits_per_weight()), "{}", summary.bits_per_weight());
}

/// A matrix with an entry for each of these, of one expert unless the width says otherwise.
fn matrix(entries: &[(&str, usize)]) -> Imatrix {
    let mut imatrix = Imatrix::new(CHUNK_SIZE_DEFAULT);
    for &(name, n_columns) in entries {
        let sums = (0..n_columns).map(|column| column as f32).collect();
        imatrix.entries.insert(name.to_owned(), Entry::new(sums, vec![4]).unwrap());
    }
    imatrix.path = "/home/someone/matrices/calibration.gguf".into();
    imatrix.datasets = vec!["C:\\texts\\calibration.txt".to_owned()];
    imatrix.chunk_count = 12;
    imatrix
}

fn plan_with(imatrix: &Imatrix, input: Input, presets: &[&str]) -> Result<Plan> {
    let (_folder, model) = input.model();
    let presets = presets.iter().map(|name| preset(name).unwrap()).collect();
    quantize(&model, &QuantizeOptions { presets, imatrix: Some(imatrix), ..QuantizeOptions::default() })
}

#[test]
fn the_matrix_is_recorded_without_its_folder() {
    let imatrix = matrix(&[("blk.0.attn_q.weight", 256), ("blk.7.attn_q.weight", 256)]);
    let mut input = Input::llama(Format::F32);
    input.metadata.push((keys::QUANTIZE_IMATRIX_FILE.to_owned(), "older.gguf".into()));
    let plan = plan_with(&imatrix, input, &["Q8_0", "F16"]).unwrap();
    for output in &plan.outputs {
        let found: Vec<(&str, &Value)> = output.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let expected = [
            ("quantize.imatrix.file", &"calibration.gguf".into()),
            ("quantize.imatrix.dataset", &"calibration.txt".into()),
            ("quantize.imatrix.entries_count", &Value::U32(2)),
            ("quantize.imatrix.chunks_count", &Value::U32(12)),
        ];
        assert_eq!(found[found.len() - 4..], expected);
        assert_eq!(found.iter().filter(|(key, _)| *key == keys::QUANTIZE_IMATRIX_FILE).count(), 1);
    }
    let coverage = plan.coverage.unwrap();
    assert_eq!(coverage.summary(), "importance for 1 of 2 tensors; none for token_embd.weight; unused: blk.7.attn_q.weight");
    assert_eq!((coverage.without_entry, coverage.unused), (vec!["token_embd.weight".into()], vec!["blk.7.attn_q.weight".into()]));
}

#[test]
fn a_matrix_without_entries_is_none() {
    let plan = plan_with(&matrix(&[]), Input::llama(Format::F32), &["Q8_0"]).unwrap();
    assert_eq!(plan.coverage, None);
    assert!(plan.outputs[0].metadata.iter().all(|(key, _)| !key.starts_with("quantize.imatrix")));
}

#[test]
fn a_matrix_of_another_model_is_refused_before_any_work() {
    for n_columns in [128, 512] {
        let imatrix = matrix(&[("blk.0.attn_q.weight", n_columns)]);
        assert_eq!(fault(plan_with(&imatrix, Input::llama(Format::F32), &["Q8_0"])), Fault::ImatrixLength);
        // What is not quantized is not weighted either.
        assert!(plan_with(&imatrix, Input::llama(Format::F32), &["F16"]).is_ok());
    }
}

#[test]
fn what_a_format_can_use_is_in_the_plan_and_the_rest_is_refused() {
    let imatrix = matrix(&[("blk.0.attn_q.weight", 256)]);
    let ignoring = [Format::Q8_0, Format::Q1_0, Format::Q2_0, Format::TQ1_0, Format::TQ2_0, Format::MXFP4, Format::NVFP4];
    for preset in PRESETS.iter().map(|preset| preset.name) {
        match plan_with(&imatrix, Input::llama(Format::F32), &[preset]) {
            Ok(plan) => {
                for tensor in &plan.outputs[0].tensors {
                    let weighted = tensor.name == "blk.0.attn_q.weight" && tensor.format.uses_importance();
                    assert_eq!(tensor.importance.is_some(), weighted, "{preset}: {}", tensor.name);
                    assert!(
                        weighted
                            || tensor.name != "blk.0.attn_q.weight"
                            || tensor.format.block_len() == 1
                            || ignoring.contains(&tensor.format)
                    );
                    if let Some(importance) = &tensor.importance {
                        assert_eq!(importance.expert(0)[9], 9.0 / 4.0);
                    }
                }
            }
            Err(Error::Unsupported { what, .. }) => assert!(what.contains(".weight"), "{preset}: {what}"),
            Err(other) => panic!("{preset}: {other}"),
        }
    }
}

/// Rules by tensor name were made for architectures that someone has a runtime for.
#[test]
fn quantizing_an_architecture_that_nobody_knows_is_warned_of() {
    let scratch = common::scratch();
    let warned = |architecture: &str| {
        let model = common::tiny::Tiny::new(architecture).write(scratch.path(), "model");
        let output = scratch.path().join("quantized.gguf");
        let mut command = common::ggforge();
        command.arg("quantize").arg(model).args(["--type", "F16", "--json", "--force", "--output"]).arg(&output);
        let output = common::succeeds(&mut command);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let warnings: Vec<String> = serde_json::from_value(report["warnings"].clone()).unwrap();
        let printed = String::from_utf8(output.stderr).unwrap();
        assert!(warnings.iter().all(|warning| printed.contains(warning)), "{printed}");
        warnings
    };
    for known in ["llama", "mamba", "glm5-next", "clip"] {
        assert_eq!(warned(known), Vec::<String>::new(), "{known}");
    }
    for unknown in ["frobnicate", "Llama", ""] {
        let warnings = warned(unknown);
        assert!(warnings[0].starts_with(&format!("llama.cpp knows no architecture {unknown:?}: ")), "{warnings:?}");
        assert_eq!(warnings.len(), 1);
    }
}
