//! Kernels that do several operations at once, and those of operations that were held back in vain.

use super::commands::Commands;
use super::limits::DELTA_COLUMNS;
use super::pipelines::Arg;
use super::shader::Shader;
use super::waiting::{Conv, Delta, Rope, Waiting};
use super::{Buffer, Wgpu};
use crate::{Result, ops};

impl Wgpu {
    /// Records what was held back.
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
        let unused = &self.0.unused;
        let p = rope.params;
        let args = [
            Arg::Params(p.words()),
            Arg::Buffer(&rope.qkv),
            Arg::Buffer(rope.q_norm.as_ref().unwrap_or(unused)),
            Arg::Buffer(rope.k_norm.as_ref().unwrap_or(unused)),
            Arg::Buffer(&rope.inv_freq),
            Arg::Buffer(&rope.rows),
            Arg::Buffer(&rope.k_cache),
            Arg::Buffer(&rope.v_cache),
        ];
        let constants = [("HAS_NORMS", rope.q_norm.is_some().into()), ("HEAD_ELEMENTS", p.head_dim)];
        let grid = [(p.heads + 2 * p.kv_heads) as usize, p.rows as usize];
        self.dispatch(c, Shader::RopeCache, &constants, &args, grid)
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
        let workgroup = self.0.device.workgroup(Shader::CausalConv);
        let grid = [(p.channels as usize).div_ceil(workgroup), p.segments as usize];
        self.dispatch(c, Shader::CausalConv, &[], &args, grid)
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
        self.dispatch(c, Shader::DeltaRule, &[], &args, [p.value_heads as usize * tiles, p.segments as usize])
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
        self.dispatch(c, Shader::DeltaStep, &constants, &args, grid)?;
        Ok(true)
    }
}
