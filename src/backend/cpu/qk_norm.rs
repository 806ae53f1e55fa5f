//! Norms of queries and keys over all heads of a row.

use rayon::prelude::*;

use super::{Buffer, rms_norm};
use crate::ops::QkNorm;

pub fn run(op: QkNorm<'_, Buffer>) {
    let p = op.params;
    let [stride, q_dim, k_offset, k_dim] = [p.stride, p.q_dim, p.k_offset, p.k_dim].map(|n| n as usize);
    let (q_norm, k_norm) = (op.q_norm.f32(), op.k_norm.f32());
    let (q_norm, k_norm): (&[f32], &[f32]) = (&q_norm[..q_dim], &k_norm[..k_dim]);
    op.qkv.f32_mut().par_chunks_mut(stride).take(p.rows as usize).for_each(|row| {
        rms_norm::row(&mut row[..q_dim], q_norm, p.weight_offset, p.eps);
        rms_norm::row(&mut row[k_offset..][..k_dim], k_norm, p.weight_offset, p.eps);
    });
}
