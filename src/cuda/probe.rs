//! Is there a GPU that can be used? In this order: the driver's library is there, it is whole, it starts, it is new enough, it has
//! a device, the device is new enough. The first that fails is the answer.
//!
//! `cudarc` panics where the library or a function of it is missing, so everything that is ever called is looked up here first, and
//! a [`Driver`] is the proof that it was. Result codes are read as integers until then: a library that calls itself `libcuda` may
//! return anything.

use std::ffi::c_int;
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUdevice_attribute};
use cudarc::driver::{CudaContext, DriverError, result};

use crate::error::{Error, Result};

/// Every function of the driver that is called, by `cudarc` or here.
pub const FUNCTIONS: &[&str] = &[
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuTensorMapEncodeTiled",
];

/// CUDA version of the oldest driver that takes the compiled kernels: 12.0, driver 525.
const VERSION_MIN: c_int = 12_000;

/// What to do where there is no driver.
const INSTALL: &str = "install NVIDIA's driver 525 or newer (in a container: start it with --gpus all), or use --device cpu";

/// The oldest compute capability that the kernels are written for (`cp.async`, `mma.m16n8k16`): 8.0, of 2020.
pub const fn capability_min() -> (u32, u32) {
    (8, 0)
}

/// The driver, started and whole.
#[derive(Debug, Clone, Copy)]
pub struct Driver {
    version: c_int,
}

/// A GPU that the driver lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its number: `--device cuda:N`.
    pub ordinal: usize,
    /// The name it gives itself.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub n_multiprocessors: u32,
    /// The highest clock of their cores in Hz; 0 where the driver does not tell.
    pub clock_hz: u64,
    /// All of its memory.
    pub memory_bytes: u64,
}

impl Driver {
    /// Opens the driver's library and starts it, once per process.
    ///
    /// # Errors
    /// `Gpu`, when there is none, when it lacks functions, when it does not start, and when it is too old.
    pub fn start() -> Result<Driver> {
        static STARTED: OnceLock<std::result::Result<Driver, (String, String)>> = OnceLock::new();
        STARTED.get_or_init(start).clone().map_err(|(what, hint)| Error::Gpu { what, hint })
    }

    /// True where there is a library of that name, whatever it is worth.
    pub fn is_installed() -> bool {
        // SAFETY: opening a library runs its initialisers, as in `start`; nothing of it is called.
        unsafe { sys::is_culib_present() }
    }

    /// The version of CUDA that the driver brings: `(12, 4)`.
    pub fn cuda_version(self) -> (u32, u32) {
        (self.version as u32 / 1000, self.version as u32 % 1000 / 10)
    }

    /// Every GPU, also those that are too old.
    ///
    /// # Errors
    /// `Gpu`, when the driver does not tell.
    pub fn gpus(self) -> Result<Vec<Gpu>> {
        let n_gpus = result::device::get_count().map_err(|e| failed("cannot count the GPUs", e))?;
        (0..usize::try_from(n_gpus).unwrap_or(0))
            .map(|ordinal| describe(ordinal).map_err(|e| failed("cannot ask a GPU", e)))
            .collect()
    }

    /// The GPU of that number, or the first that can be used.
    ///
    /// # Errors
    /// `Gpu`, when there is none, or it is too old.
    pub fn choose(self, ordinal: Option<usize>) -> Result<Gpu> {
        Ok(self.usable(ordinal)?.swap_remove(0))
    }

