//! The sources keep the layering of ARCHITECTURE.md: a module imports only from those below it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The rank of every module, from the table of layers in ARCHITECTURE.md, which is the one place that states them. Modules of one rank
/// do not import each other.
fn ranks() -> HashMap<String, usize> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        let rank = cells.next()?.parse().ok()?;
        Some((cells.next()?.trim_matches('`').to_owned(), rank))
    });
    let ranks: HashMap<String, usize> = rows.collect();
    assert!(ranks.len() > 10, "the table of layers is not found in ARCHITECTURE.md");
    ranks
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
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
    let (src, ranks) = (root().join("src"), ranks());
    let mut faults = Vec::new();
    for file in sources(&src) {
        let module = module_of(&file, &src);
        if module == "lib" {
            continue;
        }
        let own = *ranks.get(&module).unwrap_or_else(|| panic!("{module} has no rank in ARCHITECTURE.md"));
        for (line, name) in imports(&fs::read_to_string(&file).expect("readable source")) {
            if let Some(other) = ranks.get(&name)
                && *other >= own
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
    let mut faults = Vec::new();
    for file in sources(&root().join("src")) {
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
    for file in ["src", "tools"].iter().flat_map(|folder| sources(&root().join(folder))) {
        let name = file.strip_prefix(root()).expect("below root").to_str().expect("UTF-8 name").to_owned();
        let text = fs::read_to_string(&file).expect("readable source");
        let uses = text.lines().any(|line| line.split("//").next().unwrap_or("").contains("unsafe "));
        assert!(!uses || HOMES.iter().any(|home| name.starts_with(home)), "{name} uses unsafe outside its homes {HOMES:?}");
    }
}

/// What a source file says before its tests, without comments.
fn code_of(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("readable source");
    let body = text.split("#[cfg(test)]\n").next().unwrap_or("");
    body.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// What a model is stands in its family's file; elsewhere no architecture is known by name.
#[test]
fn architectures_are_named_by_their_families_only() {
    let src = root().join("src");
    let families = src.join("arch/family");
    let named =
        |text: &str| text.split("    name: \"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())).collect();
    let names: Vec<String> = sources(&families).iter().flat_map(|file| -> Vec<String> { named(&code_of(file)) }).collect();
    assert!(names.len() >= 10, "the families are not found: {names:?}");
    // Vocabularies and their pre-tokenizers have names too, some of them the same.
    let elsewhere =
        |file: &PathBuf| !file.starts_with(&families) && !file.starts_with(src.join("tokenizer")) && !file.ends_with("tests.rs");
    let mut faults = Vec::new();
    for file in sources(&src).into_iter().filter(elsewhere) {
        let code = code_of(&file);
        faults.extend(
            names.iter().filter(|name| code.contains(&format!("\"{name}\""))).map(|name| format!("{}: {name}", file.display())),
        );
    }
    assert!(faults.is_empty(), "architectures by name outside of src/arch/family:\n{}", faults.join("\n"));
}

/// `f(true)` says nothing at the place of the call; two functions, or an enum, do.
#[test]
fn public_functions_take_no_bool() {
    let mut faults = Vec::new();
    for file in sources(&root().join("src")) {
        let code = code_of(&file);
        for (at, _) in code.match_indices("pub fn ") {
            let signature =
                code[at..].split_once('{').or_else(|| code[at..].split_once(';')).map_or("", |(signature, _)| signature);
            let parameters = signature.split("->").next().unwrap_or("");
            if parameters.contains(": bool") {
                faults.push(format!("{}: {}", file.display(), parameters.lines().next().unwrap_or("").trim()));
            }
        }
    }
    assert!(faults.is_empty(), "public functions with a bool:\n{}", faults.join("\n"));
}
