//! The sources keep the layering of ARCHITECTURE.md: a module imports only from those below it, and never in a circle.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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

/// A module's place below `src`, and what it says: `src/gguf/read.rs` -> `["gguf", "read"]`; a folder's `mod.rs` is the folder.
type Module = (Vec<String>, String);

/// All modules but tests, without comments.
fn modules(src: &Path) -> Vec<Module> {
    let module = |file: PathBuf| {
        let below = file.strip_prefix(src).expect("below src").with_extension("");
        let mut path: Vec<String> = below.iter().map(|part| part.to_str().expect("UTF-8 name").to_owned()).collect();
        path.pop_if(|last| last == "mod");
        let text = fs::read_to_string(&file).expect("readable source");
        let body = text.split("#[cfg(test)]\nmod tests").next().unwrap_or("");
        let code: Vec<&str> = body.lines().map(|line| line.split("//").next().unwrap_or("")).collect();
        (path, code.join("\n"))
    };
    let files = sources(src).into_iter().filter(|file| !file.ends_with("tests.rs") && !file.ends_with("lib.rs"));
    files.map(module).collect()
}

/// The paths that a `use` of `tree` names.
fn expand(tree: &str, prefix: &[String], found: &mut Vec<Vec<String>>) {
    let (head, group) = tree.split_once('{').map_or((tree, None), |(head, rest)| (head, rest.rsplit_once('}')));
    let head = head.split(" as ").next().unwrap_or("");
    let path: Vec<String> = prefix.iter().cloned().chain(head.split("::").map(|part| part.trim().to_owned())).collect();
    let mut path: Vec<String> = path.into_iter().filter(|part| !part.is_empty()).collect();
    let Some((group, _)) = group else {
        path.pop_if(|last| last == "self");
        return found.push(path);
    };
    let (mut depth, mut start) = (0, 0);
    for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !group[start..at].trim().is_empty() {
                    expand(group[start..at].trim(), &path, found);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// Every path from the top of the crate that a module names in a `use`, or in full elsewhere.
fn paths((module, code): &Module) -> Vec<Vec<String>> {
    let mut named = Vec::new();
    for statement in code.split(';') {
        if let Some((before, tree)) = statement.rsplit_once("use ")
            && (before.ends_with(['\n', ' ', ')']) || before.is_empty())
        {
            expand(&tree.split_whitespace().collect::<Vec<_>>().join(" "), &[], &mut named);
        }
    }
    for start in ["super::", "crate::"] {
        for (at, _) in code.match_indices(start) {
            let end = code[at..].find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').map_or(code.len(), |len| at + len);
            named.push(code[at..end].split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect());
        }
    }
    let absolute = |path: Vec<String>| {
        let n_super = path.iter().take_while(|part| *part == "super").count();
        match path.first()?.as_str() {
            "crate" => Some(path[1..].to_vec()),
            "super" => Some([module.get(..module.len().checked_sub(n_super)?)?, &path[n_super..]].concat()),
            "self" => Some([&module[..], &path[1..]].concat()),
            _ => Some([&module[..], &path[..]].concat()),
        }
    };
    named.into_iter().filter_map(absolute).collect()
}

/// Imports that lead back to where they start, among the modules of one folder. What a folder's own `mod.rs` defines may be used by all
/// modules in it, since it stands for the folder and declares them; what it only passes on counts as what it comes from.
fn circles(modules: &[Module]) -> Vec<String> {
    let known: Vec<&[String]> = modules.iter().map(|(path, _)| &path[..]).collect();
    let all_paths: Vec<Vec<Vec<String>>> = modules.iter().map(paths).collect();
    // The module of a folder that a path leads to, maybe by way of the folder's `mod.rs`.
    let child_of = |folder: &[String], path: &[String]| -> Option<String> {
        let name = path.strip_prefix(folder)?.first()?;
        let is_child =
            |name: &String| known.iter().any(|module| module.strip_prefix(folder).is_some_and(|rest| rest.first() == Some(name)));
        if is_child(name) {
            return Some(name.clone());
        }
        let of_folder = known.iter().position(|module| *module == folder)?;
        let passed_on = all_paths[of_folder].iter().filter(|path| path.last() == Some(name));
        passed_on.filter_map(|path| path.strip_prefix(folder)?.first()).find(|child| is_child(child)).cloned()
    };
    let folders: BTreeSet<&[String]> = known.iter().flat_map(|module| (1..module.len()).map(|n| &module[..n])).collect();
    let mut faults = Vec::new();
    for folder in folders {
        let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (module, paths) in known.iter().zip(&all_paths) {
            let Some(from) = module.strip_prefix(folder).and_then(<[String]>::first) else { continue };
            let to = paths.iter().filter_map(|path| child_of(folder, path)).filter(|to| to != from);
            imports.entry(from.clone()).or_default().extend(to);
        }
        let leads_back = |start: &String, to: &String| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
            while let Some(module) = open.pop() {
                open.extend(imports.get(module).into_iter().flatten().filter(|next| seen.insert(*next)));
            }
            seen.contains(to)
        };
        for (from, to) in imports.iter().flat_map(|(from, to)| to.iter().map(move |to| (from, to))) {
            if leads_back(to, from) {
                faults.push(format!("src/{}: {from} imports {to}, which leads back to {from}", folder.join("/")));
            }
        }
    }
    faults
}

#[test]
fn modules_of_a_folder_import_in_no_circle() {
    let modules = modules(&root().join("src"));
    assert!(modules.len() > 100, "the sources are not found: {}", modules.len());
    let faults = circles(&modules);
    assert!(faults.is_empty(), "circles of imports:\n{}", faults.join("\n"));
}

#[test]
fn a_circle_of_imports_is_found() {
    let module = |path: &str, code: &str| -> Module { (path.split('/').map(str::to_owned).collect(), code.to_owned()) };
    let found = |b: &str| {
        circles(&[
            module("a", "mod b;\nmod c;\nmod d;\n\npub use c::Passed;\npub struct Own;\n"),
            module("a/b", b),
            module("a/c", "use super::Own;\nuse super::{\n    Own as _,\n    d::{self, Deep},\n};\n"),
            module("a/d/e", "fn f() { crate::a::b::g() }\n"),
        ])
    };
    assert!(found("use super::Own;\npub fn g() {}\n").is_empty());
    assert!(found("use crate::other::c;\n").is_empty());
    for b in ["use super::c::X;\n", "use crate::a::{Own, Passed};\n", "fn f() { super::c::f() }\n", "use super::d::Deep;\n"] {
        assert!(!found(b).is_empty(), "{b}");
    }
}

/// Else it would be missing in the list that `tools/dev/test` ends with, and no failure in CI.
#[test]
fn tests_skip_by_the_one_function_that_lists_it() {
    let said = concat!("println!(\"", "skipped");
    for path in sources(&root().join("tests")).into_iter().filter(|path| !path.ends_with("common/skip.rs")) {
        let text = fs::read_to_string(&path).expect("a readable source");
        assert!(!text.contains(said), "{}: common::skip says and lists what is skipped", path.display());
    }
}
