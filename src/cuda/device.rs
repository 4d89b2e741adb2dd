//! A GPU at work: its memory, one stream that computes, one that copies, and everything that is called on them.
//!
//! ```text
//!   compute stream   | layer 0 ........ | layer 1 ........ | layer 2 ....
//!   copy stream      | weights 1 |  | weights 2 |  | weights 3 |
//! ```
//!
//! Work of the compute stream follows in order and needs no further care. A weight is written by the copy stream: it waits for the
//! computations that used its place before (`ranges`), and what is computed after [`Device::store`] waits for it. The copy stream does
//! nothing but copy: kernels there would stand behind products that hold every multiprocessor to their end, and copies behind them. Nor
//! does the host wait for a copy, other than for a piece of staging memory.
//!
//! Kernels are started only from a [`Launch`], whose shapes `kernels` has checked. Their own failures come back from the next call that
//! waits for them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUevent_flags};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, LaunchConfig, PushKernelArg, result};

use super::arenas::Arenas;
use super::kernels::{Argument, Launch, Memory, TensorMap, View};
use super::modules::Modules;
use super::probe::{Driver, Gpu, failed, gpu, lost};
use super::ranges::{Fence, Ranges, padded};
use super::staging::Staging;
use crate::error::{Error, Result};
use crate::report::decimal_bytes;

/// Memory of the GPU that is left to others where no limit is given: the driver's own needs, and a desktop's.
const LEFT_FREE_BYTES: u64 = 512 << 20;

/// Where buffers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Buffers {
    /// Side by side in arenas.
    Shared,
    /// Each an allocation of its own, as long as was asked for, full of NaN: so that tools which know allocations see what is read or
    /// written beyond a buffer's end, and results show what was read before it was written. Places in the arenas are taken all the same.
    Guarded,
}

/// What kernels may read beyond the end of a buffer: the rest of sixteen bytes.
const GUARDED_ALIGNMENT: u64 = 16;

/// A GPU that is ready.
pub(super) struct Device {
    gpu: Gpu,
    context: Arc<CudaContext>,
    compute: Arc<CudaStream>,
    copy: Arc<CudaStream>,
    modules: Modules,
    /// For what computations read: positions, tokens, tables.
    small: Mutex<Staging>,
    /// For weights.
    large: Mutex<Staging>,
    arenas: Mutex<Arenas<Arc<CudaEvent>>>,
    buffers: Buffers,
    /// Numbers the events that stand behind weights.
    serial: AtomicU64,
}

/// A part of the device's memory. Dropping it gives the memory to whoever comes later on the compute stream.
pub(super) struct Block {
    device: Arc<Device>,
    memory: Memory,
    /// Its place among the ranges.
    at: u64,
    place_bytes: u64,
    is_weight: bool,
}

/// What the copy stream has to wait for.
type Fences = Vec<Fence<Arc<CudaEvent>>>;

impl Block {
    pub(super) fn memory(&self) -> Memory {
        self.memory
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let fence = if self.is_weight { self.device.now().map_or(Fence::Everything, |event| event) } else { Fence::Everything };
        if self.device.buffers == Buffers::Guarded {
            // A failure shows in the next call.
            let _ = self.device.context.synchronize();
            // SAFETY: an allocation of this block alone, and nothing runs any more.
            let _ = unsafe { result::free_sync(self.memory.at) };
        }
        self.device.arenas().ranges.give(self.at, self.place_bytes, fence);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // A failure has nobody left to act on it, and the process's end frees everything anyway.
        let _ = self.context.synchronize();
        let _ = self.context.bind_to_thread();
        // SAFETY: every block holds the device, so none is left; nothing runs any more.
        unsafe { self.arenas().free() };
    }
}

