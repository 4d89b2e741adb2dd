//! Models that cannot be: each is refused with the name of the rule it breaks, and the program ends with exit code 3.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use ggforge::Error;
use ggforge::error::Fault;
use ggforge::gguf::{Array, Model, Value};
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Batch, Cpu, Network, Observer, Residency};

mod common;
use common::tiny::Tiny;

/// What becomes of the model when it is opened, with its layers in memory and with its layers in the file.
fn open(path: &Path) -> Result<(), Error> {
    let cpu = Cpu::new(Engine::detect(), 1, Activations::F32)?;
    let opened = [Residency::Resident, Residency::Streamed].map(|residency| {
        let model = Model::open(path)?;
        Network::open(&cpu, &model, 16, residency).map(drop)
    });
    let [resident, streamed] = opened;
    assert_eq!(resident.is_ok(), streamed.is_ok());
    resident.and(streamed)
}

/// A change to a sound model.
type Change = fn(&mut Tiny);

/// What is no number, zero, too many, too few, or contradicts another.
const HPARAMS: &[(&str, Change, Fault)] = &[
    ("no layers", |m| m.set("llama.block_count", Value::U32(0)), Fault::HparamRange),
    ("too many layers", |m| m.set("llama.block_count", Value::U32(600)), Fault::HparamRange),
    ("all layers there could be", |m| m.set("llama.block_count", Value::U32(u32::MAX)), Fault::HparamRange),
    ("a layer less", |m| m.set("llama.block_count", Value::U32(1)), Fault::UnmappedTensor),
    ("a layer more", |m| m.set("llama.block_count", Value::U32(3)), Fault::MissingTensor),
    ("layers as text", |m| m.set("llama.block_count", Value::from("2")), Fault::ValueType),
    ("no number of layers", |m| m.unset("llama.block_count"), Fault::ValueType),
    ("negative layers", |m| m.set("llama.block_count", Value::I32(-1)), Fault::ValueType),
    ("no heads", |m| m.set("llama.attention.head_count", Value::U32(0)), Fault::HparamRange),
    ("heads that do not divide", |m| m.set("llama.attention.head_count", Value::U32(3)), Fault::HparamRange),
    ("heads without end", |m| m.set("llama.attention.head_count", Value::U32(u32::MAX)), Fault::HparamRange),
    ("no number of heads", |m| m.unset("llama.attention.head_count"), Fault::ValueType),
    ("more key heads than heads", |m| m.set("llama.attention.head_count_kv", Value::U32(8)), Fault::HparamRange),
    ("no key heads", |m| m.set("llama.attention.head_count_kv", Value::U32(0)), Fault::HparamRange),
    ("key heads that do not divide", |m| m.set("llama.attention.head_count_kv", Value::U32(3)), Fault::HparamRange),
    ("heads for three layers", |m| set_heads(m, vec![4, 4, 4]), Fault::HparamRange),
    ("a layer without heads", |m| set_heads(m, vec![4, 0]), Fault::HparamRange),
    ("a width of nothing", |m| m.set("llama.embedding_length", Value::U32(0)), Fault::HparamRange),
    ("a width of everything", |m| m.set("llama.embedding_length", Value::U32(u32::MAX)), Fault::HparamRange),
    ("another width", |m| m.set("llama.embedding_length", Value::U32(64)), Fault::ShapeMismatch),
    ("no width", |m| m.unset("llama.embedding_length"), Fault::ValueType),
    ("a network of nothing", |m| m.set("llama.feed_forward_length", Value::U32(0)), Fault::HparamRange),
    ("another network", |m| m.set("llama.feed_forward_length", Value::U32(49)), Fault::ShapeMismatch),
    ("heads of nothing", |m| m.set("llama.attention.key_length", Value::U32(0)), Fault::HparamRange),
    ("wide heads", |m| set_widths(m, 16), Fault::ShapeMismatch),
    ("heads too wide to multiply", |m| set_widths(m, 1 << 23), Fault::HparamRange),
    ("rotating more than a head", |m| m.set("llama.rope.dimension_count", Value::U32(1 << 31)), Fault::HparamRange),
    ("rotating half a pair", |m| m.set("llama.rope.dimension_count", Value::U32(7)), Fault::HparamRange),
    ("rotating nothing", |m| m.set("llama.rope.dimension_count", Value::U32(0)), Fault::HparamRange),
    ("a base that is no number", |m| m.set("llama.rope.freq_base", Value::F32(f32::NAN)), Fault::HparamRange),
    ("a base of zero", |m| m.set("llama.rope.freq_base", Value::F32(0.0)), Fault::HparamRange),
    ("stretching by nothing", |m| set_scaling(m, "linear", 0.0), Fault::HparamRange),
    ("stretching without end", |m| set_scaling(m, "yarn", f32::INFINITY), Fault::HparamRange),
    ("factors that are not there", |m| set_scaling(m, "longrope", 1.0), Fault::MissingTensor),
    ("a context of nothing", |m| m.set("llama.context_length", Value::U32(0)), Fault::HparamRange),
    ("a context without end", |m| m.set("llama.context_length", Value::U32(u32::MAX)), Fault::HparamRange),
    ("a vocabulary without end", |m| m.set("llama.vocab_size", Value::U32(1_000_000_000)), Fault::HparamRange),
    ("fewer tokens than rows", |m| set_tokens(m, 63), Fault::TokenizerInvalid),
    ("more tokens than rows", |m| set_tokens(m, 65), Fault::TokenizerInvalid),
    ("an epsilon that is no number", |m| set_eps(m, f32::NAN), Fault::HparamRange),
    ("an epsilon below zero", |m| set_eps(m, -1e-5), Fault::HparamRange),
    ("an epsilon without end", |m| set_eps(m, f32::INFINITY), Fault::HparamRange),
    ("an epsilon of one", |m| set_eps(m, 1.0), Fault::HparamRange),
];

