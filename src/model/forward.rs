//! The one forward pass of a block, for every family and backend.

use super::arch::{Input, Names};
use super::attention::Attention;
use super::delta_net::DeltaNet;
use super::linear::{Linear, LinearIo};
use super::load::{Model, Tensors};
use super::mlp::Mlp;
use super::state::{LayerState, Scratch};
use crate::Result;
use crate::backend::Backend;
use crate::config::{Mixer, ModelConfig};
use crate::ops::{self, GatherRowsParams, RmsNormParams};

/// A transformer block.
pub struct Layer<B: Backend> {
    mixer_norm: B::Buffer,
    mixer: MixerWeights<B>,
    mlp_norm: B::Buffer,
    mlp: Mlp<B>,
}

enum MixerWeights<B: Backend> {
    Attention(Attention<B>),
    DeltaNet(DeltaNet<B>),
}

impl<B: Backend> Layer<B> {
    pub(super) fn load(
        tensors: &mut Tensors<'_, B>,
        config: &ModelConfig,
        names: &Names,
        i: usize,
    ) -> Result<Self> {
        let dim = [config.hidden];
        Ok(Self {
            mixer_norm: tensors.buffer(&names.layer(i, "input_layernorm.weight"), &dim)?,
            mixer: match config.layers[i] {
                Mixer::Attention => MixerWeights::Attention(Attention::load(tensors, config, names, i)?),
                Mixer::DeltaNet => MixerWeights::DeltaNet(DeltaNet::load(tensors, config, names, i)?),
            },
            mlp_norm: tensors.buffer(&names.layer(i, "post_attention_layernorm.weight"), &dim)?,
            mlp: Mlp::load(tensors, config, names, i)?,
        })
    }

    /// Columns of what each [`Linear`] reads.
    pub(super) fn inputs(&self) -> [usize; Input::PER_LAYER] {
        let [first, last] = match &self.mixer {
            MixerWeights::Attention(attention) => attention.inputs(),
            MixerWeights::DeltaNet(net) => net.inputs(),
        };
        let [gate_up, down] = self.mlp.inputs();
        [first, last, gate_up, down]
    }

    pub(super) fn forward(&self, pass: &mut Pass<'_, B>, state: &mut LayerState<B>) -> Result<()> {
        match &self.mixer {
            MixerWeights::Attention(attention) => attention.forward(pass, &self.mixer_norm, state)?,
            MixerWeights::DeltaNet(net) => net.forward(pass, &self.mixer_norm, state)?,
        }
        self.mlp.forward(pass, &self.mlp_norm)
    }
}

/// One batch on its way through the model.
pub struct Pass<'a, B: Backend> {
    pub(super) model: &'a Model<B>,
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
            dim: self.model.config.hidden as u32,
            eps: self.model.config.norm_eps,
            weight_offset: self.model.norm_offset(),
            rotate: linear.input_rotation(),
        };
        let op = ops::RmsNorm { x: &s.x, weight: norm, y: &mut s.normed, params };
        self.model.backend.rms_norm(self.commands, op)?;
        if let Some(inputs) = &mut self.inputs {
            let (rows, index) = (self.rows, &s.wanted);
            inputs.push(copy(&self.model.backend, self.commands, &s.normed, index, rows, linear.cols())?);
        }
        let io = LinearIo {
            rows: self.rows,
            x: &s.normed,
            rotated: &mut s.rotated,
            y: &mut s.wide,
            accumulate: false,
        };
        linear.forward(&self.model.backend, self.commands, io)
    }

    /// `x += linear(inner)`.
    pub(super) fn residual_linear(&mut self, linear: &Linear<B>) -> Result<()> {
        let s = &mut *self.scratch;
        if let Some(inputs) = &mut self.inputs {
            let (rows, index) = (self.rows, &s.wanted);
            inputs.push(copy(&self.model.backend, self.commands, &s.inner, index, rows, linear.cols())?);
        }
        let io =
            LinearIo { rows: self.rows, x: &s.inner, rotated: &mut s.rotated, y: &mut s.x, accumulate: true };
        linear.forward(&self.model.backend, self.commands, io)
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
