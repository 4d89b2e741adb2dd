//! What every command that writes GGUF files shares: its options, and carrying a plan out.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use ggforge::Error;
use ggforge::imatrix::Imatrix;
use ggforge::names::Role;
use ggforge::pipeline::{self, Existing, MEMORY_MAX_BYTES_DEFAULT, Options, ReadBack};
use ggforge::plan::recipe::{Preset, preset};
use ggforge::plan::{NameOverride, Overrides, Plan, parse_format, parse_list, paths_by_name, paths_in_folder, predicted_kld};
use ggforge::source::TensorSource;
use ggforge::tokenizer::encode::read_text;

use crate::arguments::{formats, output_path};
use crate::calibrating::{self, CalibrateOptions, Calibrating};
use crate::exit::{self, Failure};
use crate::folder::MadeFolders;
use crate::proof::Proof;
use crate::signals::Stop;
use crate::summary::Summary;
use crate::terminal::{self, Bar};
use crate::{Session, size};

/// Options of every command that writes GGUF files.
#[derive(Debug, Args)]
pub struct OutputOptions {
    /// File to write, a folder, or a name with {type} in it; a folder that ends in / is made [default: a name by the model, here]
    #[arg(long, short, value_name = "PATH", value_parser = output_path(), alias = "outfile")]
    pub output: Option<PathBuf>,
    /// Type for tensors whose GGUF name matches; may be repeated, first match wins
    #[arg(long, value_name = "REGEX=T")]
    pub tensor_type: Vec<String>,
    /// The same from a file: REGEX=T separated by white space, after those of --tensor-type
    #[arg(long, value_name = "FILE")]
    pub tensor_type_file: Option<PathBuf>,
    /// Types by the names of tensors: written where types are chosen (--bpw, --size, --gpu-memory, --ratio), else read like
    /// --tensor-type-file, after that
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Type of the output head
    #[arg(long, value_name = "T", value_parser = formats(), hide_possible_values = true)]
    pub output_tensor_type: Option<String>,
    /// Type of the token embedding
    #[arg(long, value_name = "T", value_parser = formats(), hide_possible_values = true)]
    pub token_embedding_type: Option<String>,
    /// The base type for every tensor that may be quantized, no mixture
    #[arg(long)]
    pub pure: bool,
    /// Leave the output head as the source has it
    #[arg(long)]
    pub leave_output_tensor: bool,
    /// Importance matrix, .gguf or .dat: how much each column of each tensor matters
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Use the importance matrix only for tensors whose name contains this; may be repeated
    #[arg(long, value_name = "TEXT", requires = "imatrix", conflicts_with = "exclude_weights")]
    pub include_weights: Vec<String>,
    /// Do not use the importance matrix for tensors whose name contains this; may be repeated
    #[arg(long, value_name = "TEXT", requires = "imatrix")]
    pub exclude_weights: Vec<String>,
    /// Split into shards of at most this much tensor data, such as 2G
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub split_max_size: Option<u64>,
    /// Bound of the working buffers [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub max_memory: Option<u64>,
    /// Print what would be written, tensor by tensor, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Read every byte back from the disk before an output gets its name
    #[arg(long)]
    pub verify: bool,
    /// Replace existing outputs
    #[arg(long)]
    pub force: bool,
    /// Report as JSON on stdout
    #[arg(long)]
    pub json: bool,
}

/// Everything that is known before the first weight is read.
pub struct Prepared<'a> {
    /// What was given on the command line, for the report.
    pub source_path: PathBuf,
    pub source: &'a dyn TensorSource,
    pub plan: Plan,
    /// Whether the tokenizer is still the source's: found out while the weights are converted.
    pub proof: Option<Proof>,
    /// Files that no output may replace.
    pub protected: Vec<PathBuf>,
    /// The text by which blocks are rounded.
    pub calibrating: Option<Calibrating<'a>>,
}

