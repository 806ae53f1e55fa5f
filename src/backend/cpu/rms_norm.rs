//! Root-mean-square norm.

use rayon::prelude::*;

use super::{Buffer, lanes, rotate};
use crate::ops::RmsNorm;

pub fn run(op: RmsNorm<'_, Buffer>) {
    let params = op.params;
    let dim = params.dim as usize;
    let (x, weight) = (op.x.f32(), op.weight.f32());
    let weight = &weight[..dim];
    let residual = op.residual.map(Buffer::f32);
    let residual = residual.as_deref();
    let rows = x.par_chunks_exact(dim).take(params.rows as usize).enumerate();
    rows.zip(op.y.f32_mut().par_chunks_exact_mut(dim)).for_each(|((i, x), y)| {
        y.copy_from_slice(x);
        row(y, weight, params.weight_offset, params.eps);
        rotate::row(params.rotate, y);
        if let Some(residual) = residual {
            y.iter_mut().zip(&residual[i * dim..]).for_each(|(y, residual)| *y += residual);
        }
    });
}

/// Normalises `x` in place.
pub fn row(x: &mut [f32], weight: &[f32], weight_offset: f32, eps: f32) {
    let norm = 1.0 / (lanes::mean_square(x) + eps).sqrt();
    for (x, w) in x.iter_mut().zip(weight) {
        *x *= norm * (w + weight_offset);
    }
}