impl Device {
    /// Takes hold of a GPU, and may take at most `memory_bytes_max` of its memory.
    pub(super) fn open(chosen: &Gpu, memory_bytes_max: Option<u64>, buffers: Buffers) -> Result<Arc<Device>> {
        let driver = Driver::start()?;
        let starts = |e| failed(&format!("GPU {}, {}, does not start", chosen.ordinal, chosen.name), e);
        let context = CudaContext::new(chosen.ordinal).map_err(starts)?;
        // SAFETY: the buffers of this context are parts of arenas, whose uses this module orders itself.
        unsafe { context.disable_event_tracking() };
        let modules = Modules::open(&context, chosen, driver)?;
        let compute = context.new_stream().map_err(starts)?;
        // Priorities do not order copies; this one tells profilers, and the driver of the tests, which stream is which.
        let copy = context.new_stream_with_priority(-1).map_err(starts)?;
        let small = Staging::new(&context, 256 << 10, 16).map_err(starts)?;
        let large = Staging::new(&context, 16 << 20, 4).map_err(starts)?;

        let (free_bytes, _) = context.mem_get_info().map_err(starts)?;
        let free_bytes = free_bytes as u64;
        let len = memory_bytes_max.unwrap_or_else(|| free_bytes.saturating_sub(LEFT_FREE_BYTES.min(free_bytes / 8)));
        if len > free_bytes {
            let what = format!("{} of GPU memory were asked for, but {} are free", decimal_bytes(len), decimal_bytes(free_bytes));
            return Err(gpu(what, "choose a smaller --gpu-memory, end what else uses the GPU, or use --device cpu"));
        }
        let arenas = Mutex::new(Arenas::new(len));
        let (small, large, serial) = (Mutex::new(small), Mutex::new(large), AtomicU64::new(0));
        Ok(Arc::new(Device { gpu: chosen.clone(), context, compute, copy, modules, small, large, arenas, buffers, serial }))
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// True where the products of compute capability 9.0 are among the modules.
    pub(super) fn has_sm90(&self) -> bool {
        self.modules.has_sm90()
    }

    fn arenas(&self) -> MutexGuard<'_, Arenas<Arc<CudaEvent>>> {
        self.arenas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes so much memory from the driver at once, at least the lesser.
    pub(super) fn reserve(&self, len_bytes: u64, len_bytes_min: u64) -> Result<()> {
        let reserve = || {
            self.context.bind_to_thread()?;
            self.arenas().reserve(len_bytes, len_bytes_min)
        };
        reserve().map_err(|e| failed(&format!("{} of GPU memory", decimal_bytes(len_bytes_min)), e))
    }

    /// Bytes that may be used, are used, and were used at most.
    pub(super) fn memory_bytes(&self) -> [u64; 3] {
        let arenas = self.arenas();
        [arenas.limit_bytes(), arenas.ranges.used(), arenas.ranges.peak()]
    }

    /// The longest piece that is free.
    pub(super) fn longest_free_bytes(&self) -> u64 {
        self.arenas().longest()
    }

    /// Room for what computations write: `len_bytes`, which are anything.
    pub(super) fn room(self: &Arc<Self>, len_bytes: u64, what: &str) -> Result<Block> {
        let (block, _) = self.take(len_bytes, what, false, |ranges, len| Some((ranges.take_low(len)?, Vec::new())))?;
        if self.buffers == Buffers::Guarded {
            self.fill(block.memory, 0xff)?;
        }
        Ok(block)
    }

    /// A free part as `from` chooses it, if need be of memory that is taken from the driver for it.
    fn take(
        self: &Arc<Self>,
        len_bytes: u64,
        what: &str,
        is_weight: bool,
        from: impl Fn(&mut Ranges<Arc<CudaEvent>>, u64) -> Option<(u64, Fences)>,
    ) -> Result<(Block, Fences)> {
        let mut arenas = self.arenas();
        let Some(len) = padded(len_bytes) else { return Err(no_room(&arenas, len_bytes, what)) };
        let mut place = from(&mut arenas.ranges, len);
        if place.is_none() {
            let grown = self.context.bind_to_thread().and_then(|()| arenas.grow(len));
            if grown.map_err(|e| failed(&format!("{} of GPU memory for {what}", decimal_bytes(len)), e))? {
                place = from(&mut arenas.ranges, len);
            }
        }
        let (at, fences) = place.ok_or_else(|| no_room(&arenas, len_bytes, what))?;
        let memory = match self.buffers {
            Buffers::Shared => Ok(Memory { at: arenas.address(at), len_bytes: len }),
            Buffers::Guarded => self.allocation(len_bytes, what),
        };
        if memory.is_err() {
            arenas.ranges.give(at, len, Fence::Everything);
        }
        Ok((Block { device: self.clone(), memory: memory?, at, place_bytes: len, is_weight }, fences))
    }

    /// Memory that nothing else is a part of.
    fn allocation(&self, len_bytes: u64, what: &str) -> Result<Memory> {
        let len_bytes = len_bytes.max(1).next_multiple_of(GUARDED_ALIGNMENT);
        // SAFETY: plain memory, freed with its block.
        let at = self.context.bind_to_thread().and_then(|()| unsafe { result::malloc_sync(len_bytes as usize) });
        let at = at.map_err(|e| failed(&format!("{} of GPU memory for {what}", decimal_bytes(len_bytes)), e))?;
        Ok(Memory { at, len_bytes })
    }

    /// Room for a weight, and what must have happened before it is written.
    fn room_for_weight(self: &Arc<Self>, len_bytes: u64, what: &str) -> Result<(Block, Fences)> {
        let is_past = |event: &Arc<CudaEvent>| event.is_complete();
        self.take(len_bytes, what, true, |ranges, len| ranges.take_high(len, is_past))
    }

    /// Lets the copy stream wait.
    fn wait_for(&self, fences: Fences) -> Result<()> {
        for fence in fences {
            match fence {
                Fence::Open => {}
                Fence::Event { event, .. } => self.copy.wait(&event).map_err(lost)?,
                Fence::Everything => self.copy.join(&self.compute).map_err(lost)?,
            }
        }
        Ok(())
    }

    /// Puts a weight of `len_bytes` into the device's memory, before whatever is computed next. Computations that were started before go on
    /// meanwhile. `read` gets parts of whole units of `unit_bytes` to fill, and where in the weight they begin; several threads call it.
    pub(super) fn store(
        self: &Arc<Self>,
        len_bytes: usize,
        unit_bytes: usize,
        what: &str,
        read: impl Fn(&mut [u8], usize) -> Result<()> + Sync,
    ) -> Result<Block> {
        let (block, fences) = self.room_for_weight(len_bytes as u64, what)?;
        self.wait_for(fences)?;
        // Kernels read a weight's last sixteen bytes as one. To the end of the block they are zeros, which come along with the copy.
        let read = |part: &mut [u8], at: usize| {
            let (own, behind) = part.split_at_mut(len_bytes.saturating_sub(at).min(part.len()));
            behind.fill(0);
            if own.is_empty() { Ok(()) } else { read(own, at) }
        };
        let mut staging = self.large.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = staging.send_made(&self.copy, block.memory, block.memory.len_bytes as usize, unit_bytes, read);
        // Also after a failure: whoever has the place next comes after what was sent.
        self.compute.join(&self.copy).map_err(lost)?;
        sent.map(|()| block)
    }

    /// Writes `bytes` to the begin of `to`, before whatever is computed next.
    pub(super) fn send(&self, to: Memory, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() as u64 <= to.len_bytes, "room for what is sent");
        let mut staging = self.small.lock().unwrap_or_else(PoisonError::into_inner);
        staging.send(&self.compute, to, bytes)
    }

