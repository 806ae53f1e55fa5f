//! Attention of many rows at once (prefill), over a cache that the backend wrote itself, in whatever type it keeps.

use fasq::backend::Backend;
use fasq::ops::{Attention, AttentionParams, RopeCache, RopeCacheParams};

use crate::attention::reference;
use crate::harness::{Checks, Device, Random, SUMS, f64s};

/// Rows of a batch and positions before them, of slots 0 and 1: whole tiles and not.
const SEGMENTS: [[usize; 2]; 2] = [[129, 64], [70, 33]];

pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    let mut random = Random::new(27);
    for (heads, kv_heads, head_dim, gated, rotate, window) in [
        (4, 2, 64, 0, 0, 0),
        (3, 1, 80, 1, 0, 70),
        (4, 1, 128, 0, 512, 0),
        (4, 1, 128, 0, 0, 1),
        (2, 1, 128, 0, 0, 64),
        (2, 1, 256, 1, 512, 0),
        (2, 1, 256, 0, 512, 33),
    ] {
        let (context, q_stride) = (200, head_dim * (1 + gated));
        let k_offset = heads * q_stride;
        let v_offset = k_offset + kv_heads * head_dim;
        let stride = v_offset + kv_heads * head_dim;
        // The batch's rows, then those before it.
        let mut places: Vec<(usize, usize)> = Vec::new();
        let mut segments: Vec<u32> = Vec::new();
        for (slot, [rows, before]) in SEGMENTS.into_iter().enumerate() {
            segments.extend([slot, places.len(), rows, before].map(|n| n as u32));
            places.extend((before..before + rows).map(|position| (slot, position)));
        }
        let rows = places.len();
        for (slot, [_, before]) in SEGMENTS.into_iter().enumerate() {
            places.extend((0..before).map(|position| (slot, position)));
        }
        let qkv = random.values(places.len() * stride);
        let cache = 2 * kv_heads * context * head_dim;
        let (mut k, mut v) = (vec![0.0; cache], vec![0.0; cache]);
        for (row, (slot, position)) in qkv.chunks_exact(stride).zip(&places) {
            for h in 0..kv_heads {
                let at = ((slot * kv_heads + h) * context + position) * head_dim;
                k[at..at + head_dim].copy_from_slice(&row[k_offset + h * head_dim..][..head_dim]);
                v[at..at + head_dim].copy_from_slice(&row[v_offset + h * head_dim..][..head_dim]);
            }
        }
        let words: Vec<u32> = places.iter().flat_map(|(s, p)| [*s as u32, *p as u32]).collect();
        let [heads, kv_heads, head_dim] = [heads, kv_heads, head_dim].map(|n| n as u32);
        let [stride, q_stride, context] = [stride, q_stride, context].map(|n| n as u32);
        let rope = RopeCacheParams {
            rows: places.len() as u32,
            heads,
            kv_heads,
            head_dim,
            rotary_dim: 2,
            stride,
            q_stride,
            k_offset: k_offset as u32,
            v_offset: v_offset as u32,
            context,
            eps: 1e-6,
            weight_offset: 0.0,
            amplitude: 1.0,
            query_beta: 0.0,
            query_context: 1.0,
        };
        let params = AttentionParams {
            rows: rows as u32,
            segments: 2,
            heads,
            kv_heads,
            head_dim,
            stride,
            q_stride,
            context,
            window,
            scale: 0.3,
            gated: gated as u32,
            rotate,
        };
        let count = rows * (heads * head_dim) as usize;
        let (q_buffer, y) = (device.floats(&qkv), device.poison(count));
        let (k_cache, v_cache) = (device.poison(cache), device.poison(cache));
        let (r_buffer, s_buffer) = (device.words(&words), device.words(&segments));
        let still = device.floats(&[0.0]); // by no angle, so that only the cache is written
        device.run(RopeCache {
            qkv: &q_buffer,
            q_norm: None,
            k_norm: None,
            inv_freq: &still,
            rows: &r_buffer,
            k_cache: &k_cache,
            v_cache: &v_cache,
            params: rope,
        });
        device.run(Attention {
            qkv: &q_buffer,
            k_cache: &k_cache,
            v_cache: &v_cache,
            rows: &r_buffer,
            segments: &s_buffer,
            y: &y,
            params,
        });
        let expected = reference(&params, &f64s(&qkv), &f64s(&k), &f64s(&v), &places[..rows]);
        let shape = [rows, heads as usize, head_dim as usize];
        checks.close(&format!("{params:?}"), &shape, &expected, &device.read(&y, count), SUMS);
    }
}
