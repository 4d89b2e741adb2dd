//! `--device` and `--gpu-memory`: where a command that runs models computes.

use clap::Args;
use ggforge::Error;
use ggforge::cuda::{Cuda, Driver, Gpu, Products};
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Backend, Cpu};

use crate::exit::{Failure, say};
use crate::{Session, size};

/// Options of every command that runs a model.
#[derive(Debug, Clone, Args)]
pub struct DeviceOptions {
    /// Where to compute: auto is the first GPU that can be used, else the CPU; N is a number that `ggforge devices` lists
    #[arg(long, value_name = "auto|cpu|cuda[:N]", value_parser = wish, default_value = "auto")]
    device: Wish,
    /// Memory of the GPU to use at most, such as 6GiB; a model that does not fit is sent to it layer by layer [default: what is free]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    gpu_memory: Option<u64>,
}

/// What `--device` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Auto,
    Cpu,
    Cuda(Option<usize>),
}

fn wish(text: &str) -> Result<Wish, String> {
    match text.split_once(':') {
        None if text == "auto" => Ok(Wish::Auto),
        None if text == "cpu" => Ok(Wish::Cpu),
        None if text == "cuda" => Ok(Wish::Cuda(None)),
        Some(("cuda", number)) => number.parse().map(|ordinal| Wish::Cuda(Some(ordinal))).map_err(|e| format!("cuda:N: {e}")),
        _ => Err("auto, cpu, cuda or cuda:N is needed".to_owned()),
    }
}

/// What it comes to on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// The CPU; with `auto`, the reason why no GPU can be used.
    Cpu { because: Option<String> },
    /// A GPU, and how much of its memory may be used.
    Cuda { gpu: Gpu, memory_bytes_max: Option<u64> },
}

/// What a command does on a machine, whichever it is.
pub trait Job {
    /// What comes of it.
    type Output;

    /// Does it.
    ///
    /// # Errors
    /// The command's.
    fn run<B: Backend>(self, backend: &B) -> Result<Self::Output, Failure>;
}

impl DeviceOptions {
    /// Runs the job where the options say, and tells where that is, if it is not where one could expect.
    ///
    /// # Errors
    /// `Gpu`, as [`DeviceOptions::choose`] and when the GPU does not start; `Usage` for rounded activations on a GPU; the job's.
    pub fn run<J: Job>(&self, session: &Session, activations: Activations, job: J) -> Result<J::Output, Failure> {
        let mut device = self.choose()?;
        if activations != Activations::F32 && matches!(device, Device::Cuda { .. }) {
            if self.device != Wish::Auto {
                return Err(Error::usage("a GPU does not round activations; use --device cpu").into());
            }
            device = Device::Cpu { because: Some("a GPU does not round activations".to_owned()) };
        }
        if self.device == Wish::Auto && !session.quiet {
            say(&format!("{}\n", device.line()));
        }
        match device {
            Device::Cpu { .. } => job.run(&Cpu::new(Engine::detect(), session.n_threads(), activations)?),
            Device::Cuda { gpu, memory_bytes_max } => job.run(&Cuda::open(&gpu, memory_bytes_max, Products::Best)?),
        }
    }

    /// Looks for what was asked for.
    ///
    /// # Errors
    /// `Gpu`, when `cuda` was asked for and cannot be used.
    pub fn choose(&self) -> Result<Device, Error> {
        let cuda = |ordinal| {
            let gpu = Driver::start()?.choose(ordinal)?;
            Ok(Device::Cuda { gpu, memory_bytes_max: self.gpu_memory })
        };
        match self.device {
            Wish::Cpu => Ok(Device::Cpu { because: None }),
            Wish::Cuda(ordinal) => cuda(ordinal),
            Wish::Auto => cuda(None).or_else(|error: Error| match error {
                Error::Gpu { what, .. } => Ok(Device::Cpu { because: Some(what) }),
                other => Err(other),
            }),
        }
    }
}

impl Device {
    /// The one line about what is used.
    pub fn line(&self) -> String {
        match self {
            Device::Cpu { because: None } => "computing on the CPU".to_owned(),
            Device::Cpu { because: Some(why) } => format!("computing on the CPU: {why}"),
            Device::Cuda { gpu, .. } => format!("computing on GPU {}: {}", gpu.ordinal, gpu.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Wish, wish};

    #[test]
    fn devices_are_named_as_in_the_help() {
        assert_eq!(wish("auto"), Ok(Wish::Auto));
        assert_eq!(wish("cpu"), Ok(Wish::Cpu));
        assert_eq!(wish("cuda"), Ok(Wish::Cuda(None)));
        assert_eq!(wish("cuda:3"), Ok(Wish::Cuda(Some(3))));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "CUDA"] {
            assert!(wish(text).is_err(), "{text} was accepted");
        }
    }
}