    /// The GPU of that number, or all that can be used; at least one.
    ///
    /// # Errors
    /// As [`Driver::choose`].
    pub fn usable(self, ordinal: Option<usize>) -> Result<Vec<Gpu>> {
        let mut gpus = self.gpus()?;
        let n_gpus = gpus.len();
        if n_gpus == 0 {
            return Err(gpu("no GPU was found", "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu"));
        }
        if let Some(at) = ordinal.filter(|at| *at >= n_gpus) {
            return Err(gpu(format!("there is no GPU {at}"), format!("0 to {} exist: see ggforge devices", n_gpus - 1)));
        }
        gpus.retain(|gpu| ordinal.is_none_or(|at| gpu.ordinal == at));
        let first = gpus[0].clone();
        gpus.retain(|gpu| gpu.capability >= capability_min());
        if gpus.is_empty() {
            let Gpu { ordinal, name, capability: (major, minor), .. } = first;
            return Err(gpu(
                format!("GPU {ordinal}, {name}, has compute capability {major}.{minor}"),
                "8.0 or newer is needed (Ampere, 2020); use --device cpu",
            ));
        }
        Ok(gpus)
    }
}

impl Gpu {
    /// Bytes of its memory that nobody uses now. Makes a context on the device, which takes some of it itself.
    ///
    /// # Errors
    /// `Gpu`, when the device does not answer.
    pub fn free_bytes(&self) -> Result<u64> {
        let free = || Ok::<_, DriverError>(CudaContext::new(self.ordinal)?.mem_get_info()?.0 as u64);
        free().map_err(|e| failed(&format!("GPU {}, {}: no context", self.ordinal, self.name), e))
    }
}

impl Gpu {
    /// Multiplications and additions of halves, with sums in f32, that the tensor cores of a multiprocessor do in a clock; `None` for GPUs
    /// that nobody has looked up. By NVIDIA's white papers on the A100, GA102, AD102, H100 and Blackwell, without sparsity. GeForce cards
    /// of 8.6, 8.9 and 12.0 do half of it.
    pub fn tensor_operations_per_clock(&self) -> Option<u32> {
        match self.capability {
            (8, 0 | 7) => Some(2048),
            (8, 6 | 9) | (12, 0 | 1) => Some(1024),
            (9, 0) => Some(4096),
            (10, 0 | 3) => Some(8192),
            _ => None,
        }
    }

    /// What that comes to in a second on all of them, at the highest clock. No power limit is thought of.
    pub fn tensor_operations_per_second(&self) -> Option<f64> {
        let per_clock = self.tensor_operations_per_clock().filter(|_| self.clock_hz > 0)?;
        Some(f64::from(per_clock) * f64::from(self.n_multiprocessors) * self.clock_hz as f64)
    }
}

/// An [`Error::Gpu`].
pub(super) fn gpu(what: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Gpu { what: what.into(), hint: hint.into() }
}

/// An [`Error::Gpu`] for a call that the driver refused.
pub(super) fn failed(what: &str, error: DriverError) -> Error {
    let code = error.0 as u32;
    gpu(format!("{what}: the driver says {} ({code})", name_of(error)), advice(code as c_int))
}

/// A call failed that should not: the device, or an earlier kernel on it.
pub(super) fn lost(error: DriverError) -> Error {
    failed("the GPU failed", error)
}

