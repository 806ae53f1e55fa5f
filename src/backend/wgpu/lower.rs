//! Lowering: the kernels of each step, what they are specialised for, bound to and started on.

use super::limits::{DELTA_COLUMNS, MAX_BLOCK};
use super::linear::Codes;
use super::pipelines::{Arg, Kernel};
use super::plan::{Fusions, delta_heads};
use super::shader::Shader;
use super::weight::Weight;
use super::{Buffer, Wgpu};
use crate::ops::{
    self, AttentionParams, CausalConv, DeltaRule, Embed, GatedNorm, GatherRows, Glu, KernelParams, Op,
    QkNorm, RmsNorm, RopeCache, Rotate, RotateParams,
};
use crate::plan::{DeltaStep, Input, RopeAttention, Step};
use crate::{Error, Result};

/// Bytes of workgroup memory that attention in pieces of four elements takes, at most.
const WIDE_MEMORY: u32 = 32 << 10;

/// Blocks of a row of `dim` elements that workgroups take.
fn blocks(dim: u32, rotate: u32) -> usize {
    dim.div_ceil(if rotate == 0 { MAX_BLOCK as u32 } else { rotate }) as usize
}

/// Query heads that a workgroup takes, and whether they can rotate their output there: only where whole blocks of the
/// rotation are whole heads, or the other way round.
fn attention_heads(p: &AttentionParams) -> (u32, bool) {
    if p.rotate > p.head_dim {
        let whole = p.rotate.is_multiple_of(p.head_dim);
        return if whole { (p.rotate / p.head_dim, true) } else { (1, false) };
    }
    let fits = |n: &u32| (p.heads / p.kv_heads).is_multiple_of(*n) && n * p.head_dim <= MAX_BLOCK as u32;
    let heads = [4, 3, 2].into_iter().find(fits).unwrap_or(1);
    (heads, p.rotate == 0 || p.head_dim.is_multiple_of(p.rotate))
}

/// How attention is divided among workgroups.
struct AttentionShape {
    /// With the rotation that the kernel does.
    params: AttentionParams,
    heads: u32,
    wide: bool,
    grid: [usize; 2],
}

impl Wgpu {
    /// Appends the kernels of a step.
    pub(super) fn step(
        &self,
        kernels: &mut Vec<Kernel>,
        step: &Step<'_, Buffer, Weight, Fusions>,
    ) -> Result<()> {
        match step {
            Step::Op { op, packed: None } => self.operation(kernels, op),
            Step::Linear(linear) => match (&linear.input, &linear.activation) {
                (Input::Plain, None) => self.linear(kernels, &linear.linear),
                _ => Err(Error::invalid(step.to_string(), "wgpu has no kernel for it")),
            },
            Step::RopeAttention(fused) => self.rope_attention(kernels, fused),
            Step::DeltaStep(fused) => self.delta_step(kernels, fused),
            Step::Op { packed: Some(packing), .. } => match *packing {},
            Step::Pack(pack) => match pack.packing {},
        }
    }

    fn operation(&self, kernels: &mut Vec<Kernel>, op: &Op<'_, Buffer, Weight>) -> Result<()> {
        match op {
            Op::Embed(op) => self.embed(kernels, op),
            Op::GatherRows(op) => self.gather_rows(kernels, op),
            Op::RmsNorm(op) => self.rms_norm(kernels, op),
            Op::QkNorm(op) => self.qk_norm(kernels, op),
            Op::Rotate(op) => self.rotate(kernels, op),
            Op::Linear(op) => self.linear(kernels, op),
            Op::RopeCache(op) => self.rope_cache(kernels, op),
            Op::Attention(op) => self.attention(kernels, op),
            Op::Glu(op) => self.glu(kernels, op),
            Op::CausalConv(op) => self.causal_conv(kernels, op),
            Op::DeltaRule(op) => self.delta_rule(kernels, op),
            Op::GatedNorm(op) => self.gated_norm(kernels, op),
        }
    }

    fn embed(&self, kernels: &mut Vec<Kernel>, op: &Embed<'_, Buffer, Weight>) -> Result<()> {
        for slice in &op.table.slices {
            let args = [
                Arg::Params(op.params.words()),
                Arg::Params(slice.params()),
                Arg::Buffer(op.tokens),
                Arg::Buffer(&slice.words),
                Arg::Buffer(&slice.tables),
                Arg::Buffer(&slice.row_info),
                Arg::Buffer(op.y),
            ];
            let constants =
                [&Codes::new(slice, 0).constants()[..], &[("FORMAT", slice.layout.format())]].concat();
            let grid = [(op.params.dim as usize).div_ceil(MAX_BLOCK), op.params.rows as usize];
            self.dispatch(kernels, Shader::Embed, &constants, &args, grid)?;
        }
        Ok(())
    }

