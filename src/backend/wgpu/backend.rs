//! The [`Backend`] operations: what each kernel is specialised for, bound to and started on.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::pipelines::Arg;
use super::weight::{ALIGN, Layout, Slice, Weight};
use super::{Buffer, Commands, Wgpu};
use crate::backend::{Backend, WeightData};
use crate::ops::{self, RopeCacheParams};
use crate::{Error, Result};

/// Up to this many rows, a product-quantized weight is multiplied row by row without decoding it.
const MATVEC_ROWS: usize = 4;
/// Workgroups that keep a GPU busy.
const BUSY: usize = 512;
/// Workgroup memory of the linear kernels besides their table.
const TILES_MEMORY: usize = 13 << 10;
/// Largest block of a rotation, head of attention and key of a delta net, as in the shaders.
const MAX_BLOCK: usize = 512;
const MAX_HEAD: usize = 256;
/// Most taps of a convolution.
const MAX_KERNEL: usize = 8;
/// Columns of a delta net's state that a workgroup takes.
const DELTA_COLUMNS: usize = 32;

/// A recorded `rope_cache`, with handles on its buffers.
pub struct Rope {
    qkv: Buffer,
    q_norm: Option<Buffer>,
    k_norm: Option<Buffer>,
    inv_freq: Buffer,
    rows: Buffer,
    k_cache: Buffer,
    v_cache: Buffer,
    params: RopeCacheParams,
}

impl Wgpu {
    /// Starts the `rope_cache` that waits for an attention, if there is one.
    fn flush_rope(&self, c: &mut Commands) -> Result<()> {
        let Some(rope) = c.rope.take() else { return Ok(()) };
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
        let constants = [("HAS_NORMS", rope.q_norm.is_some().into())];
        let grid = [(p.heads + 2 * p.kv_heads) as usize, p.rows as usize];
        self.dispatch(&mut c.pass, "rope_cache", &constants, &args, grid)
    }

