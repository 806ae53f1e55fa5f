//! Attention: of few rows, split over the positions, or of many, by tiles.

use super::commands::{Commands, Launch};
use super::device::Scratch;
use super::kernels::Cache;
use super::unit::Unit;
use super::{Buffer, Cuda, pack};
use crate::Result;
use crate::ops;

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

/// Stretches of positions that one row's attention is split into, where there are `blocks` blocks without: enough
/// for a block on every multiprocessor, and no more than the weights of a block's heads have room for.
pub fn splits(sms: u32, blocks: u32, head_dim: u32) -> u32 {
    let room = 8192 / (512 / head_dim + 2);
    (sms / blocks).clamp(1, 64).min(room)
}

/// Elements of a head in shared memory (DIM in attention_lanes.cuh).
pub fn padded_dim(head_dim: u32) -> u32 {
    head_dim.next_power_of_two().max(64)
}

/// Shared memory of what 16 warps or fewer find for `heads` heads (Found in attention_lanes.cuh).
fn found(head_dim: u32, heads: u32) -> u32 {
    WARPS * heads * (padded_dim(head_dim) + 2) * 4
}

/// The same of the queries of `group` heads, f32 or as attention_tiles.cuh has them.
fn queries(head_dim: u32, group: u32) -> u32 {
    let dim = padded_dim(head_dim);
    (group * dim * 4).max(8 * (dim + 32) * 2)
}

/// Shared memory of attention_split for `group` heads.
pub fn split_shared(head_dim: u32, group: u32) -> u32 {
    found(head_dim, group) + queries(head_dim, group)
}

/// Shared memory of attention_step, which has the row's key and value besides.
pub fn step_shared(head_dim: u32, group: u32) -> u32 {
    split_shared(head_dim, group) + 2 * padded_dim(head_dim) * 4
}

/// Of few rows, split over the positions.
pub fn by_splits(head_dim: u32, group: u32, splits: u32, cache: Cache) -> Unit {
    let unit = Unit::new("attention_split", &[("HEAD_DIM", head_dim), ("GROUP", group), ("SPLITS", splits)]);
    cache.apply(unit)
}

/// Of many rows.
pub fn by_tiles(head_dim: u32) -> Unit {
    Cache::F16.apply(Unit::new("attention", &[("HEAD_DIM", head_dim)]))
}

/// Rows of a block of the prefill kernel.
pub const ROWS: u32 = 64;

/// Shared memory of a block of the prefill kernel (TILE_Q, TILE_P and PITCH in attention.cu), for heads that it takes.
pub fn rows_shared(head_dim: u32) -> Option<u32> {
    let positions = if head_dim <= 128 { 64 } else { 32 };
    (head_dim.is_multiple_of(16) && head_dim <= 256).then_some((ROWS + 2 * positions) * (head_dim + 8) * 2)
}

impl Cuda {
    pub(super) fn attend(&self, c: &mut Commands, op: ops::Attention<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let group = group(p.heads / p.kv_heads);
        let across = p.heads / group;
        if let (Cache::F16, Some(shared)) = (self.cache(), rows_shared(p.head_dim))
            && p.rows >= MANY_ROWS * p.segments
        {
            return self.attention_rows(c, op, shared);
        }
        let splits = splits(self.device.sms, across * p.rows, p.head_dim);
        let unit = by_splits(p.head_dim, group, splits, self.cache());
        let words = (p.rows * p.heads * splits) as usize;
        let partial = self.device.scratch(Scratch::Partial, words * padded_dim(p.head_dim) as usize)?;
        let sums = self.device.scratch(Scratch::Sums, words * 2)?;
        c.launch(
            Launch::new(
                self.entry(unit, "attention_split")?,
                [across, p.rows, splits],
                threads(p.head_dim),
                split_shared(p.head_dim, group),
            )
            .memory(&op.qkv.0)
            .memory(&op.k_cache.0)
            .memory(&op.v_cache.0)
            .memory(&op.rows.0)
            .memory(&partial)
            .memory(&sums)
            .params(&p.words()),
        );
        let size = if p.rotate > 0 { p.rotate } else { 512 };
        let units = (p.heads * p.head_dim).div_ceil(size);
        c.launch(
            Launch::new(self.entry(unit, "attention_combine")?, [units, p.rows, 1], 512, 0)
                .memory(&op.qkv.0)
                .memory(&partial)
                .memory(&sums)
                .memory(&op.rows.0)
                .memory(&op.y.0)
                .params(&p.words())
                .params(&pack::NOWHERE),
        );
        Ok(())
    }

    fn attention_rows(&self, c: &mut Commands, op: ops::Attention<'_, Buffer>, shared: u32) -> Result<()> {
        let p = op.params;
        let function = self.entry(by_tiles(p.head_dim), "attention_rows")?;
        let grid = [p.rows.div_ceil(ROWS), p.heads, p.segments];
        c.launch(
            Launch::new(function, grid, 128, shared)
                .memory(&op.qkv.0)
                .memory(&op.k_cache.0)
                .memory(&op.v_cache.0)
                .memory(&op.segments.0)
                .memory(&op.y.0)
                .params(&p.words()),
        );
        if p.rotate > 0 {
            let params = ops::RotateParams { rows: p.rows, dim: p.heads * p.head_dim, rotate: p.rotate };
            self.rotate_rows(c, &op.y.0, &op.y.0, params)?;
        }
        Ok(())
    }
}
