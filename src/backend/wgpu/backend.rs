//! The [`Backend`] operations: what each kernel is specialised for, bound to and started on.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::pipelines::Arg;
use super::waiting::{Conv, Delta, Rope, Waiting};
use super::weight::Weight;
use super::{Buffer, Commands, Wgpu};
use crate::backend::{Backend, Key, WeightData};
use crate::ops;
use crate::{Error, Result};

/// Largest block of a rotation, head of attention and key of a delta net, as in the shaders.
const MAX_BLOCK: usize = 512;
const MAX_HEAD: usize = 256;
/// Workgroup memory that attention in pieces of four elements takes, at most.
const WIDE_MEMORY: u32 = 32 << 10;
/// Most taps of a convolution.
const MAX_KERNEL: usize = 8;
/// Parts of a row in argmax.wgsl.
const ARGMAX_PARTS: usize = 64;

impl Wgpu {
    /// Records a kernel after everything before it.
    pub(super) fn kernel(
        &self,
        c: &mut Commands,
        name: &'static str,
        constants: &[(&'static str, u32)],
        args: &[Arg<'_>],
        grid: [usize; 2],
    ) -> Result<()> {
        self.flush(c)?;
        self.dispatch(c, name, constants, args, grid)
    }

    fn rotate_in_place(&self, c: &mut Commands, y: &Buffer, params: ops::RotateParams) -> Result<()> {
        let args = [Arg::Params(params.words()), Arg::Buffer(&self.0.nothing), Arg::Buffer(y)];
        let grid = [params.dim.div_ceil(params.rotate) as usize, params.rows as usize];
        self.kernel(c, "rotate", &[("IN_PLACE", 1)], &args, grid)
    }
}

/// Blocks of a row of `dim` elements that workgroups take.
fn blocks(dim: u32, rotate: u32) -> usize {
    dim.div_ceil(if rotate == 0 { MAX_BLOCK as u32 } else { rotate }) as usize
}

/// An error if a size is more than the kernels have room for.
fn within(what: &str, size: u32, limit: usize) -> Result<()> {
    if size as usize > limit {
        return Err(Error::mismatch(format!("{what} on wgpu"), format!("at most {limit}"), size));
    }
    Ok(())
}

/// Query heads that a workgroup takes, and whether they can rotate their output there: only where whole blocks of the
/// rotation are whole heads, or the other way round.
fn attention_heads(p: &ops::AttentionParams) -> (u32, bool) {
    if p.rotate > p.head_dim {
        return if p.rotate.is_multiple_of(p.head_dim) { (p.rotate / p.head_dim, true) } else { (1, false) };
    }
    let per_kv = p.heads / p.kv_heads.max(1);
    let together =
        [4, 3, 2].into_iter().find(|n| per_kv.is_multiple_of(*n) && n * p.head_dim <= MAX_BLOCK as u32);
    (together.unwrap_or(1), p.rotate == 0 || p.head_dim.is_multiple_of(p.rotate))
}

impl Backend for Wgpu {
    type Buffer = Buffer;
    type Weight = Weight;
    type Commands = Commands;

    fn describe(&self) -> String {
        let device = &self.0.device;
        let info = &device.info;
        let software = if info.device_type == wgpu::DeviceType::Cpu { ", on the CPU" } else { "" };
        let subgroups = if device.subgroups { ", subgroups" } else { "" };
        format!("wgpu, {} ({}{software}{subgroups})", device.name(), info.backend)
    }

    fn check_room(&self, bytes: u64) -> Result<()> {
        self.0.device.check_room(bytes)
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
        let count = 2 * rows * ARGMAX_PARTS;
        let kept = self.0.found.lock().unwrap_or_else(PoisonError::into_inner).take();
        let found = match kept.filter(|kept| kept.raw().size() >= 4 * count as u64) {
            Some(found) => found,
            None => self.storage(count)?,
        };
        let mut commands = Commands::default();
        let params = Arg::Params(vec![dim as u32, ARGMAX_PARTS as u32, 0, 0]);
        let args = [params, Arg::Buffer(x), Arg::Buffer(&found)];
        self.dispatch(&mut commands, "argmax", &[], &args, [ARGMAX_PARTS, rows])?;
        let words = self.read_after(&self.finish(commands)?, &found, 0, count).await?;
        *self.0.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        let largest = |parts: &[u32]| {
            let parts = parts.chunks_exact(2).map(|part| (f32::from_bits(part[0]), part[1]));
            parts.fold((f32::NEG_INFINITY, 0), |best, part| if part.0 > best.0 { part } else { best }).1
        };
        Ok(words.chunks_exact(2 * ARGMAX_PARTS).map(largest).collect())
    }

    fn embed(&self, c: &mut Commands, op: ops::Embed<'_, Buffer, Weight>) -> Result<()> {
        let nothing = &self.0.nothing;
        for slice in &op.table.slices {
            let args = [
                Arg::Params(op.params.words()),
                Arg::Params(slice.params()),
                Arg::Buffer(op.tokens),
                Arg::Buffer(&slice.words),
                Arg::Buffer(slice.tables.as_ref().unwrap_or(nothing)),
                Arg::Buffer(slice.places.as_ref().unwrap_or(nothing)),
                Arg::Buffer(op.y),
            ];
            let [d, bits, book, single, ..] = self.codes(slice);
            let unshared = [("SHARED", 0), ("TABLE", 1)];
            let constants =
                [&[d, bits, book, single][..], &unshared, &[("FORMAT", slice.layout.format())]].concat();
            let grid = [(op.params.dim as usize).div_ceil(MAX_BLOCK), op.params.rows as usize];
            self.kernel(c, "embed", &constants, &args, grid)?;
        }
        Ok(())
    }

    fn gather_rows(&self, c: &mut Commands, op: ops::GatherRows<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let args = [Arg::Params(p.words()), Arg::Buffer(op.x), Arg::Buffer(op.index), Arg::Buffer(op.y)];
        let workgroup = self.0.device.workgroup("gather_rows");
        self.kernel(c, "gather_rows", &[], &args, [(p.dim as usize).div_ceil(workgroup), p.rows as usize])
    }

    fn rms_norm(&self, c: &mut Commands, op: ops::RmsNorm<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let args = [Arg::Params(p.words()), Arg::Buffer(op.x), Arg::Buffer(op.weight), Arg::Buffer(op.y)];
        self.kernel(c, "rms_norm", &[], &args, [blocks(p.dim, p.rotate), p.rows as usize])
    }

    fn rotate(&self, c: &mut Commands, op: ops::Rotate<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let args = [Arg::Params(p.words()), Arg::Buffer(op.x), Arg::Buffer(op.y)];
        self.kernel(c, "rotate", &[("IN_PLACE", 0)], &args, [blocks(p.dim, p.rotate), p.rows as usize])
    }

    fn linear(&self, c: &mut Commands, op: ops::Linear<'_, Buffer, Weight>) -> Result<()> {
        self.linear_slices(c, &op)
    }

    fn rope_cache(&self, c: &mut Commands, op: ops::RopeCache<'_, Buffer>) -> Result<()> {
        within("head_dim", op.params.head_dim, MAX_HEAD)?;
        self.flush(c)?;
        c.waiting = Some(Waiting::Rope(Rope::new(&op)));
        Ok(())
    }

    fn attention(&self, c: &mut Commands, op: ops::Attention<'_, Buffer>) -> Result<()> {
        let mut p = op.params;
        within("head_dim", p.head_dim, MAX_HEAD)?;
        let rotate = p.rotate;
        let (heads, rotates) = attention_heads(&p);
        if !rotates {
            p.rotate = 0;
        }
        let wide = p.head_dim.is_multiple_of(4)
            && self.0.device.workgroup_memory >= WIDE_MEMORY
            && !self.0.device.is_software();
        let pieces = p.head_dim / if wide { 4 } else { 1 };
        let sizes = [("HEAD_DIM", p.head_dim), ("HEADS", heads), ("PIECES", pieces)];
        let grid = [p.heads.div_ceil(heads) as usize, p.rows as usize];
        // Rows of different slots do not see each other's keys: rope_cache can be done by the way.
        let own = |rope: &Rope| {
            p.rows == p.segments && rope.qkv.id() == op.qkv.id() && rope.k_cache.id() == op.k_cache.id()
        };
        let waiting = c.waiting.take_if(|waiting| matches!(waiting, Waiting::Rope(rope) if own(rope)));
        if let Some(Waiting::Rope(rope)) = waiting {
            let nothing = &self.0.nothing;
            let args = [
                Arg::Params(rope.params.words()),
                Arg::Params(p.words()),
                Arg::Buffer(op.qkv),
                Arg::Buffer(rope.q_norm.as_ref().unwrap_or(nothing)),
                Arg::Buffer(rope.k_norm.as_ref().unwrap_or(nothing)),
                Arg::Buffer(&rope.inv_freq),
                Arg::Buffer(op.rows),
                Arg::Buffer(op.k_cache),
                Arg::Buffer(op.v_cache),
                Arg::Buffer(op.y),
            ];
            let room = ("HEAD_ROOM", (heads.min(4) + 1) * p.head_dim);
            let constants = [&[("HAS_NORMS", rope.q_norm.is_some().into()), room][..], &sizes].concat();
            let name = if wide { "rope_attention_wide" } else { "rope_attention" };
            self.kernel(c, name, &constants, &args, grid)?;
        } else {
            let args = [
                Arg::Params(p.words()),
                Arg::Buffer(op.qkv),
                Arg::Buffer(op.k_cache),
                Arg::Buffer(op.v_cache),
                Arg::Buffer(op.rows),
                Arg::Buffer(op.y),
            ];
            self.kernel(c, if wide { "attention_wide" } else { "attention" }, &sizes, &args, grid)?;
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
        self.kernel(c, "swiglu", &[], &args, [blocks(p.dim, p.rotate), p.rows as usize])
    }

    fn causal_conv(&self, c: &mut Commands, op: ops::CausalConv<'_, Buffer>) -> Result<()> {
        let p = op.params;
        within("taps of a convolution", p.kernel, MAX_KERNEL)?;
        self.flush(c)?;
        c.waiting = Some(Waiting::Conv(Conv::new(&op)));
        // Longer segments are convolved side by side.
        if p.rows == p.segments { Ok(()) } else { self.flush(c) }
    }

    fn delta_rule(&self, c: &mut Commands, op: ops::DeltaRule<'_, Buffer>) -> Result<()> {
        within("key_dim", op.params.key_dim, MAX_HEAD)?;
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
        self.kernel(c, "gated_norm", &[], &args, [blocks as usize, p.rows as usize])
    }
}
