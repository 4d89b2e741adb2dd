//! Builds `kernels/` with g++ for this CPU (`kernels/shim.h`) and starts kernels as a driver does: by name, grid, block, shared bytes
//! and pointers to arguments.
//!
//! Every launch runs twice, its threads once from first to last and once from last to first, and must give the same bytes. Buffers
//! have guard zones, which must be untouched, and which are NaN to whoever reads them.

use std::cell::UnsafeCell;
use std::collections::hash_map::DefaultHasher;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use libloading::Library;

use crate::common;

type Name = unsafe extern "C" fn(usize) -> *const c_char;
type EncodeTensorMap = unsafe extern "C" fn(
    *mut TensorMap,
    c_int,
    u32,
    *mut c_void,
    *const u64,
    *const u64,
    *const u32,
    *const u32,
    c_int,
    c_int,
    c_int,
    c_int,
) -> c_int;
type CountConflicts = unsafe extern "C" fn(bool);
type ReadConflicts = unsafe extern "C" fn(*mut [Conflicts; 2]);
type Launch = unsafe extern "C" fn(*const c_char, *const u32, *const u32, usize, *mut *mut c_void, c_int) -> bool;

/// The kernels, compiled for the CPU.
pub struct Shim {
    name: Name,
    launch: Launch,
    encode_tensor_map: EncodeTensorMap,
    count_conflicts: CountConflicts,
    read_conflicts: ReadConflicts,
    path: PathBuf,
    _library: Library,
}

/// What happened at a kernel's loads from shared memory, or its stores there, warp by warp (`kernels/shim_banks.cpp`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Conflicts {
    /// Loads or stores of a warp.
    pub n_instructions: u64,
    /// How often all banks were served for them.
    pub n_passes: u64,
    /// How often without conflicts.
    pub n_passes_least: u64,
    /// The most passes of what could have been one.
    pub ways_max: u64,
    /// Of which a lane had so many bytes,
    pub worst_bytes: u64,
    /// at this place of the library: `addr2line -e`.
    pub worst_site: u64,
}

/// Ways in which a kernel's loads from shared memory, and its stores, may meet in banks: what they do now, and no more.
fn ways_max(kernel: &str) -> [u64; 2] {
    let (family, format) = kernel.split_once('_').unwrap_or((kernel, ""));
    let format = format.trim_start_matches("f32_").trim_start_matches("f16_").trim_end_matches("_1").trim_end_matches("_8");
    match (family, format) {
        ("dequant", "F32" | "F16" | "BF16") => [0, 0],
        ("gemv", "F32" | "F16" | "BF16") => [1, 1],
        ("dequant", "MXFP4") => [3, 1],
        ("dequant", _) => [2, 1],
        // Once for a piece: scales, of sixteen rows at once. And once in the end: sums of several rows of x.
        ("gemv", _) => [4, 4],
        ("attn", _) => [1, 2],
        // Whose conflicts are meant.
        ("probe", _) => [32, 1],
        ("nll", _) => [1, 2],
        ("kld", _) => [1, 3],
        _ => [1, 1],
    }
}

/// `None`, with a word about it, where there is no g++.
pub fn shim() -> Option<&'static Shim> {
    static SHIM: OnceLock<Option<Shim>> = OnceLock::new();
    SHIM.get_or_init(|| common::tool("g++").then(|| Shim::open(&build()))).as_ref()
}

/// The host library, compiled anew when a source or the compiler changed.
pub fn build() -> PathBuf {
    let kernels = common::root().join("kernels");
    let probe = common::root().join("tests/kernels/probe.cu");
    let mut hash = DefaultHasher::new();
    common::succeeds(Command::new("g++").arg("--version")).stdout.hash(&mut hash);
    let all = [files(&kernels), files(&kernels.join("block")), vec![probe.clone()]].concat();
    for path in all.iter().filter(|path| path.is_file()) {
        std::fs::read(path).expect("a readable source").hash(&mut hash);
    }
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    std::fs::create_dir_all(&target).expect("a folder below target");
    let library = target.join(format!("{:016x}.so", hash.finish()));
    if library.exists() {
        return library;
    }
    let is_source = |path: &PathBuf| path.extension().is_some_and(|e| e == "cu" || e == "cpp");
    let sources: Vec<PathBuf> = files(&kernels).into_iter().filter(is_source).chain([probe]).collect();
    let work = tempfile::tempdir_in(&target).expect("a folder below target");
    let objects: Vec<PathBuf> = std::thread::scope(|scope| {
        let workers: Vec<_> = sources.iter().map(|source| scope.spawn(|| compile(source, work.path()))).collect();
        workers.into_iter().map(|worker| worker.join().expect("a source that compiles")).collect()
    });
    let linked = work.path().join("kernels.so");
    common::succeeds(Command::new("g++").arg("-shared").args(&objects).arg("-o").arg(&linked));
    std::fs::rename(&linked, &library).expect("a rename below target");
    library
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("a readable folder").map(|entry| entry.expect("a readable entry").path()).collect();
    files.sort();
    files
}

