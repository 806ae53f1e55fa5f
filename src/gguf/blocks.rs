//! The element types: how many elements stand in a block, in how many bytes, and what they are.
//!
//! Formulas: `dequantize_row_*` in ggml's `ggml-quants.c`. The codes of a block have one or two f16 factors, and those of a
//! "K" type further ones for each 16 or 32 of its 256 elements.

use half::{bf16, f16};

/// An element type.
#[derive(Debug)]
pub struct Blocks {
    /// Its number in a file.
    kind: u32,
    pub name: &'static str,
    /// Elements of a block, which lie side by side in a row.
    pub elements: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// Its elements from its bytes.
    decode: fn(&[u8], &mut [f32]),
}

static KINDS: [Blocks; 13] = [
    Blocks { kind: 0, name: "F32", elements: 1, bytes: 4, decode: f32 },
    Blocks { kind: 1, name: "F16", elements: 1, bytes: 2, decode: |x, y| y[0] = half(x) },
    Blocks {
        kind: 30,
        name: "BF16",
        elements: 1,
        bytes: 2,
        decode: |x, y| y[0] = bf16::from_le_bytes([x[0], x[1]]).to_f32(),
    },
    Blocks { kind: 2, name: "Q4_0", elements: 32, bytes: 18, decode: q4_0 },
    Blocks { kind: 3, name: "Q4_1", elements: 32, bytes: 20, decode: q4_1 },
    Blocks { kind: 6, name: "Q5_0", elements: 32, bytes: 22, decode: q5_0 },
    Blocks { kind: 7, name: "Q5_1", elements: 32, bytes: 24, decode: q5_1 },
    Blocks { kind: 8, name: "Q8_0", elements: 32, bytes: 34, decode: q8_0 },
    Blocks { kind: 10, name: "Q2_K", elements: 256, bytes: 84, decode: q2_k },
    Blocks { kind: 11, name: "Q3_K", elements: 256, bytes: 110, decode: q3_k },
    Blocks { kind: 12, name: "Q4_K", elements: 256, bytes: 144, decode: q4_k },
    Blocks { kind: 13, name: "Q5_K", elements: 256, bytes: 176, decode: q5_k },
    Blocks { kind: 14, name: "Q6_K", elements: 256, bytes: 210, decode: q6_k },
];

/// Types that are known but not read, by number.
const OTHERS: [(u32, &str); 17] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (26, "I32"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// The type of this number.
pub fn of_kind(kind: u32) -> Result<&'static Blocks, String> {
    KINDS.iter().find(|blocks| blocks.kind == kind).ok_or_else(|| {
        let known: Vec<&str> = KINDS.iter().map(|blocks| blocks.name).collect();
        let other = OTHERS.iter().find(|(other, _)| *other == kind);
        let found = other.map_or(format!("type {kind}"), |(_, name)| (*name).into());
        format!("expected one of {}, found {found}", known.join(", "))
    })
}

impl Blocks {
    /// As a type of safetensors, if its elements stand alone.
    pub fn dense(&self) -> Option<safetensors::Dtype> {
        match self.name {
            "F32" => Some(safetensors::Dtype::F32),
            "F16" => Some(safetensors::Dtype::F16),
            "BF16" => Some(safetensors::Dtype::BF16),
            _ => None,
        }
    }

    /// Bytes of a row of `columns` elements, whole blocks.
    pub fn row_bytes(&self, columns: usize) -> usize {
        columns / self.elements * self.bytes
    }

    /// Decodes a row of whole blocks.
    pub fn decode(&self, bytes: &[u8], row: &mut [f32]) {
        let blocks = bytes.chunks_exact(self.bytes).zip(row.chunks_exact_mut(self.elements));
        blocks.for_each(|(bytes, elements)| (self.decode)(bytes, elements));
    }
}

fn f32(x: &[u8], y: &mut [f32]) {
    y[0] = f32::from_le_bytes([x[0], x[1], x[2], x[3]]);
}

/// The f16 at the start of `x`.
fn half(x: &[u8]) -> f32 {
    f16::from_le_bytes([x[0], x[1]]).to_f32()
}

/// The low nibbles of 16 bytes, then the high ones, `bits` above each: bit i for element i.
fn nibbles(bytes: &[u8], bits: u32, y: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = y.split_at_mut(16);
    for (i, byte) in bytes.iter().take(16).enumerate() {
        let fifth = |at: usize| ((bits >> at & 1) as u8) << 4;
        low[i] = value(byte & 15 | fifth(i));
        high[i] = value(byte >> 4 | fifth(i + 16));
    }
}

fn q4_0(x: &[u8], y: &mut [f32]) {
    let d = half(x);
    nibbles(&x[2..], 0, y, |q| d * (f32::from(q) - 8.0));
}

fn q4_1(x: &[u8], y: &mut [f32]) {
    let (d, m) = (half(x), half(&x[2..]));
    nibbles(&x[4..], 0, y, |q| d * f32::from(q) + m);
}

fn q5_0(x: &[u8], y: &mut [f32]) {
    let (d, fifth) = (half(x), u32::from_le_bytes([x[2], x[3], x[4], x[5]]));
    nibbles(&x[6..], fifth, y, |q| d * (f32::from(q) - 16.0));
}

fn q5_1(x: &[u8], y: &mut [f32]) {
    let (d, m, fifth) = (half(x), half(&x[2..]), u32::from_le_bytes([x[4], x[5], x[6], x[7]]));
    nibbles(&x[8..], fifth, y, |q| d * f32::from(q) + m);
}