    fn gather_rows(&self, kernels: &mut Vec<Kernel>, op: &GatherRows<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let args = [Arg::Params(p.words()), Arg::Buffer(op.x), Arg::Buffer(op.index), Arg::Buffer(op.y)];
        let workgroup = self.0.device.workgroup(Shader::GatherRows);
        let grid = [(p.dim as usize).div_ceil(workgroup), p.rows as usize];
        self.dispatch(kernels, Shader::GatherRows, &[], &args, grid)
    }

    fn rms_norm(&self, kernels: &mut Vec<Kernel>, op: &RmsNorm<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let args = [
            Arg::Params(p.words()),
            Arg::Buffer(op.x),
            Arg::Buffer(op.weight),
            Arg::Buffer(op.residual.unwrap_or(&self.0.unused)),
            Arg::Buffer(op.y),
        ];
        let constants = [("HAS_RESIDUAL", op.residual.is_some().into())];
        let grid = [blocks(p.dim, p.rotate), p.rows as usize];
        self.dispatch(kernels, Shader::RmsNorm, &constants, &args, grid)
    }

    fn qk_norm(&self, kernels: &mut Vec<Kernel>, op: &QkNorm<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let args =
            [Arg::Params(p.words()), Arg::Buffer(op.qkv), Arg::Buffer(op.q_norm), Arg::Buffer(op.k_norm)];
        self.dispatch(kernels, Shader::QkNorm, &[], &args, [2, p.rows as usize])
    }

    fn rotate(&self, kernels: &mut Vec<Kernel>, op: &Rotate<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let args = [Arg::Params(p.words()), Arg::Buffer(op.x), Arg::Buffer(op.y)];
        let grid = [blocks(p.dim, p.rotate), p.rows as usize];
        self.dispatch(kernels, Shader::Rotate, &[("IN_PLACE", 0)], &args, grid)
    }

    fn rotate_in_place(&self, kernels: &mut Vec<Kernel>, y: &Buffer, params: RotateParams) -> Result<()> {
        let args = [Arg::Params(params.words()), Arg::Buffer(&self.0.unused), Arg::Buffer(y)];
        let grid = [blocks(params.dim, params.rotate), params.rows as usize];
        self.dispatch(kernels, Shader::Rotate, &[("IN_PLACE", 1)], &args, grid)
    }

    fn rope_cache(&self, kernels: &mut Vec<Kernel>, op: &RopeCache<'_, Buffer>) -> Result<()> {
        let (unused, p) = (&self.0.unused, op.params);
        let args = [
            Arg::Params(p.words()),
            Arg::Buffer(op.qkv),
            Arg::Buffer(op.q_norm.unwrap_or(unused)),
            Arg::Buffer(op.k_norm.unwrap_or(unused)),
            Arg::Buffer(op.inv_freq),
            Arg::Buffer(op.rows),
            Arg::Buffer(op.k_cache),
            Arg::Buffer(op.v_cache),
        ];
        let constants = [("HAS_NORMS", op.q_norm.is_some().into()), ("HEAD_ELEMENTS", p.head_dim)];
        let grid = [(p.heads + 2 * p.kv_heads) as usize, p.rows as usize];
        self.dispatch(kernels, Shader::RopeCache, &constants, &args, grid)
    }

    fn attention_shape(&self, mut params: AttentionParams) -> AttentionShape {
        let (heads, rotates) = attention_heads(&params);
        if !rotates {
            params.rotate = 0;
        }
        let memory = self.0.device.capabilities.workgroup_memory;
        let wide = params.head_dim.is_multiple_of(4) && memory >= WIDE_MEMORY;
        let grid = [params.heads.div_ceil(heads) as usize, params.rows as usize];
        AttentionShape { params, heads, wide, grid }
    }

    /// The rotation of attention's output, where its kernel does not do it.
    fn rotate_attention(
        &self,
        kernels: &mut Vec<Kernel>,
        op: &ops::Attention<'_, Buffer>,
        done: u32,
    ) -> Result<()> {
        let p = op.params;
        if p.rotate == done {
            return Ok(());
        }
        let params = RotateParams { rows: p.rows, dim: p.heads * p.head_dim, rotate: p.rotate };
        self.rotate_in_place(kernels, op.y, params)
    }

    fn attention(&self, kernels: &mut Vec<Kernel>, op: &ops::Attention<'_, Buffer>) -> Result<()> {
        let AttentionShape { params: p, heads, wide, grid } = self.attention_shape(op.params);
        let args = [
            Arg::Params(p.words()),
            Arg::Buffer(op.qkv),
            Arg::Buffer(op.k_cache),
            Arg::Buffer(op.v_cache),
            Arg::Buffer(op.rows),
            Arg::Buffer(op.y),
        ];
        let pieces = p.head_dim / if wide { 4 } else { 1 };
        let constants = [("HEAD_DIM", p.head_dim), ("HEADS", heads), ("PIECES", pieces)];
        let shader = if wide { Shader::AttentionWide } else { Shader::Attention };
        self.dispatch(kernels, shader, &constants, &args, grid)?;
        self.rotate_attention(kernels, op, p.rotate)
    }

