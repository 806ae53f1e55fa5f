//! [`Pass`]: the operations of one batch as the blocks record them.

use super::arch::arch;
use super::linear::{Linear, LinearIo};
use super::state::Scratch;
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::ops::{GatherRows, GatherRowsParams, Op, RmsNorm, RmsNormParams};

/// Recorded operations of a backend.
pub type Ops<'a, B> = Vec<Op<'a, <B as Backend>::Buffer, <B as Backend>::Weight>>;

/// What the blocks need to record a batch, and what they have recorded.
pub struct Pass<'a, B: Backend> {
    pub(super) config: &'a ModelConfig,
    pub(super) inv_freq: &'a B::Buffer,
    pub(super) scratch: &'a Scratch<B>,
    pub(super) rows: u32,
    pub(super) segments: u32,
    pub(super) context: usize,
    /// Buffers for copies of the inputs of a block's [`Linear`]s, in their order; empty if no copies are wanted.
    pub(super) inputs: &'a [B::Buffer],
    pub(super) ops: Ops<'a, B>,
}

impl<'a, B: Backend> Pass<'a, B> {
    pub(super) fn record(&mut self, op: impl Into<Op<'a, B::Buffer, B::Weight>>) {
        self.ops.push(op.into());
    }

    /// `wide = linear(norm(x))`.
    pub(super) fn normed_linear(&mut self, norm: &'a B::Buffer, linear: &'a Linear<B>) {
        let s = self.scratch;
        let params = RmsNormParams {
            rows: self.rows,
            dim: self.config.hidden as u32,
            eps: self.config.norm_eps,
            weight_offset: arch(self.config.family).norm_offset,
            rotate: linear.input_rotation(),
        };
        self.record(RmsNorm { x: &s.x, weight: norm, y: &s.normed, params });
        self.copy_input(&s.normed, linear.cols());
        let io =
            LinearIo { rows: self.rows, x: &s.normed, rotated: &s.rotated, y: &s.wide, accumulate: false };
        linear.record(&mut self.ops, io);
    }

    /// `x += linear(inner)`.
    pub(super) fn residual_linear(&mut self, linear: &'a Linear<B>) {
        let s = self.scratch;
        self.copy_input(&s.inner, linear.cols());
        let io = LinearIo { rows: self.rows, x: &s.inner, rotated: &s.rotated, y: &s.x, accumulate: true };
        linear.record(&mut self.ops, io);
    }

    /// Copies the rows [`Scratch::wanted`] of a linear layer's input `[*, dim]` to the next of [`Pass::inputs`], if
    /// any.
    fn copy_input(&mut self, x: &'a B::Buffer, dim: usize) {
        if let Some((y, rest)) = self.inputs.split_first() {
            self.inputs = rest;
            let params = GatherRowsParams { rows: self.rows, dim: dim as u32 };
            self.record(GatherRows { x, index: &self.scratch.wanted, y, params });
        }
    }
}
