//! Exact bit packing of codes: log2 K bits each, lowest bits first, every row padded to whole bytes.

/// Bytes of `count` packed codes of `bits` bits.
pub fn packed_len(count: usize, bits: usize) -> usize {
    (count * bits).div_ceil(8)
}

/// Packs `codes`, each below `2^bits` with bits from 2 to 16, into `out` of [`packed_len`] bytes.
pub fn pack(codes: &[u16], bits: usize, out: &mut [u8]) {
    let (mut word, mut filled, mut at) = (0u32, 0, 0);
    for &code in codes {
        word |= u32::from(code) << filled;
        filled += bits;
        while filled >= 8 {
            out[at] = word as u8;
            (word, filled, at) = (word >> 8, filled - 8, at + 1);
        }
    }
    if filled > 0 {
        out[at] = word as u8;
    }
}

/// Undoes [`pack`]: fills `codes` from `packed`.
pub fn unpack(packed: &[u8], bits: usize, codes: &mut [u16]) {
    let mask = (1u32 << bits) - 1;
    let (mut word, mut filled, mut bytes) = (0u32, 0, packed.iter());
    for code in codes {
        while filled < bits {
            word |= u32::from(*bytes.next().unwrap_or(&0)) << filled;
            filled += 8;
        }
        *code = (word & mask) as u16;
        word >>= bits;
        filled -= bits;
    }
}
