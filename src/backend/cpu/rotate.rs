//! The block Hadamard rotation of activations.

use rayon::prelude::*;

use super::Buffer;
use crate::ops::Rotate;
use crate::pq::Rotation;

pub fn run(op: Rotate<'_, Buffer>) {
    let dim = op.params.dim as usize;
    let x = op.x.f32();
    let rows = x.par_chunks_exact(dim).take(op.params.rows as usize);
    rows.zip(op.y.f32_mut().par_chunks_exact_mut(dim)).for_each(|(x, y)| {
        y.copy_from_slice(x);
        row(op.params.rotate, y);
    });
}

/// Rotates one output row by blocks of `block`; 0 leaves it as it is.
pub fn row(block: u32, y: &mut [f32]) {
    if block > 0 {
        Rotation { block: block as usize }.apply(y);
    }
}
