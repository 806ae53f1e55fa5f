use fasq::backend::Backend;
use fasq::ops::{Attention, AttentionParams};

use crate::harness::{Checks, Device, Random, SUMS, f64s, rotated};

/// Rows of two slots at different positions, over a cache that holds more than they may see.
pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    let mut random = Random::new(8);
    for (heads, kv_heads, head_dim, gated, rotate, window, places) in [
        (1, 1, 1, 0, 0, 0, [(0, 1, 0), (1, 1, 0)]),
        (6, 2, 32, 0, 64, 0, [(1, 1, 36), (0, 1, 3)]),
        (3, 1, 31, 1, 0, 5, [(1, 7, 0), (0, 1, 30)]),
        (8, 4, 64, 0, 512, 0, [(0, 65, 0), (1, 3, 33)]),
        (8, 4, 64, 0, 0, 33, [(0, 65, 0), (1, 3, 33)]),
        (4, 2, 256, 1, 512, 0, [(0, 1, 69), (1, 5, 64)]),
        (4, 2, 256, 0, 512, 1, [(0, 1, 69), (1, 5, 64)]),
        (32, 8, 128, 0, 0, 0, [(1, 1, 69), (0, 1, 0)]),
        (32, 8, 128, 0, 0, 60, [(1, 1, 69), (0, 1, 0)]),
    ] {
        let (context, q_stride) = (70, head_dim * (1 + gated));
        let stride = heads * q_stride + 2 * kv_heads * head_dim;
        let rows: usize = places.iter().map(|(_, len, _)| len).sum();
        let cache = 2 * kv_heads * context * head_dim;
        let (qkv, k, v) = (random.values(rows * stride), random.values(cache), random.values(cache));
        let mut start = 0;
        let (mut segments, mut row_places) = (Vec::new(), Vec::new());
        for (slot, len, position) in places {
            segments.extend([slot, start, len, position].map(|n| n as u32));
            row_places.extend((position..position + len).map(|p| (slot, p)));
            start += len;
        }
        let words: Vec<u32> = row_places.iter().flat_map(|(slot, p)| [*slot as u32, *p as u32]).collect();
        let params = AttentionParams {
            rows: rows as u32,
            segments: 2,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            stride: stride as u32,
            q_stride: q_stride as u32,
            context: context as u32,
            window,
            scale: 2.0,
            gated: gated as u32,
            rotate,
        };
        let (q_buffer, k_buffer, v_buffer) = (device.floats(&qkv), device.floats(&k), device.floats(&v));
        let (r_buffer, s_buffer, y) =
            (device.words(&words), device.words(&segments), device.poison(rows * heads * head_dim));
        device.run(Attention {
            qkv: &q_buffer,
            k_cache: &k_buffer,
            v_cache: &v_buffer,
            rows: &r_buffer,
            segments: &s_buffer,
            y: &y,
            params,
        });
        let expected = reference(&params, &f64s(&qkv), &f64s(&k), &f64s(&v), &row_places);
        checks.close(
            &format!("{params:?}"),
            &[rows, heads, head_dim],
            &expected,
            &device.read(&y, expected.len()),
            SUMS,
        );
    }
}

/// Of rows at these slots and positions, over a cache `[slot, kv_head, position, head_dim]`.
pub fn reference(
    p: &AttentionParams,
    qkv: &[f64],
    k: &[f64],
    v: &[f64],
    places: &[(usize, usize)],
) -> Vec<f64> {
    let [heads, kv_heads, head_dim] = [p.heads, p.kv_heads, p.head_dim].map(|n| n as usize);
    let [stride, q_stride, context] = [p.stride, p.q_stride, p.context].map(|n| n as usize);
    let mut expected = Vec::new();
    for (r, (slot, position)) in places.iter().enumerate() {
        let mut row = Vec::new();
        for h in 0..heads {
            let at = (slot * kv_heads + h / (heads / kv_heads)) * context * head_dim;
            let q = &qkv[r * stride + h * q_stride..][..q_stride];
            let dot = |p: usize| (0..head_dim).map(|i| q[i] * k[at + p * head_dim + i]).sum::<f64>();
            let first = if p.window == 0 { 0 } else { (position + 1).saturating_sub(p.window as usize) };
            let scores: Vec<f64> =
                (first..=*position).map(|position| f64::from(p.scale) * dot(position)).collect();
            let max = scores.iter().fold(f64::MIN, |a, b| a.max(*b));
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for i in 0..head_dim {
                let weighted = |(p, s): (usize, &f64)| (s - max).exp() * v[at + (first + p) * head_dim + i];
                let o: f64 = scores.iter().enumerate().map(weighted).sum();
                row.push(o / sum * if p.gated == 1 { 1.0 / (1.0 + (-q[head_dim + i]).exp()) } else { 1.0 });
            }
        }
        expected.extend(rotated(p.rotate, &row));
    }
    expected
}
