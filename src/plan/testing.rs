//! Small operations and a backend that fuses whatever it is asked, for the tests of the rewrites.

use std::cell::Cell;

pub use super::dry::{Buffer, Weight};
use super::{Fuse, FusedLinear, Product, rewrite};
use crate::Result;
use crate::ops::*;
use crate::tensor::{Dtype, Form, Stored};

pub type Recorded<'a> = Op<'a, Buffer, Weight>;

/// Fuses everything; `pack`: products read packed rows instead; `split`: one product a part.
#[derive(Default)]
pub struct Everything {
    pub pack: bool,
    pub split: bool,
}

impl Fuse<Buffer, Weight> for Everything {
    type Algorithm = &'static str;
    type Packing = &'static str;

    fn split(&self, linear: &Linear<'_, Buffer, Weight>) -> Result<Vec<Product<&'static str>>> {
        let product = |parts| Product { rows: 0..linear.params.rows, parts, algorithm: "any" };
        let parts = linear.weight.parts().len();
        Ok(if self.split { (0..parts).map(|i| product(i..i + 1)).collect() } else { vec![product(0..parts)] })
    }

    fn packing(&self, _: &FusedLinear<'_, Buffer, Weight, Self>) -> Option<&'static str> {
        self.pack.then_some("packed")
    }

    fn writes_packed(&self, _: &Recorded<'_>, _: &'static str) -> bool {
        self.pack
    }

    fn norm_linear(&self, _: &RmsNorm<'_, Buffer>, _: &FusedLinear<'_, Buffer, Weight, Self>) -> bool {
        !self.pack
    }

    fn added_norm(&self, _: &RmsNorm<'_, Buffer>, _: &FusedLinear<'_, Buffer, Weight, Self>) -> bool {
        !self.pack
    }

    fn linear_glu(&self, _: &FusedLinear<'_, Buffer, Weight, Self>, _: &Glu<'_, Buffer>) -> bool {
        true
    }

    fn rotate_linear(&self, _: u32, _: &FusedLinear<'_, Buffer, Weight, Self>) -> bool {
        true
    }

    fn rope_attention(&self, _: &RopeCache<'_, Buffer>, _: &Attention<'_, Buffer>) -> bool {
        true
    }

    fn delta_step(
        &self,
        _: &CausalConv<'_, Buffer>,
        _: &DeltaRule<'_, Buffer>,
        _: &GatedNorm<'_, Buffer>,
    ) -> bool {
        true
    }
}

/// Makes buffers, weights and operations.
#[derive(Default)]
pub struct Pass {
    last: Cell<u64>,
}

impl Pass {
    fn id(&self) -> u64 {
        self.last.set(self.last.get() + 1);
        self.last.get()
    }

    pub fn buffer(&self, elements: usize) -> Buffer {
        Buffer::new(self.id(), elements)
    }

    /// Matrices of so many rows, f16.
    pub fn weight(&self, rows: &[usize], cols: usize) -> Weight {
        let form = |rows: &usize| Form { rows: *rows, cols, stored: Stored::Dense(Dtype::F16) };
        Weight::new(self.id(), rows.iter().map(form).collect())
    }

    pub fn plan(&self, ops: &[Recorded<'_>], fuse: &Everything) -> String {
        rewrite(ops, fuse).expect("a plan").iter().map(|step| format!("{step}\n")).collect()
    }

    pub fn norm<'a>(&self, x: &'a Buffer, weight: &'a Buffer, y: &'a Buffer, rows: u32) -> Recorded<'a> {
        let dim = weight.elements() as u32;
        let params = RmsNormParams { rows, dim, eps: 1e-5, weight_offset: 0.0, rotate: 0 };
        RmsNorm { x, weight, residual: None, y, params }.into()
    }

    pub fn linear<'a>(
        &self,
        x: &'a Buffer,
        weight: &'a Weight,
        y: &'a Buffer,
        rows: u32,
        accumulate: bool,
    ) -> Recorded<'a> {
        let y_stride = weight.out() as u32;
        let params = LinearParams { rows, y_stride, y_offset: 0, accumulate: accumulate.into() };
        Linear { x, weight, bias: None, y, params }.into()
    }

    pub fn glu<'a>(&self, x: &'a Buffer, y: &'a Buffer, rows: u32, rotate: u32) -> Recorded<'a> {
        let params = GluParams { rows, dim: x.elements() as u32 / 2 / rows, rotate, gelu: 0 };
        Glu { x, y, params }.into()
    }

    pub fn heads(&self) -> Heads {
        let buffer = |elements| self.buffer(elements);
        Heads {
            qkv: buffer(128),
            inv_freq: buffer(16),
            rows: buffer(2),
            segments: buffer(4),
            k_cache: buffer(256),
            v_cache: buffer(256),
            y: buffer(64),
        }
    }

    pub fn net(&self) -> Net {
        let buffer = |elements| self.buffer(elements);
        Net {
            proj: buffer(132),
            taps: buffer(384),
            segments: buffer(4),
            conv_state: buffer(288),
            qkv: buffer(96),
            a_log: buffer(2),
            dt_bias: buffer(2),
            state: buffer(512),
            rule: buffer(32),
            norm: buffer(16),
            y: buffer(32),
        }
    }
}