    fn rope_attention(&self, kernels: &mut Vec<Kernel>, fused: &RopeAttention<'_, Buffer>) -> Result<()> {
        let (unused, rope, op) = (&self.0.unused, &fused.rope, &fused.attention);
        let AttentionShape { params: p, heads, wide, grid } = self.attention_shape(op.params);
        let args = [
            Arg::Params(rope.params.words()),
            Arg::Params(p.words()),
            Arg::Buffer(op.qkv),
            Arg::Buffer(rope.q_norm.unwrap_or(unused)),
            Arg::Buffer(rope.k_norm.unwrap_or(unused)),
            Arg::Buffer(rope.inv_freq),
            Arg::Buffer(op.rows),
            Arg::Buffer(op.k_cache),
            Arg::Buffer(op.v_cache),
            Arg::Buffer(op.y),
        ];
        let constants = [
            ("HAS_NORMS", rope.q_norm.is_some().into()),
            ("HEAD_ELEMENTS", (heads.min(4) + 1) * p.head_dim),
            ("HEAD_DIM", p.head_dim),
            ("HEADS", heads),
            ("PIECES", p.head_dim / if wide { 4 } else { 1 }),
        ];
        let shader = if wide { Shader::RopeAttentionWide } else { Shader::RopeAttention };
        self.dispatch(kernels, shader, &constants, &args, grid)?;
        self.rotate_attention(kernels, op, p.rotate)
    }

    fn glu(&self, kernels: &mut Vec<Kernel>, op: &Glu<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let args = [Arg::Params(p.words()), Arg::Buffer(op.x), Arg::Buffer(op.y)];
        let grid = [blocks(p.dim, p.rotate), p.rows as usize];
        self.dispatch(kernels, Shader::Glu, &[], &args, grid)
    }

    fn causal_conv(&self, kernels: &mut Vec<Kernel>, op: &CausalConv<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let args = [
            Arg::Params(p.words()),
            Arg::Buffer(op.x),
            Arg::Buffer(op.weight),
            Arg::Buffer(op.segments),
            Arg::Buffer(op.state),
            Arg::Buffer(op.y),
        ];
        let workgroup = self.0.device.workgroup(Shader::CausalConv);
        let grid = [(p.channels as usize).div_ceil(workgroup), p.segments as usize];
        self.dispatch(kernels, Shader::CausalConv, &[], &args, grid)
    }

    fn delta_rule(&self, kernels: &mut Vec<Kernel>, op: &DeltaRule<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let args = [
            Arg::Params(p.words()),
            Arg::Buffer(op.qkv),
            Arg::Buffer(op.proj),
            Arg::Buffer(op.a_log),
            Arg::Buffer(op.dt_bias),
            Arg::Buffer(op.segments),
            Arg::Buffer(op.state),
            Arg::Buffer(op.y),
        ];
        let tiles = (p.value_dim as usize).div_ceil(DELTA_COLUMNS);
        let grid = [p.value_heads as usize * tiles, p.segments as usize];
        self.dispatch(kernels, Shader::DeltaRule, &[], &args, grid)
    }

    fn gated_norm(&self, kernels: &mut Vec<Kernel>, op: &GatedNorm<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let args = [
            Arg::Params(p.words()),
            Arg::Buffer(op.x),
            Arg::Buffer(op.gate),
            Arg::Buffer(op.weight),
            Arg::Buffer(op.y),
        ];
        let blocks = if p.rotate == 0 { p.heads } else { (p.heads * p.dim).div_ceil(p.rotate) };
        self.dispatch(kernels, Shader::GatedNorm, &[], &args, [blocks as usize, p.rows as usize])
    }

    fn delta_step(&self, kernels: &mut Vec<Kernel>, fused: &DeltaStep<'_, Buffer>) -> Result<()> {
        let (conv, rule, norm) = (&fused.conv, &fused.rule, &fused.norm);
        let p = rule.params;
        let heads = delta_heads(&p, &norm.params);
        let heads =
            heads.ok_or_else(|| Error::invalid("delta_step on wgpu", "the heads exceed its limits"))?;
        let key_heads = heads * p.key_heads / p.value_heads;
        let constants = [
            ("HEADS", heads),
            ("KEY_HEADS", key_heads),
            ("KEY_DIM", p.key_dim),
            ("VALUE_DIM", p.value_dim),
            ("CHANNELS", 2 * key_heads * p.key_dim + heads * p.value_dim),
        ];
        let args = [
            Arg::Params(conv.params.words()),
            Arg::Params(p.words()),
            Arg::Params(norm.params.words()),
            Arg::Buffer(rule.a_log),
            Arg::Buffer(rule.dt_bias),
            Arg::Buffer(rule.proj),
            Arg::Buffer(conv.weight),
            Arg::Buffer(norm.weight),
            Arg::Buffer(rule.segments),
            Arg::Buffer(conv.state),
            Arg::Buffer(rule.state),
            Arg::Buffer(norm.y),
        ];
        let grid = [(p.value_heads / heads) as usize, p.segments as usize];
        self.dispatch(kernels, Shader::DeltaStep, &constants, &args, grid)
    }
}
