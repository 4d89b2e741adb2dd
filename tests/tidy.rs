//! The sources keep the layering of ARCHITECTURE.md: a module imports only from those below it.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules by rank, lowest first. Modules of one group do not import each other.
const LAYERS: &[&[&str]] = &[
    &["error"],
    &["simd", "report", "threads", "names"],
    &["quant"],
    &["source"],
    &["gguf", "hf", "rows"],
    &["tokenizer", "arch", "imatrix"],
    &["plan"],
    &["pipeline", "matmul"],
    &["model"],
    &["eval", "cuda"],
];

fn rank(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Every `.rs` file below `dir`.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("readable source folder") {
        let path = entry.expect("readable entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// The top-level module a source file belongs to: `src/gguf/read.rs` -> `gguf`.
fn module_of(file: &Path, src: &Path) -> String {
    let first = file.strip_prefix(src).expect("below src").components().next().expect("a component");
    first.as_os_str().to_str().expect("UTF-8 name").trim_end_matches(".rs").to_owned()
}

/// The modules that `text` names as `crate::module`, with line numbers; also those in a `use crate::{a, b}` group.
fn imports(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or("");
        for (at, _) in code.match_indices("crate::") {
            let rest = &code[at + "crate::".len()..];
            let names: Vec<&str> = match rest.strip_prefix('{') {
                Some(group) => group.split(',').collect(),
                None => vec![rest],
            };
            for name in names {
                let name: String = name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                found.push((number + 1, name));
            }
        }
    }
    found
}

#[test]
fn imports_go_downwards_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut faults = Vec::new();
    for file in sources(&src) {
        let module = module_of(&file, &src);
        if module == "lib" {
            continue;
        }
        let own = rank(&module).unwrap_or_else(|| panic!("{module} has no rank in tests/tidy.rs"));
        for (line, name) in imports(&fs::read_to_string(&file).expect("readable source")) {
            if let Some(other) = rank(&name)
                && other >= own
                && name != module
            {
                faults.push(format!("{}:{line}: {module} imports {name}, which lies above or beside it", file.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_program_is_the_only_one_that_prints_or_exits() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut faults = Vec::new();
    for file in sources(&src) {
        let text = fs::read_to_string(&file).expect("readable source");
        let body = text.split("#[cfg(test)]\nmod tests").next().unwrap_or("");
        for (number, line) in body.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if ["println!", "eprintln!", "print!(", "process::exit", "todo!(", "unimplemented!("]
                .iter()
                .any(|bad| code.contains(bad))
            {
                faults.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "the library prints, exits or is unfinished:\n{}", faults.join("\n"));
}

#[test]
fn unsafe_stays_in_its_homes() {
    const HOMES: &[&str] = &["src/simd/", "src/gguf/map.rs", "src/matmul/amx.rs", "src/cuda/", "tools/bench/ggml.rs"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in ["src", "tools"].iter().flat_map(|folder| sources(&root.join(folder))) {
        let name = file.strip_prefix(root).expect("below root").to_str().expect("UTF-8 name").to_owned();
        let text = fs::read_to_string(&file).expect("readable source");
        let uses = text.lines().any(|line| line.split("//").next().unwrap_or("").contains("unsafe "));
        assert!(!uses || HOMES.iter().any(|home| name.starts_with(home)), "{name} uses unsafe outside its homes {HOMES:?}");
    }
}