fn compile(source: &Path, folder: &Path) -> PathBuf {
    const OPTIONS: &[&str] =
        &["-std=c++17", "-fPIC", "-g1", "-ffp-contract=off", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE", "-DHOST_SHIM"];
    /// Kernels tell `shim_banks.cpp` of every access to memory, as wide as the source says: no optimization takes structs apart or puts
    /// bytes together.
    const OPTIONS_OF_KERNELS: &[&str] = &["-O1", "-fsanitize=thread", "-fno-tree-sra", "-Wno-psabi"];
    let is_kernel = source.extension().is_some_and(|e| e == "cu");
    let object = folder.join(source.file_stem().expect("a named source")).with_extension("o");
    let mut compiler = Command::new("g++");
    compiler.args(OPTIONS).arg("-I").arg(common::root().join("kernels")).args(if is_kernel {
        OPTIONS_OF_KERNELS
    } else {
        &["-O2"]
    });
    common::succeeds(compiler.args(["-x", "c++", "-c"]).arg(source).arg("-o").arg(&object));
    object
}

impl Shim {
    fn open(path: &Path) -> Shim {
        // SAFETY: the library's initialisers fill a table; the signatures are those of kernels/shim.cpp.
        unsafe {
            let library = Library::new(path).expect("the host library loads");
            let launch = *library.get::<Launch>(b"shim_launch\0").expect("shim_launch");
            let name = *library.get::<Name>(b"shim_kernel\0").expect("shim_kernel");
            let encode_tensor_map = *library.get::<EncodeTensorMap>(b"shim_encode_tensor_map\0").expect("shim_encode_tensor_map");
            let count_conflicts = *library.get::<CountConflicts>(b"shim_count_conflicts\0").expect("shim_count_conflicts");
            let read_conflicts = *library.get::<ReadConflicts>(b"shim_conflicts\0").expect("shim_conflicts");
            let path = path.to_owned();
            Shim { name, launch, encode_tensor_map, count_conflicts, read_conflicts, path, _library: library }
        }
    }

    /// The names of all kernels.
    pub fn kernels(&self) -> Vec<String> {
        // SAFETY: the names are C strings that live as long as the library.
        let name = |i| unsafe { (self.name)(i).as_ref().map(|name| CStr::from_ptr(name)) };
        (0..).map_while(name).map(|name| name.to_str().expect("an ASCII name").to_owned()).collect()
    }

    /// The map of a matrix of halves, `[n_rows, n_cols]` with a row every `ld`, that is read in boxes of 64 columns and `box_rows` rows:
    /// made as LAUNCH.md says.
    #[track_caller]
    pub fn tensor_map(&self, halves: &Buffer<half::f16>, n_rows: usize, n_cols: usize, ld: usize, box_rows: u32) -> TensorMap {
        const FLOAT16: c_int = 6;
        const NO_INTERLEAVE: c_int = 0;
        const SWIZZLE_128B: c_int = 3;
        const PROMOTE_256B: c_int = 3;
        const FILL_ZEROS: c_int = 0;
        let mut map = TensorMap([0; 16]);
        // SAFETY: the arrays have the lengths that rank 2 asks for, and the map the size and alignment of a CUtensorMap.
        let refused = unsafe {
            (self.encode_tensor_map)(
                &mut map,
                FLOAT16,
                2,
                halves.address() as *mut c_void,
                [n_cols as u64, n_rows as u64].as_ptr(),
                [ld as u64 * 2].as_ptr(),
                [64, box_rows].as_ptr(),
                [1, 1].as_ptr(),
                NO_INTERLEAVE,
                SWIZZLE_128B,
                PROMOTE_256B,
                FILL_ZEROS,
            )
        };
        assert_eq!(refused, 0, "a map of [{n_rows}, {n_cols}] with a row every {ld}");
        map
    }

    /// Bank conflicts of the launches in `body`: of loads, and of stores.
    fn conflicts(&self, body: impl FnOnce()) -> [Conflicts; 2] {
        let mut conflicts = [Conflicts::default(); 2];
        // SAFETY: the count is kept by thread.
        unsafe { (self.count_conflicts)(true) };
        body();
        // SAFETY: the array is as shim_banks.cpp writes it.
        unsafe {
            (self.read_conflicts)(&mut conflicts);
            (self.count_conflicts)(false);
        }
        conflicts
    }

    /// Runs `kernel` to its end, in both orders of threads. Returns its bank conflicts: of loads, and of stores.
    #[track_caller]
    pub fn launch(&self, kernel: &str, grid: &[u32], block: u32, shared_bytes: usize, arguments: &[Argument]) -> [Conflicts; 2] {
        let before: Vec<Option<Vec<u8>>> = arguments.iter().map(Argument::contents).collect();
        let conflicts = self.conflicts(|| self.run(kernel, grid, block, shared_bytes, arguments, 0));
        self.check_conflicts(kernel, &conflicts);
        let forwards: Vec<Option<Vec<u8>>> = arguments.iter().map(Argument::contents).collect();
        for (argument, bytes) in arguments.iter().zip(&before) {
            argument.restore(bytes.as_deref());
        }
        self.run(kernel, grid, block, shared_bytes, arguments, 1);
        for (i, (argument, forwards)) in arguments.iter().zip(&forwards).enumerate() {
            assert!(argument.contents() == *forwards, "{kernel}: argument {i} depends on the order in which threads run");
            argument.check_guards(kernel, i);
        }
        conflicts
    }

    #[track_caller]
    fn check_conflicts(&self, kernel: &str, conflicts: &[Conflicts; 2]) {
        for (what, found, allowed) in [("load", conflicts[0], ways_max(kernel)[0]), ("store", conflicts[1], ways_max(kernel)[1])] {
            assert!(
                found.ways_max <= allowed,
                "{kernel}: a {what} of {} bytes a lane meets in banks {} ways, where {allowed} are allowed; addr2line -e {} {:#x}",
                found.worst_bytes,
                found.ways_max,
                self.path.display(),
                found.worst_site
            );
        }
    }

    fn run(&self, kernel: &str, grid: &[u32], block: u32, shared_bytes: usize, arguments: &[Argument], order: c_int) {
        let mut values: Vec<u64> = arguments.iter().map(Argument::value).collect();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        for (argument, pointer) in arguments.iter().zip(&mut pointers) {
            if let Argument::Map(map) = argument {
                *pointer = std::ptr::from_ref(*map).cast_mut().cast();
            }
        }
        let mut all = [1; 3];
        all[..grid.len()].copy_from_slice(grid);
        let name = CString::new(kernel).expect("a name");
        // SAFETY: the kernel reads as many arguments as its signature has, maps or what has at most eight bytes; tests pass those of
        // LAUNCH.md.
        let found = unsafe {
            (self.launch)(name.as_ptr(), all.as_ptr(), [block, 1, 1].as_ptr(), shared_bytes, pointers.as_mut_ptr(), order)
        };
        assert!(found, "there is no kernel {kernel}");
    }
}

/// What a kernel is given.
pub enum Argument<'a> {
    Buffer(&'a dyn Contents),
    Map(&'a TensorMap),
    Value(u64),
}

/// A `CUtensorMap`.
#[repr(C, align(64))]
pub struct TensorMap([u64; 16]);

impl<'a> From<&'a TensorMap> for Argument<'a> {
    fn from(map: &'a TensorMap) -> Self {
        Argument::Map(map)
    }
}

impl From<u32> for Argument<'_> {
    fn from(value: u32) -> Self {
        Argument::Value(value.into())
    }
}

