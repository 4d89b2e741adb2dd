//! Every class that converts, in its tiny models of `fixtures/families`, computes on a GPU what it does on the CPU: for whole sequences, and
//! token by token with a cache. README's table says of which families that is true.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use ggforge::arch::FAMILIES;
use ggforge::cuda;
use ggforge::gguf::Model;
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Cpu, Network, Residency};

use crate::checked::Checked;
use crate::common::checkpoint::{self, Case};
use crate::disguise::{is_small, is_tiny};
use crate::{any_gpu, are_close, common, extended_logits, last_logits, threads};

/// The models: all on a GPU; in disguise, where each takes a second or two, the first of each class.
fn cases() -> Vec<Case> {
    let mut cases = checkpoint::cases();
    if is_small() {
        let mut seen = HashSet::new();
        cases.retain(|case| seen.insert(case.json["layouts"]["transformers 5"]["config"]["architectures"].to_string()));
    }
    cases.retain(|case| !is_tiny() || case.name == "granite");
    cases
}

/// Tokens of a sequence: more than any window of these models.
fn tokens(case: &Case) -> Vec<u32> {
    case.tokens()[..if is_small() { 24 } else { checkpoint::N_CTX }].to_vec()
}

/// The model in F32, from the first of the ways in which transformers saves it.
fn converted(case: &Case, to: &Path) -> PathBuf {
    let folder = case.write(&case.layouts()[0], to);
    let path = to.join(format!("{}.gguf", case.name));
    common::succeeds(common::ggforge().arg("convert").arg(folder).args(["--quiet", "--type", "F32", "--output"]).arg(&path));
    path
}

#[test]
fn compute_what_they_do_on_the_cpu() {
    let Some(cuda) = any_gpu() else { return };
    let scratch = common::scratch();
    let cpu = Cpu::new(Engine::detect(), threads(), Activations::F32).expect("a CPU");
    let mut checked = Checked::new();
    for case in &cases() {
        let (path, tokens) = (converted(case, scratch.path()), tokens(case));
        let model = Model::open(path).expect("a model");
        let architecture = model.architecture().expect("an architecture");
        let family = FAMILIES.iter().find(|family| family.name == architecture).expect("a family");
        if !cuda::runs(family) {
            checked.run(&format!("{}, refused", case.name), || {
                let refused = Network::open(&cuda, &model, tokens.len(), Residency::Resident).map(drop);
                refused.expect_err("README says that no GPU runs it").to_string()
            });
            continue;
        }
        checked.run(&format!("{}, whole", case.name), || {
            are_close(&last_logits(&cuda, &model, &tokens), &last_logits(&cpu, &model, &tokens))
        });
        checked.run(&format!("{}, extended", case.name), || {
            are_close(&extended_logits(&cuda, &model, &tokens), &extended_logits(&cpu, &model, &tokens))
        });
    }
    checked.end();
}