/// Tensors that are missing, misshapen, too many, or no numbers.
const TENSORS: &[(&str, Change, Fault)] = &[
    ("no embedding", |m| m.tensors.retain(|t| t.0 != "token_embd.weight"), Fault::MissingTensor),
    ("no norm", |m| m.tensors.retain(|t| t.0 != "blk.1.ffn_norm.weight"), Fault::MissingTensor),
    ("no last norm", |m| m.tensors.retain(|t| t.0 != "output_norm.weight"), Fault::MissingTensor),
    ("a matrix turned round", |m| m.tensor("blk.0.ffn_down.weight").1.reverse(), Fault::ShapeMismatch),
    ("a norm of rows", |m| m.tensor("blk.0.attn_norm.weight").1 = vec![2, 16], Fault::ShapeMismatch),
    ("a norm of one column", |m| m.tensor("blk.0.attn_norm.weight").1.push(1), Fault::ShapeMismatch),
    ("a short bias", |m| m.add("blk.0.attn_q.bias", &[31]), Fault::ShapeMismatch),
    ("an output for other tokens", |m| grow(m, "output.weight", 65), Fault::ShapeMismatch),
    ("norms of heads", |m| m.add("blk.0.attn_q_norm.weight", &[8]), Fault::UnmappedTensor),
    ("a tensor of another model", |m| m.add("blk.0.ssm_a", &[8]), Fault::UnmappedTensor),
    ("factors for long contexts only", |m| m.add("rope_factors_long.weight", &[4]), Fault::MissingTensor),
    ("factors for short contexts only", |m| m.add("rope_factors_short.weight", &[4]), Fault::MissingTensor),
    ("few factors", |m| m.add("rope_freqs.weight", &[3]), Fault::ShapeMismatch),
    ("a factor of zero", |m| factor(m, 0.0), Fault::HparamRange),
    ("a factor that is no number", |m| factor(m, f32::NAN), Fault::NonFinite),
    ("a norm that is no number", |m| m.tensor("blk.1.attn_norm.weight").2[5] = f32::NAN, Fault::NonFinite),
    ("a norm without end", |m| m.tensor("output_norm.weight").2[31] = f32::INFINITY, Fault::NonFinite),
];

/// Experts that are missing, too many, or of another size.
const EXPERTS: &[(&str, Change, Fault)] = &[
    ("more experts than there are", |m| set_experts(m, "expert_count", 9), Fault::ShapeMismatch),
    ("experts without end", |m| set_experts(m, "expert_count", u32::MAX), Fault::HparamRange),
    ("experts as text", |m| m.set("llama.expert_count", Value::from("8")), Fault::ValueType),
    ("tensors of experts without experts", |m| set_experts(m, "expert_count", 0), Fault::MissingTensor),
    ("more experts used than there are", |m| set_experts(m, "expert_used_count", 9), Fault::HparamRange),
    ("no experts used", |m| set_experts(m, "expert_used_count", 0), Fault::HparamRange),
    ("experts used without end", |m| set_experts(m, "expert_used_count", u32::MAX), Fault::HparamRange),
    ("no number of experts used", |m| m.unset("llama.expert_used_count"), Fault::ValueType),
    ("experts of another width", |m| m.set("llama.feed_forward_length", Value::U32(47)), Fault::ShapeMismatch),
    ("no router", |m| m.tensors.retain(|t| t.0 != "blk.1.ffn_gate_inp.weight"), Fault::MissingTensor),
    ("a router turned round", |m| m.tensor("blk.0.ffn_gate_inp.weight").1.reverse(), Fault::ShapeMismatch),
    ("no experts for a layer", |m| m.tensors.retain(|t| t.0 != "blk.1.ffn_up_exps.weight"), Fault::MissingTensor),
    ("experts in two dimensions", |m| m.tensor("blk.0.ffn_up_exps.weight").1 = vec![8 * 48, 32], Fault::ShapeMismatch),
    ("experts turned round", |m| m.tensor("blk.0.ffn_up_exps.weight").1 = vec![32, 48, 8], Fault::ShapeMismatch),
    ("a shared expert", |m| m.add("blk.0.ffn_up_shexp.weight", &[48, 32]), Fault::UnmappedTensor),
];