    /// Records a kernel after everything before it.
    fn kernel(
        &self,
        c: &mut Commands,
        name: &'static str,
        constants: &[(&'static str, u32)],
        args: &[Arg<'_>],
        grid: [usize; 2],
    ) -> Result<()> {
        self.flush_rope(c)?;
        self.dispatch(&mut c.pass, name, constants, args, grid)
    }

    fn rotate_in_place(&self, c: &mut Commands, y: &Buffer, params: ops::RotateParams) -> Result<()> {
        let args = [Arg::Params(params.words()), Arg::Buffer(&self.0.nothing), Arg::Buffer(y)];
        let grid = [params.dim.div_ceil(params.rotate) as usize, params.rows as usize];
        self.kernel(c, "rotate", &[("IN_PLACE", 1)], &args, grid)
    }

    /// The constants of codes.wgsl for a slice. A CPU's caches hold a table as well as its workgroup memory would.
    fn codes(&self, slice: &Slice) -> [(&'static str, u32); 5] {
        let Layout::Pq { d, bits, book, group, .. } = slice.layout else {
            return [("D", 1), ("BITS", 1), ("BOOK", 1), ("SHARED", 0), ("TABLE", 1)];
        };
        let room = (self.0.device.workgroup_memory as usize - TILES_MEMORY) / 4;
        let shared = group >= slice.cols.div_ceil(d) && book <= room && !self.0.device.is_software();
        let table = if shared { book } else { 1 };
        [("D", d), ("BITS", bits), ("BOOK", book), ("SHARED", shared.into()), ("TABLE", table)]
            .map(|(name, value)| (name, value as u32))
    }

    /// The LANES and TILES of pq_matvec for a slice, and the rows of a workgroup.
    fn lanes(&self, slice: &Slice) -> (usize, usize, usize) {
        let workgroup = self.0.device.workgroup("pq_matvec");
        if self.0.device.is_software() {
            return (2, 1, 2 * workgroup);
        }
        let (streams, tile) = (slice.chunks(), |lanes| 4 * workgroup / lanes);
        let mut lanes = streams.next_power_of_two().clamp(16, 64);
        while lanes < streams && lanes < workgroup && slice.rows / tile(lanes) < BUSY {
            lanes *= 2;
        }
        // Rows of a workgroup share a table.
        let tiles = (slice.rows / tile(lanes) / BUSY).clamp(1, 4).min(ALIGN / tile(lanes));
        let tiles = 1 << tiles.max(1).ilog2();
        (lanes, tiles, tile(lanes) * tiles)
    }

    fn linear_slice(
        &self,
        c: &mut Commands,
        op: &ops::Linear<'_, Buffer, Weight>,
        slice: &Slice,
    ) -> Result<()> {
        let nothing = &self.0.nothing;
        let rows = op.params.rows as usize;
        let (x, y) = (Arg::Buffer(op.x), Arg::Buffer(op.y));
        let (params, weight) = (Arg::Params(op.params.words()), Arg::Params(slice.params()));
        let has_bias = ("HAS_BIAS", op.bias.is_some().into());
        let bias = Arg::Buffer(op.bias.unwrap_or(nothing));
        let words = Arg::Buffer(&slice.words);
        let Layout::Pq { d, .. } = slice.layout else {
            let constants = [("FORMAT", slice.layout.format()), has_bias];
            let args = [params, weight, x, words, bias, y];
            return self.kernel(
                c,
                "dense_matmul",
                &constants,
                &args,
                [slice.rows.div_ceil(self.0.device.workgroup("dense_matmul") / 8), rows.div_ceil(4)],
            );
        };
        let tables = Arg::Buffer(slice.tables.as_ref().unwrap_or(nothing));
        let places = Arg::Buffer(slice.places.as_ref().unwrap_or(nothing));
        let args = [params, weight, x, words, tables, places, bias, y];
        let ragged = ("RAGGED", (slice.chunks() * 32 * d != slice.cols).into());
        let mut constants = self.codes(slice).to_vec();
        if rows <= MATVEC_ROWS {
            let (lanes, tiles, together) = self.lanes(slice);
            constants.extend([("LANES", lanes as u32), ("TILES", tiles as u32), ragged, has_bias]);
            self.kernel(c, "pq_matvec", &constants, &args, [slice.rows.div_ceil(together), rows])
        } else {
            constants.extend([("STREAMS", (16 / d) as u32), has_bias]);
            self.kernel(c, "pq_matmul", &constants, &args, [slice.rows.div_ceil(64), rows.div_ceil(128)])
        }
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
        let software = if device.is_software() { ", on the CPU" } else { "" };
        let subgroups = if device.subgroups { ", subgroups" } else { "" };
        format!("wgpu, {} ({}{software}{subgroups})", device.name(), info.backend)
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
        let device = &self.0.device;
        let size = 4 * words as u64;
        let kept = self.0.staging.lock().unwrap_or_else(PoisonError::into_inner).take();
        let staging = kept.filter(|kept| kept.size() >= size).unwrap_or_else(|| {
            device.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("results"),
                size: size.next_power_of_two(),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        });
        let mut encoder = device.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer.raw(), 4 * start as u64, &staging, 0, size);
        device.queue.submit([encoder.finish()]);
        let (done, mapped) = futures_channel::oneshot::channel();
        staging.map_async(wgpu::MapMode::Read, 0..size, move |result| {
            // The receiver is gone only where the reader was dropped.
            let _ = done.send(result);
        });
        #[cfg(not(target_arch = "wasm32"))]
        device.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| Error::backend("wgpu", e))?;
        let result = mapped.await;
        device.check()?;
        // A buffer that was made is not mapped only where its device is gone, which may be reported later.
        let lost = |e: String| Error::backend("wgpu", format!("{} was lost: {e}", device.name()));
        result.map_err(|e| lost(e.to_string()))?.map_err(|e| lost(e.to_string()))?;
        let data = {
            let view = staging.get_mapped_range(0..size).map_err(|e| Error::backend("wgpu", e))?;
            bytemuck::pod_collect_to_vec(&view[..])
        };
        staging.unmap();
        *self.0.staging.lock().unwrap_or_else(PoisonError::into_inner) = Some(staging);
        Ok(data)
    }

    fn weight(&self, blocks: &[WeightData<'_>]) -> Result<Weight> {
        Weight::new(self, blocks)
    }

    fn begin(&self) -> Result<Commands> {
        let mut encoder = self.0.device.device.create_command_encoder(&Default::default());
        let pass = encoder.begin_compute_pass(&Default::default()).forget_lifetime();
        Ok(Commands { pass, encoder, rope: None })
    }

    fn submit(&self, mut commands: Commands) -> Result<()> {
        self.flush_rope(&mut commands)?;
        let Commands { pass, encoder, .. } = commands;
        drop(pass);
        self.0.device.queue.submit([encoder.finish()]);
        self.0.device.check()
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
            let [d, bits, book, ..] = self.codes(slice);
            let unshared = [("SHARED", 0), ("TABLE", 1)];
            let constants = [&[d, bits, book][..], &unshared, &[("FORMAT", slice.layout.format())]].concat();
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
        op.weight.slices.iter().try_for_each(|slice| self.linear_slice(c, &op, slice))
    }

    fn rope_cache(&self, c: &mut Commands, op: ops::RopeCache<'_, Buffer>) -> Result<()> {
        within("head_dim", op.params.head_dim, MAX_HEAD)?;
        self.flush_rope(c)?;
        c.rope = Some(Rope {
            qkv: op.qkv.share(),
            q_norm: op.q_norm.map(Buffer::share),
            k_norm: op.k_norm.map(Buffer::share),
            inv_freq: op.inv_freq.share(),
            rows: op.rows.share(),
            k_cache: op.k_cache.share(),
            v_cache: op.v_cache.share(),
            params: op.params,
        });
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
        let sizes = [("HEAD_DIM", p.head_dim), ("HEADS", heads)];
        let grid = [p.heads.div_ceil(heads) as usize, p.rows as usize];
        // Rows of different slots do not see each other's keys: rope_cache can be done by the way.
        let own = |rope: &Rope| {
            p.rows == p.segments && rope.qkv.id() == op.qkv.id() && rope.k_cache.id() == op.k_cache.id()
        };
        if let Some(rope) = c.rope.take_if(|rope| own(rope)) {
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
            let constants = [("HAS_NORMS", rope.q_norm.is_some().into()), sizes[0], sizes[1]];
            self.kernel(c, "rope_attention", &constants, &args, grid)?;
        } else {
            let args = [
                Arg::Params(p.words()),
                Arg::Buffer(op.qkv),
                Arg::Buffer(op.k_cache),
                Arg::Buffer(op.v_cache),
                Arg::Buffer(op.rows),
                Arg::Buffer(op.y),
            ];
            self.kernel(c, "attention", &sizes, &args, grid)?;
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
        let args = [
            Arg::Params(p.words()),
            Arg::Buffer(op.x),
            Arg::Buffer(op.weight),
            Arg::Buffer(op.segments),
            Arg::Buffer(op.state),
            Arg::Buffer(op.y),
        ];
        let workgroup = self.0.device.workgroup("causal_conv");
        let grid = [(p.channels as usize).div_ceil(workgroup), p.segments as usize];
        self.kernel(c, "causal_conv", &[], &args, grid)
    }

    fn delta_rule(&self, c: &mut Commands, op: ops::DeltaRule<'_, Buffer>) -> Result<()> {
        let p = op.params;
        within("key_dim", p.key_dim, MAX_HEAD)?;
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
        let grid =
            [p.value_heads as usize * (p.value_dim as usize).div_ceil(DELTA_COLUMNS), p.segments as usize];
        self.kernel(c, "delta_rule", &[], &args, grid)
    }

    fn gated_norm(&self, c: &mut Commands, op: ops::GatedNorm<'_, Buffer>) -> Result<()> {
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
