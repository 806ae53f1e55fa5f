//! The gated delta rule: row after row, or many rows by chunks.

use super::commands::{Commands, Launch};
use super::device::Scratch;
use super::kernels::ROOMY;
use super::unit::Unit;
use super::{Buffer, Cuda, Precision};
use crate::Result;
use crate::ops::{DeltaRule, DeltaRuleParams};

/// Rows of a chunk.
const CHUNK: u32 = 32;

/// Rows of a segment from which on chunks are faster.
const MANY_ROWS: u32 = 16;

/// Bytes of 16 x 8 numbers as a product's right operand, such tiles of a stage of delta_chunks, and of T and P.
const TILE: u32 = 512;
const STAGE_TILES: u32 = 32;
const MIX_TILES: u32 = 12;

/// Row after row.
pub fn by_rows(key_dim: u32) -> Unit {
    Unit::new("delta_rule", &[("KEY_DIM", key_dim)])
}

/// By chunks, and the shared memory of a block of delta_chunks, which may have `limit` bytes; for the keys whose columns
/// of S fit registers.
pub fn by_chunks(key_dim: u32, limit: usize) -> Option<(Unit, u32)> {
    // Two blocks on a multiprocessor wait for each other's stages, one must have more of them on their way.
    let depth = if limit >= ROOMY { 3 } else { 2 };
    let unit = Unit::new("delta_chunks", &[("KEY_DIM", key_dim), ("DELTA_DEPTH", depth)]);
    (key_dim <= 128).then_some((unit, depth * STAGE_TILES * TILE))
}

impl Cuda {
    pub(super) fn delta(&self, c: &mut Commands, op: DeltaRule<'_, Buffer>) -> Result<()> {
        let p = op.params;
        if let Some((unit, shared)) = by_chunks(p.key_dim, self.device.shared_limit)
            && self.precision == Precision::Half
            && p.rows >= MANY_ROWS * p.segments
        {
            return self.delta_chunks(c, op, unit, shared);
        }
        let grid = [p.value_dim.div_ceil(32), p.value_heads, p.segments];
        c.launch(
            Launch::new(self.entry(by_rows(p.key_dim), "delta_rule")?, grid, 128, 0)
                .memory(&op.qkv.0)
                .memory(&op.proj.0)
                .memory(&op.a_log.0)
                .memory(&op.dt_bias.0)
                .memory(&op.segments.0)
                .memory(&op.state.0)
                .memory(&op.y.0)
                .params(&p.words()),
        );
        Ok(())
    }

    fn delta_chunks(
        &self,
        c: &mut Commands,
        op: DeltaRule<'_, Buffer>,
        unit: Unit,
        shared: u32,
    ) -> Result<()> {
        let p: DeltaRuleParams = op.params;
        // Of each chunk: keys and queries, T and P, the decays of its rows up to each and behind it.
        let keys = p.key_heads * p.key_dim.next_multiple_of(64) / 4 * 3 * TILE;
        let [mixes, decays] = [p.value_heads * MIX_TILES * TILE, p.value_heads * CHUNK * 2 * 4];
        let chunks = u64::from(p.rows / CHUNK + p.segments);
        let [mixes_at, decays_at, end] =
            [keys, keys + mixes, keys + mixes + decays].map(|bytes| chunks * u64::from(bytes));
        let made = self.device.scratch(Scratch::Chunks, end as usize / 4)?;
        c.launch(
            Launch::new(
                self.entry(unit, "delta_prepare")?,
                [p.key_heads, p.rows.div_ceil(CHUNK), p.segments],
                128,
                0,
            )
            .memory(&op.qkv.0)
            .memory(&op.proj.0)
            .memory(&op.a_log.0)
            .memory(&op.dt_bias.0)
            .memory(&op.segments.0)
            .memory(&made)
            .memory_at(&made, mixes_at)
            .memory_at(&made, decays_at)
            .params(&p.words()),
        );
        let grid = [p.value_dim.div_ceil(32), p.value_heads, p.segments];
        c.launch(
            Launch::new(self.entry(unit, "delta_chunks")?, grid, 128, shared)
                .memory(&op.qkv.0)
                .memory(&made)
                .memory_at(&made, mixes_at)
                .memory_at(&made, decays_at)
                .memory(&op.segments.0)
                .memory(&op.state.0)
                .memory(&op.y.0)
                .params(&p.words()),
        );
        Ok(())
    }
}
