//! Query and key norms, rotary position embedding, and the write to the key/value cache.

use super::cache::Cache;
use super::{Buffer, rms_norm};
use crate::ops::{RopeCache, RopeCacheParams};

pub fn run(op: RopeCache<'_, Buffer>) {
    let p = op.params;
    let [head_dim, kv_heads] = [p.head_dim, p.kv_heads].map(|v| v as usize);
    let (inv_freq, rows) = (op.inv_freq.f32(), op.rows.words());
    let inv_freq = &inv_freq[..p.rotary_dim as usize / 2];
    let (q_norm, k_norm) = (op.q_norm.map(Buffer::f32), op.k_norm.map(Buffer::f32));
    let (mut k_cache, mut v_cache) = (op.k_cache.f32_mut(), op.v_cache.f32_mut());
    let rows = rows.chunks_exact(2).take(p.rows as usize);
    for (place, row) in rows.zip(op.qkv.f32_mut().chunks_mut(p.stride as usize)) {
        let (slot, position) = (place[0] as usize, place[1] as usize);
        let turn = |freq: &f32| {
            let (sin, cos) = (position as f32 * freq).sin_cos();
            (p.amplitude * sin, p.amplitude * cos)
        };
        let turns: Vec<(f32, f32)> = inv_freq.iter().map(turn).collect();
        for h in 0..p.heads as usize {
            let q = &mut row[h * p.q_stride as usize..][..head_dim];
            head(q, q_norm.as_deref(), &turns, &p);
            if p.query_beta != 0.0 {
                let scale = 1.0 + p.query_beta * (1.0 + (position as f32 / p.query_context).floor()).ln();
                q.iter_mut().for_each(|q| *q *= scale);
            }
        }
        for h in 0..kv_heads {
            let at = Cache::from(&p).row(slot, h, position);
            let k = &mut row[p.k_offset as usize + h * head_dim..][..head_dim];
            head(k, k_norm.as_deref(), &turns, &p);
            k_cache[at..at + head_dim].copy_from_slice(k);
            let v = &row[p.v_offset as usize + h * head_dim..][..head_dim];
            v_cache[at..at + head_dim].copy_from_slice(v);
        }
    }
}

/// Normalises one head, then turns its leading pairs (i, i + rotary_dim / 2) by `turns` (sine, cosine).
fn head(x: &mut [f32], norm: Option<&[f32]>, turns: &[(f32, f32)], p: &RopeCacheParams) {
    if let Some(weight) = norm {
        rms_norm::row(x, weight, p.weight_offset, p.eps);
    }
    let (a, rest) = x.split_at_mut(turns.len());
    for ((a, b), (sin, cos)) in a.iter_mut().zip(rest).zip(turns) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
