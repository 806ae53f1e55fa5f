//! The gated delta net block: projections, causal convolution, delta rule, gated norm, output.

use super::arch::Input;
use super::linear::Linear;
use super::pass::{AroundNorms, Pass};
use super::source::Tensors;
use super::state::Recurrence;
use crate::backend::Backend;
use crate::config::{DeltaNet as Sizes, ModelConfig};
use crate::ops::{CausalConv, CausalConvParams, DeltaRule, DeltaRuleParams, GatedNorm, GatedNormParams};
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
    pub fn load(tensors: &mut Tensors<'_, B>, config: &ModelConfig, layer: usize) -> Result<Self> {
        let sizes = config.delta_net.ok_or_else(|| {
            Error::invalid("config.json", "a linear_attention layer without linear_* sizes")
        })?;
        Ok(Self {
            sizes,
            proj: Linear::load(tensors, Input::mixer(layer))?,
            conv: tensors.block_buffer(layer, "linear_attn.conv1d.weight")?,
            a_log: tensors.block_buffer(layer, "linear_attn.A_log")?,
            dt_bias: tensors.block_buffer(layer, "linear_attn.dt_bias")?,
            norm: tensors.block_buffer(layer, "linear_attn.norm.weight")?,
            out: Linear::load(tensors, Input::mixer_out(layer))?,
        })
    }

    /// `x += delta_net(x)`, with the norms around it.
    pub fn record<'a>(&'a self, pass: &mut Pass<'a, B>, norms: &'a AroundNorms<B>, state: &'a Recurrence<B>) {
        pass.linear_of_x(norms, &self.proj);
        let s = pass.scratch;
        let (rows, segments) = (pass.rows, pass.segments);
        let (stride, channels) = (self.proj.outs() as u32, self.sizes.channels() as u32);
        let [value_heads, value_dim] = [self.sizes.value_heads, self.sizes.value_dim].map(|n| n as u32);
        let kernel = self.sizes.conv_kernel as u32;
        let params = CausalConvParams { rows, segments, channels, kernel, stride };
        pass.record(CausalConv {
            x: &s.wide,
            weight: &self.conv,
            segments: &s.segments,
            state: &state.conv,
            y: &s.conv,
            params,
        });
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
        pass.record(DeltaRule {
            qkv: &s.conv,
            proj: &s.wide,
            a_log: &self.a_log,
            dt_bias: &self.dt_bias,
            segments: &s.segments,
            state: &state.rule,
            y: &s.delta,
            params,
        });
        let params = GatedNormParams {
            rows,
            heads: value_heads,
            dim: value_dim,
            stride,
            offset: channels,
            eps: pass.config.norm_eps,
            rotate: self.out.input_rotation(),
        };
        pass.record(GatedNorm { x: &s.delta, gate: &s.wide, weight: &self.norm, y: &s.inner, params });
        pass.add_linear(norms, &self.out);
    }
}