/// As a kernel's u32.
impl From<usize> for Argument<'_> {
    fn from(value: usize) -> Self {
        Argument::Value(u32::try_from(value).expect("a u32").into())
    }
}

impl From<u64> for Argument<'_> {
    fn from(value: u64) -> Self {
        Argument::Value(value)
    }
}

impl From<f32> for Argument<'_> {
    fn from(value: f32) -> Self {
        Argument::Value(value.to_bits().into())
    }
}

impl<'a, T: Copy> From<&'a Buffer<T>> for Argument<'a> {
    fn from(buffer: &'a Buffer<T>) -> Self {
        Argument::Buffer(buffer)
    }
}

/// The arguments of a launch: buffers by reference, numbers, NULL.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { [$(crate::shim::Argument::from($argument)),*] };
}
pub(crate) use arguments;

/// A null pointer.
pub const NULL: Argument<'static> = Argument::Value(0);

impl Argument<'_> {
    fn value(&self) -> u64 {
        match self {
            Argument::Buffer(buffer) => buffer.address(),
            Argument::Map(_) => 0,
            Argument::Value(value) => *value,
        }
    }

    fn contents(&self) -> Option<Vec<u8>> {
        match self {
            Argument::Buffer(buffer) => Some(buffer.all().to_vec()),
            Argument::Map(_) | Argument::Value(_) => None,
        }
    }

    fn restore(&self, bytes: Option<&[u8]>) {
        if let (Argument::Buffer(buffer), Some(bytes)) = (self, bytes) {
            buffer.set(bytes);
        }
    }

    #[track_caller]
    fn check_guards(&self, kernel: &str, number: usize) {
        if let Argument::Buffer(buffer) = self {
            let (all, len) = (buffer.all(), buffer.len_bytes());
            let untouched = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0xff);
            assert!(untouched(&all[..GUARD]), "{kernel} writes before argument {number}");
            assert!(untouched(&all[GUARD + len..]), "{kernel} writes past the end of argument {number}");
        }
    }
}

