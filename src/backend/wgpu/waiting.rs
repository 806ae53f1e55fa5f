//! Operations that are held back because a later one may share a kernel with them.

use super::Buffer;
use super::limits::{MAX_BLOCK, MAX_CHANNELS, MAX_PRODUCTS, MAX_VALUE_HEADS};
use crate::ops;

/// What was recorded and not yet started.
pub enum Waiting {
    Rope(Rope),
    Conv(Conv),
    Delta(Conv, Delta),
}

/// A recorded `rope_cache`, with handles on its buffers.
pub struct Rope {
    pub qkv: Buffer,
    pub q_norm: Option<Buffer>,
    pub k_norm: Option<Buffer>,
    pub inv_freq: Buffer,
    pub rows: Buffer,
    pub k_cache: Buffer,
    pub v_cache: Buffer,
    pub params: ops::RopeCacheParams,
}

/// A recorded `causal_conv` of segments of one row.
pub struct Conv {
    pub x: Buffer,
    pub weight: Buffer,
    pub segments: Buffer,
    pub state: Buffer,
    pub y: Buffer,
    pub params: ops::CausalConvParams,
}

/// A recorded `delta_rule` of what a waiting `causal_conv` gives.
pub struct Delta {
    pub qkv: Buffer,
    pub proj: Buffer,
    pub a_log: Buffer,
    pub dt_bias: Buffer,
    pub segments: Buffer,
    pub state: Buffer,
    pub y: Buffer,
    pub params: ops::DeltaRuleParams,
}

impl Rope {
    pub fn new(op: &ops::RopeCache<'_, Buffer>) -> Self {
        Self {
            qkv: op.qkv.share(),
            q_norm: op.q_norm.map(Buffer::share),
            k_norm: op.k_norm.map(Buffer::share),
            inv_freq: op.inv_freq.share(),
            rows: op.rows.share(),
            k_cache: op.k_cache.share(),
            v_cache: op.v_cache.share(),
            params: op.params,
        }
    }
}

impl Conv {
    pub fn new(op: &ops::CausalConv<'_, Buffer>) -> Self {
        Self {
            x: op.x.share(),
            weight: op.weight.share(),
            segments: op.segments.share(),
            state: op.state.share(),
            y: op.y.share(),
            params: op.params,
        }
    }
}

impl Delta {
    pub fn new(op: &ops::DeltaRule<'_, Buffer>) -> Self {
        Self {
            qkv: op.qkv.share(),
            proj: op.proj.share(),
            a_log: op.a_log.share(),
            dt_bias: op.dt_bias.share(),
            segments: op.segments.share(),
            state: op.state.share(),
            y: op.y.share(),
            params: op.params,
        }
    }

    /// Whether it goes on from this convolution, in the same segments.
    pub fn follows(&self, conv: &Conv) -> bool {
        let same = [(&conv.y, &self.qkv), (&conv.x, &self.proj), (&conv.segments, &self.segments)];
        same.iter().all(|(a, b)| a.id() == b.id()) && conv.params.stride == self.params.stride
    }

    /// Value heads of a workgroup of delta_step.wgsl: all that share a key head and all of a block of the rotation
    /// together. None where that is more than its limits, or the norm is of something else.
    pub fn heads(&self, norm: &ops::GatedNorm<'_, Buffer>) -> Option<u32> {
        let (p, n) = (&self.params, &norm.params);
        let per_key = p.value_heads / p.key_heads;
        let heads = if n.rotate > p.value_dim { n.rotate / p.value_dim } else { 1 };
        let (more, less) = (heads.max(per_key), heads.min(per_key));
        let blocks = n.rotate == 0 || (more * p.value_dim).is_multiple_of(n.rotate);
        let keys = more / per_key;
        let fits = more.is_multiple_of(less)
            && p.value_heads.is_multiple_of(more)
            && more * p.value_dim <= MAX_BLOCK as u32
            && p.value_heads <= MAX_VALUE_HEADS as u32
            && more.max(3 * keys) <= MAX_PRODUCTS as u32
            && 2 * keys * p.key_dim + more * p.value_dim <= MAX_CHANNELS as u32;
        let own = norm.x.id() == self.y.id()
            && norm.gate.id() == self.proj.id()
            && [n.rows, n.heads, n.dim] == [p.rows, p.value_heads, p.value_dim];
        (fits && blocks && own).then_some(more)
    }
}
