//! The attention block: norm, QKV, rotary embedding and cache, attention, output.

use super::arch::{Input, arch};
use super::linear::Linear;
use super::pass::Pass;
use super::source::Tensors;
use super::state::Cache;
use crate::Result;
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::ops::{self, AttentionParams, RopeCache, RopeCacheParams};

/// Weights of an attention block.
pub struct Attention<B: Backend> {
    qkv: Linear<B>,
    out: Linear<B>,
    /// Norms of query and key heads, in families that have them.
    qk_norm: Option<(B::Buffer, B::Buffer)>,
}

impl<B: Backend> Attention<B> {
    pub fn load(tensors: &mut Tensors<'_, B>, config: &ModelConfig, layer: usize) -> Result<Self> {
        let qk_norm = if arch(config.family).qk_norm {
            let q = tensors.block_buffer(layer, "self_attn.q_norm.weight")?;
            Some((q, tensors.block_buffer(layer, "self_attn.k_norm.weight")?))
        } else {
            None
        };
        Ok(Self {
            qkv: Linear::load(tensors, Input::mixer(layer))?,
            out: Linear::load(tensors, Input::mixer_out(layer))?,
            qk_norm,
        })
    }

    /// `x += attention(norm(x))`.
    pub fn record<'a>(&'a self, pass: &mut Pass<'a, B>, norm: &'a B::Buffer, cache: &'a Cache<B>) {
        pass.normed_linear(norm, &self.qkv);
        let (config, arch, s) = (pass.config, arch(pass.config.family), pass.scratch);
        let [heads, kv_heads, head_dim] = [config.heads, config.kv_heads, config.head_dim].map(|n| n as u32);
        let gated = u32::from(arch.gated_attention);
        let q_stride = head_dim * (1 + gated);
        let (stride, context) = (self.qkv.outs() as u32, pass.context as u32);
        let params = RopeCacheParams {
            rows: pass.rows,
            heads,
            kv_heads,
            head_dim,
            rotary_dim: config.rope.rotary_dim as u32,
            stride,
            q_stride,
            k_offset: heads * q_stride,
            v_offset: heads * q_stride + kv_heads * head_dim,
            context,
            eps: config.norm_eps,
            weight_offset: arch.norm_offset,
        };
        pass.record(RopeCache {
            qkv: &s.wide,
            q_norm: self.qk_norm.as_ref().map(|(q, _)| q),
            k_norm: self.qk_norm.as_ref().map(|(_, k)| k),
            inv_freq: pass.inv_freq,
            rows: &s.positions,
            k_cache: &cache.k,
            v_cache: &cache.v,
            params,
        });
        let params = AttentionParams {
            rows: pass.rows,
            segments: pass.segments,
            heads,
            kv_heads,
            head_dim,
            stride,
            q_stride,
            context,
            scale: 1.0 / (head_dim as f32).sqrt(),
            gated,
            rotate: self.out.input_rotation(),
        };
        pass.record(ops::Attention {
            qkv: &s.wide,
            k_cache: &cache.k,
            v_cache: &cache.v,
            rows: &s.positions,
            segments: &s.segments,
            y: &s.inner,
            params,
        });
        pass.residual_linear(&self.out);
    }
}
