//! Tells the program which commit it is built from, for `ggforge --version`.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // While it is developed the commit changes often, and everything would be compiled anew for it.
    if std::env::var("PROFILE").as_deref() != Ok("release") {
        return;
    }
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    for file in ["HEAD", "logs/HEAD"].into_iter().filter_map(|name| git(&root, &["rev-parse", "--git-path", name])) {
        // A file that is missing would count as changed every time.
        if root.join(&file).exists() {
            println!("cargo::rerun-if-changed={}", root.join(&file).display());
        }
    }
    if let Some(commit) = commit(&root) {
        println!("cargo::rustc-env=GGFORGE_COMMIT={commit}");
    }
}

/// The commit of a checkout, or the one that a package of a registry was made from; `None` where nobody knows.
pub fn commit(root: &Path) -> Option<String> {
    const DIGITS: usize = 12;
    // A checkout of something else may lie around a package.
    let commit = match root.join(".git").exists() {
        true => git(root, &["rev-parse", "HEAD"])?,
        false => {
            let info = std::fs::read_to_string(root.join(".cargo_vcs_info.json")).ok()?;
            info.split_once("\"sha1\"")?.1.split('"').nth(1)?.to_owned()
        }
    };
    let is_hash = commit.len() >= DIGITS && commit.bytes().all(|c| c.is_ascii_hexdigit());
    is_hash.then(|| commit[..DIGITS].to_owned())
}

/// What git prints, where it is installed and knows the answer.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
