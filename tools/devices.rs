//! `ggforge devices`: what this machine can compute with.

use std::fs;

use clap::Args;
use ggforge::Error;
use ggforge::cuda::{Driver, Gpu, capability_min};
use ggforge::report::{Cell, Table, json_text};
use ggforge::simd::Level;
use serde_json::{Value, json};

use crate::device::DeviceOptions;
use crate::exit::{Failure, print};
use crate::terminal::fitted;
use crate::{Run, Session};

/// List the CPU and the GPUs, and say which of them would be used
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge devices
  ggforge devices --device cuda && echo 'there is a usable GPU'
  ggforge devices --json")]
pub struct Devices {
    #[command(flatten)]
    device: DeviceOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Run for Devices {
    const NAME: &'static str = "devices";

    fn run(self, _session: &Session) -> Result<(), Failure> {
        let used = self.device.choose()?;
        let cpu = Cpu::of_this_machine();
        let gpus = Gpus::of_this_machine();
        if self.json {
            return print(&json_text(&as_json(&cpu, &gpus, &used.line())));
        }
        // What is wrong with the driver stands in a line of its own.
        let used = if gpus.is_err() { format!("computing {}", used.place()) } else { used.line() };
        print(&as_text(&cpu, &gpus, &used))
    }
}

/// The CPU, as far as the system tells.
pub struct Cpu {
    pub name: Option<String>,
    pub n_threads: usize,
    levels: Vec<&'static str>,
    pub used: &'static str,
    memory_bytes: Option<u64>,
    free_bytes: Option<u64>,
}

impl Cpu {
    pub fn of_this_machine() -> Cpu {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = |key: &str| field(&meminfo, key)?.trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024);
        Cpu {
            name: field(&cpuinfo, "model name").map(str::to_owned),
            n_threads: std::thread::available_parallelism().map_or(1, usize::from),
            levels: Level::available().into_iter().map(Level::name).collect(),
            used: Level::detect().name(),
            memory_bytes: kib("MemTotal"),
            free_bytes: kib("MemAvailable"),
        }
    }
}

/// The value of the first line `key: value`.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.split_once(':').filter(|(name, _)| name.trim() == key));
    line.map(|(_, value)| value.trim())
}

/// What the driver tells.
struct Gpus {
    cuda_version: (u32, u32),
    /// Each with the bytes that are free on it, or why it does not say.
    list: Vec<(Gpu, Result<u64, Error>)>,
}

impl Gpus {
    fn of_this_machine() -> Result<Gpus, Error> {
        let driver = Driver::start()?;
        let with_free = |gpu: Gpu| {
            let free = gpu.free_bytes();
            (gpu, free)
        };
        Ok(Gpus { cuda_version: driver.cuda_version(), list: driver.gpus()?.into_iter().map(with_free).collect() })
    }
}

fn as_text(cpu: &Cpu, gpus: &Result<Gpus, Error>, used: &str) -> String {
    let mut table = Table::new(&["device", "name", "instructions", "memory", "free", "note"]);
    let size = |bytes: Option<u64>| bytes.map_or(Cell::Empty, Cell::Bytes);
    let name = format!("{}, {} threads", cpu.name.as_deref().unwrap_or("CPU"), cpu.n_threads);
    let used_level = if cpu.levels.last() == Some(&cpu.used) { Cell::Empty } else { Cell::Text(format!("{} is used", cpu.used)) };
    table.push([
        Cell::Text("cpu".into()),
        Cell::Text(name),
        Cell::Text(cpu.levels.join(" ")),
        size(cpu.memory_bytes),
        size(cpu.free_bytes),
        used_level,
    ]);
    let below = match gpus {
        Err(error) => format!("cuda: {error}\n"),
        Ok(Gpus { cuda_version: (major, minor), list }) => {
            for (gpu, free) in list {
                let note = match free {
                    _ if gpu.capability < capability_min() => Cell::Text("too old".into()),
                    Ok(_) => Cell::Empty,
                    Err(error) => Cell::Text(error.to_string()),
                };
                table.push([
                    Cell::Text(format!("cuda:{}", gpu.ordinal)),
                    Cell::Text(format!("{}, {} multiprocessors", gpu.name, gpu.n_multiprocessors)),
                    Cell::Text(format!("compute capability {}.{}", gpu.capability.0, gpu.capability.1)),
                    Cell::Bytes(gpu.memory_bytes),
                    size(free.as_ref().ok().copied()),
                    note,
                ]);
            }
            format!("NVIDIA's driver brings CUDA {major}.{minor}\n")
        }
    };
    format!("{}{below}{used}\n", fitted(&table))
}

fn as_json(cpu: &Cpu, gpus: &Result<Gpus, Error>, used: &str) -> Value {
    let gpu = |(gpu, free): &(Gpu, Result<u64, Error>)| {
        json!({
            "device": format!("cuda:{}", gpu.ordinal),
            "name": gpu.name,
            "compute_capability": format!("{}.{}", gpu.capability.0, gpu.capability.1),
            "n_multiprocessors": gpu.n_multiprocessors,
            "memory_bytes": gpu.memory_bytes,
            "free_bytes": free.as_ref().ok(),
            "usable": gpu.capability >= capability_min() && free.is_ok(),
        })
    };
    let (version, list, fault) = match gpus {
        Ok(Gpus { cuda_version: (major, minor), list }) => (Some(format!("{major}.{minor}")), list.iter().map(gpu).collect(), None),
        Err(error) => (None, Vec::new(), Some(error.to_string())),
    };
    json!({
        "cpu": {
            "name": cpu.name,
            "n_threads": cpu.n_threads,
            "levels": cpu.levels,
            "level_used": cpu.used,
            "memory_bytes": cpu.memory_bytes,
            "free_bytes": cpu.free_bytes,
        },
        "cuda": { "driver_cuda_version": version, "gpus": list, "fault": fault },
        "used": used,
    })
}