impl OutputOptions {
    /// The presets of `--type`.
    pub fn presets(&self, types: &[String]) -> Result<Vec<&'static Preset>, Error> {
        types.iter().map(|name| preset(name)).collect()
    }

    /// What was asked for beyond the presets.
    pub fn overrides(&self, calibrate: &CalibrateOptions) -> Result<Overrides, Error> {
        let format = |name: &Option<String>| name.as_deref().map(parse_format).transpose();
        let mut by_name = self.tensor_type.iter().map(|text| NameOverride::parse(text)).collect::<Result<Vec<_>, _>>()?;
        let lists = [self.tensor_type_file.as_ref(), self.recipe.as_ref().filter(|_| !calibrate.chooses_types())];
        for file in lists.into_iter().flatten() {
            by_name.extend(parse_list(file, &read_text(file)?)?);
        }
        let mut overrides = Overrides {
            by_name,
            output: format(&self.output_tensor_type)?,
            token_embd: format(&self.token_embedding_type)?,
            pure: self.pure,
            keep_output: self.leave_output_tensor,
        };
        calibrate.adjust(&mut overrides);
        Ok(overrides)
    }

    /// Roles whose types were given, and are not for a choice to change.
    fn given(&self) -> Vec<Role> {
        let given = [(Role::Output, &self.output_tensor_type), (Role::TokenEmbd, &self.token_embedding_type)];
        given.into_iter().filter(|(_, name)| name.is_some()).map(|(role, _)| role).collect()
    }

    /// The importance matrix, or what filters leave of it.
    pub fn imatrix(&self) -> Result<Option<Imatrix>, Error> {
        let Some(path) = &self.imatrix else { return Ok(None) };
        let mut imatrix = Imatrix::open(path)?;
        imatrix.filter(&self.include_weights, &self.exclude_weights)?;
        Ok(Some(imatrix))
    }

    /// The folder that `--output` names, one that exists or a name that ends in a slash; without it, this one.
    fn folder(&self) -> Option<&Path> {
        match &self.output {
            None => Some(Path::new("")),
            Some(path) => (path.is_dir() || path.as_os_str().as_bytes().ends_with(b"/")).then_some(path),
        }
    }

    /// One path for each output of the plan.
    fn paths(&self, plan: &Plan) -> Result<Vec<PathBuf>, Error> {
        match (self.folder(), &self.output) {
            (None, Some(output)) => paths_by_name(plan, output),
            (folder, _) => Ok(paths_in_folder(plan, folder.unwrap_or(Path::new("")))),
        }
    }

    /// Writes the outputs, or prints the plan, and reports.
    pub fn carry_out(&self, prepared: Prepared, session: &Session) -> Result<(), Failure> {
        let Prepared { source_path, source, mut plan, proof, mut protected, mut calibrating } = prepared;
        protected.extend([&self.imatrix, &self.tensor_type_file].into_iter().flatten().cloned());
        protected.extend(calibrating.iter().flat_map(Calibrating::paths));
        let aim = calibrating.as_ref().map(|calibrating| calibrating.aim(&plan, &self.given())).transpose()?.flatten();
        let recipe_to_write = self.recipe.as_ref().filter(|_| aim.is_some());
        if let Some(recipe) = self.recipe.as_ref().filter(|_| aim.is_none()) {
            if let Some(calibrating) = &mut calibrating {
                calibrating.predicted_kld = predicted_kld(&read_text(recipe)?);
            }
            protected.push(recipe.clone());
        }
        plan.warnings.iter().for_each(|warning| terminal::warn(warning));
        let paths = self.paths(&plan)?;
        let files = pipeline::files(&plan, &paths, self.split_max_size)?;
        if self.dry_run {
            if aim.is_some() {
                terminal::warn("types are chosen when the model has read the text; these are those of --type");
            }
            let mut summary = Summary::new(&source_path, &plan, &files);
            summary.tokenizer = proof.map(Proof::finish);
            let text = if self.json { summary.json() } else { summary.plan_text() };
            return exit::print(&text);
        }

        let existing = if self.force { Existing::Replace } else { Existing::Refuse };
        let options = Options {
            threads: session.threads,
            memory_max_bytes: self.max_memory.unwrap_or(MEMORY_MAX_BYTES_DEFAULT),
            existing,
            split_max_bytes: self.split_max_size,
            protected,
            read_back: if self.verify { ReadBack::Everything } else { ReadBack::Header },
            ..Options::default()
        };
        let stop = Stop::on_signals().map_err(|e| Error::io("signal", "handle", e))?;
        let folders = self.folder().map(MadeFolders::for_outputs).transpose()?.unwrap_or_default();
        let started = Instant::now();
        let calibrated = match &calibrating {
            None => None,
            Some(calibrating) => {
                // What cannot be written is better found before minutes of work than after them.
                files.iter().try_for_each(|file| pipeline::check_target(&file.path, existing, &options.protected))?;
                recipe_to_write.into_iter().try_for_each(|path| self.check_recipe(path, &paths, existing, &options.protected))?;
                let folder = files[0].path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let calibrated = calibrating.run(&mut plan, aim.as_ref(), folder, session, &stop)?;
                calibrating::left_out_line(&calibrated.left_out).iter().for_each(|line| terminal::warn(line));
                calibrating::experts_line(&calibrated.reached).iter().for_each(|line| terminal::warn(line));
                Some(calibrated)
            }
        };
        let source = calibrated.as_ref().map_or(source, |calibrated| &calibrated.source);
        // Calibration may have chosen other types.
        let files = pipeline::files(&plan, &paths, self.split_max_size)?;
        let bar = Bar::new(session, "converting");
        let written = pipeline::run(&plan, source, &paths, &options, &|progress| bar.show(progress), stop.flag());
        drop(bar);
        written.map_err(|error| stop.ended(error))?;
        folders.keep();
        if let (Some(path), Some(calibrated)) = (recipe_to_write, &calibrated) {
            let recipe = calibrating::recipe(&plan.outputs[0], &calibrated.chosen, &source_path);
            pipeline::write_file(path, recipe.as_bytes(), existing, &options.protected)?;
        }

        let of_output = |output| files.iter().find(|file| file.output == output).map(|file| file.path.clone());
        let first_files: Vec<PathBuf> = (0..plan.outputs.len()).filter_map(of_output).collect();
        let measured = match &calibrating {
            Some(calibrating) => calibrating.measured(&first_files, session, &stop)?,
            None => None,
        };
        let mut summary = Summary::new(&source_path, &plan, &files);
        summary.calibrated = calibrated.as_ref();
        summary.measured = measured.as_ref();
        summary.recipe = recipe_to_write.map(PathBuf::as_path);
        summary.tokenizer = proof.map(Proof::finish);
        summary.seconds = Some(started.elapsed().as_secs_f64());
        match (self.json, session.quiet) {
            (true, _) => exit::print(&summary.json()),
            (false, false) => exit::print(&summary.done_text()),
            (false, true) => Ok(()),
        }
    }
    /// Refuses a recipe that cannot be written, or would replace what was read or made.
    fn check_recipe(&self, path: &Path, outputs: &[PathBuf], existing: Existing, protected: &[PathBuf]) -> Result<(), Error> {
        if outputs.iter().any(|output| output == path) {
            return Err(Error::usage(format!("--recipe {} is the output as well; give it another name", path.display())));
        }
        pipeline::check_target(path, existing, protected)
    }
}