/// Buffers of attention of one row, 2 heads of 32, 1 key head, 8 positions.
pub struct Heads {
    qkv: Buffer,
    inv_freq: Buffer,
    rows: Buffer,
    segments: Buffer,
    k_cache: Buffer,
    v_cache: Buffer,
    pub y: Buffer,
}

impl Heads {
    pub fn rope(&self) -> Recorded<'_> {
        let params = RopeCacheParams {
            rows: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 32,
            rotary_dim: 32,
            stride: 128,
            q_stride: 32,
            k_offset: 64,
            v_offset: 96,
            context: 8,
            eps: 1e-5,
            weight_offset: 0.0,
            amplitude: 1.0,
            query_beta: 0.0,
            query_context: 0.0,
        };
        let Self { qkv, inv_freq, rows, k_cache, v_cache, .. } = self;
        RopeCache { qkv, q_norm: None, k_norm: None, inv_freq, rows, k_cache, v_cache, params }.into()
    }

    pub fn attention(&self, rotate: u32) -> Recorded<'_> {
        let params = AttentionParams {
            rows: 1,
            segments: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 32,
            stride: 128,
            q_stride: 32,
            context: 8,
            window: 0,
            scale: 1.0,
            gated: 0,
            rotate,
        };
        let Self { qkv, rows, segments, k_cache, v_cache, y, .. } = self;
        Attention { qkv, k_cache, v_cache, rows, segments, y, params }.into()
    }
}

/// Buffers of a delta net of one row: 2 key and value heads of 16.
pub struct Net {
    proj: Buffer,
    taps: Buffer,
    segments: Buffer,
    conv_state: Buffer,
    qkv: Buffer,
    a_log: Buffer,
    dt_bias: Buffer,
    state: Buffer,
    rule: Buffer,
    norm: Buffer,
    y: Buffer,
}

impl Net {
    /// Convolution, delta rule and gated norm.
    pub fn ops(&self) -> [Recorded<'_>; 3] {
        let params = CausalConvParams { rows: 1, segments: 1, channels: 96, kernel: 4, stride: 132 };
        let Self { proj, taps, segments, conv_state, qkv, .. } = self;
        let conv = CausalConv { x: proj, weight: taps, segments, state: conv_state, y: qkv, params };
        let params = DeltaRuleParams {
            rows: 1,
            segments: 1,
            key_heads: 2,
            value_heads: 2,
            key_dim: 16,
            value_dim: 16,
            stride: 132,
            a_offset: 130,
            b_offset: 128,
        };
        let Self { a_log, dt_bias, state, rule: y, .. } = self;
        let rule = DeltaRule { qkv, proj, a_log, dt_bias, segments, state, y, params };
        let params =
            GatedNormParams { rows: 1, heads: 2, dim: 16, stride: 132, offset: 96, eps: 1e-6, rotate: 0 };
        let norm = GatedNorm { x: &self.rule, gate: proj, weight: &self.norm, y: &self.y, params };
        [conv.into(), rule.into(), norm.into()]
    }
}
