//! [`Pass`]: the operations of one batch as the blocks record them.

use super::arch::NormNames;
use super::linear::{Linear, LinearIo, Ops};
use super::source::Tensors;
use super::state::Scratch;
use crate::Result;
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::ops::{GatherRows, GatherRowsParams, Op, RmsNorm, RmsNormParams, Rotate, RotateParams};

/// What the blocks need to record a batch, and what they have recorded.
pub struct Pass<'a, B: Backend> {
    pub(super) config: &'a ModelConfig,
    /// For each of [`ModelConfig::ropes`].
    pub(super) inv_freqs: &'a [B::Buffer],
    pub(super) scratch: &'a Scratch<B>,
    /// The residual stream, and where it goes when a norm is added to it.
    pub(super) x: &'a B::Buffer,
    pub(super) next_x: &'a B::Buffer,
    pub(super) rows: u32,
    pub(super) segments: u32,
    pub(super) context: usize,
    /// Buffers for copies of the inputs of a block's [`Linear`]s, in their order; empty if no copies are wanted.
    pub(super) inputs: &'a [B::Buffer],
    pub(super) ops: Ops<'a, B>,
}

/// The norms around a mixer or an MLP, where the family has them.
pub(super) struct AroundNorms<B: Backend> {
    pub before: Option<B::Buffer>,
    pub after: Option<B::Buffer>,
}

impl<B: Backend> AroundNorms<B> {
    pub(super) fn load(tensors: &mut Tensors<'_, B>, layer: usize, names: NormNames) -> Result<Self> {
        let mut norm = |name: Option<&str>| name.map(|name| tensors.block_buffer(layer, name)).transpose();
        Ok(Self { before: norm(names.before)?, after: norm(names.after)? })
    }
}

impl<'a, B: Backend> Pass<'a, B> {
    pub(super) fn record(&mut self, op: impl Into<Op<'a, B::Buffer, B::Weight>>) {
        self.ops.push(op.into());
    }

    /// `wide = linear(norm(x))`, or `linear(x)` where the family has no norm there.
    pub(super) fn linear_of_x(&mut self, norms: &'a AroundNorms<B>, linear: &'a Linear<B>) {
        let (s, rows, rotate) = (self.scratch, self.rows, linear.input_rotation());
        let dim = self.config.hidden as u32;
        let input = match &norms.before {
            Some(norm) => {
                self.norm(self.x, norm, None, &s.normed, rotate);
                &s.normed
            }
            None if rotate > 0 => {
                self.record(Rotate { x: self.x, y: &s.normed, params: RotateParams { rows, dim, rotate } });
                &s.normed
            }
            None => self.x,
        };
        self.copy_input(input, linear.cols());
        let io = LinearIo { rows, x: input, rotated: &s.rotated, y: &s.wide, accumulate: false };
        linear.record(&mut self.ops, io);
    }

    /// `x += norm(linear(inner))`, or `linear(inner)` where the family has no norm there.
    pub(super) fn add_linear(&mut self, norms: &'a AroundNorms<B>, linear: &'a Linear<B>) {
        let (s, rows) = (self.scratch, self.rows);
        self.copy_input(&s.inner, linear.cols());
        let io = |y, accumulate| LinearIo { rows, x: &s.inner, rotated: &s.rotated, y, accumulate };
        match &norms.after {
            Some(norm) => {
                linear.record(&mut self.ops, io(&s.normed, false));
                // Not in place: a kernel may read the old rows in one place while it writes the new ones in another.
                self.norm(&s.normed, norm, Some(self.x), self.next_x, 0);
                std::mem::swap(&mut self.x, &mut self.next_x);
            }
            None => linear.record(&mut self.ops, io(self.x, true)),
        }
    }

    /// `y = (residual +) R norm(x)` of all rows.
    fn norm(
        &mut self,
        x: &'a B::Buffer,
        weight: &'a B::Buffer,
        residual: Option<&'a B::Buffer>,
        y: &'a B::Buffer,
        rotate: u32,
    ) {
        let params = RmsNormParams {
            rows: self.rows,
            dim: self.config.hidden as u32,
            eps: self.config.norm_eps,
            weight_offset: self.config.family.norm_offset,
            rotate,
        };
        self.record(RmsNorm { x, weight, residual, y, params });
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
