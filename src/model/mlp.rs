//! The MLP block: gate and up, their gated activation, down, and the norms around them.

use super::arch::Input;
use super::linear::Linear;
use super::pass::{AroundNorms, Pass};
use super::source::Tensors;
use crate::Result;
use crate::backend::Backend;
use crate::family::Activation;
use crate::ops::{Glu, GluParams};

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

    /// `x += mlp(x)`, with the norms around it.
    pub fn record<'a>(&'a self, pass: &mut Pass<'a, B>, norms: &'a AroundNorms<B>) {
        pass.linear_of_x(norms, &self.gate_up);
        let s = pass.scratch;
        let (dim, rotate) = (self.down.cols() as u32, self.down.input_rotation());
        let gelu = u32::from(pass.config.family.activation == Activation::GeluTanh);
        let params = GluParams { rows: pass.rows, dim, rotate, gelu };
        pass.record(Glu { x: &s.wide, y: &s.inner, params });
        pass.add_linear(norms, &self.down);
    }
}
