//! The MLP block: norm, gate and up, SwiGLU, down.

use super::arch::Names;
use super::linear::Linear;
use super::pass::Pass;
use super::source::Tensors;
use crate::Result;
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::ops::{SwiGlu, SwiGluParams};

/// Weights of an MLP block.
pub struct Mlp<B: Backend> {
    gate_up: Linear<B>,
    down: Linear<B>,
    dim: usize,
}

impl<B: Backend> Mlp<B> {
    pub fn load(
        tensors: &mut Tensors<'_, B>,
        config: &ModelConfig,
        names: &Names,
        layer: usize,
    ) -> Result<Self> {
        let at = |part: &str| names.layer(layer, &format!("mlp.{part}"));
        let dim = config.intermediate;
        let layers = [(at("gate_proj"), dim), (at("up_proj"), dim)];
        Ok(Self {
            gate_up: Linear::load(tensors, &layers, config.hidden, config.mlp_bias)?,
            down: Linear::load(tensors, &[(at("down_proj"), config.hidden)], dim, config.mlp_bias)?,
            dim,
        })
    }

    /// Columns of what each linear reads.
    pub fn inputs(&self) -> [usize; 2] {
        [self.gate_up.cols(), self.down.cols()]
    }

    /// `x += mlp(norm(x))`.
    pub fn record<'a>(&'a self, pass: &mut Pass<'a, B>, norm: &'a B::Buffer) {
        pass.normed_linear(norm, &self.gate_up);
        let s = pass.scratch;
        let params =
            SwiGluParams { rows: pass.rows, dim: self.dim as u32, rotate: self.down.input_rotation() };
        pass.record(SwiGlu { x: &s.wide, y: &s.inner, params });
        pass.residual_linear(&self.down);
    }
}