fn name_of(error: DriverError) -> String {
    error.error_name().map_or_else(|_| "an unknown error".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The whole of [`Driver::start`]; the pair is what is wrong, and what to do.
fn start() -> std::result::Result<Driver, (String, String)> {
    if !Driver::is_installed() {
        return Err(("no NVIDIA driver: its library libcuda.so.1 was not found".to_owned(), INSTALL.to_owned()));
    }
    // SAFETY: opening a library runs its initialisers, which is what asking for a GPU means; it is present, so this does not panic.
    let library = unsafe { sys::culib() };
    // SAFETY: the symbols are only looked up, never called through this type.
    let is_there = |name: &&str| unsafe { library.get::<*const ()>(name.as_bytes()) }.is_ok();
    let missing: Vec<&str> = FUNCTIONS.iter().copied().filter(|name| !is_there(name)).collect();
    if let Some(first) = missing.first() {
        let what = format!("the library libcuda lacks {} of {} functions, {first} among them", missing.len(), FUNCTIONS.len());
        return Err((what, INSTALL.to_owned()));
    }

    // SAFETY: both exist in the library, and this is their signature in every version of CUDA; `CUresult` is a C int.
    let (init, driver_version) = unsafe {
        let init = library.get::<unsafe extern "C" fn(u32) -> c_int>(b"cuInit");
        (init, library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDriverGetVersion"))
    };
    let (Ok(init), Ok(driver_version)) = (init, driver_version) else {
        return Err(("the library libcuda changed while it was read".to_owned(), INSTALL.to_owned()));
    };
    // SAFETY: 0 is the only flag that exists.
    match unsafe { init(0) } {
        0 => {}
        code => return Err((refusal(code), advice(code).to_owned())),
    }
    let mut version = 0;
    // SAFETY: a valid pointer to an int, as the function wants.
    match unsafe { driver_version(&mut version) } {
        0 if version >= VERSION_MIN => Ok(Driver { version }),
        0 => {
            let what = format!("NVIDIA's driver is too old: it brings CUDA {}.{}", version / 1000, version % 1000 / 10);
            Err((what, "version 525 or newer is needed (CUDA 12.0); or use --device cpu".to_owned()))
        }
        code => Err((refusal(code), advice(code).to_owned())),
    }
}

/// Why the driver did not start.
fn refusal(code: c_int) -> String {
    let why = match code {
        34 => "no NVIDIA driver: the libcuda.so found first is the stub of a CUDA toolkit",
        100 => "the NVIDIA driver finds no GPU",
        802 => "the NVIDIA driver is not ready yet",
        803 => "the NVIDIA driver's library and its kernel module have different versions",
        804 => "this GPU does not allow the compatibility library of a newer driver",
        _ => "the NVIDIA driver does not start",
    };
    format!("{why} (cuInit: {code})")
}

/// What helps against a result code.
fn advice(code: c_int) -> &'static str {
    match code {
        2 => "choose a smaller --gpu-memory, end what else uses the GPU, or use --device cpu",
        34 => "take the toolkit's stubs folder out of LD_LIBRARY_PATH, or use --device cpu",
        100 => "check nvidia-smi and CUDA_VISIBLE_DEVICES (in a container: --gpus all), or use --device cpu",
        802 => "wait for nvidia-fabricmanager and try again, or use --device cpu",
        803 => "restart the machine after a driver update (in a container: update its libcuda), or use --device cpu",
        804 => "take the CUDA compat folder out of LD_LIBRARY_PATH, or use --device cpu",
        _ => "check nvidia-smi and the system's log, or use --device cpu",
    }
}

fn describe(ordinal: usize) -> std::result::Result<Gpu, DriverError> {
    let device = result::device::get(ordinal as c_int)?;
    // SAFETY: `device` comes from the driver, which has started.
    let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) }.map(|value| value.max(0) as u32);
    Ok(Gpu {
        ordinal,
        name: result::device::get_name(device)?,
        capability: (
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        n_multiprocessors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        clock_hz: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE).map_or(0, |khz| u64::from(khz) * 1000),
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }? as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An H100 SXM: 989 TFLOP/s by its data sheet, at 1.83 GHz.
    #[test]
    fn a_peak_is_computed_from_what_the_driver_reports() {
        let gpu = Gpu {
            ordinal: 0,
            name: "NVIDIA H100".to_owned(),
            capability: (9, 0),
            n_multiprocessors: 132,
            clock_hz: 1_830_000_000,
            memory_bytes: 80 << 30,
        };
        let peak = gpu.tensor_operations_per_second().expect("a known capability");
        assert!((peak / 989.4e12 - 1.0).abs() < 1e-3, "{peak}");
        assert_eq!(Gpu { clock_hz: 0, ..gpu.clone() }.tensor_operations_per_second(), None);
        assert_eq!(Gpu { capability: (7, 5), ..gpu }.tensor_operations_per_second(), None);
    }
}
