//! `ggforge completions`: what a shell needs to complete the program's arguments.

use clap::Args;
use clap_complete::Shell;

use crate::exit::{self, Failure};
use crate::{Run, Session};

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge completions bash > ~/.local/share/bash-completion/completions/ggforge
  ggforge completions fish > ~/.config/fish/completions/ggforge.fish")]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Run for Completions {
    const NAME: &'static str = "completions";

    fn run(self, _session: &Session) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut crate::program(), "ggforge", &mut script);
        exit::print(&String::from_utf8_lossy(&script))
    }
}
