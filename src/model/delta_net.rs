//! The gated delta net block: norm, projections, causal convolution, delta rule, gated norm, output.

use super::arch::Names;
use super::linear::Linear;
use super::pass::Pass;
use super::source::Tensors;
use super::state::LayerState;
use crate::backend::Backend;
use crate::config::{DeltaNet as Sizes, ModelConfig};
use crate::ops::{self, CausalConvParams, DeltaRuleParams, GatedNormParams};
use crate::{Error, Result};

/// Weights of a gated delta net block.
pub struct DeltaNet<B: Backend> {
    sizes: Sizes,
    /// qkv, z, b, a side by side.
    proj: Linear<B>,
    /// `[channels, kernel]`.
    conv: B::Buffer,
    a_log: B::Buffer,
    dt_bias: B::Buffer,
    norm: B::Buffer,
    out: Linear<B>,
}

impl<B: Backend> DeltaNet<B> {
    pub fn load(
        tensors: &mut Tensors<'_, B>,
        config: &ModelConfig,
        names: &Names,
        layer: usize,
    ) -> Result<Self> {
        let sizes = config.delta_net.ok_or_else(|| {
            Error::invalid("config.json", "a linear_attention layer without linear_* sizes")
        })?;
        let at = |part: &str| names.layer(layer, &format!("linear_attn.{part}"));
        let heads = sizes.value_heads;
        let layers = [
            (at("in_proj_qkv"), sizes.channels()),
            (at("in_proj_z"), sizes.values()),
            (at("in_proj_b"), heads),
            (at("in_proj_a"), heads),
        ];
        Ok(Self {
            sizes,
            proj: Linear::load(tensors, &layers, config.hidden, false)?,
            conv: tensors.buffer(&at("conv1d.weight"), &[sizes.channels(), 1, sizes.conv_kernel])?,
            a_log: tensors.buffer(&at("A_log"), &[heads])?,
            dt_bias: tensors.buffer(&at("dt_bias"), &[heads])?,
            norm: tensors.buffer(&at("norm.weight"), &[sizes.value_dim])?,
            out: Linear::load(tensors, &[(at("out_proj"), config.hidden)], sizes.values(), false)?,
        })
    }

    /// Columns of what each linear reads.
    pub fn inputs(&self) -> [usize; 2] {
        [self.proj.cols(), self.out.cols()]
    }

    /// `x += delta_net(norm(x))`.
    pub fn forward(&self, pass: &mut Pass<'_, B>, norm: &B::Buffer, state: &mut LayerState<B>) -> Result<()> {
        let LayerState::DeltaNet { conv, recurrent } = state else { return Ok(()) };
        pass.normed_linear(norm, &self.proj)?;
        let (backend, s) = (pass.backend, &mut *pass.scratch);
        let (rows, segments) = (pass.rows, pass.segments);
        let (stride, channels) = (self.proj.outs() as u32, self.sizes.channels() as u32);
        let [value_heads, value_dim] = [self.sizes.value_heads, self.sizes.value_dim].map(|n| n as u32);
        let kernel = self.sizes.conv_kernel as u32;
        let params = CausalConvParams { rows, segments, channels, kernel, stride };
        let op = ops::CausalConv {
            x: &s.wide,
            weight: &self.conv,
            segments: &s.segments,
            state: conv,
            y: &mut s.conv,
            params,
        };
        backend.causal_conv(pass.commands, op)?;
        let b_offset = channels + value_heads * value_dim;
        let params = DeltaRuleParams {
            rows,
            segments,
            key_heads: self.sizes.key_heads as u32,
            value_heads,
            key_dim: self.sizes.key_dim as u32,
            value_dim,
            stride,
            a_offset: b_offset + value_heads,
            b_offset,
        };
        let op = ops::DeltaRule {
            qkv: &s.conv,
            proj: &s.wide,
            a_log: &self.a_log,
            dt_bias: &self.dt_bias,
            segments: &s.segments,
            state: recurrent,
            y: &mut s.delta,
            params,
        };
        backend.delta_rule(pass.commands, op)?;
        let params = GatedNormParams {
            rows,
            heads: value_heads,
            dim: value_dim,
            stride,
            offset: channels,
            eps: pass.config.norm_eps,
            rotate: self.out.input_rotation(),
        };
        let op = ops::GatedNorm { x: &s.delta, gate: &s.wide, weight: &self.norm, y: &mut s.inner, params };
        backend.gated_norm(pass.commands, op)?;
        pass.residual_linear(&self.out)
    }
}
