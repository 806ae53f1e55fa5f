//! The gated activation of an MLP.

use rayon::prelude::*;

use super::{Buffer, lanes, rotate};
use crate::ops::Glu;

pub fn run(op: Glu<'_, Buffer>) {
    let dim = op.params.dim as usize;
    let x = op.x.f32();
    let activation = if op.params.gelu == 1 { lanes::gelu } else { lanes::silu };
    let rows = x.par_chunks_exact(2 * dim).take(op.params.rows as usize);
    rows.zip(op.y.f32_mut().par_chunks_exact_mut(dim)).for_each(|(x, y)| {
        let (gate, up) = x.split_at(dim);
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = activation(*gate) * up;
        }
        rotate::row(op.params.rotate, y);
    });
}
