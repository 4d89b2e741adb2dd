//! ggml's own library, loaded when it is there: the oracle that bytes are compared with and the rival that is timed.

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;

use ggforge::quant::Format;
use libloading::Library;

/// `struct ggml_type_traits`.
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

/// The functions used of `libggml-base.so`.
pub struct Ggml {
    quantize_chunk: QuantizeChunk,
    get_type_traits: GetTypeTraits,
    // What activations are quantized to has no place in the functions above.
    quantize_q8_1: QuantizeRow,
    quantize_q8_k: QuantizeRow,
    dequantize_q8_k: DequantizeRow,
    _library: Library,
}

impl Ggml {
    /// The library of npm's `@node-llama-cpp/linux-x64`, which was compiled without fused multiply-add.
    pub fn load() -> Option<Ggml> {
        const LIBRARY: &str = "npm/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64/libggml-base.so";
        super::peers(LIBRARY).map(|peers| Ggml::open(&peers.join(LIBRARY)))
    }

    fn open(path: &Path) -> Ggml {
        // SAFETY: the library's initialisers only set up tables; the signatures are those of ggml.h 0.25.
        unsafe {
            let library = Library::new(path).expect("libggml-base.so loads");
            let quantize_chunk = *library.get::<QuantizeChunk>(b"ggml_quantize_chunk\0").expect("ggml_quantize_chunk");
            let get_type_traits = *library.get::<GetTypeTraits>(b"ggml_get_type_traits\0").expect("ggml_get_type_traits");
            let quantize_q8_1 = *library.get::<QuantizeRow>(b"quantize_row_q8_1_ref\0").expect("quantize_row_q8_1_ref");
            let quantize_q8_k = *library.get::<QuantizeRow>(b"quantize_row_q8_K_ref\0").expect("quantize_row_q8_K_ref");
            let dequantize_q8_k = *library.get::<DequantizeRow>(b"dequantize_row_q8_K\0").expect("dequantize_row_q8_K");
            Ggml { quantize_chunk, get_type_traits, quantize_q8_1, quantize_q8_k, dequantize_q8_k, _library: library }
        }
    }

    fn traits(&self, format: Format) -> &TypeTraits {
        // SAFETY: the id is one of ggml's, and its table is static.
        let traits = unsafe { &*(self.get_type_traits)(format.id() as c_int) };
        assert_eq!(traits.block_bytes, format.block_bytes(), "{format}: bytes per block");
        assert_eq!(traits.block_len, format.block_len() as i64, "{format}: weights per block");
        traits
    }

    /// Rows of `row_len` in ggml's bytes.
    pub fn quantize(&self, format: Format, weights: &[f32], row_len: usize, importance: Option<&[f32]>, blocks: &mut [u8]) {
        self.traits(format);
        assert_eq!(blocks.len(), weights.len() / format.block_len() * format.block_bytes());
        assert!(weights.len().is_multiple_of(row_len) && importance.is_none_or(|columns| columns.len() == row_len));
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
    pub fn dequantize(&self, format: Format, blocks: &[u8], weights: &mut [f32]) {
        let to_float = self.reader(format).expect("a format that ggml reads");
        assert_eq!(blocks.len(), weights.len() / format.block_len() * format.block_bytes());
        // SAFETY: the lengths were checked above.
        unsafe { to_float(blocks.as_ptr().cast(), weights.as_mut_ptr(), weights.len() as i64) }
    }
}
