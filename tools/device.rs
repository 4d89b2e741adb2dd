//! `--device` and `--gpu-memory`: where a command that runs models computes.

use std::fs;

use clap::Args;
use ggforge::Error;
use ggforge::cuda::{self, Cuda, Driver, Gpu, Products};
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Backend, Cpu, Residency, Workload};
use ggforge::report::printable;

use crate::exit::{Failure, say};
use crate::{Session, size};

/// Options of every command that runs a model.
#[derive(Debug, Clone, Args)]
pub struct DeviceOptions {
    /// Where to compute: auto is the first GPU that can be used, else the CPU; N is a number that `ggforge devices` lists [default: auto]
    #[arg(long, value_name = "auto|cpu|cuda[:N]", value_parser = wish)]
    device: Option<Wish>,
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
    /// A GPU.
    Cuda(Gpu),
}

/// What a command does on a machine, whichever it is.
pub trait Job {
    /// What comes of it.
    type Output;

    /// What it will ask of a machine.
    ///
    /// # Errors
    /// The command's, for what is known before a weight is read.
    fn workload(&self) -> Result<Workload, Failure>;

    /// Does it, on a machine that is ready for the workload, with the layers where they are best there.
    ///
    /// # Errors
    /// The command's.
    fn run<B: Backend>(self, backend: &B, residency: Residency) -> Result<Self::Output, Failure>;
}

impl DeviceOptions {
    /// Runs the job where the options say, and tells where that is, if it is not where one could expect. Returns what came of it, and where.
    ///
    /// # Errors
    /// `Gpu`, when `cuda` was asked for and cannot be used, or has too little memory; `Unsupported`, when it has not the operations;
    /// `Usage` for rounded activations on it; the job's.
    pub fn run<J: Job>(&self, session: &Session, activations: Activations, job: J) -> Result<(J::Output, Device), Failure> {
        let products = products()?;
        let on_cpu = |job: J, because: Option<String>| {
            let device = Device::Cpu { because };
            self.tell(session, &device);
            let cpu = Cpu::new(Engine::detect(), session.n_threads(), activations)?;
            let residency = cpu.prepare(&job.workload()?)?;
            Ok((job.run(&cpu, residency)?, device))
        };
        let Some(gpus) = self.gpus() else { return on_cpu(job, None) };
        // What is wrong with a model is wrong on any machine, so it is not taken for a lack of this one.
        let ready = match gpus {
            Ok(_) if activations != Activations::F32 => Err(match self.wish() {
                Wish::Auto => Error::unsupported("a GPU does not round activations", "use --device cpu"),
                _ => Error::usage("a GPU does not round activations; use --device cpu"),
            }),
            Ok(gpus) => ready(&gpus, self.gpu_memory, products, &job.workload()?),
            Err(error) => Err(error),
        };
        match ready {
            Ok((cuda, residency)) => {
                let device = Device::Cuda(cuda.gpu().clone());
                self.tell(session, &device);
                Ok((job.run(&cuda, residency)?, device))
            }
            Err(Error::Gpu { what, .. } | Error::Unsupported { what, .. }) if self.wish() == Wish::Auto => on_cpu(job, Some(what)),
            Err(error) => Err(error.into()),
        }
    }

    fn wish(&self) -> Wish {
        self.device.unwrap_or(Wish::Auto)
    }

    /// Tells where it computes. That a machine without a card uses its CPU is told only who asked for a device: to others it would read
    /// as an error, and the summary says it.
    fn tell(&self, session: &Session, device: &Device) {
        let is_news = self.device.is_some() || matches!(device, Device::Cuda(_)) || Driver::is_installed() || has_card();
        if self.wish() == Wish::Auto && is_news && !session.quiet {
            say(&format!("{}\n", device.line()));
        }
    }