    /// Reads the begin of `from`, after all that was started.
    pub(super) fn fetch(&self, from: Memory, bytes: &mut [u8]) -> Result<()> {
        assert!(bytes.len() as u64 <= from.len_bytes, "bytes to fetch");
        let mut fetch = || {
            self.context.bind_to_thread()?;
            // SAFETY: the device's bytes lie in one block; the host's live until the stream has caught up, which is waited for here.
            unsafe { result::memcpy_dtoh_async(bytes, from.at, self.compute.cu_stream()) }?;
            self.compute.synchronize()
        };
        fetch().map_err(lost)
    }

    /// Copies the first `len_bytes` of `from` to the begin of `to`.
    pub(super) fn copy(&self, from: Memory, to: Memory, len_bytes: u64) -> Result<()> {
        assert!(len_bytes <= from.len_bytes.min(to.len_bytes), "room for a copy");
        let copy = || {
            self.context.bind_to_thread()?;
            // SAFETY: both ranges lie in blocks that live, or whose successors come later on the same stream.
            unsafe { result::memcpy_dtod_async(to.at, from.at, len_bytes as usize, self.compute.cu_stream()) }
        };
        copy().map_err(lost)
    }

    /// Writes zeros.
    pub(super) fn clear(&self, memory: Memory) -> Result<()> {
        self.fill(memory, 0)
    }

