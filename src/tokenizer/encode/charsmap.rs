//! SentencePiece's compiled normalisation rules: which sequences of bytes are replaced by which.
//!
//! ```text
//! u32 size of the array in bytes | the array, one u32 per unit | replacements, each ended by a zero byte
//!
//! unit:  bit 31 set: a value | bits 10..31: base, shifted by 8 more where bit 9 is set | bit 8: has a value | bits 0..8: its byte
//! ```
//!
//! The array is a trie: from a unit with base b, byte c leads to unit b ^ c if that unit's byte is c; where a sequence ends, the unit at
//! the base holds the place of its replacement. Everything that can be reached is checked once, so that looking up cannot fail.

/// Bytes of a sequence that is replaced. Real ones have some twenty; without a bound, looking for one could take as long as the text is.
const SEQUENCE_BYTES_MAX: usize = 256;

/// A checked set of rules.
#[derive(Debug, Default)]
pub(super) struct Charsmap {
    units: Vec<u32>,
    replacements: Vec<u8>,
}

impl Charsmap {
    /// Checks and takes over the rules.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn read(bytes: &[u8]) -> Result<Charsmap, String> {
        let too_short = || format!("{} bytes are too few for the array's size", bytes.len());
        let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(too_short)?;
        let size = u32::from_le_bytes(*size) as usize;
        if size >= rest.len() {
            return Err(format!("the array claims {size} bytes of {}", rest.len()));
        }
        let (array, replacements) = rest.split_at(size);
        let units = array.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]));
        let map = Charsmap { units: units.collect(), replacements: replacements.to_vec() };
        map.check()?;
        Ok(map)
    }

    /// The longest sequence that `text` begins with and that has a rule: its length and its replacement.
    pub(super) fn longest(&self, text: &[u8]) -> Option<(usize, &[u8])> {
        let mut found = None;
        let mut base = self.unit(0).map(Unit::base)?;
        for (at, byte) in text.iter().enumerate() {
            let Some((unit, next)) = self.child(base, *byte) else { break };
            base = next;
            if unit.has_value() {
                found = Some((at + 1, self.value(base)?));
            }
        }
        found.map(|(len, start)| {
            let replacement = &self.replacements[start..];
            (len, replacement.split(|b| *b == 0).next().unwrap_or_default())
        })
    }

    fn unit(&self, at: usize) -> Option<Unit> {
        self.units.get(at).map(|bits| Unit(*bits))
    }

    /// The unit that `byte` leads to, and the base of its own children.
    fn child(&self, base: usize, byte: u8) -> Option<(Unit, usize)> {
        let at = base ^ usize::from(byte);
        let unit = self.unit(at).filter(|unit| byte != 0 && unit.is_child_by(byte))?;
        Some((unit, at ^ unit.base()))
    }

    fn value(&self, base: usize) -> Option<usize> {
        self.unit(base).map(Unit::value)
    }

    /// Walks everything that can be reached. Subtrees may be shared, so a unit met twice is sound, one met again below itself is not.
    fn check(&self) -> Result<(), String> {
        let Some(root) = self.unit(0) else { return Ok(()) };
        let last_end = self.replacements.iter().rposition(|b| *b == 0);
        let mut state = vec![State::New; self.units.len()];
        // The unit, the base of its children, and the next byte to try.
        let mut path = vec![(0, root.base(), 1_u16)];
        while let Some((at, base, next)) = path.pop() {
            let Ok(byte) = u8::try_from(next) else {
                state[at] = State::Done;
                continue;
            };
            if path.len() > SEQUENCE_BYTES_MAX {
                return Err(format!("unit {at} is more than {SEQUENCE_BYTES_MAX} bytes deep"));
            }
            let child_at = base ^ usize::from(byte);
            if child_at >= self.units.len() {
                return Err(format!("unit {at} of {} leads outside the array", self.units.len()));
            }
            path.push((at, base, next + 1));
            let Some((child, child_base)) = self.child(base, byte) else { continue };
            match state[child_at] {
                State::Done => continue,
                State::Open => return Err(format!("unit {child_at} is below itself")),
                State::New => state[child_at] = State::Open,
            }
            if child.has_value() && self.value(child_base).is_none_or(|value| last_end.is_none_or(|last| value > last)) {
                return Err(format!(
                    "the replacement of unit {child_at} lies outside the {} bytes of them",
                    self.replacements.len()
                ));
            }
            path.push((child_at, child_base, 1));
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Open,
    Done,
}

/// One entry of the array.
#[derive(Clone, Copy)]
struct Unit(u32);

impl Unit {
    fn base(self) -> usize {
        let shift = (self.0 & 1 << 9) >> 6;
        ((self.0 >> 10) << shift) as usize
    }

    fn is_child_by(self, byte: u8) -> bool {
        self.0 & (1 << 31 | 0xff) == u32::from(byte)
    }

    fn has_value(self) -> bool {
        self.0 >> 8 & 1 == 1
    }

    fn value(self) -> usize {
        (self.0 & !(1 << 31)) as usize
    }
}
