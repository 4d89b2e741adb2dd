//! The commands that write files, with inputs so small that a run takes some milliseconds, and what a fault may leave of their outputs.

use std::collections::BTreeMap;

use ggforge::Error;
use ggforge::error::Fault;
use ggforge::gguf::Model;

use super::common::checkpoint;
use super::*;

/// Arguments of each; the name of the command is what they begin with. Those of sets of shards replace a set of another model of the same
/// shape, so shards of both have the same names.
pub const COMMANDS: &[&str] = &[
    "convert model -t Q8_0 -o out.gguf",
    "convert model -t F16 -o set.gguf --split-max-size 50K",
    "quantize base.gguf -t Q8_0 -o out.gguf",
    "quantize base.gguf -t Q8_0 -o set.gguf --split-max-size 40K",
    "imatrix base.gguf --file text.txt --ctx 16 --chunks 2 -o out.gguf --device cpu",
    "imatrix merge part-1.gguf part-2.dat -o out.gguf",
    "error base.gguf quant.gguf --imatrix part-1.gguf --report out.html",
    "compare base.gguf quant.gguf --file text.txt --ctx 16 --chunks 2 --report out.html --device cpu",
    "logits base.gguf --tokens 1,2,3,4,5,6,7,8 --last 8 -o out.npy --device cpu",
];

/// Files by name, those of folders as `folder/name`.
type Files = BTreeMap<String, Vec<u8>>;

/// A folder with the inputs of all commands.
pub struct Inputs {
    dir: tempfile::TempDir,
    files: Files,
}

/// A command, what it writes, and what was there before.
pub struct Writing<'a> {
    inputs: &'a Inputs,
    pub arguments: &'static str,
    new: Files,
    old: Files,
    /// How long a run takes.
    pub duration: Duration,
}

/// What there is under the names of the outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Nothing,
    Old,
    New,
    /// Some shards of a set, without the first: every reader refuses them.
    Refused,
}

impl Inputs {
    pub fn new() -> Inputs {
        let dir = scratch();
        let cases = checkpoint::cases();
        for (folder, name) in [("model", "llama"), ("other", "llama-linear")] {
            let case = cases.iter().find(|case| case.name == name).expect("a fixture");
            case.write_changed(&case.layouts()[0], &dir.path().join(folder), |_, _| {});
        }
        fs::write(dir.path().join("text.txt"), "The quick brown fox jumps over the lazy dog. ".repeat(20)).unwrap();
        for arguments in [
            "convert model -t F32 -o base.gguf",
            "convert other -t F32 -o other.gguf",
            "convert model -t Q8_0 -o quant.gguf",
            "imatrix base.gguf --file text.txt --ctx 16 --chunks 1 -o part-1.gguf --device cpu",
            "imatrix base.gguf --file text.txt --ctx 16 --chunks 3 -o part-2.dat --device cpu",
        ] {
            succeeds(ggforge().current_dir(dir.path()).args(arguments.split(' ')));
        }
        let files = contents(dir.path(), "");
        Inputs { dir, files }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

fn contents(dir: &Path, prefix: &str) -> Files {
    let mut files = Files::new();
    for name in names_in(dir) {
        let path = dir.join(&name);
        match path.is_dir() {
            true => files.extend(contents(&path, &format!("{name}/"))),
            false => _ = files.insert(format!("{prefix}{name}"), comparable(&path)),
        }
    }
    files
}

/// The foot of a page says when it was made.
pub const AT_ONE_TIME: [(&str, &str); 1] = [("SOURCE_DATE_EPOCH", "0")];

/// What is in a file; of a page without the command and the machine at its foot, since runs differ in options, and a fault can hide the CPU.
fn comparable(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    match (text.find("<dt>command</dt>"), text.find("</footer>")) {
        (Some(from), Some(to)) if from < to => [&text[..from], &text[to..]].concat().into_bytes(),
        _ => bytes,
    }
}

impl<'a> Writing<'a> {
    pub fn new(inputs: &'a Inputs, arguments: &'static str) -> Writing<'a> {
        let mut writing = Writing { inputs, arguments, new: Files::new(), old: Files::new(), duration: Duration::MAX };
        for _ in 0..5 {
            writing.clear();
            let started = Instant::now();
            succeeds(writing.spawned(&mut writing.run()));
            writing.duration = writing.duration.min(started.elapsed());
            let made = writing.others();
            assert!(writing.new.is_empty() || writing.new == made, "{arguments}: not the same bytes every time");
            writing.new = made;
        }
        writing.clear();
        if writing.new.len() == 1 {
            writing.old = writing.new.keys().map(|name| (name.clone(), OLD.to_vec())).collect();
        } else {
            let other = arguments.replace(" model ", " other ").replace(" base.gguf ", " other.gguf ");
            succeeds(ggforge().current_dir(inputs.path()).args(other.split(' ')));
            writing.old = writing.others();
            assert!(writing.old.keys().eq(writing.new.keys()) && writing.old != writing.new, "{other} makes another set");
            writing.clear();
        }
        writing
    }

    /// The run that faults happen to.
    pub fn run(&self) -> Command {
        let mut command = ggforge();
        command.current_dir(self.inputs.path()).args(self.arguments.split(' ')).envs(AT_ONE_TIME);
        command
    }

    fn spawned<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.stdout(Stdio::null()).stderr(Stdio::null())
    }

