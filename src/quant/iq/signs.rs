//! Eight signs in seven bits: formats without room for the eighth keep the number of minus signs even.

/// Bit `i` of entry `s` is set where weight `i` is negative; `s` holds the first seven signs.
pub(super) const EVEN: [u8; 128] = {
    let mut signs = [0; 128];
    let mut s = 0;
    while s < 128 {
        signs[s] = s as u8 | ((s.count_ones() as u8 & 1) << 7);
        s += 1;
    }
    signs
};
