//! `ggforge bench`: how fast this machine does what ggforge does, beside the programs it stands in for.
//!
//! Each benchmark has a file of its own here and a line in [`BENCHES`]. Every one checks the answer before it times it, and reports
//! medians.

pub mod clock;
mod cuda;
mod formats;
mod ggml;
mod matmul;
mod model;
#[allow(dead_code)] // the tests draw other weights from it
mod paint;
mod runs;
mod shape;

use clap::{ArgMatches, Args, Command, FromArgMatches};

use crate::exit::Failure;
use crate::{Entry, Run, Session, signals};

/// Every benchmark, in the order of the help.
const BENCHES: &[Entry] = &[
    Entry::of::<formats::Formats>(),
    Entry::of::<matmul::Matmul>(),
    Entry::of::<model::ModelSpeed>(),
    Entry::of::<cuda::CudaBench>(),
];

const EXAMPLES: &str = "\
Examples:
  ggforge bench formats --filter Q4_K
  ggforge bench matmul --threads 1
  ggforge bench model llama.gguf --device cpu
  ggforge bench cuda";

/// One of [`BENCHES`] and its arguments.
pub struct Bench {
    entry: &'static Entry,
    arguments: ArgMatches,
}

impl Run for Bench {
    const NAME: &'static str = "bench";

    fn run(self, session: &Session) -> Result<(), Failure> {
        signals::end_at_once();
        (self.entry.run)(&self.arguments, session)
    }
}

impl Args for Bench {
    fn augment_args(command: Command) -> Command {
        let command = command
            .about("Measure how fast this machine is")
            .after_help(EXAMPLES)
            .subcommand_required(true)
            .arg_required_else_help(true);
        BENCHES.iter().fold(command, |command, entry| command.subcommand((entry.command)()))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Bench::augment_args(command)
    }
}

impl FromArgMatches for Bench {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Bench, clap::Error> {
        let (name, arguments) = matches.subcommand().expect("clap requires a benchmark");
        let entry = BENCHES.iter().find(|entry| entry.name == name).expect("clap knows only the table's benchmarks");
        Ok(Bench { entry, arguments: arguments.clone() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Bench::from_arg_matches(matches)?;
        Ok(())
    }
}
