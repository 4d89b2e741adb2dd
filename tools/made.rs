//! How a report came to be, for the foot of its page: whoever has the files can make it again, and see whether they are the same.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ggforge::report::printable;
use jiff::Timestamp;

use crate::device::Device;
use crate::devices::Cpu;

/// The environment variable of reproducible builds: the seconds since 1970 that count as now.
const NOW: &str = "SOURCE_DATE_EPOCH";

/// Pairs of a word and its value. `read`: what was read, folders besides their files.
pub fn facts(read: &[PathBuf], device: Option<&Device>) -> Vec<(String, String)> {
    let cpu = Cpu::of_this_machine();
    let mut machine = format!("{}, {} threads", cpu.name.as_deref().unwrap_or("unknown CPU"), cpu.n_threads);
    if let Some(Device::Cuda(gpu)) = device {
        machine += &format!("; computed on {}", gpu.name);
    }
    let mut facts = vec![
        ("made at".to_owned(), now().to_string()),
        ("command".to_owned(), command(std::env::args_os())),
        ("version".to_owned(), format!("ggforge {}", crate::version())),
        ("machine".to_owned(), machine),
    ];
    let mut files: Vec<&PathBuf> = read.iter().filter(|path| !path.is_dir()).collect();
    let mut seen = BTreeSet::new();
    files.retain(|path| seen.insert(*path));
    facts.extend(files.into_iter().map(|path| (name(path), size(path))));
    facts
}

/// To the second: nobody needs it finer.
fn now() -> Timestamp {
    let given = std::env::var(NOW).ok().and_then(|seconds| seconds.parse::<i64>().ok());
    let seconds = given.unwrap_or_else(|| SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs() as i64));
    Timestamp::from_second(seconds).unwrap_or_default()
}

fn name(path: &Path) -> String {
    printable(path.as_os_str().as_encoded_bytes())
}

fn size(path: &Path) -> String {
    std::fs::metadata(path).map_or_else(|_| "size unknown".to_owned(), |metadata| format!("{} bytes", metadata.len()))
}

/// A line that a shell takes.
fn command(arguments: impl Iterator<Item = OsString>) -> String {
    let mut words = arguments.map(|word| quoted(&word.to_string_lossy()));
    // By whatever path the program was started.
    let program = words.next().map(|_| "ggforge".to_owned());
    program.into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::command;

    #[test]
    fn a_command_can_be_given_to_a_shell() {
        let words = ["/usr/bin/ggforge", "compare", "a b.gguf", "it's", "", "--file=x", "$HOME"];
        let line = command(words.iter().map(|word| (*word).into()));
        assert_eq!(line, r"ggforge compare 'a b.gguf' 'it'\''s' '' --file=x '$HOME'");
    }
}