/// Bytes on both sides of a buffer.
const GUARD: usize = 1024;

/// Memory that kernels read and write, as a device has it.
pub struct Buffer<T> {
    bytes: Box<[UnsafeCell<u128>]>,
    len: usize,
    _of: std::marker::PhantomData<T>,
}

impl<T: Copy> Buffer<T> {
    pub fn new(values: &[T]) -> Buffer<T> {
        let n_bytes = size_of_val(values);
        let bytes = (0..(2 * GUARD + n_bytes).div_ceil(16)).map(|_| UnsafeCell::new(u128::MAX)).collect();
        let buffer = Buffer { bytes, len: values.len(), _of: std::marker::PhantomData };
        // SAFETY: the buffer has room for the values after its first guard.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), buffer.address() as *mut u8, n_bytes) };
        buffer
    }

    /// What no kernel has written to holds NaN.
    pub fn unwritten(len: usize) -> Buffer<T> {
        // SAFETY: all bits set is a value of the integers, floats and structs of them that buffers are made of.
        let value = unsafe { std::mem::transmute_copy(&[0xffu8; 64]) };
        assert!(size_of::<T>() <= 64);
        Buffer::new(&vec![value; len])
    }

    pub fn to_vec(&self) -> Vec<T> {
        // SAFETY: as many values were put there, and kernels write values of the same type.
        unsafe { std::slice::from_raw_parts(self.address() as *const T, self.len) }.to_vec()
    }
}

/// A buffer's bytes, with the guards.
pub trait Contents {
    fn address(&self) -> u64;
    fn len_bytes(&self) -> usize;
    fn all(&self) -> &[u8];
    fn set(&self, bytes: &[u8]);
}

impl<T> Contents for Buffer<T> {
    fn address(&self) -> u64 {
        self.bytes.as_ptr() as u64 + GUARD as u64
    }

    fn len_bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    fn all(&self) -> &[u8] {
        // SAFETY: the slice ends before the next kernel runs: callers copy or compare it at once.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.bytes.len() * 16) }
    }

    fn set(&self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.bytes.len() * 16);
        // SAFETY: the cells may be written through a shared reference, and no slice of them lives.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.bytes.as_ptr() as *mut u8, bytes.len()) };
    }
}