fn q8_0(x: &[u8], y: &mut [f32]) {
    let d = half(x);
    y.iter_mut().zip(&x[2..]).for_each(|(y, q)| *y = d * f32::from(*q as i8));
}

/// Element `i` of codes of 2 bits: each half of a block has 32 bytes, of which quarter after quarter takes two bits more.
fn two_bits(codes: &[u8], i: usize) -> u8 {
    codes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3
}

/// 4-bit scales and minima of 16 elements each, codes of 2 bits, d, dmin.
fn q2_k(x: &[u8], y: &mut [f32]) {
    let (scales, codes) = x.split_at(16);
    let (d, dmin) = (half(&x[80..]), half(&x[82..]));
    for (i, y) in y.iter_mut().enumerate() {
        let scale = scales[i / 16];
        *y = d * f32::from(scale & 15) * f32::from(two_bits(codes, i)) - dmin * f32::from(scale >> 4);
    }
}

/// A bit above each code, codes of 2 bits, 6-bit scales of 16 elements each, d.
fn q3_k(x: &[u8], y: &mut [f32]) {
    let (above, codes, packed, d) = (&x[..32], &x[32..96], &x[96..108], half(&x[108..]));
    let scale = |group: usize| {
        let low = if group < 8 { packed[group] & 15 } else { packed[group - 8] >> 4 };
        let high = packed[8 + group % 4] >> (group / 4 * 2) & 3;
        f32::from(low | high << 4) - 32.0
    };
    for (i, y) in y.iter_mut().enumerate() {
        let third = above[i % 32] >> (i / 32) & 1;
        *y = d * scale(i / 16) * (f32::from(two_bits(codes, i) | third << 2) - 4.0);
    }
}

/// The 6-bit scale and minimum of each 32 elements, from 12 bytes.
fn scale_and_min(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let both = packed[group + 4];
        (both & 15 | packed[group - 4] >> 6 << 4, both >> 4 | packed[group] >> 6 << 4)
    };
    (scale.into(), min.into())
}

/// Element `i` of codes of 4 bits: 32 bytes hold 64 elements, the first half in their low nibbles.
fn four_bits(codes: &[u8], i: usize) -> u8 {
    codes[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15
}

/// d, dmin, scales and minima, codes of 4 bits.
fn q4_k(x: &[u8], y: &mut [f32]) {
    let (d, dmin, packed, codes) = (half(x), half(&x[2..]), &x[4..16], &x[16..]);
    for (i, y) in y.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(packed, i / 32);
        *y = d * scale * f32::from(four_bits(codes, i)) - dmin * min;
    }
}

/// d, dmin, scales and minima, a bit above each code, codes of 4 bits.
fn q5_k(x: &[u8], y: &mut [f32]) {
    let (d, dmin, packed, above, codes) = (half(x), half(&x[2..]), &x[4..16], &x[16..48], &x[48..]);
    for (i, y) in y.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(packed, i / 32);
        let fifth = above[i % 32] >> (i / 32) & 1;
        *y = d * scale * f32::from(four_bits(codes, i) | fifth << 4) - dmin * min;
    }
}

/// Codes' low 4 bits, their high 2, 8-bit scales of 16 elements each, d.
fn q6_k(x: &[u8], y: &mut [f32]) {
    let (low, high, scales, d) = (&x[..128], &x[128..192], &x[192..208], half(&x[208..]));
    for (i, y) in y.iter_mut().enumerate() {
        // Of each half of the block, 64 bytes hold the low bits: those of its last 64 elements are the high nibbles.
        let nibble = low[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
        let code = nibble | two_bits(high, i) << 4;
        *y = d * f32::from(scales[i / 16] as i8) * (f32::from(code) - 32.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random blocks, decoded by `gguf.quants.dequantize` of PyPI's gguf 0.19.0.
    const REFERENCE: &[u8] = include_bytes!("../../tests/fixtures/gguf-blocks.safetensors");

    #[test]
    fn quantized_blocks_decode_as_ggml_does() {
        let reference = safetensors::SafeTensors::deserialize(REFERENCE).unwrap();
        for blocks in KINDS.iter().filter(|blocks| blocks.dense().is_none()) {
            let part = |part: &str| reference.tensor(&format!("{}.{part}", blocks.name)).unwrap();
            let expected: Vec<f32> = bytemuck::pod_collect_to_vec(part("values").data());
            let mut found = vec![0.0; expected.len()];
            assert_eq!(blocks.row_bytes(found.len()), part("bytes").data().len());
            blocks.decode(part("bytes").data(), &mut found);
            assert_eq!(found, expected, "{}", blocks.name);
        }
    }

    #[test]
    fn dense_types_decode() {
        for (kind, bytes, value) in [
            (0, &1.5_f32.to_le_bytes()[..], 1.5),
            (1, &f16::from_f32(-0.25).to_le_bytes(), -0.25),
            (30, &bf16::from_f32(3.0).to_le_bytes(), 3.0),
        ] {
            let mut found = [0.0];
            of_kind(kind).unwrap().decode(bytes, &mut found);
            assert_eq!(found, [value]);
        }
        let error = of_kind(23).unwrap_err();
        assert!(error.contains("Q4_K") && error.contains("IQ4_XS"), "{error}");
    }
}
