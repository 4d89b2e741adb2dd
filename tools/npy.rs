//! NumPy's file format, version 1.0: what `numpy.load` reads.
//!
//! ```text
//! \x93NUMPY | 1 | 0 | length u16 | a Python dict: descr, fortran_order, shape | spaces | \n | values
//!                                 └─ padded so that the values begin at a multiple of 64 ─┘
//! ```
//! (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>)

/// What stands before the values of an f32 array `[n_rows, n_cols]`, little-endian and row-major.
pub fn header(n_rows: usize, n_cols: usize) -> Vec<u8> {
    const ALIGNMENT: usize = 64;
    const PREFIX_BYTES: usize = 10;
    let mut dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n_rows}, {n_cols}), }}");
    let unpadded = PREFIX_BYTES + dict.len() + 1;
    dict.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(ALIGNMENT) - unpadded));
    dict.push('\n');
    let dict_bytes = u16::try_from(dict.len()).expect("a hundred bytes");
    [b"\x93NUMPY\x01\x00", &dict_bytes.to_le_bytes()[..], dict.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::header;

    #[test]
    fn values_begin_at_a_multiple_of_64() {
        for (n_rows, n_cols) in [(1, 2), (1, 128_256), (1 << 20, 1 << 32), (usize::MAX, usize::MAX)] {
            let bytes = header(n_rows, n_cols);
            assert!(bytes.len().is_multiple_of(64) && bytes.starts_with(b"\x93NUMPY\x01\x00") && bytes.ends_with(b"\n"));
            assert_eq!(usize::from(u16::from_le_bytes([bytes[8], bytes[9]])) + 10, bytes.len());
            let dict = std::str::from_utf8(&bytes[10..]).unwrap().trim_end();
            assert_eq!(dict, format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n_rows}, {n_cols}), }}"));
        }
    }
}