    fn fill(&self, memory: Memory, byte: u8) -> Result<()> {
        let fill = || {
            self.context.bind_to_thread()?;
            // SAFETY: as for a copy.
            unsafe { result::memset_d8_async(memory.at, byte, memory.len_bytes as usize, self.compute.cu_stream()) }
        };
        fill().map_err(lost)
    }

    /// Starts a kernel.
    pub(super) fn launch(&self, launch: Result<Launch>) -> Result<()> {
        let launch = launch?;
        let failed_here = |e| failed(&format!("cannot start {}", launch.kernel), e);
        let function = self.modules.function(&launch.kernel, launch.shared_bytes)?;
        let mut builder = self.compute.launch_builder(&function);
        for argument in &launch.arguments {
            match argument {
                Argument::Pointer(at) => builder.arg(at),
                Argument::U32(n) => builder.arg(n),
                Argument::F32(x) => builder.arg(x),
                Argument::Map(map) => builder.arg(map),
            };
        }
        let [x, y, z] = launch.grid;
        let config = LaunchConfig { grid_dim: (x, y, z), block_dim: (launch.block, 1, 1), shared_mem_bytes: launch.shared_bytes };
        // SAFETY: the arguments are those of the kernel's contract in kernels/LAUNCH.md, and `kernels` checked that what they point to
        // lies within blocks.
        unsafe { builder.launch(config) }.map_err(failed_here)?;
        Ok(())
    }

    /// What TMA needs to know of a matrix of halves that it reads in boxes of 64 columns and `box_rows` rows.
    pub(super) fn tensor_map(&self, matrix: View, box_rows: u32) -> Result<TensorMap> {
        let mut map = TensorMap([0; 16]);
        self.context.bind_to_thread().map_err(lost)?;
        // SAFETY: the arrays have the lengths that rank 2 asks for, and the map has the size and alignment of a CUtensorMap.
        let encoded = unsafe {
            sys::cuTensorMapEncodeTiled(
                std::ptr::from_mut(&mut map).cast(),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                2,
                matrix.memory.at as *mut std::ffi::c_void,
                [matrix.n_cols as u64, matrix.n_rows as u64].as_ptr(),
                [matrix.ld as u64 * 2].as_ptr(),
                [64, box_rows].as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        encoded.result().map_err(|e| failed("a map for TMA", e))?;
        Ok(map)
    }

    /// Waits for all that was started.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.context.synchronize().map_err(lost)
    }

    /// Milliseconds that the compute stream takes for what `work` starts.
    pub(super) fn timed(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let mark = || self.compute.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(lost);
        let before = mark()?;
        work()?;
        Ok(before.elapsed_ms(&mark()?).map_err(lost)?.into())
    }

    /// The fence behind all that the compute stream has been given so far.
    fn now(&self) -> std::result::Result<Fence<Arc<CudaEvent>>, DriverError> {
        let event = Arc::new(self.compute.record_event(None)?);
        Ok(Fence::Event { serial: 1 + self.serial.fetch_add(1, Ordering::Relaxed), event })
    }
}

fn no_room(arenas: &Arenas<Arc<CudaEvent>>, need_bytes: u64, what: &str) -> Error {
    let limit = arenas.limit_bytes();
    let [len, free, longest] = [limit, limit - arenas.ranges.used(), arenas.longest()].map(decimal_bytes);
    let what = format!(
        "not enough GPU memory: {} for {what}; of {len} that may be used {free} are free, {longest} in one piece",
        decimal_bytes(need_bytes)
    );
    gpu(what, "choose a smaller --ctx, a larger --gpu-memory, or --device cpu")
}
