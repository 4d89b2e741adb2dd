//! Byte sizes on the command line: `500M`, `2G`, `1GiB`, `4096`.

/// The bytes that `text` means: `K`, `M`, `G`, `T` count in thousands as disks and llama.cpp do, `KiB` and so on in 1024s.
///
/// # Errors
/// A sentence for anything else, for zero, and for what does not fit 63 bits.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size; write bytes, or 500M, 2G, 1GiB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1000u64.pow(2),
        "g" | "gb" => 1000u64.pow(3),
        "t" | "tb" => 1000u64.pow(4),
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    let bytes = number.parse::<u64>().map_err(|_| wrong())?.checked_mul(factor);
    bytes.filter(|&bytes| 0 < bytes && bytes <= i64::MAX as u64).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let good: &[(&str, u64)] = &[
            ("1", 1),
            ("4096", 4096),
            ("500M", 500_000_000),
            ("2G", 2_000_000_000),
            ("2g", 2_000_000_000),
            ("1GiB", 1 << 30),
            ("3 kib", 3072),
        ];
        for (text, bytes) in good {
            assert_eq!(parse(text), Ok(*bytes), "{text}");
        }
        for text in ["", "0", "G", "-1", "1.5G", "1X", "1GiBB", "99999999999999999999", "10000000000G", "0x10"] {
            assert!(parse(text).is_err(), "{text} was accepted");
        }
    }
}
