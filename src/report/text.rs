//! Text that may be printed, whatever it was before, and numbers that people can read.

use std::fmt::Write;

use crate::error::is_harmless;

/// The text of `bytes` with everything escaped that could drive a terminal: `\n`, `\u{1b}`; bytes that are not UTF-8 as `\xff`.
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match is_harmless(c) {
                true => text.push(c),
                false => text.extend(c.escape_default()),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// As [`printable`], of a text that may be long: at most `chars_max` characters, the last one `…` where some are left out.
pub fn shortened(bytes: &[u8], chars_max: usize) -> String {
    // A character has at most 4 bytes, so this much is enough whatever it holds.
    let head = bytes.get(..chars_max.saturating_mul(4)).unwrap_or(bytes);
    let mut text = printable(head);
    match text.char_indices().nth(chars_max.saturating_sub(1)) {
        Some((end, last)) if end + last.len_utf8() < text.len() || head.len() < bytes.len() => {
            text.truncate(end);
            text.push('…');
        }
        _ => {}
    }
    text
}

/// Bytes in the units disks are sold in: `999 B`, `4.10 KB`, `68.9 GB`.
pub fn decimal_bytes(n_bytes: u64) -> String {
    scaled(n_bytes, &[" B", " KB", " MB", " GB", " TB", " PB", " EB"])
}

/// A count as people say it: `999`, `4.10 K`, `23.1 M`, `8.03 B`.
pub fn decimal_count(n: u64) -> String {
    scaled(n, &["", " K", " M", " B", " T", " Qa", " Qi"])
}

/// Three digits and a unit; whole below a thousand.
fn scaled(n: u64, units: &[&str]) -> String {
    let mut value = n as f64;
    let mut unit = 0;
    // 999.5 would be rounded to 1000.
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{}", units[unit])
}

/// Four significant digits, without an exponent where that is short.
pub(super) fn four_digits(value: f64) -> String {
    let magnitude = value.abs().log10().floor();
    match value {
        _ if value == 0.0 => "0".to_owned(),
        _ if (-4.0..6.0).contains(&magnitude) => format!("{value:.*}", (3 - magnitude as i32).max(0) as usize),
        _ => format!("{value:.3e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_drive_a_terminal_is_escaped() {
        assert_eq!(printable("a\u{1b}[2J\n\t\u{9b}\u{202e}é日".as_bytes()), "a\\u{1b}[2J\\n\\t\\u{9b}\\u{202e}é日");
        assert_eq!(printable(b"a\xff\xc3(b"), "a\\xff\\xc3(b");
    }

    #[test]
    fn long_text_is_cut_with_a_mark() {
        assert_eq!(shortened(b"abcdef", 6), "abcdef");
        assert_eq!(shortened(b"abcdefg", 6), "abcde…");
        assert_eq!(shortened("日本語テキスト".as_bytes(), 3), "日本…");
        assert_eq!(shortened(&[b'x'; 100], 10), "xxxxxxxxx…");
        assert_eq!(shortened(b"", 6), "");
    }

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        let bytes =
            [(0, "0 B"), (999, "999 B"), (1000, "1.00 KB"), (999_499, "999 KB"), (999_500, "1.00 MB"), (68_912_345_678, "68.9 GB")];
        for (n, text) in bytes {
            assert_eq!(decimal_bytes(n), text);
        }
        assert_eq!((decimal_count(7), decimal_count(8_030_261_248)), ("7".to_owned(), "8.03 B".to_owned()));
        assert_eq!(decimal_bytes(u64::MAX), "18.4 EB");
    }

    #[test]
    fn measured_numbers_have_four_digits() {
        let cases =
            [(0.0, "0"), (-1.0, "-1.000"), (999.96, "1000.0"), (0.00012345, "0.0001234"), (1e9, "1.000e9"), (f64::NAN, "NaN")];
        for (value, text) in cases {
            assert_eq!(four_digits(value), text, "{value}");
        }
    }
}