/// The same for the architecture that always has experts, one of them shared.
const SHARED_EXPERTS: &[(&str, Change, Fault)] = &[
    ("no experts", |m| m.set("qwen2moe.expert_count", Value::U32(0)), Fault::HparamRange),
    ("no number of experts", |m| m.unset("qwen2moe.expert_count"), Fault::ValueType),
    ("no width", |m| m.set("qwen2moe.expert_feed_forward_length", Value::U32(0)), Fault::HparamRange),
    ("a width without end", |m| m.set("qwen2moe.expert_feed_forward_length", Value::U32(u32::MAX)), Fault::HparamRange),
    ("another width", |m| m.unset("qwen2moe.expert_feed_forward_length"), Fault::ShapeMismatch),
    ("another shared width", |m| m.unset("qwen2moe.expert_shared_feed_forward_length"), Fault::ShapeMismatch),
    ("no shared expert", |m| m.tensors.retain(|t| t.0 != "blk.0.ffn_down_shexp.weight"), Fault::MissingTensor),
    ("no shared gate", |m| m.tensors.retain(|t| t.0 != "blk.0.ffn_gate_inp_shexp.weight"), Fault::MissingTensor),
];

/// As files from before experts were stacked have them.
fn experts_apart(m: &mut Tiny) {
    *m = Tiny::with_experts("llama");
    m.tensors.retain(|tensor| !tensor.0.contains("exps"));
    for layer in 0..2 {
        for expert in 0..8 {
            for (part, shape) in [("ffn_gate", [48, 32]), ("ffn_up", [48, 32]), ("ffn_down", [32, 48])] {
                m.add(&format!("blk.{layer}.{part}.{expert}.weight"), &shape);
            }
        }
    }
}

fn weigh_experts(m: &mut Tiny, key: &str, value: Value) {
    *m = Tiny::with_experts("llama");
    m.set(&format!("llama.{key}"), value);
}

/// Positions that are vectors, and norms that have a bias.
const LEARNED: &[(&str, Change, Fault)] = &[
    ("no positions", |m| m.tensors.retain(|t| t.0 != "position_embd.weight"), Fault::MissingTensor),
    ("positions without end", |m| m.set("gpt2.context_length", Value::U32(u32::MAX)), Fault::HparamRange),
    ("fewer positions than said", |m| m.set("gpt2.context_length", Value::U32(65)), Fault::ShapeMismatch),
    ("a norm without a bias", |m| m.tensors.retain(|t| t.0 != "blk.1.ffn_norm.bias"), Fault::MissingTensor),
    ("a bias that is no number", |m| m.tensor("blk.1.attn_qkv.bias").2[95] = f32::NAN, Fault::NonFinite),
    ("a short bias", |m| m.tensor("blk.0.attn_qkv.bias").1[0] = 95, Fault::ShapeMismatch),
    ("no epsilon", |m| m.unset("gpt2.attention.layer_norm_epsilon"), Fault::ValueType),
];

/// Attention in windows.
const WINDOWS: &[(&str, Change, Fault)] = &[
    ("a window as text", |m| m.set("gemma3.attention.sliding_window", Value::from("8")), Fault::ValueType),
    ("a window without end", |m| m.set("gemma3.attention.sliding_window", Value::U32(u32::MAX)), Fault::HparamRange),
    ("a pattern of nothing", |m| set_pattern(m, Value::U32(0)), Fault::HparamRange),
    ("a pattern for one layer", |m| set_pattern(m, Value::Array(Array::Bool(vec![true]))), Fault::HparamRange),
    ("a pattern of numbers", |m| set_pattern(m, Value::Array(Array::U32(vec![1, 0]))), Fault::HparamRange),
    ("no norm of results", |m| m.tensors.retain(|t| t.0 != "blk.0.post_ffw_norm.weight"), Fault::MissingTensor),
];

