//! Delta nets: the causal convolution, and the gated delta rule, row after row or many rows by chunks.

use super::kernels::{self, ROOMY};
use super::{Buffer, Lowering, Precision};
use crate::Result;
use crate::backend::cuda::device::Scratch;
use crate::backend::cuda::device::abi::{CONV_PIECE, DELTA_CHUNK, DELTA_MIX_TILES, DELTA_STAGE_TILES};
use crate::backend::cuda::device::launch::{Commands, Launch};
use crate::backend::cuda::device::unit::{Source, Unit};
use crate::ops::{CausalConv, DeltaRule, DeltaRuleParams, KernelParams};

/// Rows of a chunk.
const CHUNK: u32 = DELTA_CHUNK as u32;

/// Rows of a segment from which on chunks are faster.
const MANY_ROWS: u32 = 16;

/// Bytes of a tile of 16 x 8 numbers as a product's right operand.
const TILE: u32 = 512;

/// Row after row.
pub fn by_rows(key_dim: u32) -> Unit {
    Unit::new(Source::DeltaRule, &[("KEY_DIM", key_dim)])
}

/// By chunks, and the shared memory of a block of delta_chunks, which may have `limit` bytes; for the keys whose columns
/// of S fit registers.
pub fn by_chunks(key_dim: u32, limit: usize) -> Option<(Unit, u32)> {
    // Two blocks on a multiprocessor wait for each other's stages, one must have more of them on their way.
    let depth = if limit >= ROOMY { 3 } else { 2 };
    let unit = Unit::new(Source::DeltaChunks, &[("KEY_DIM", key_dim), ("DELTA_DEPTH", depth)]);
    (key_dim <= 128).then_some((unit, depth * DELTA_STAGE_TILES as u32 * TILE))
}

impl Lowering {
    pub fn delta_rule(&self, c: &mut Commands, op: &DeltaRule<'_, Buffer>) -> Result<()> {
        let p = op.params;
        if let Some((unit, shared)) = by_chunks(p.key_dim, self.capabilities().shared_limit)
            && self.precision == Precision::Half
            && p.rows >= MANY_ROWS * p.segments
        {
            return self.delta_chunks(c, op, unit, shared);
        }
        let grid = [p.value_dim.div_ceil(32), p.value_heads, p.segments];
        c.launch(
            Launch::new(by_rows(p.key_dim).function("delta_rule"), grid, 128, 0)
                .memory(op.qkv.memory())
                .memory(op.proj.memory())
                .memory(op.a_log.memory())
                .memory(op.dt_bias.memory())
                .memory(op.segments.memory())
                .memory(op.state.memory())
                .memory(op.y.memory())
                .structure(p.words()),
        );
        Ok(())
    }

    fn delta_chunks(
        &self,
        c: &mut Commands,
        op: &DeltaRule<'_, Buffer>,
        unit: Unit,
        shared: u32,
    ) -> Result<()> {
        let p: DeltaRuleParams = op.params;
        // Of each chunk: keys and queries, T and P, the decays of its rows up to each and behind it.
        let keys = p.key_heads * p.key_dim.next_multiple_of(64) / 4 * 3 * TILE;
        let [mixes, decays] = [p.value_heads * DELTA_MIX_TILES as u32 * TILE, p.value_heads * CHUNK * 2 * 4];
        let chunks = u64::from(p.rows / CHUNK + p.segments);
        let [mixes_at, decays_at, end] =
            [keys, keys + mixes, keys + mixes + decays].map(|bytes| chunks * u64::from(bytes));
        let made = self.device.scratch(Scratch::Chunks, end as usize / 4)?;
        c.launch(
            Launch::new(
                unit.function("delta_prepare"),
                [p.key_heads, p.rows.div_ceil(CHUNK), p.segments],
                128,
                0,
            )
            .memory(op.qkv.memory())
            .memory(op.proj.memory())
            .memory(op.a_log.memory())
            .memory(op.dt_bias.memory())
            .memory(op.segments.memory())
            .memory(&made)
            .memory_at(&made, mixes_at)
            .memory_at(&made, decays_at)
            .structure(p.words()),
        );
        let grid = [p.value_dim.div_ceil(32), p.value_heads, p.segments];
        c.launch(
            Launch::new(unit.function("delta_chunks"), grid, 128, shared)
                .memory(op.qkv.memory())
                .memory(&made)
                .memory_at(&made, mixes_at)
                .memory_at(&made, decays_at)
                .memory(op.segments.memory())
                .memory(op.state.memory())
                .memory(op.y.memory())
                .structure(p.words()),
        );
        Ok(())
    }

    pub fn causal_conv(&self, c: &mut Commands, op: &CausalConv<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let unit = kernels::causal_conv(p.kernel);
        let across = p.channels.div_ceil(128);
        let pieces = p.rows.div_ceil(CONV_PIECE as u32);
        c.launch(
            Launch::new(unit.function("causal_conv"), [across, p.segments, pieces], 128, 0)
                .memory(op.x.memory())
                .memory(op.weight.memory())
                .memory(op.segments.memory())
                .memory(op.state.memory())
                .memory(op.y.memory())
                .structure(p.words()),
        );
        if pieces > 1 {
            c.launch(
                Launch::new(unit.function("causal_conv_state"), [across, p.segments, 1], 128, 0)
                    .memory(op.x.memory())
                    .memory(op.segments.memory())
                    .memory(op.state.memory())
                    .structure(p.words()),
            );
        }
        Ok(())
    }
}
