//! Every preset gives every tensor the type that llama-quantize gives it.
//!
//! `fixtures/recipes/` holds what `llama-quantize --dry-run` printed for models of many shapes (`tools/dev/recipes.py`).

use std::fs;
use std::path::Path;

use ggforge::Error;
use ggforge::plan::recipe::{Facts, preset};
use ggforge::plan::{Candidate, Choices, NameOverride, Overrides, Source, choose, parse_format};
use ggforge::quant::Format;

/// One file of `fixtures/recipes/`.
struct Golden {
    facts: Facts,
    cases: Vec<String>,
    codes: Vec<(char, Format)>,
    tensors: Vec<GoldenTensor>,
}

struct GoldenTensor {
    name: String,
    shape: Vec<u64>,
    kept: Format,
    /// One letter per case.
    letters: Vec<char>,
}

impl Golden {
    fn read(path: &Path) -> Golden {
        let text = fs::read_to_string(path).unwrap();
        let (mut facts, mut cases, mut codes, mut tensors) = (None, Vec::new(), Vec::new(), Vec::new());
        for line in text.lines() {
            let (kind, rest) = line.split_once(' ').unwrap();
            match kind {
                "facts" => facts = Some(read_facts(rest)),
                "case" => cases.push(rest.to_owned()),
                "codes" => codes = rest.split(' ').map(|code| (code.chars().next().unwrap(), code[2..].parse().unwrap())).collect(),
                "tensor" => tensors.push(read_tensor(rest)),
                _ => panic!("{}: {line}", path.display()),
            }
        }
        let tied = !tensors.iter().any(|tensor| tensor.name == "output.weight");
        Golden { facts: Facts { tied, ..facts.unwrap() }, cases, codes, tensors }
    }

    /// Where llama-quantize would abort on a type that does not fit the row, any type that fits is right.
    fn agrees(&self, tensor: &GoldenTensor, column: usize, format: Format) -> bool {
        match tensor.letters[column] {
            '?' => format.tensor_bytes(&tensor.shape).is_ok(),
            letter => self.codes.contains(&(letter, format)),
        }
    }

    fn choose(&self, case: &str) -> Result<Choices, Error> {
        let (preset_name, overrides, has_imatrix) = read_case(case);
        let candidates: Vec<Candidate> = self
            .tensors
            .iter()
            .map(|tensor| Candidate { name: &tensor.name, shape: &tensor.shape, kept: tensor.kept, source: Source::Weights })
            .collect();
        choose(preset(preset_name).unwrap(), &overrides, &Facts { has_imatrix, ..self.facts.clone() }, &candidates)
    }
}

fn read_facts(text: &str) -> Facts {
    let value = |key: &str| text.split(' ').find_map(|fact| fact.strip_prefix(key)?.strip_prefix('=')).unwrap();
    let number = |key| value(key).parse().unwrap();
    Facts {
        arch: value("arch").to_owned(),
        n_layer: number("layers"),
        n_layer_nextn: 0,
        n_head: number("heads"),
        n_head_kv: number("heads_kv"),
        n_expert: number("experts"),
        tied: false,
        has_imatrix: false,
    }
}

fn read_tensor(text: &str) -> GoldenTensor {
    let fields: Vec<&str> = text.split(' ').collect();
    let [name, shape, kept, letters] = fields[..] else { panic!("{text}") };
    GoldenTensor {
        name: name.to_owned(),
        shape: shape.split('x').map(|dim| dim.parse().unwrap()).collect(),
        kept: kept.parse().unwrap(),
        letters: letters.chars().collect(),
    }
}

/// A command line of llama-quantize, in its own words.
fn read_case(case: &str) -> (&str, Overrides, bool) {
    let (mut overrides, mut has_imatrix) = (Overrides::default(), false);
    let mut words = case.split(' ');
    let preset_name = words.next_back().unwrap();
    while let Some(option) = words.next() {
        match option {
            "--imatrix" => has_imatrix = true,
            "--pure" => overrides.pure = true,
            "--leave-output-tensor" => overrides.keep_output = true,
            "--output-tensor-type" => overrides.output = Some(parse_format(words.next().unwrap()).unwrap()),
            "--token-embedding-type" => overrides.token_embd = Some(parse_format(words.next().unwrap()).unwrap()),
            "--tensor-type" => overrides.by_name.push(NameOverride::parse(words.next().unwrap()).unwrap()),
            _ => panic!("{case}"),
        }
    }
    (preset_name, overrides, has_imatrix)
}

#[test]
fn every_choice_is_llama_quantize_s() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/recipes");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 12, "fixtures/recipes is not complete");

    let (mut compared, mut faults) = (0, Vec::new());
    for path in &paths {
        let model = path.file_stem().unwrap().to_str().unwrap();
        let golden = Golden::read(path);
        for (column, case) in golden.cases.iter().enumerate() {
            let refused = golden.tensors[0].letters[column] == '!';
            match golden.choose(case) {
                Err(Error::Usage(_)) if refused => compared += 1,
                Err(error) => faults.push(format!("{model}: {case}: {error}")),
                Ok(_) if refused => faults.push(format!("{model}: {case}: should be refused")),
                Ok(choices) => {
                    compared += choices.tensors.len();
                    for (tensor, choice) in golden.tensors.iter().zip(choices.tensors) {
                        if !golden.agrees(tensor, column, choice.format) {
                            faults.push(format!("{model}: {case}: {}: {}", tensor.name, choice.format));
                        }
                    }
                }
            }
        }
    }
    println!("{compared} choices of llama-quantize compared, {} models", paths.len());
    assert!(faults.is_empty(), "{} differ:\n{}", faults.len(), faults[..faults.len().min(40)].join("\n"));
}
