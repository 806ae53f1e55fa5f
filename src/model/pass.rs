//! [`Pass`]: what the blocks of a model hand on to each other.

use super::arch::arch;
use super::linear::{Linear, LinearIo};
use super::state::Scratch;
use crate::Result;
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::ops::{self, GatherRowsParams, RmsNormParams};

/// One batch on its way through the blocks.
pub struct Pass<'a, B: Backend> {
    pub(super) backend: &'a B,
    pub(super) config: &'a ModelConfig,
    pub(super) inv_freq: &'a B::Buffer,
    pub(super) commands: &'a mut B::Commands,
    pub(super) scratch: &'a mut Scratch<B>,
    pub(super) rows: u32,
    pub(super) segments: u32,
    pub(super) context: usize,
    /// Takes a copy of what each [`Linear`] reads.
    pub(super) inputs: Option<&'a mut Vec<B::Buffer>>,
}

impl<B: Backend> Pass<'_, B> {
    /// `wide = linear(norm(x))`.
    pub(super) fn normed_linear(&mut self, norm: &B::Buffer, linear: &Linear<B>) -> Result<()> {
        let s = &mut *self.scratch;
        let params = RmsNormParams {
            rows: self.rows,
            dim: self.config.hidden as u32,
            eps: self.config.norm_eps,
            weight_offset: arch(self.config.family).norm_offset,
            rotate: linear.input_rotation(),
        };
        let op = ops::RmsNorm { x: &s.x, weight: norm, y: &mut s.normed, params };
        self.backend.rms_norm(self.commands, op)?;
        if let Some(inputs) = &mut self.inputs {
            let (rows, index) = (self.rows, &s.wanted);
            inputs.push(copy(self.backend, self.commands, &s.normed, index, rows, linear.cols())?);
        }
        let io = LinearIo {
            rows: self.rows,
            x: &s.normed,
            rotated: &mut s.rotated,
            y: &mut s.wide,
            accumulate: false,
        };
        linear.forward(self.backend, self.commands, io)
    }

    /// `x += linear(inner)`.
    pub(super) fn residual_linear(&mut self, linear: &Linear<B>) -> Result<()> {
        let s = &mut *self.scratch;
        if let Some(inputs) = &mut self.inputs {
            let (rows, index) = (self.rows, &s.wanted);
            inputs.push(copy(self.backend, self.commands, &s.inner, index, rows, linear.cols())?);
        }
        let io =
            LinearIo { rows: self.rows, x: &s.inner, rotated: &mut s.rotated, y: &mut s.x, accumulate: true };
        linear.forward(self.backend, self.commands, io)
    }
}

/// A copy of the rows `index` of `x` `[*, dim]`.
fn copy<B: Backend>(
    backend: &B,
    commands: &mut B::Commands,
    x: &B::Buffer,
    index: &B::Buffer,
    rows: u32,
    dim: usize,
) -> Result<B::Buffer> {
    let mut y = backend.alloc(rows as usize * dim)?;
    let params = GatherRowsParams { rows, dim: dim as u32 };
    backend.gather_rows(commands, ops::GatherRows { x, index, y: &mut y, params })?;
    Ok(y)
}
