//! The delta net's output norm: normalised per head, then gated.

use rayon::prelude::*;

use super::{Buffer, lanes, rms_norm, rotate};
use crate::ops::GatedNorm;

pub fn run(op: GatedNorm<'_, Buffer>) {
    let params = op.params;
    let (dim, width) = (params.dim as usize, (params.heads * params.dim) as usize);
    let (x, gate, weight) = (op.x.f32(), op.gate.f32(), op.weight.f32());
    let weight = &weight[..dim];
    let gates = gate.par_chunks(params.stride as usize);
    let rows = x.par_chunks_exact(width).take(params.rows as usize);
    rows.zip(gates).zip(op.y.f32_mut().par_chunks_exact_mut(width)).for_each(|((x, gate), y)| {
        y.copy_from_slice(x);
        for head in y.chunks_exact_mut(dim) {
            rms_norm::row(head, weight, 0.0, params.eps);
        }
        for (y, gate) in y.iter_mut().zip(&gate[params.offset as usize..]) {
            *y *= lanes::silu(*gate);
        }
        rotate::row(params.rotate, y);
    });
}
