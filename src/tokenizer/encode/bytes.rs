//! GPT-2's alphabet: each of the 256 bytes as one printable character, so that tokens are text. Printable characters of Latin-1 stand for
//! themselves, those from U+0100 on for the other bytes in order.

/// The byte that `c` stands for.
fn from_char(c: char) -> Option<u8> {
    match c as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The bytes that `text` spells, appended to `out`, where it is spelled in this alphabet.
pub(super) fn decode(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    for c in str::from_utf8(text).ok()?.chars() {
        out.push(from_char(c)?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let mut bytes: Vec<u8> = ('\0'..'\u{200}').filter_map(from_char).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, Vec::from_iter(0..=255));
        assert_eq!(['Ġ', 'Ċ', 'a', 'Ń', ' '].map(from_char), [Some(b' '), Some(b'\n'), Some(b'a'), Some(0xad), None]);
    }

    #[test]
    fn other_text_is_not_in_the_alphabet() {
        let mut out = Vec::new();
        assert_eq!((decode("Ġhi".as_bytes(), &mut out), &out[..]), (Some(()), &b" hi"[..]));
        assert_eq!(decode("<｜x｜>".as_bytes(), &mut Vec::new()), None);
        assert_eq!(decode(b"\xff", &mut Vec::new()), None);
    }
}
