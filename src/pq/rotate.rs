//! The seeded block Hadamard rotation of a matrix's input dimension.

use multiversion::multiversion;

/// Largest and smallest block of a rotation.
const MAX_BLOCK: usize = 512;
const MIN_BLOCK: usize = 16;

/// `y = H diag(s) x / sqrt(block)` on every block of a vector: random signs `s` of [`sign`], then a Hadamard
/// transform. R is orthogonal, so `(R w) . (R x) = w . x`: weights and activations are rotated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rotation {
    /// A power of two that divides the dimension.
    pub block: usize,
}

/// The sign of element `i`, the same for every matrix: one bit of Murmur3's 32-bit finaliser (public domain).
pub fn sign(i: u32) -> f32 {
    let mut h = i ^ 0x9e37_79b9;
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    if (h ^ (h >> 16)) & 1 == 0 { 1.0 } else { -1.0 }
}

impl Rotation {
    /// The rotation for vectors of `dim` elements: the largest power of two up to 512 that divides it.
    /// None if that is under 16: such a dimension is not rotated.
    pub fn for_dim(dim: usize) -> Option<Self> {
        let block = (1 << dim.trailing_zeros().min(31)).min(MAX_BLOCK);
        (dim > 0 && block >= MIN_BLOCK).then_some(Self { block })
    }

    /// Rotates one vector, whose length must be a multiple of the block.
    pub fn apply(&self, x: &mut [f32]) {
        for (i, v) in x.iter_mut().enumerate() {
            *v *= sign(i as u32);
        }
        hadamard(x, self.block);
    }

    /// Undoes [`Rotation::apply`].
    pub fn invert(&self, x: &mut [f32]) {
        hadamard(x, self.block);
        for (i, v) in x.iter_mut().enumerate() {
            *v *= sign(i as u32);
        }
    }
}

/// The normalised Hadamard transform of each block, which is its own inverse.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn hadamard(x: &mut [f32], block: usize) {
    let norm = 1.0 / (block as f32).sqrt();
    for block in x.chunks_exact_mut(block) {
        // The three smallest strides together, in registers.
        for v in block.as_chunks_mut::<8>().0 {
            let [a, b, c, d, e, f, g, h] = *v;
            let (a, b, c, d, e, f, g, h) = (a + b, a - b, c + d, c - d, e + f, e - f, g + h, g - h);
            let (a, b, c, d, e, f, g, h) = (a + c, b + d, a - c, b - d, e + g, f + h, e - g, f - h);
            *v = [a + e, b + f, c + g, d + h, a - e, b - f, c - g, d - h];
        }
        let mut half = 8;
        while half < block.len() {
            for pair in block.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        block.iter_mut().for_each(|v| *v *= norm);
    }
}
