//! Rotary embedding into the cache, and attention: of few rows by KV splits, of many by tiles.

use super::kernels::{self, Cache};
use super::{Buffer, Lowering, Packing, few};
use crate::Result;
use crate::backend::cuda::device::abi::SPAN;
use crate::backend::cuda::device::launch::{Commands, Launch};
use crate::backend::cuda::device::memory::Memory;
use crate::backend::cuda::device::unit::{Source, Unit};
use crate::backend::cuda::device::{Capabilities, Scratch};
use crate::ops::{Attention, AttentionParams, KernelParams, RopeCache, RotateParams};

/// Rows of a segment from which on attention takes them by tiles.
const MANY_ROWS: u32 = 16;

/// Warps of a block of attention of few rows, at most.
const WARPS: u32 = 16;

/// Query heads of a block, of `heads` that share a key/value head: as many as attention_tiles.cuh has columns for.
pub fn group(heads: u32) -> u32 {
    (1..=4).rev().find(|group| heads.is_multiple_of(*group)).unwrap_or(1)
}

/// Threads of a block of attention_split.
pub fn threads(head_dim: u32) -> u32 {
    if head_dim <= 128 { 512 } else { 256 }
}

/// KV splits of one row's attention, where there are `blocks` blocks without: enough for a block on every multiprocessor,
/// and no more than the weights of a block's heads have shared memory for.
pub fn splits(sms: u32, blocks: u32, head_dim: u32) -> u32 {
    let most = 8192 / (512 / head_dim + 2);
    (sms / blocks).clamp(1, 64).min(most)
}

/// Elements of a head in shared memory. The kernels' own sizes of what follows are asserted to fit (SPLIT_SHARED, STEP_SHARED).
pub fn padded_dim(head_dim: u32) -> u32 {
    head_dim.next_power_of_two().max(64)
}

/// Shared memory of what 16 warps or fewer find for `heads` heads.
fn found(head_dim: u32, heads: u32) -> u32 {
    WARPS * heads * (padded_dim(head_dim) + 2) * 4
}

/// The same of the queries of `group` heads, in f32 or for tensor cores.
fn queries(head_dim: u32, group: u32) -> u32 {
    let dim = padded_dim(head_dim);
    (group * dim * 4).max(8 * (dim + 32) * 2)
}

/// Shared memory of attention_split for `group` heads.
pub fn split_shared(head_dim: u32, group: u32) -> u32 {
    found(head_dim, group) + queries(head_dim, group)
}

/// Shared memory of attention_step, which has the row's key and value besides.
pub fn persistent_shared(head_dim: u32, group: u32) -> u32 {
    split_shared(head_dim, group) + 2 * padded_dim(head_dim) * 4
}

/// Of few rows, by KV splits.
pub fn by_splits(head_dim: u32, group: u32, splits: u32, cache: Cache) -> Unit {
    let constants = [
        ("HEAD_DIM", head_dim),
        ("GROUP", group),
        ("SPLITS", splits),
        ("SPLIT_SHARED", split_shared(head_dim, group)),
        ("STEP_SHARED", persistent_shared(head_dim, group)),
    ];
    cache.apply(Unit::new(Source::AttentionSplit, &constants))
}

/// Rows of a block of the prefill kernel.
pub const ROWS: u32 = 64;

/// The prefill kernel's tiles.
struct RowTiles {
    /// Positions of a tile of keys or values.
    positions: u32,
    /// f16 elements of a row in shared memory: padded, so that ldmatrix has no bank conflicts.
    pitch: u32,
}

impl RowTiles {
    fn new(head_dim: u32) -> Self {
        Self { positions: if head_dim <= 128 { 64 } else { 32 }, pitch: head_dim + 8 }
    }

    /// A tile of queries, one of keys, one of values.
    fn shared(&self) -> u32 {
        (ROWS + 2 * self.positions) * self.pitch * 2
    }
}

/// Of many rows.
pub fn by_tiles(head_dim: u32) -> Unit {
    let tiles = RowTiles::new(head_dim);
    let constants =
        [("HEAD_DIM", head_dim), ("TILE_Q", ROWS), ("TILE_P", tiles.positions), ("PITCH", tiles.pitch)];
    Cache::F16.apply(Unit::new(Source::Attention, &constants))
}

/// Shared memory of a block of the prefill kernel, for heads that it takes.
pub fn rows_shared(head_dim: u32) -> Option<u32> {
    (head_dim.is_multiple_of(16) && head_dim <= 256).then_some(RowTiles::new(head_dim).shared())
}

/// Which kernels take an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionAlgorithm {
    /// Each row's positions divided among blocks.
    Splits,
    /// Tiles of rows on tensor cores, with blocks of so much shared memory.
    Tiles { shared: u32 },
}

impl AttentionAlgorithm {
    pub fn of(p: &AttentionParams, cache: Cache) -> Self {
        match rows_shared(p.head_dim) {
            Some(shared) if cache == Cache::F16 && p.rows >= MANY_ROWS * p.segments => Self::Tiles { shared },
            _ => Self::Splits,
        }
    }
}