fn set_pattern(m: &mut Tiny, pattern: Value) {
    m.set("gemma3.attention.sliding_window", Value::U32(8));
    m.set("gemma3.attention.sliding_window_pattern", pattern);
}

fn set_experts(m: &mut Tiny, key: &str, value: u32) {
    m.set(&format!("llama.{key}"), Value::U32(value));
}

fn set_heads(m: &mut Tiny, heads: Vec<u32>) {
    m.set("llama.attention.head_count", Value::Array(Array::U32(heads)));
}

fn set_widths(m: &mut Tiny, width: u32) {
    m.set("llama.attention.key_length", Value::U32(width));
    m.set("llama.attention.value_length", Value::U32(width));
}

fn set_tokens(m: &mut Tiny, n: usize) {
    m.set("tokenizer.ggml.tokens", Value::Array(Array::String((0..n).map(|id| id.to_string().into_bytes()).collect())));
}

fn set_eps(m: &mut Tiny, eps: f32) {
    m.set("llama.attention.layer_norm_rms_epsilon", Value::F32(eps));
}

fn set_scaling(m: &mut Tiny, name: &str, factor: f32) {
    m.set("llama.rope.scaling.type", Value::from(name));
    m.set("llama.rope.scaling.factor", Value::F32(factor));
}

fn grow(m: &mut Tiny, name: &str, n_rows: u64) {
    m.tensors.retain(|tensor| tensor.0 != name);
    m.add(name, &[n_rows, 32]);
}

fn factor(m: &mut Tiny, value: f32) {
    m.add("rope_freqs.weight", &[4]);
    m.tensor("rope_freqs.weight").2 = vec![1.0, 1.0, value, 1.0];
}

#[test]
fn impossible_models_are_refused_by_the_rule_they_break() {
    let scratch = common::scratch();
    let dense = (Tiny::new("llama"), [HPARAMS, TENSORS].concat());
    let experts = (Tiny::with_experts("llama"), EXPERTS.to_vec());
    let shared_experts = (Tiny::with_experts("qwen2moe"), SHARED_EXPERTS.to_vec());
    let learned = (Tiny::new("gpt2"), LEARNED.to_vec());
    let windows = (Tiny::new("gemma3"), WINDOWS.to_vec());
    for (sound, cases) in [dense, experts, shared_experts, learned, windows] {
        for (what, change, expected) in cases {
            let mut tiny = sound.clone();
            change(&mut tiny);
            match open(&tiny.write(scratch.path(), "model")) {
                Err(Error::Malformed { fault, .. }) if fault == expected => {}
                other => panic!("{what}: expected {expected:?}, found {other:?}"),
            }
        }
        open(&sound.write(scratch.path(), "model")).expect("the model is sound without these changes");
    }
}

#[test]
fn what_cannot_be_run_is_named() {
    let scratch = common::scratch();
    let known = format!("{} can be run", ggforge::model::architectures().collect::<Vec<_>>().join(", "));
    let cases: [(&str, Change, &str); 10] = [
        ("mamba", |_| {}, &known),
        ("%s%n%s%n", |_| {}, "llama, qwen2,"),
        ("qwen2", |m| m.set("qwen2.final_logit_softcapping", Value::F32(30.0)), "no bound can be run"),
        ("qwen2", |m| m.set("qwen2.expert_count", Value::U32(8)), "one network in each layer"),
        ("llama", |m| experts_apart(m), "convert the original model anew"),
        ("llama", |m| weigh_experts(m, "expert_gating_func", Value::U32(2)), "a softmax over all experts"),
        ("llama", |m| weigh_experts(m, "expert_weights_scale", Value::F32(2.5)), "a softmax over all experts"),
        ("llama", |m| weigh_experts(m, "expert_weights_norm", Value::Bool(false)), "a softmax over all experts"),
        ("llama", |m| set_scaling(m, "spiral", 2.0), "none, linear, yarn and longrope"),
        ("llama", |m| m.set("llama.attention.value_length", Value::U32(16)), "heads of one width"),
    ];
    for (architecture, change, expected) in cases {
        let mut tiny = Tiny::new(architecture);
        change(&mut tiny);
        match open(&tiny.write(scratch.path(), "model")) {
            Err(error @ Error::Unsupported { .. }) => assert!(error.to_string().contains(expected), "{error}"),
            other => panic!("{architecture}: expected {expected}, found {other:?}"),
        }
    }
}

