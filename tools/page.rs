//! `--report FILE.html`: the page that a command writes beside what it prints.

use std::path::PathBuf;

use clap::Args;
use ggforge::Result;
use ggforge::pipeline::{self, Existing};
use ggforge::report::page::Page;
use ggforge::report::{decimal_bytes, printable};

use crate::arguments::output_path;
use crate::device::Device;
use crate::made;

/// Where to write the page, if anywhere.
#[derive(Debug, Args)]
pub struct PageOptions {
    /// Write a page with plots: one file, for any browser
    #[arg(long, value_name = "FILE.html", value_parser = output_path())]
    report: Option<PathBuf>,
    /// Replace an existing page
    #[arg(long, requires = "report")]
    force: bool,
}

impl PageOptions {
    /// Refuses a page that cannot be written, or would replace one of `inputs`: better before the work than after it.
    pub fn check(&self, inputs: &[PathBuf]) -> Result<()> {
        self.report.iter().try_for_each(|path| pipeline::check_target(path, self.existing(), inputs))
    }

    /// Writes the page where one was asked for; returns the lines that say so.
    pub fn write(&self, page: impl FnOnce() -> Page, inputs: &[PathBuf], device: Option<&Device>) -> Result<String> {
        let Some(path) = &self.report else { return Ok(String::new()) };
        let html = Page { made: made::facts(inputs, device), ..page() }.html();
        pipeline::write_file(path, html.as_bytes(), self.existing(), inputs)?;
        let (name, size) = (printable(path.as_os_str().as_encoded_bytes()), decimal_bytes(html.len() as u64));
        Ok(format!("\n{name}: the same as a page with plots, {size}\n"))
    }

    fn existing(&self) -> Existing {
        if self.force { Existing::Replace } else { Existing::Refuse }
    }
}