/// Positions up to which the persistent kernel gives each head of a row to one block: what 32 heads of 128 elements can
/// load in the time that joining KV splits takes, on an H200.
pub fn short_context(p: &AttentionParams) -> u32 {
    (1024 * p.heads / p.head_dim).clamp(64, 256)
}

/// Attention by KV splits: its unit and grid.
pub struct Splits {
    pub unit: Unit,
    /// Blocks that share a key/value head's query heads, and KV splits.
    pub across: u32,
    pub splits: u32,
    /// Query heads of a block.
    pub group: u32,
}

impl Splits {
    pub fn of(p: &AttentionParams, cache: Cache, capabilities: &Capabilities) -> Self {
        let group = group(p.heads / p.kv_heads);
        let across = p.heads / group;
        let splits = splits(capabilities.sms, across * p.rows, p.head_dim);
        Self { unit: by_splits(p.head_dim, group, splits, cache), across, splits, group }
    }
}

impl Lowering {
    pub fn rope_cache(&self, c: &mut Commands, op: &RopeCache<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let lanes = if few(self.capabilities(), p.rows) { 128 } else { 32 };
        let unit = kernels::rope_cache(lanes, self.precision.cache());
        let across = (p.heads + 2 * p.kv_heads).div_ceil(128 / lanes);
        c.launch(
            Launch::new(unit.function("rope_cache"), [across, p.rows, 1], 128, 0)
                .memory(op.qkv.memory())
                .optional(op.q_norm.map(|norm| norm.memory()), 0)
                .optional(op.k_norm.map(|norm| norm.memory()), 0)
                .memory(op.inv_freq.memory())
                .memory(op.rows.memory())
                .memory(op.k_cache.memory())
                .memory(op.v_cache.memory())
                .structure(p.words()),
        );
        Ok(())
    }

    pub fn attention(
        &self,
        c: &mut Commands,
        op: &Attention<'_, Buffer>,
        packing: Option<Packing>,
    ) -> Result<()> {
        match AttentionAlgorithm::of(&op.params, self.precision.cache()) {
            AttentionAlgorithm::Tiles { shared } => self.attention_rows(c, op, shared, packing),
            AttentionAlgorithm::Splits => self.attention_splits(c, op, packing),
        }
    }

    /// Memory for what the KV splits of an operation find, and for their sums.
    pub fn split_memory(&self, p: &AttentionParams, splits: u32) -> Result<[Memory; 2]> {
        let words = (p.rows * p.heads * splits) as usize;
        let partial = words * padded_dim(p.head_dim) as usize;
        Ok([self.device.scratch(Scratch::Partial, partial)?, self.device.scratch(Scratch::Sums, words * 2)?])
    }

    fn attention_splits(
        &self,
        c: &mut Commands,
        op: &Attention<'_, Buffer>,
        packing: Option<Packing>,
    ) -> Result<()> {
        let p = op.params;
        let Splits { unit, across, splits, group } =
            Splits::of(&p, self.precision.cache(), self.capabilities());
        let [partial, sums] = self.split_memory(&p, splits)?;
        let shared = split_shared(p.head_dim, group);
        let (grid, function) = ([across, p.rows, splits], unit.function("attention_split"));
        c.launch(
            Launch::new(function, grid, threads(p.head_dim), shared)
                .memory(op.qkv.memory())
                .memory(op.k_cache.memory())
                .memory(op.v_cache.memory())
                .memory(op.rows.memory())
                .memory(&partial)
                .memory(&sums)
                .structure(p.words()),
        );
        let size = if p.rotate > 0 { p.rotate } else { SPAN as u32 };
        let dim = p.heads * p.head_dim;
        let (rows, copy) = self.second_copy(packing, p.rows, dim as usize)?;
        let function = unit.function("attention_combine");
        c.launch(
            Launch::new(function, [dim.div_ceil(size), rows, 1], 512, 0)
                .memory(op.qkv.memory())
                .memory(&partial)
                .memory(&sums)
                .memory(op.rows.memory())
                .memory(op.y.memory())
                .structure(p.words())
                .structure(copy.words()),
        );
        Ok(())
    }

    fn attention_rows(
        &self,
        c: &mut Commands,
        op: &Attention<'_, Buffer>,
        shared: u32,
        packing: Option<Packing>,
    ) -> Result<()> {
        let p = op.params;
        let function = by_tiles(p.head_dim).function("attention_rows");
        let grid = [p.rows.div_ceil(ROWS), p.heads, p.segments];
        c.launch(
            Launch::new(function, grid, 128, shared)
                .memory(op.qkv.memory())
                .memory(op.k_cache.memory())
                .memory(op.v_cache.memory())
                .memory(op.segments.memory())
                .memory(op.y.memory())
                .structure(p.words()),
        );
        if p.rotate > 0 {
            let params = RotateParams { rows: p.rows, dim: p.heads * p.head_dim, rotate: p.rotate };
            self.rotate_rows(c, op.y.memory(), op.y.memory(), params, packing)?;
        }
        Ok(())
    }
}