    /// The GPUs that may be used, or why there is none; `None` where none is wanted.
    fn gpus(&self) -> Option<Result<Vec<Gpu>, Error>> {
        let ordinal = match self.wish() {
            Wish::Cpu => return None,
            Wish::Auto => None,
            Wish::Cuda(ordinal) => ordinal,
        };
        Some(Driver::start().and_then(|driver| driver.usable(ordinal)))
    }

    /// Looks for what was asked for.
    ///
    /// # Errors
    /// `Gpu`, when `cuda` was asked for and cannot be used.
    pub fn choose(&self) -> Result<Device, Error> {
        match self.gpus() {
            None => Ok(Device::Cpu { because: None }),
            Some(Ok(mut gpus)) => Ok(Device::Cuda(gpus.swap_remove(0))),
            Some(Err(Error::Gpu { what, .. })) if self.wish() == Wish::Auto => Ok(Device::Cpu { because: Some(what) }),
            Some(Err(error)) => Err(error),
        }
    }
}

/// The first of the GPUs that can do the work, ready for it, and where layers are best there.
///
/// # Errors
/// `Unsupported`, when no GPU can; `Gpu`, when none of these has the memory or starts: why not the first.
fn ready(gpus: &[Gpu], memory_bytes_max: Option<u64>, products: Products, workload: &Workload) -> Result<(Cuda, Residency), Error> {
    workload.models.iter().try_for_each(cuda::check)?;
    let mut first = None;
    for gpu in gpus {
        let ready = Cuda::open(gpu, memory_bytes_max, products).and_then(|cuda| {
            let residency = cuda.prepare(workload)?;
            Ok((cuda, residency))
        });
        match ready {
            Err(error @ Error::Gpu { .. }) => first = first.or(Some(error)),
            done => return done,
        }
    }
    Err(first.expect("at least one GPU"))
}

/// True where a graphics card of NVIDIA's is in the machine, whether it can be used or not.
fn has_card() -> bool {
    let is_card = |device: fs::DirEntry| {
        let begins = |file: &str, id: &str| fs::read_to_string(device.path().join(file)).is_ok_and(|text| text.starts_with(id));
        begins("vendor", NVIDIA) && begins("class", DISPLAY)
    };
    fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten().any(is_card)
}

/// NVIDIA's number as a vendor of PCI devices, and the class of display controllers, to which those without a display belong too.
const NVIDIA: &str = "0x10de";
const DISPLAY: &str = "0x03";

/// Which kernels multiply, as the environment has it: the fastest, or those that every GPU has.
///
/// # Errors
/// `Usage` for a word that means nothing.
fn products() -> Result<Products, Error> {
    match std::env::var_os(PRODUCTS) {
        None => Ok(Products::Best),
        Some(value) if value.is_empty() || value == "best" => Ok(Products::Best),
        Some(value) if value == "portable" => Ok(Products::Portable),
        Some(value) => {
            Err(Error::usage(format!("{PRODUCTS} is {}; best or portable is needed", printable(value.as_encoded_bytes()))))
        }
    }
}

/// The environment variable that tells which kernels multiply.
const PRODUCTS: &str = "GGFORGE_GPU_PRODUCTS";

impl Device {
    /// The one line about what is used.
    pub fn line(&self) -> String {
        match self {
            Device::Cpu { because: None } => "computing on the CPU".to_owned(),
            Device::Cpu { because: Some(why) } => format!("computing on the CPU: {why}"),
            Device::Cuda(gpu) => format!("computing on GPU {}: {}", gpu.ordinal, gpu.name),
        }
    }

    /// For the end of a summary: `on the CPU`.
    pub fn place(&self) -> String {
        match self {
            Device::Cpu { .. } => "on the CPU".to_owned(),
            Device::Cuda(gpu) => format!("on GPU {}, {}", gpu.ordinal, printable(gpu.name.as_bytes())),
        }
    }

    /// What `--device` calls it.
    pub fn id(&self) -> String {
        match self {
            Device::Cpu { .. } => "cpu".to_owned(),
            Device::Cuda(gpu) => format!("cuda:{}", gpu.ordinal),
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
