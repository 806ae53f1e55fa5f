//! The gated delta rule: recurrent for single rows (decode), in chunks for longer segments (prefill).
//!
//! Chunked form, with G the running sum of g in a chunk, D_ij = exp(G_i - G_j) for i >= j, and S the state before
//! it: solve (I + A) W = beta (V - exp(G) K S) with A_ij = beta_i (k_i . k_j) D_ij below the diagonal; then
//! Y = exp(G) Q S + (Q K^T * D) W and S' = exp(G_C) S + sum over i of exp(G_C - G_i) k_i W_i^T. Exponents are of
//! differences only, all of them at most 0. (Yang et al., "Gated Delta Networks", arXiv 2412.06464.)

use rayon::prelude::*;

use super::{Buffer, Segment, lanes, segments};
use crate::ops::{DeltaRule, DeltaRuleParams};

const CHUNK: usize = 64;

pub fn run(op: DeltaRule<'_, Buffer>) {
    let p = op.params;
    let [value_heads, key_dim, value_dim] = [p.value_heads, p.key_dim, p.value_dim].map(|v| v as usize);
    let segments = segments(op.segments, p.segments);
    let (qkv, proj, a_log, dt_bias) = (op.qkv.f32(), op.proj.f32(), op.a_log.f32(), op.dt_bias.f32());
    let inputs = Inputs { p, qkv: &qkv, proj: &proj, a_log: &a_log, dt_bias: &dt_bias };
    let mut state = op.state.f32_mut();
    let states = state.par_chunks_exact_mut(key_dim * value_dim).enumerate();
    let outputs: Vec<(Segment, usize, Vec<f32>)> = states
        .filter_map(|(i, state)| {
            let (slot, head) = (i / value_heads, i % value_heads);
            let segment = *segments.iter().find(|s| s.slot == slot)?;
            Some((segment, head, inputs.scan(segment, head, state)))
        })
        .collect();
    let mut y = op.y.f32_mut();
    for (segment, head, output) in outputs {
        for (i, o) in output.chunks_exact(value_dim).enumerate() {
            y[((segment.start + i) * value_heads + head) * value_dim..][..value_dim].copy_from_slice(o);
        }
    }
}

struct Inputs<'a> {
    p: DeltaRuleParams,
    qkv: &'a [f32],
    proj: &'a [f32],
    a_log: &'a [f32],
    dt_bias: &'a [f32],
}

/// One head's inputs over some rows: q and k `[rows, key_dim]` (normalised, q scaled), v `[rows, value_dim]`.
struct Head {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    g: Vec<f32>,
    beta: Vec<f32>,
}

impl Inputs<'_> {
    /// One value head over a segment; its output `[rows, value_dim]`, its state moved on.
    fn scan(&self, segment: Segment, head: usize, state: &mut [f32]) -> Vec<f32> {
        if segment.position == 0 {
            state.fill(0.0);
        }
        let (key_dim, value_dim) = (self.p.key_dim as usize, self.p.value_dim as usize);
        let mut y = vec![0.0; segment.rows * value_dim];
        for (chunk, y) in y.chunks_mut(CHUNK * value_dim).enumerate() {
            let rows = y.len() / value_dim;
            let inputs = self.head(segment.start + chunk * CHUNK, rows, head);
            if rows == 1 {
                inputs.step(key_dim, value_dim, state, y);
            } else {
                inputs.chunk(key_dim, value_dim, state, y);
            }
        }
        y
    }

    fn head(&self, start: usize, rows: usize, head: usize) -> Head {
        let p = &self.p;
        let [key_heads, value_heads, key_dim, value_dim] =
            [p.key_heads, p.value_heads, p.key_dim, p.value_dim].map(|v| v as usize);
        let key_head = head / (value_heads / key_heads);
        let (keys, width) = (key_heads * key_dim, 2 * key_heads * key_dim + value_heads * value_dim);
        let mut inputs =
            Head { q: Vec::new(), k: Vec::new(), v: Vec::new(), g: Vec::new(), beta: Vec::new() };
        for r in start..start + rows {
            let row = &self.qkv[r * width..][..width];
            let (q, k) =
                (&row[key_head * key_dim..][..key_dim], &row[keys + key_head * key_dim..][..key_dim]);
            let inverse_norm = |x: &[f32]| 1.0 / (lanes::dot(x, x) + 1e-6).sqrt();
            let (q_scale, k_scale) = (inverse_norm(q) / (key_dim as f32).sqrt(), inverse_norm(k));
            inputs.q.extend(q.iter().map(|q| q * q_scale));
            inputs.k.extend(k.iter().map(|k| k * k_scale));
            inputs.v.extend(&row[2 * keys + head * value_dim..][..value_dim]);
            let proj = &self.proj[r * p.stride as usize..];
            let (a, b) = (proj[p.a_offset as usize + head], proj[p.b_offset as usize + head]);
            inputs.g.push(-self.a_log[head].exp() * softplus(a + self.dt_bias[head]));
            inputs.beta.push(lanes::sigmoid(b));
        }
        inputs
    }
}