    pub fn spawn(&self, command: &mut Command) -> Child {
        self.spawned(command).spawn().expect("a program that starts")
    }

    /// What is there besides the inputs.
    fn others(&self) -> Files {
        let mut files = contents(self.inputs.path(), "");
        files.retain(|name, bytes| self.inputs.files.get(name).is_none_or(|expected| expected != bytes));
        files
    }

    /// Removes all that is no input.
    pub fn clear(&self) {
        self.others().keys().for_each(|name| fs::remove_file(self.inputs.path().join(name)).unwrap());
    }

    /// Removes all that is no input, and writes what older runs have made.
    pub fn restore_old(&self) {
        self.clear();
        self.old.iter().for_each(|(name, bytes)| fs::write(self.inputs.path().join(name), bytes).unwrap());
    }

    /// Looks at what a fault has left; fails for anything that no fault may leave.
    #[track_caller]
    pub fn state(&self, context: &str) -> State {
        let (inputs, others): (Files, Files) =
            contents(self.inputs.path(), "").into_iter().partition(|(name, _)| self.inputs.files.contains_key(name));
        assert!(inputs == self.inputs.files, "{}, {context}: an input is another", self.arguments);
        let (outputs, temporary): (Files, Files) = others.into_iter().partition(|(name, _)| self.new.contains_key(name));
        let is_known = |name: &String| self.new.keys().any(|output| name.starts_with(&format!(".{output}.tmp.")));
        assert!(temporary.keys().all(is_known), "{}, {context}: {:?}", self.arguments, temporary.keys());
        if outputs.is_empty() {
            return State::Nothing;
        }
        for (files, state) in [(&self.old, State::Old), (&self.new, State::New)] {
            if outputs == *files {
                return state;
            }
        }
        for name in outputs.keys() {
            match Model::open(self.inputs.path().join(name)) {
                Err(error @ Error::Malformed { fault: Fault::ShardMissing, .. }) => {
                    assert!(error.to_string().contains("shard 1 of "), "{}, {context}: {error}", self.arguments);
                }
                other => panic!("{}, {context}: {:?} are neither old nor new: {other:?}", self.arguments, outputs.keys()),
            }
        }
        State::Refused
    }

    /// Names besides inputs and outputs.
    pub fn leftovers(&self) -> Vec<String> {
        self.others().into_keys().filter(|name| !self.new.contains_key(name)).collect()
    }

    /// True for a set of shards.
    pub fn is_of_a_set(&self) -> bool {
        self.new.len() > 1
    }

    /// Whatever was left: the next run gives the same as if nothing had happened, and nothing besides.
    #[track_caller]
    pub fn a_rerun_is_complete(&self) {
        succeeds(self.run().arg("--force"));
        assert_eq!(self.state("after another run"), State::New);
        assert_eq!(self.leftovers(), [""; 0], "{}", self.arguments);
    }
}
