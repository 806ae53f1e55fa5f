//! The [`Backend`] operations: what each kernel is specialised for, bound to and started on.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::limits::{ARGMAX_PARTS, MAX_BLOCK, MAX_HEAD_DIM, MAX_KEY_DIM, MAX_TAPS, at_most};
use super::linear::Codes;
use super::pipelines::Arg;
use super::shader::Shader;
use super::waiting::{Conv, Delta, Rope, Waiting};
use super::weight::Weight;
use super::{Buffer, Commands, Wgpu};
use crate::backend::{Backend, Key, WeightData};
use crate::ops;
use crate::{Error, Result};

/// Bytes of workgroup memory that attention in pieces of four elements takes, at most.
const WIDE_MEMORY: u32 = 32 << 10;

impl Wgpu {
    /// Records a kernel after everything before it.
    pub(super) fn kernel(
        &self,
        c: &mut Commands,
        shader: Shader,
        constants: &[(&'static str, u32)],
        args: &[Arg<'_>],
        grid: [usize; 2],
    ) -> Result<()> {
        self.flush(c)?;
        self.dispatch(c, shader, constants, args, grid)
    }

    fn rotate_in_place(&self, c: &mut Commands, y: &Buffer, params: ops::RotateParams) -> Result<()> {
        let args = [Arg::Params(params.words()), Arg::Buffer(&self.0.unused), Arg::Buffer(y)];
        let grid = [params.dim.div_ceil(params.rotate) as usize, params.rows as usize];
        self.kernel(c, Shader::Rotate, &[("IN_PLACE", 1)], &args, grid)
    }
}

/// Blocks of a row of `dim` elements that workgroups take.
fn blocks(op: &str, dim: u32, rotate: u32) -> Result<usize> {
    at_most(op, "rotation block", rotate, MAX_BLOCK)?;
    Ok(dim.div_ceil(if rotate == 0 { MAX_BLOCK as u32 } else { rotate }) as usize)
}

/// Query heads that a workgroup takes, and whether they can rotate their output there: only where whole blocks of the
/// rotation are whole heads, or the other way round.
fn attention_heads(p: &ops::AttentionParams) -> Result<(u32, bool)> {
    let Some(per_kv) = p.heads.checked_div(p.kv_heads) else {
        return Err(Error::mismatch("kv_heads of attention on wgpu", "at least 1", p.kv_heads));
    };
    if p.rotate > p.head_dim {
        let whole = p.rotate.is_multiple_of(p.head_dim);
        return Ok(if whole { (p.rotate / p.head_dim, true) } else { (1, false) });
    }
    let fits = |n: &u32| per_kv.is_multiple_of(*n) && n * p.head_dim <= MAX_BLOCK as u32;
    let heads = [4, 3, 2].into_iter().find(fits).unwrap_or(1);
    Ok((heads, p.rotate == 0 || p.head_dim.is_multiple_of(p.rotate)))
}

impl Backend for Wgpu {
    type Buffer = Buffer;
    type Weight = Weight;
    type Commands = Commands;

    fn describe(&self) -> String {
        let device = &self.0.device;
        let software = if device.is_software() { ", on the CPU" } else { "" };
        let subgroups = if device.capabilities.subgroups { ", subgroups" } else { "" };
        format!("wgpu, {} ({}{software}{subgroups})", device.name(), device.info.backend)
    }

    fn check_room(&self, bytes: u64) -> Result<()> {
        self.0.device.check_memory(bytes)
    }

    fn alloc(&self, words: usize) -> Result<Buffer> {
        self.storage(words)
    }

    fn write(&self, buffer: &mut Buffer, words: &[u32]) -> Result<()> {
        self.upload_at(buffer, 0, words);
        self.0.device.check()
    }

    fn dispatches(&self) -> Option<u64> {
        Some(self.0.dispatches.load(Ordering::Relaxed))
    }

    async fn read(&self, buffer: &Buffer, start: usize, words: usize) -> Result<Vec<u32>> {
        if words == 0 {
            return Ok(Vec::new());
        }
        self.read_after(&[], buffer, start, words).await
    }

    fn weight(&self, blocks: &[WeightData<'_>]) -> Result<Weight> {
        Weight::new(self, blocks)
    }

    fn begin(&self) -> Result<Commands> {
        Ok(Commands::default())
    }

    fn submit(&self, commands: Commands) -> Result<()> {
        self.submit_kernels(&self.finish(commands)?)
    }

    fn submit_as(&self, commands: Commands, key: Key) -> Result<()> {
        let kernels = self.finish(commands)?;
        self.submit_kernels(&kernels)?;
        self.keep(key, kernels);
        Ok(())
    }

    fn replay(&self, key: &Key) -> Result<bool> {
        self.submit_kept(key)
    }

    async fn argmax(&self, x: &Buffer, rows: usize, dim: usize) -> Result<Vec<u32>> {
        if dim == 0 {
            return Err(Error::mismatch("row of argmax on wgpu", "at least one value", dim));
        }
        let count = 2 * rows * ARGMAX_PARTS;
        let kept = self.0.maxima.lock().unwrap_or_else(PoisonError::into_inner).take();
        let maxima = match kept.filter(|kept| kept.raw().size() >= 4 * count as u64) {
            Some(maxima) => maxima,
            None => self.storage(count)?,
        };
        let mut commands = Commands::default();
        let args = [Arg::Params(vec![dim as u32, 0, 0, 0]), Arg::Buffer(x), Arg::Buffer(&maxima)];
        self.dispatch(&mut commands, Shader::Argmax, &[], &args, [ARGMAX_PARTS, rows])?;
        let words = self.read_after(&self.finish(commands)?, &maxima, 0, count).await?;
        *self.0.maxima.lock().unwrap_or_else(PoisonError::into_inner) = Some(maxima);
        // Parts are in the order of their positions: of equals, the first is the lowest.
        let largest = |parts: &[u32]| {
            let parts = parts.chunks_exact(2).map(|part| (part[0], part[1]));
            parts.fold((0, 0), |best, part| if part.0 > best.0 { part } else { best }).1
        };
        Ok(words.chunks_exact(2 * ARGMAX_PARTS).map(largest).collect())
    }

    fn embed(&self, c: &mut Commands, op: ops::Embed<'_, Buffer, Weight>) -> Result<()> {
        for slice in &op.table.slices {
            at_most("embed", "rotation block", slice.layout.rotate() as u32, MAX_BLOCK)?;
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
            self.kernel(c, Shader::Embed, &constants, &args, grid)?;
        }
        Ok(())
    }

    fn gather_rows(&self, c: &mut Commands, op: ops::GatherRows<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let args = [Arg::Params(p.words()), Arg::Buffer(op.x), Arg::Buffer(op.index), Arg::Buffer(op.y)];
        let workgroup = self.0.device.workgroup(Shader::GatherRows);
        self.kernel(
            c,
            Shader::GatherRows,
            &[],
            &args,
            [(p.dim as usize).div_ceil(workgroup), p.rows as usize],
        )
    }

    fn rms_norm(&self, c: &mut Commands, op: ops::RmsNorm<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let args = [Arg::Params(p.words()), Arg::Buffer(op.x), Arg::Buffer(op.weight), Arg::Buffer(op.y)];
        self.kernel(c, Shader::RmsNorm, &[], &args, [blocks("rms_norm", p.dim, p.rotate)?, p.rows as usize])
    }

    fn rotate(&self, c: &mut Commands, op: ops::Rotate<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let args = [Arg::Params(p.words()), Arg::Buffer(op.x), Arg::Buffer(op.y)];
        self.kernel(
            c,
            Shader::Rotate,
            &[("IN_PLACE", 0)],
            &args,
            [blocks("rotate", p.dim, p.rotate)?, p.rows as usize],
        )
    }

    fn linear(&self, c: &mut Commands, op: ops::Linear<'_, Buffer, Weight>) -> Result<()> {
        self.linear_slices(c, &op)
    }

    fn rope_cache(&self, c: &mut Commands, op: ops::RopeCache<'_, Buffer>) -> Result<()> {
        at_most("rope_cache", "head_dim", op.params.head_dim, MAX_HEAD_DIM)?;
        self.flush(c)?;
        c.waiting = Some(Waiting::Rope(Rope::new(&op)));
        Ok(())
    }

    fn attention(&self, c: &mut Commands, op: ops::Attention<'_, Buffer>) -> Result<()> {
        let mut p = op.params;
        at_most("attention", "head_dim", p.head_dim, MAX_HEAD_DIM)?;
        at_most("attention", "rotation block", p.rotate, MAX_BLOCK)?;
        let rotate = p.rotate;
        let (heads, rotates) = attention_heads(&p)?;
        if !rotates {
            p.rotate = 0;
        }
        let wide = p.head_dim.is_multiple_of(4) && self.0.device.capabilities.workgroup_memory >= WIDE_MEMORY;
        let pieces = p.head_dim / if wide { 4 } else { 1 };
        let sizes = [("HEAD_DIM", p.head_dim), ("HEADS", heads), ("PIECES", pieces)];
        let grid = [p.heads.div_ceil(heads) as usize, p.rows as usize];
        // Rows of different slots do not see each other's keys: the same kernel can do rope_cache.
        let own = |rope: &Rope| {
            p.rows == p.segments && rope.qkv.id() == op.qkv.id() && rope.k_cache.id() == op.k_cache.id()
        };
        let waiting = c.waiting.take_if(|waiting| matches!(waiting, Waiting::Rope(rope) if own(rope)));
        if let Some(Waiting::Rope(rope)) = waiting {
            let unused = &self.0.unused;
            let args = [
                Arg::Params(rope.params.words()),
                Arg::Params(p.words()),
                Arg::Buffer(op.qkv),
                Arg::Buffer(rope.q_norm.as_ref().unwrap_or(unused)),
                Arg::Buffer(rope.k_norm.as_ref().unwrap_or(unused)),
                Arg::Buffer(&rope.inv_freq),
                Arg::Buffer(op.rows),
                Arg::Buffer(op.k_cache),
                Arg::Buffer(op.v_cache),
                Arg::Buffer(op.y),
            ];
            let elements = ("HEAD_ELEMENTS", (heads.min(4) + 1) * p.head_dim);
            let constants = [&[("HAS_NORMS", rope.q_norm.is_some().into()), elements][..], &sizes].concat();
            let shader = if wide { Shader::RopeAttentionWide } else { Shader::RopeAttention };
            self.kernel(c, shader, &constants, &args, grid)?;
        } else {
            let args = [
                Arg::Params(p.words()),
                Arg::Buffer(op.qkv),
                Arg::Buffer(op.k_cache),
                Arg::Buffer(op.v_cache),
                Arg::Buffer(op.rows),
                Arg::Buffer(op.y),
            ];
            let shader = if wide { Shader::AttentionWide } else { Shader::Attention };
            self.kernel(c, shader, &sizes, &args, grid)?;
        }
        if rotates {
            return Ok(());
        }
        let params = ops::RotateParams { rows: p.rows, dim: p.heads * p.head_dim, rotate };
        self.rotate_in_place(c, op.y, params)
    }

    fn swiglu(&self, c: &mut Commands, op: ops::SwiGlu<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let args = [Arg::Params(p.words()), Arg::Buffer(op.x), Arg::Buffer(op.y)];
        self.kernel(c, Shader::SwiGlu, &[], &args, [blocks("swiglu", p.dim, p.rotate)?, p.rows as usize])
    }

    fn causal_conv(&self, c: &mut Commands, op: ops::CausalConv<'_, Buffer>) -> Result<()> {
        let p = op.params;
        at_most("causal_conv", "kernel", p.kernel, MAX_TAPS)?;
        self.flush(c)?;
        c.waiting = Some(Waiting::Conv(Conv::new(&op)));
        // Longer segments are convolved side by side.
        if p.rows == p.segments { Ok(()) } else { self.flush(c) }
    }

    fn delta_rule(&self, c: &mut Commands, op: ops::DeltaRule<'_, Buffer>) -> Result<()> {
        at_most("delta_rule", "key_dim", op.params.key_dim, MAX_KEY_DIM)?;
        let delta = Delta::new(&op);
        match c.waiting.take_if(|waiting| matches!(waiting, Waiting::Conv(conv) if delta.follows(conv))) {
            Some(Waiting::Conv(conv)) => {
                c.waiting = Some(Waiting::Delta(conv, delta));
                Ok(())
            }
            _ => {
                self.flush(c)?;
                self.start_delta(c, &delta)
            }
        }
    }

    fn gated_norm(&self, c: &mut Commands, op: ops::GatedNorm<'_, Buffer>) -> Result<()> {
        at_most("gated_norm", "rotation block", op.params.rotate, MAX_BLOCK)?;
        if self.delta_step(c, &op)? {
            return Ok(());
        }
        let p = op.params;
        let args = [
            Arg::Params(p.words()),
            Arg::Buffer(op.x),
            Arg::Buffer(op.gate),
            Arg::Buffer(op.weight),
            Arg::Buffer(op.y),
        ];
        let blocks = if p.rotate == 0 { p.heads } else { (p.heads * p.dim).div_ceil(p.rotate) };
        self.kernel(c, Shader::GatedNorm, &[], &args, [blocks as usize, p.rows as usize])
    }
}
