//! The MLP block: norm, gate and up, SwiGLU, down.

use super::arch::Input;
use super::linear::Linear;
use super::pass::Pass;
use super::source::Tensors;
use crate::Result;
use crate::backend::Backend;
use crate::ops::{SwiGlu, SwiGluParams};

/// Weights of an MLP block.
pub struct Mlp<B: Backend> {
    gate_up: Linear<B>,
    down: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    pub fn load(tensors: &mut Tensors<'_, B>, layer: usize) -> Result<Self> {
        Ok(Self {
            gate_up: Linear::load(tensors, Input::mlp(layer))?,
            down: Linear::load(tensors, Input::mlp_down(layer))?,
        })
    }

    /// `x += mlp(norm(x))`.
    pub fn record<'a>(&'a self, pass: &mut Pass<'a, B>, norm: &'a B::Buffer) {
        pass.normed_linear(norm, &self.gate_up);
        let s = pass.scratch;
        let (dim, rotate) = (self.down.cols() as u32, self.down.input_rotation());
        let params = SwiGluParams { rows: pass.rows, dim, rotate };
        pass.record(SwiGlu { x: &s.wide, y: &s.inner, params });
        pass.residual_linear(&self.down);
    }
}
