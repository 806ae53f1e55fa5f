//! The attention block: QKV, norms of queries and keys, rotary embedding and cache, attention, output.

use super::arch::Input;
use super::linear::Linear;
use super::pass::{AroundNorms, Pass};
use super::source::Tensors;
use super::state::{Cache, word};
use crate::Result;
use crate::backend::Backend;
use crate::config::{Layer, ModelConfig, QueryScaling};
use crate::family::QkNorms;
use crate::ops::{self, AttentionParams, QkNormParams, RopeCache, RopeCacheParams};

/// Weights of an attention block.
pub struct Attention<B: Backend> {
    qkv: Linear<B>,
    out: Linear<B>,
    /// Norms of queries and keys, in families that have them.
    qk_norm: Option<(B::Buffer, B::Buffer)>,
    layer: Layer,
    /// The layer's window, 0 for none.
    window: u32,
}

impl<B: Backend> Attention<B> {
    pub fn load(tensors: &mut Tensors<'_, B>, config: &ModelConfig, layer: usize) -> Result<Self> {
        let qk_norm = match config.family.qk_norms {
            QkNorms::None => None,
            QkNorms::Heads | QkNorms::Projection => {
                let q = tensors.block_buffer(layer, "self_attn.q_norm.weight")?;
                Some((q, tensors.block_buffer(layer, "self_attn.k_norm.weight")?))
            }
        };
        Ok(Self {
            qkv: Linear::load(tensors, Input::mixer(layer))?,
            out: Linear::load(tensors, Input::mixer_out(layer))?,
            qk_norm,
            layer: config.layers[layer],
            window: word("a layer's window", config.layers[layer].window.unwrap_or(0))?,
        })
    }

    /// `x += attention(x)`, with the norms around it.
    pub fn record<'a>(&'a self, pass: &mut Pass<'a, B>, norms: &'a AroundNorms<B>, cache: &'a Cache<B>) {
        pass.linear_of_x(norms, &self.qkv);
        let (config, s) = (pass.config, pass.scratch);
        let [heads, kv_heads, head_dim] = [config.heads, config.kv_heads, config.head_dim].map(|n| n as u32);
        let gated = u32::from(config.family.gated_attention);
        let q_stride = head_dim * (1 + gated);
        let (stride, context, rows) = (self.qkv.outs() as u32, pass.context as u32, pass.rows);
        let (k_offset, kv_dim) = (heads * q_stride, kv_heads * head_dim);
        let (eps, weight_offset) = (config.norm_eps, config.family.norm_offset);
        let (q_norm, k_norm) = match &self.qk_norm {
            Some((q_norm, k_norm)) if config.family.qk_norms == QkNorms::Projection => {
                let (q_dim, k_dim) = (heads * head_dim, kv_dim);
                let params = QkNormParams { rows, stride, q_dim, k_offset, k_dim, eps, weight_offset };
                pass.record(ops::QkNorm { qkv: &s.wide, q_norm, k_norm, params });
                (None, None)
            }
            Some((q_norm, k_norm)) => (Some(q_norm), Some(k_norm)),
            None => (None, None),
        };
        let rope = self.layer.rope.map(|rope| &config.ropes[rope]);
        let QueryScaling { beta, context: query_context } =
            config.query_scaling.unwrap_or(QueryScaling { beta: 0.0, context: 1.0 });
        let params = RopeCacheParams {
            rows,
            heads,
            kv_heads,
            head_dim,
            rotary_dim: rope.map_or(0, |rope| rope.rotary_dim as u32),
            stride,
            q_stride,
            k_offset,
            v_offset: k_offset + kv_dim,
            context,
            eps,
            weight_offset,
            amplitude: rope.map_or(1.0, |rope| rope.amplitude()),
            query_beta: beta,
            query_context,
        };
        pass.record(RopeCache {
            qkv: &s.wide,
            q_norm,
            k_norm,
            inv_freq: &pass.inv_freqs[self.layer.rope.unwrap_or(0)],
            rows: &s.positions,
            k_cache: &cache.k,
            v_cache: &cache.v,
            params,
        });
        let params = AttentionParams {
            rows,
            segments: pass.segments,
            heads,
            kv_heads,
            head_dim,
            stride,
            q_stride,
            context,
            window: self.window,
            scale: config.score_scale,
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
        pass.add_linear(norms, &self.out);
    }
}
