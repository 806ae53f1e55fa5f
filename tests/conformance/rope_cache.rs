use fasq::backend::Backend;
use fasq::ops::{RopeCache, RopeCacheParams};

use crate::harness::{Checks, Device, Random, Tolerance, f64s};
use crate::rms_norm::norm;

/// Angles are computed in f32 as in transformers: position * frequency up to 1000 has an error of 6e-5 radians.
const ANGLES: Tolerance = Tolerance { abs: 2e-4, rel: 0.0 };

pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    let mut random = Random::new(9);
    for (rows, heads, kv_heads, head_dim, rotary_dim, gated, normed, amplitude, query_beta) in [
        (5, 1, 1, 2, 2, 0, false, 1.0, 0.0),
        (5, 6, 2, 32, 32, 0, true, 1.0, 0.0),
        (5, 3, 1, 31, 6, 1, false, 1.0, 0.5),
        (5, 4, 2, 256, 64, 1, true, 1.0, 0.0),
        (5, 32, 8, 128, 128, 0, false, 1.25, 0.0),
        (70, 3, 1, 31, 6, 1, true, 0.5, 0.1),
        (70, 5, 1, 256, 64, 0, true, 1.0, 0.0),
        (70, 4, 2, 64, 0, 0, false, 1.0, 0.0),
    ] {
        let (context, q_stride) = (1001, head_dim * (1 + gated));
        let places: Vec<(u32, u32)> = [(1, 1000)].into_iter().chain((0..rows - 1).map(|p| (0, p))).collect();
        let (rows, k_offset) = (places.len(), heads * q_stride);
        let v_offset = k_offset + kv_heads * head_dim;
        let stride = v_offset + kv_heads * head_dim;
        let qkv = random.values(rows * stride);
        let (q_norm, k_norm) = (random.values(head_dim), random.values(head_dim));
        let inv_freq: Vec<f32> =
            (0..rotary_dim / 2).map(|i| 100f32.powf(-(i as f32) / rotary_dim as f32)).collect();
        let words: Vec<u32> = places.iter().flat_map(|(s, p)| [*s, *p]).collect();
        let params = RopeCacheParams {
            rows: rows as u32,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            rotary_dim: rotary_dim as u32,
            stride: stride as u32,
            q_stride: q_stride as u32,
            k_offset: k_offset as u32,
            v_offset: v_offset as u32,
            context: context as u32,
            eps: 1e-6,
            weight_offset: 1.0,
            amplitude,
            query_beta,
            query_context: 30.0,
        };
        let cache_len = 2 * kv_heads * context * head_dim;
        let before = random.values(cache_len);
        let (buffer, k_cache, v_cache) =
            (device.floats(&qkv), device.floats(&before), device.floats(&before));
        let (q_buffer, k_buffer) = (device.floats(&q_norm), device.floats(&k_norm));
        // A table has an element even if none is turned.
        let table = if inv_freq.is_empty() { &[f32::NAN][..] } else { &inv_freq };
        let (f_buffer, r_buffer) = (device.floats(table), device.words(&words));
        device.run(RopeCache {
            qkv: &buffer,
            q_norm: normed.then_some(&q_buffer),
            k_norm: normed.then_some(&k_buffer),
            inv_freq: &f_buffer,
            rows: &r_buffer,
            k_cache: &k_cache,
            v_cache: &v_cache,
            params,
        });
        let head = |x: &[f64], weight: &[f32], position: u32| {
            let mut x = if normed { norm(x, weight, 1.0, 1e-6) } else { x.to_vec() };
            let half = rotary_dim / 2;
            for i in 0..half {
                let (sin, cos) = (f64::from(position) * f64::from(inv_freq[i])).sin_cos();
                let (sin, cos) = (sin * f64::from(amplitude), cos * f64::from(amplitude));
                (x[i], x[i + half]) = (x[i] * cos - x[i + half] * sin, x[i + half] * cos + x[i] * sin);
            }
            x
        };
        let qkv = f64s(&qkv);
        let (mut queries, mut got) = (Vec::new(), Vec::new());
        let (mut k_expected, mut v_expected) = (f64s(&before), f64s(&before));
        let after = device.read(&buffer, rows * stride);
        for (r, (slot, position)) in places.iter().enumerate() {
            let row = &qkv[r * stride..][..stride];
            for h in 0..heads {
                let steps = f64::from(position / 30);
                let grown = 1.0 + f64::from(query_beta) * (1.0 + steps).ln();
                let q = head(&row[h * q_stride..][..head_dim], &q_norm, *position);
                queries.extend(q.iter().map(|q| grown * q));
                got.extend_from_slice(&after[r * stride + h * q_stride..][..head_dim]);
                // What follows a query, its gate, must stay.
                queries.extend_from_slice(&row[h * q_stride + head_dim..][..q_stride - head_dim]);
                got.extend_from_slice(&after[r * stride + h * q_stride + head_dim..][..q_stride - head_dim]);
            }
            for h in 0..kv_heads {
                let at = ((*slot as usize * kv_heads + h) * context + *position as usize) * head_dim;
                k_expected[at..at + head_dim].copy_from_slice(&head(
                    &row[k_offset + h * head_dim..][..head_dim],
                    &k_norm,
                    *position,
                ));
                v_expected[at..at + head_dim].copy_from_slice(&row[v_offset + h * head_dim..][..head_dim]);
            }
        }
        checks.close(&format!("queries, {params:?}"), &[rows, heads, q_stride], &queries, &got, ANGLES);
        let shape = [2, kv_heads, context, head_dim];
        checks.close(
            &format!("keys, {params:?}"),
            &shape,
            &k_expected,
            &device.read(&k_cache, cache_len),
            ANGLES,
        );
        checks.close(
            &format!("values, {params:?}"),
            &shape,
            &v_expected,
            &device.read(&v_cache, cache_len),
            ANGLES,
        );
    }
}
