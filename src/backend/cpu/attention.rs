//! Causal attention over the cache: a tile of rows of one head at a time, two matrix products and a softmax.

use rayon::prelude::*;

use super::cache::Cache;
use super::{Buffer, Segment, lanes, rotate, segments};
use crate::gemm::{Mat, matmul};
use crate::ops::{Attention, AttentionParams};

/// Rows of one task.
const TILE: usize = 32;

/// Rows of one segment and one query head.
struct Task {
    slot: usize,
    head: usize,
    start: usize,
    rows: usize,
    position: usize,
}

pub fn run(op: Attention<'_, Buffer>) {
    let p = op.params;
    let [heads, head_dim, stride] = [p.heads, p.head_dim, p.stride].map(|v| v as usize);
    let segments = segments(op.segments, p.segments).into_iter();
    let tasks: Vec<Task> = segments.flat_map(|segment| tiles(segment, heads)).collect();
    let (qkv, k, v) = (op.qkv.f32(), op.k_cache.f32(), op.v_cache.f32());
    let (qkv, k, v): (&[f32], &[f32], &[f32]) = (&qkv, &k, &v);
    let outputs: Vec<Vec<f32>> = tasks.par_iter().map(|task| attend(task, &p, qkv, k, v)).collect();
    let mut y = op.y.f32_mut();
    for (task, output) in tasks.iter().zip(outputs) {
        for (i, o) in output.chunks_exact(head_dim).enumerate() {
            y[((task.start + i) * heads + task.head) * head_dim..][..head_dim].copy_from_slice(o);
        }
    }
    let rows = y.par_chunks_exact_mut(heads * head_dim).zip(qkv.par_chunks(stride)).take(p.rows as usize);
    rows.for_each(|(y, qkv)| {
        if p.gated != 0 {
            for (y, q) in y.chunks_exact_mut(head_dim).zip(qkv.chunks(p.q_stride as usize)) {
                for (y, gate) in y.iter_mut().zip(&q[head_dim..]) {
                    *y *= lanes::sigmoid(*gate);
                }
            }
        }
        rotate::row(p.rotate, y);
    });
}

fn tiles(segment: Segment, heads: usize) -> impl Iterator<Item = Task> {
    (0..segment.rows).step_by(TILE).flat_map(move |at| {
        (0..heads).map(move |head| Task {
            slot: segment.slot,
            head,
            start: segment.start + at,
            rows: TILE.min(segment.rows - at),
            position: segment.position + at,
        })
    })
}

/// The first position that a row at `position` sees.
fn first_seen(position: usize, window: u32) -> usize {
    if window == 0 { 0 } else { (position + 1).saturating_sub(window as usize) }
}

/// The task's output `[rows, head_dim]`.
fn attend(task: &Task, p: &AttentionParams, qkv: &[f32], k_cache: &[f32], v_cache: &[f32]) -> Vec<f32> {
    let [kv_heads, head_dim, stride] = [p.kv_heads, p.head_dim, p.stride].map(|v| v as usize);
    let kv_head = task.head / (p.heads as usize / kv_heads);
    // The first position that the first row sees.
    let begin = first_seen(task.position, p.window);
    let cache = Cache::from(p).row(task.slot, kv_head, begin);
    let len = task.position + task.rows - begin;
    let (k, v) = (&k_cache[cache..][..len * head_dim], &v_cache[cache..][..len * head_dim]);
    let q = &qkv[task.start * stride + task.head * p.q_stride as usize..];
    let mut scores = vec![0.0; task.rows * len];
    matmul((task.rows, head_dim, len), Mat::rows(q, stride), Mat::rows(k, head_dim).t(), &mut scores);
    for (i, row) in scores.chunks_exact_mut(len).enumerate() {
        let position = task.position + i;
        let (seen, future) = row.split_at_mut(position + 1 - begin);
        let (past, seen) = seen.split_at_mut(first_seen(position, p.window) - begin);
        softmax(seen, p.scale);
        past.fill(0.0);
        future.fill(0.0);
    }
    let mut y = vec![0.0; task.rows * head_dim];
    matmul((task.rows, len, head_dim), Mat::rows(&scores, len), Mat::rows(v, head_dim), &mut y);
    y
}

fn softmax(scores: &mut [f32], scale: f32) {
    let max = scores.iter().fold(f32::NEG_INFINITY, |max, s| max.max(*s));
    let mut sum = 0.0;
    for s in scores.iter_mut() {
        *s = ((*s - max) * scale).exp();
        sum += f64::from(*s);
    }
    let norm = (1.0 / sum) as f32;
    scores.iter_mut().for_each(|s| *s *= norm);
}
