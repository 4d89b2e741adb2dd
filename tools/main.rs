//! The `ggforge` program: a thin face over the library's public API.
//!
//! Each command has a file of its own and a line in [`COMMANDS`]. What a command shares with others is in `output.rs` (options of
//! everything that writes) with `folder.rs`, `model.rs` (what a command runs), `device.rs` (where), `measuring.rs` (everything that runs a
//! model over a text), `page.rs` (`--report`) with `made.rs`, `arguments.rs` (values that several have), `exit.rs` (how a run ends),
//! `terminal.rs` (what a person sees) and `signals.rs`.

mod arguments;
mod bench;
mod calibrating;
mod chat;
mod child;
mod compare;
mod completions;
mod convert;
mod device;
mod devices;
mod error;
mod exit;
mod fit;
mod folder;
mod generate;
mod imatrix;
mod inspect;
mod logits;
mod made;
mod measuring;
mod model;
mod npy;
mod openings;
mod output;
mod page;
mod perplexity;
mod proof;
mod quantize;
mod signals;
mod size;
mod stops;
mod summary;
mod terminal;
mod texts;
mod tokenize;

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Args, CommandFactory, FromArgMatches, Parser};
use exit::Failure;
use ggforge::simd::Level;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Every command, in the order of the help.
const COMMANDS: &[Entry] = &[
    Entry::of::<convert::Convert>(),
    Entry::of::<quantize::Quantize>(),
    Entry::of::<inspect::Inspect>(),
    Entry::of::<fit::Fit>(),
    Entry::of::<tokenize::Tokenize>(),
    Entry::of::<generate::Generate>(),
    Entry::of::<logits::Logits>(),
    Entry::of::<perplexity::Perplexity>(),
    Entry::of::<compare::Compare>(),
    Entry::of::<error::ErrorCommand>(),
    Entry::of::<imatrix::Imatrix>(),
    Entry::of::<bench::Bench>(),
    Entry::of::<devices::Devices>(),
    Entry::of::<completions::Completions>(),
];

/// Turns Hugging Face models into quantized GGUF files
#[derive(Parser)]
#[command(name = "ggforge", version, subcommand_required = true, arg_required_else_help = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    session: Session,
}

const AFTER_HELP: &str = "\
Examples:
  ggforge convert models/Llama-3.2-1B --type Q4_K_M --output llama.gguf
  ggforge convert models/Llama-3.2-1B --type Q8_0,Q4_K_M --output out/
  ggforge quantize llama-F16.gguf --type Q5_K_M --output llama-Q5_K_M.gguf
  ggforge inspect llama.gguf
  ggforge tokenize llama.gguf 'Hello world'
  ggforge generate llama.gguf --prompt 'Once upon a time'
  ggforge compare llama-BF16.gguf llama-Q4_K_M.gguf --file wiki.test.raw

Exit codes:
  0 done   2 usage   3 bad input   4 no space   5 input changed while read
  6 input or output failed   7 no usable GPU   70 internal error
  129, 130, 143 stopped by a signal (the terminal closed, Ctrl-C, SIGTERM)";

/// What every command can use.
#[derive(Debug, Clone, Args)]
struct Session {
    /// Worker threads; the result does not depend on it [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = threads, help_heading = "Global options")]
    threads: Option<NonZeroUsize>,
    /// With an error, name the rule that a file breaks
    #[arg(long, short, global = true, help_heading = "Global options")]
    verbose: bool,
    /// Show no progress and no summary
    #[arg(long, short, global = true, help_heading = "Global options")]
    quiet: bool,
}

impl Session {
    /// Worker threads for computing: those asked for, else one per core.
    fn n_threads(&self) -> usize {
        self.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
    }
}

/// More would only cost memory: each has buffers of its own.
const THREADS_MAX: usize = 1024;

fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let threads = text.parse::<NonZeroUsize>().ok().filter(|n| n.get() <= THREADS_MAX);
    threads.ok_or_else(|| format!("a number from 1 to {THREADS_MAX} is needed"))
}

/// A command: its arguments, whose doc comments are its help, and what it does.
trait Run: Args {
    const NAME: &'static str;
    /// What other programs call it: accepted, and not shown.
    const ALIASES: &'static [&'static str] = &[];

    fn run(self, session: &Session) -> Result<(), Failure>;
}

/// A line of the command table.
struct Entry {
    name: &'static str,
    command: fn() -> clap::Command,
    run: fn(&ArgMatches, &Session) -> Result<(), Failure>,
}

impl Entry {
    const fn of<C: Run>() -> Entry {
        Entry {
            name: C::NAME,
            command: || C::augment_args(clap::Command::new(C::NAME)).aliases(C::ALIASES),
            run: |matches, session| C::from_arg_matches(matches)?.run(session),
        }
    }
}

/// The program's arguments, all commands included.
fn program() -> clap::Command {
    let program = Cli::command().long_version(version());
    COMMANDS.iter().fold(program, |program, entry| program.subcommand(with_numbers((entry.command)())))
}

/// What `--version` says: the version, the commit where it is known, and the CPU level that is used. `-V` says the version alone.
pub fn version() -> &'static str {
    let commit = option_env!("GGFORGE_COMMIT").unwrap_or(if cfg!(debug_assertions) { "debug build" } else { "unknown commit" });
    String::leak(format!("{} ({commit}, {})", env!("CARGO_PKG_VERSION"), Level::detect().name()))
}

/// The command, and those below it, with `-1` read as a value, so that what is wrong with it is said, and not that no option has that name.
fn with_numbers(command: clap::Command) -> clap::Command {
    let number =
        |argument: Arg| if argument.get_action().takes_values() { argument.allow_negative_numbers(true) } else { argument };
    command.mut_args(number).mut_subcommands(with_numbers)
}

/// Raises the number of files that may be open to what the system allows: a large model has hundreds of shards.
fn allow_many_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, opening one file too many says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// True where the command, or one below it, was given `--json`.
fn asks_for_json(matches: &ArgMatches) -> bool {
    let here = matches.try_get_one::<bool>("json").ok().flatten().is_some_and(|json| *json);
    here || matches.subcommand().is_some_and(|(_, below)| asks_for_json(below))
}

fn main() -> ExitCode {
    if let Some(code) = child::run(&[&chat::JOB, &proof::JOB]) {
        return code;
    }
    exit::catching_panics(|| {
        allow_many_open_files();
        // What cannot be parsed is told as its words ask.
        let has = |option: &str| std::env::args_os().any(|argument| argument == option);
        exit::tell_as(has("--json"), has("--verbose") || has("-v"));
        let matches = program().try_get_matches()?;
        let cli = Cli::from_arg_matches(&matches)?;
        exit::tell_as(asks_for_json(&matches), cli.session.verbose);
        let (name, arguments) = matches.subcommand().expect("clap requires a command");
        Level::check_cap()?;
        let entry = COMMANDS.iter().find(|entry| entry.name == name).expect("clap knows only the table's commands");
        (entry.run)(arguments, &cli.session)
    })
}
