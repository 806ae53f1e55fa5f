//! Operations that wait for a later one, which may take them in: one kernel then does the work of two or three.

use super::commands::Commands;
use super::pipelines::Arg;
use super::{Buffer, Wgpu};
use crate::{Result, ops};

/// Columns of a delta net's state that a workgroup of delta_rule.wgsl takes.
const DELTA_COLUMNS: usize = 32;
/// Elements of value heads, value heads of a layer, products, and channels that delta_step.wgsl has room for.
const MAX_BLOCK: u32 = 512;
const MAX_VALUE_HEADS: u32 = 64;
const MAX_PRODUCTS: u32 = 16;
const MAX_CHANNELS: u32 = 2048;

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
    x: Buffer,
    weight: Buffer,
    segments: Buffer,
    state: Buffer,
    y: Buffer,
    params: ops::CausalConvParams,
}

/// A recorded `delta_rule` of what a waiting `causal_conv` gives.
pub struct Delta {
    qkv: Buffer,
    proj: Buffer,
    a_log: Buffer,
    dt_bias: Buffer,
    segments: Buffer,
    state: Buffer,
    y: Buffer,
    params: ops::DeltaRuleParams,
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
    /// together. None where it has no room for them, or the norm is another's.
    fn heads(&self, norm: &ops::GatedNorm<'_, Buffer>) -> Option<u32> {
        let (p, n) = (&self.params, &norm.params);
        let per_key = p.value_heads / p.key_heads;
        let heads = if n.rotate > p.value_dim { n.rotate / p.value_dim } else { 1 };
        let (more, less) = (heads.max(per_key), heads.min(per_key));
        let blocks = n.rotate == 0 || (more * p.value_dim).is_multiple_of(n.rotate);
        let keys = more / per_key;
        let fits = more.is_multiple_of(less)
            && p.value_heads.is_multiple_of(more)
            && more * p.value_dim <= MAX_BLOCK
            && p.value_heads <= MAX_VALUE_HEADS
            && more.max(3 * keys) <= MAX_PRODUCTS
            && 2 * keys * p.key_dim + more * p.value_dim <= MAX_CHANNELS;
        let own = norm.x.id() == self.y.id()
            && norm.gate.id() == self.proj.id()
            && [n.rows, n.heads, n.dim] == [p.rows, p.value_heads, p.value_dim];
        (fits && blocks && own).then_some(more)
    }
}

impl Wgpu {
    /// Starts what waits.
    pub(super) fn flush(&self, c: &mut Commands) -> Result<()> {
        match c.waiting.take() {
            None => Ok(()),
            Some(Waiting::Rope(rope)) => self.start_rope(c, &rope),
            Some(Waiting::Conv(conv)) => self.start_conv(c, &conv),
            Some(Waiting::Delta(conv, delta)) => {
                self.start_conv(c, &conv)?;
                self.start_delta(c, &delta)
            }
        }
    }

    fn start_rope(&self, c: &mut Commands, rope: &Rope) -> Result<()> {
        let nothing = &self.0.nothing;
        let p = rope.params;
        let args = [
            Arg::Params(p.words()),
            Arg::Buffer(&rope.qkv),
            Arg::Buffer(rope.q_norm.as_ref().unwrap_or(nothing)),
            Arg::Buffer(rope.k_norm.as_ref().unwrap_or(nothing)),
            Arg::Buffer(&rope.inv_freq),
            Arg::Buffer(&rope.rows),
            Arg::Buffer(&rope.k_cache),
            Arg::Buffer(&rope.v_cache),
        ];
        let constants = [("HAS_NORMS", rope.q_norm.is_some().into()), ("HEAD_ROOM", p.head_dim)];
        let grid = [(p.heads + 2 * p.kv_heads) as usize, p.rows as usize];
        self.dispatch(c, "rope_cache", &constants, &args, grid)
    }

    fn start_conv(&self, c: &mut Commands, conv: &Conv) -> Result<()> {
        let p = conv.params;
        let args = [
            Arg::Params(p.words()),
            Arg::Buffer(&conv.x),
            Arg::Buffer(&conv.weight),
            Arg::Buffer(&conv.segments),
            Arg::Buffer(&conv.state),
            Arg::Buffer(&conv.y),
        ];
        let workgroup = self.0.device.workgroup("causal_conv");
        let grid = [(p.channels as usize).div_ceil(workgroup), p.segments as usize];
        self.dispatch(c, "causal_conv", &[], &args, grid)
    }

    pub(super) fn start_delta(&self, c: &mut Commands, delta: &Delta) -> Result<()> {
        let p = delta.params;
        let args = [
            Arg::Params(p.words()),
            Arg::Buffer(&delta.qkv),
            Arg::Buffer(&delta.proj),
            Arg::Buffer(&delta.a_log),
            Arg::Buffer(&delta.dt_bias),
            Arg::Buffer(&delta.segments),
            Arg::Buffer(&delta.state),
            Arg::Buffer(&delta.y),
        ];
        let tiles = (p.value_dim as usize).div_ceil(DELTA_COLUMNS);
        self.dispatch(c, "delta_rule", &[], &args, [p.value_heads as usize * tiles, p.segments as usize])
    }

    /// Records the `causal_conv` and `delta_rule` that wait and this norm of theirs as one, if it can be.
    pub(super) fn delta_step(&self, c: &mut Commands, norm: &ops::GatedNorm<'_, Buffer>) -> Result<bool> {
        let Some(Waiting::Delta(conv, delta)) = &c.waiting else { return Ok(false) };
        let Some(heads) = delta.heads(norm) else { return Ok(false) };
        let p = delta.params;
        let key_heads = heads * p.key_heads / p.value_heads;
        let constants = [
            ("HEADS", heads),
            ("KEY_HEADS", key_heads),
            ("KEY_DIM", p.key_dim),
            ("VALUE_DIM", p.value_dim),
            ("CHANNELS", 2 * key_heads * p.key_dim + heads * p.value_dim),
        ];
        // Handles, because the list is about to change.
        let buffers = [
            &delta.a_log,
            &delta.dt_bias,
            &delta.proj,
            &conv.weight,
            norm.weight,
            &delta.segments,
            &conv.state,
            &delta.state,
            norm.y,
        ]
        .map(Buffer::share);
        let mut args =
            vec![Arg::Params(conv.params.words()), Arg::Params(p.words()), Arg::Params(norm.params.words())];
        args.extend(buffers.iter().map(Arg::Buffer));
        c.waiting = None;
        let grid = [(p.value_heads / heads) as usize, p.segments as usize];
        self.dispatch(c, "delta_step", &constants, &args, grid)?;
        Ok(true)
    }
}