impl Head {
    /// One row: decay, read, write, read.
    fn step(&self, key_dim: usize, value_dim: usize, state: &mut [f32], y: &mut [f32]) {
        let decay = self.g[0].exp();
        state.iter_mut().for_each(|s| *s *= decay);
        let mut error = self.v.clone();
        for (s, k) in state.chunks_exact(value_dim).zip(&self.k) {
            lanes::add_scaled(&mut error, -k, s);
        }
        error.iter_mut().for_each(|e| *e *= self.beta[0]);
        y.fill(0.0);
        for ((s, k), q) in state.chunks_exact_mut(value_dim).zip(&self.k).zip(&self.q).take(key_dim) {
            lanes::add_scaled(s, *k, &error);
            lanes::add_scaled(y, *q, s);
        }
    }

    /// Several rows at once.
    fn chunk(&self, key_dim: usize, value_dim: usize, state: &mut [f32], y: &mut [f32]) {
        let rows = self.g.len();
        let sums: Vec<f32> = self
            .g
            .iter()
            .scan(0.0, |sum, g| {
                *sum += g;
                Some(*sum)
            })
            .collect();
        let total = sums[rows - 1];
        let (q, k) =
            (|i: usize| &self.q[i * key_dim..][..key_dim], |i: usize| &self.k[i * key_dim..][..key_dim]);
        let mut w = self.v.clone();
        for i in 0..rows {
            let (before, rest) = w.split_at_mut(i * value_dim);
            let w_i = &mut rest[..value_dim];
            for (s, k) in state.chunks_exact(value_dim).zip(k(i)) {
                lanes::add_scaled(w_i, -sums[i].exp() * k, s);
            }
            for (j, w_j) in before.chunks_exact(value_dim).enumerate() {
                lanes::add_scaled(w_i, -lanes::dot(k(i), k(j)) * (sums[i] - sums[j]).exp(), w_j);
            }
            w_i.iter_mut().for_each(|w| *w *= self.beta[i]);
        }
        y.fill(0.0);
        for (i, y) in y.chunks_exact_mut(value_dim).enumerate() {
            for (s, q) in state.chunks_exact(value_dim).zip(q(i)) {
                lanes::add_scaled(y, sums[i].exp() * q, s);
            }
            for (j, w_j) in w.chunks_exact(value_dim).take(i + 1).enumerate() {
                lanes::add_scaled(y, lanes::dot(q(i), k(j)) * (sums[i] - sums[j]).exp(), w_j);
            }
        }
        state.iter_mut().for_each(|s| *s *= total.exp());
        for (i, w_i) in w.chunks_exact(value_dim).enumerate() {
            let decay = (total - sums[i]).exp();
            for (s, k) in state.chunks_exact_mut(value_dim).zip(k(i)) {
                lanes::add_scaled(s, decay * k, w_i);
            }
        }
    }
}

/// `ln(1 + exp(x))`.
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