#[test]
fn the_program_ends_with_exit_code_3() {
    let scratch = common::scratch();
    let cases: [(&str, Change); 4] = [
        ("HparamRange", |m| m.set("llama.block_count", Value::U32(600))),
        ("HparamRange", |m| set_eps(m, f32::NAN)),
        ("can be run", |m| m.set("general.architecture", Value::from("rwkv"))),
        ("MissingTensor", |m| m.tensors.retain(|tensor| tensor.0 != "token_embd.weight")),
    ];
    for (expected, change) in cases {
        let mut tiny = Tiny::new("llama");
        change(&mut tiny);
        let path = tiny.write(scratch.path(), "model");
        let output = common::ggforge().arg("generate").arg(&path).args(["--prompt", "a", "--verbose"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{text}");
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_context_is_not_exceeded_and_unknown_tokens_are_refused() {
    use ggforge::model::{Batch, Generation, Sampler, Sampling};
    let scratch = common::scratch();
    let model = Model::open(Tiny::new("llama").write(scratch.path(), "model")).unwrap();
    let cpu = Cpu::new(Engine::detect(), 1, Activations::F32).unwrap();
    let network = Network::open(&cpu, &model, 4, Residency::Resident).unwrap();
    let evaluate = |tokens: &[u32]| {
        let whole = 0..tokens.len();
        network.evaluate(Batch { tokens, sequences: std::slice::from_ref(&whole) }, &mut ()).map(drop)
    };
    assert!(evaluate(&[1, 2, 3, 63]).is_ok());
    assert!(matches!(evaluate(&[1, 2, 3, 64]), Err(Error::Usage(_))));
    assert!(matches!(evaluate(&[1; 5]), Err(Error::Usage(_))));
    let sampler = Sampler::new(Sampling::default()).unwrap();
    let mut generation = Generation::start(&network, &[1, 2, 3], sampler.clone()).unwrap();
    assert!(generation.next_token().is_ok() && generation.next_token().is_ok());
    assert!(matches!(generation.next_token(), Err(Error::Usage(_))));
    assert!(matches!(Generation::start(&network, &[], sampler.clone()), Err(Error::Usage(_))));
    assert!(matches!(Network::open(&cpu, &model, 0, Residency::Streamed), Err(Error::Usage(_))));
    let learned = Model::open(Tiny::new("gpt2").write(scratch.path(), "learned")).unwrap();
    assert!(matches!(Network::open(&cpu, &learned, 65, Residency::Streamed), Err(Error::Usage(_))));

    // A matrix is not looked at when it is opened; that its numbers are none shows in what comes out.
    let mut tiny = Tiny::new("llama");
    tiny.tensor("blk.0.ffn_up.weight").2[7] = f32::NAN;
    let model = Model::open(tiny.write(scratch.path(), "nan")).unwrap();
    let network = Network::open(&cpu, &model, 4, Residency::Resident).unwrap();
    let next = Generation::start(&network, &[1], sampler).unwrap().next_token();
    assert!(matches!(next, Err(Error::Malformed { fault: Fault::NonFinite, .. })), "{next:?}");
}

/// What happens to a file.
type ChangeOfFile = fn(&std::fs::File) -> std::io::Result<()>;

/// Changes its file when the first layer is done.
struct Changing(PathBuf, ChangeOfFile);

impl Observer<Cpu> for Changing {
    fn layer_done(&mut self, done: usize, _: usize) -> ggforge::Result<()> {
        if done == 1 {
            OpenOptions::new().write(true).open(&self.0).and_then(|file| (self.1)(&file)).unwrap();
        }
        Ok(())
    }
}

#[test]
fn a_file_that_changes_during_a_pass_is_an_error() {
    let scratch = common::scratch();
    let cpu = Cpu::new(Engine::detect(), 1, Activations::F32).unwrap();
    let changes: [(&str, ChangeOfFile); 2] =
        [("cut", |file| file.set_len(4096)), ("written", |file| file.set_modified(std::time::SystemTime::UNIX_EPOCH))];
    for (name, change) in changes {
        let path = Tiny::new("llama").write(scratch.path(), name);
        let model = Model::open(&path).unwrap();
        let network = Network::open(&cpu, &model, 16, Residency::Streamed).unwrap();
        let batch = Batch { tokens: &[1, 2, 3], sequences: std::slice::from_ref(&(0..3)) };
        network.evaluate(batch, &mut ()).unwrap();
        let Err(error) = network.evaluate(batch, &mut Changing(path, change)) else { panic!("{name}: no error") };
        assert!(matches!(error, Error::InputChanged { .. }), "{name}: {error:?}");
    }
}
