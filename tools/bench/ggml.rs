//! ggml's own library, loaded while the program runs: the rival that is timed and, for the tests, the oracle of bytes.
//!
//! The one file of the program with `unsafe`: the functions are C's. What is sound to call them with is checked here, in safe Rust.

use std::error::Error as _;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;

use ggforge::quant::Format;
use ggforge::{Error, Result};
use libloading::Library;

/// `struct ggml_type_traits` of ggml 0.25.
#[repr(C)]
struct TypeTraits {
    name: *const c_char,
    block_len: i64,
    interleave: i64,
    block_bytes: usize,
    is_quantized: bool,
    to_float: Option<DequantizeRow>,
    from_float: Option<QuantizeRow>,
}

type QuantizeChunk = unsafe extern "C" fn(c_int, *const f32, *mut c_void, i64, i64, i64, *const f32) -> usize;
type QuantizeRow = unsafe extern "C" fn(*const f32, *mut c_void, i64);
type DequantizeRow = unsafe extern "C" fn(*const c_void, *mut f32, i64);
type GetTypeTraits = unsafe extern "C" fn(c_int) -> *const TypeTraits;
type GetVersion = unsafe extern "C" fn() -> *const c_char;

/// The functions used of `libggml-base.so`.
pub struct Ggml {
    version: String,
    quantize_chunk: QuantizeChunk,
    get_type_traits: GetTypeTraits,
    // What activations are quantized to has no place in the functions above.
    quantize_q8_1: QuantizeRow,
    quantize_q8_k: QuantizeRow,
    dequantize_q8_k: DequantizeRow,
    _library: Library,
}

impl Ggml {
    /// Loads `libggml-base.so` of ggml 0.25 or of a later one that lays its types out the same.
    ///
    /// # Errors
    /// `Io` where there is none, `Unsupported` for what is no such library.
    pub fn open(path: &Path) -> Result<Ggml> {
        // By its full path, as a mere name would be looked for among the system's libraries.
        let path = &path.canonicalize().map_err(|e| Error::io(path, "open", e))?;
        let ggml = Ggml::load(path).map_err(|e| {
            let why = e.source().map_or_else(|| e.to_string(), |source| source.to_string());
            let hint = "libggml-base.so of ggml 0.25 or later is needed; npm's @node-llama-cpp/linux-x64 has one";
            Error::unsupported(format!("{} as a library: {why}", path.display()), hint)
        })?;
        match Format::ALL.iter().find(|&&format| !ggml.agrees_on(format)) {
            None => Ok(ggml),
            Some(format) => Err(Error::unsupported(
                format!("{}: ggml {} has other blocks for {format}", path.display(), ggml.version),
                "ggml 0.25 has the same",
            )),
        }
    }

    fn load(path: &Path) -> Result<Ggml, libloading::Error> {
        // SAFETY: whoever names a library to load trusts it as a program; ggml's initialisers only set up tables. The signatures are
        // those of ggml.h 0.25. A library that lacks quantize_q2_0, for the newest type that is asked for, is too old to know all the
        // type ids, and is refused before any is used.
        unsafe {
            let library = Library::new(path)?;
            library.get::<QuantizeChunk>(b"quantize_q2_0\0")?;
            let version = CStr::from_ptr(library.get::<GetVersion>(b"ggml_version\0")?()).to_string_lossy().into_owned();
            Ok(Ggml {
                version,
                quantize_chunk: *library.get(b"ggml_quantize_chunk\0")?,
                get_type_traits: *library.get(b"ggml_get_type_traits\0")?,
                quantize_q8_1: *library.get(b"quantize_row_q8_1_ref\0")?,
                quantize_q8_k: *library.get(b"quantize_row_q8_K_ref\0")?,
                dequantize_q8_k: *library.get(b"dequantize_row_q8_K\0")?,
                _library: library,
            })
        }
    }

    /// What the library calls its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    fn traits(&self, format: Format) -> &TypeTraits {
        // SAFETY: the id is one that the library knows, as it has the function of the newest, and its table is static.
        unsafe { &*(self.get_type_traits)(format.id() as c_int) }
    }

    fn agrees_on(&self, format: Format) -> bool {
        let traits = self.traits(format);
        (traits.block_len, traits.block_bytes) == (format.block_len() as i64, format.block_bytes())
    }

    /// Rows of `row_len` in ggml's bytes.
    ///
    /// # Panics
    /// When lengths disagree, or the format needs importance and gets none.
    pub fn quantize(&self, format: Format, weights: &[f32], row_len: usize, importance: Option<&[f32]>, blocks: &mut [u8]) {
        assert!(format.can_quantize() && (importance.is_some() || !format.needs_importance()), "{format}");
        assert!(row_len.is_multiple_of(format.block_len()) && weights.len().is_multiple_of(row_len));
        assert!(importance.is_none_or(|columns| columns.len() == row_len));
        assert_eq!(blocks.len(), weights.len() / format.block_len() * format.block_bytes());
        let for_activations = match format {
            Format::Q8_1 => Some(self.quantize_q8_1),
            Format::Q8_K => Some(self.quantize_q8_k),
            _ => None,
        };
        if let Some(quantize_row) = for_activations {
            // SAFETY: the lengths were checked above.
            return unsafe { quantize_row(weights.as_ptr(), blocks.as_mut_ptr().cast(), weights.len() as i64) };
        }
        let importance = importance.map_or(std::ptr::null(), <[f32]>::as_ptr);
        // SAFETY: the lengths were checked above; ggml reads `weights` and one row of `importance` and writes `blocks`.
        let written = unsafe {
            let (rows, row_len) = ((weights.len() / row_len) as i64, row_len as i64);
            let (from, to) = (weights.as_ptr(), blocks.as_mut_ptr().cast());
            (self.quantize_chunk)(format.id() as c_int, from, to, 0, rows, row_len, importance)
        };
        assert_eq!(written, blocks.len());
    }

    /// True when ggml has a function to read the format; F32 needs none.
    pub fn can_dequantize(&self, format: Format) -> bool {
        self.reader(format).is_some()
    }

    fn reader(&self, format: Format) -> Option<DequantizeRow> {
        if format == Format::Q8_K { Some(self.dequantize_q8_k) } else { self.traits(format).to_float }
    }

    /// ggml's `to_float`, and its function for Q8_K.
    ///
    /// # Panics
    /// When lengths disagree or ggml cannot read the format.
    pub fn dequantize(&self, format: Format, blocks: &[u8], weights: &mut [f32]) {
        let to_float = self.reader(format).expect("a format that ggml reads");
        assert!(weights.len().is_multiple_of(format.block_len()));
        assert_eq!(blocks.len(), weights.len() / format.block_len() * format.block_bytes());
        // SAFETY: the lengths were checked above.
        unsafe { to_float(blocks.as_ptr().cast(), weights.as_mut_ptr(), weights.len() as i64) }
    }
}
