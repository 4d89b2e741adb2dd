//! The compiled kernels on a device. A source is loaded when the first of its kernels is started.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUfunction_attribute_enum, CUjit_option};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;

use super::images::{IMAGES, Image, PTX, source_of};
use super::probe::{Driver, Gpu, failed, gpu};
use crate::error::{Error, Result};

/// Bytes of shared memory that a kernel may use without being asked for.
const SHARED_BYTES_FREE: u32 = 48 << 10;

/// The kernels of a device.
pub(super) struct Modules {
    context: Arc<CudaContext>,
    gpu: Gpu,
    driver: Driver,
    /// `None` where the driver compiles.
    image: Option<&'static Image>,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, Arc<CudaModule>>,
    functions: HashMap<String, CudaFunction>,
}

impl Modules {
    /// Chooses what fits the GPU, and tries it.
    pub(super) fn open(context: &Arc<CudaContext>, chosen: &Gpu, driver: Driver) -> Result<Modules> {
        let image = IMAGES.iter().find(|image| image.fits(chosen.capability));
        let modules = Modules { context: context.clone(), gpu: chosen.clone(), driver, image, loaded: Mutex::default() };
        modules.function("rows_f16", 0)?;
        Ok(modules)
    }

    /// True where the products of compute capability 9.0 are among them.
    pub(super) fn has_sm90(&self) -> bool {
        self.image.is_some_and(|image| image.sources.iter().any(|(name, _)| *name == "gemm_sm90"))
    }

    /// The kernel of that name, allowed to use that much dynamic shared memory.
    pub(super) fn function(&self, name: &str, shared_bytes: u32) -> Result<CudaFunction> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = loaded.functions.get(name) {
            return Ok(function.clone());
        }
        let source = source_of(name);
        if !loaded.modules.contains_key(source) {
            let module = self.load(source)?;
            loaded.modules.insert(source, module);
        }
        let function = loaded.modules[source].load_function(name).map_err(|e| failed(&format!("kernel {name}"), e))?;
        if shared_bytes > SHARED_BYTES_FREE {
            let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let set = function.set_attribute(attribute, shared_bytes as i32);
            set.map_err(|e| failed(&format!("{shared_bytes} bytes of shared memory for {name}"), e))?;
        }
        loaded.functions.insert(name.to_owned(), function.clone());
        Ok(function)
    }

    fn load(&self, source: &str) -> Result<Arc<CudaModule>> {
        let sources = self.image.map_or(PTX, |image| image.sources);
        let compressed = sources.iter().find(|(name, _)| *name == source).map(|(_, code)| *code);
        let mut compressed = compressed.ok_or_else(|| Error::Internal(format!("no kernels {source} for this GPU")))?;
        let mut code = Vec::new();
        lzma_rs::xz_decompress(&mut compressed, &mut code)
            .map_err(|e| Error::Internal(format!("the compiled kernels {source} do not unpack: {e:?}")))?;
        if self.image.is_some() {
            let (major, minor) = self.gpu.capability;
            let what = format!("the kernels {source} for compute capability {major}.{minor} do not load on {}", self.gpu.name);
            return self.context.load_module(Ptx::from_binary(code)).map_err(|e| failed(&what, e));
        }
        let text = String::from_utf8(code).map_err(|_| Error::Internal(format!("the PTX of {source} is no text")))?;
        load_ptx(&self.context, &text, &self.gpu, self.driver)
    }
}

fn load_ptx(context: &Arc<CudaContext>, source: &str, chosen: &Gpu, driver: Driver) -> Result<Arc<CudaModule>> {
    context.load_module(Ptx::from_src(source)).map_err(|e| {
        let (major, minor) = driver.cuda_version();
        let log = compiler_log(context, source);
        let log = if log.is_empty() { format!("{e:?}") } else { log };
        gpu(
            format!("the driver (CUDA {major}.{minor}) does not compile the kernels for {}: {log}", chosen.name),
            "install a newer driver, or use --device cpu",
        )
    })
}

/// What the driver's compiler says about a source that does not load.
fn compiler_log(context: &Arc<CudaContext>, source: &str) -> String {
    const LOG_BYTES: usize = 4096;
    let mut log = vec![0u8; LOG_BYTES];
    let mut source = source.as_bytes().to_vec();
    source.push(0);
    let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<std::ffi::c_void>(), LOG_BYTES as *mut std::ffi::c_void];
    let mut module = std::ptr::null_mut();
    if context.bind_to_thread().is_err() {
        return String::new();
    }
    // SAFETY: the source ends with a zero, options and values are as many as is said, and the log has the size that is said.
    let loaded = unsafe {
        sys::cuModuleLoadDataEx(
            &mut module,
            source.as_ptr().cast(),
            options.len() as u32,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    if loaded.result().is_ok() {
        // SAFETY: just loaded, and not used by anyone.
        let _ = unsafe { sys::cuModuleUnload(module) }.result();
    }
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(LOG_BYTES);
    String::from_utf8_lossy(&log[..end]).trim().replace('\n', "; ")
}
