//! The paper's product of many rows (arXiv 2605.04084, "LUT GEMM"): tables of the rows' products with all centroids, looked up by
//! the codes. Kept for comparison; it is nowhere the fastest, and nothing chooses it.

use super::linear::Io;
use super::weight::{Part, Pq};
use super::{Lowering, kernels};
use crate::backend::cuda::device::Scratch;
use crate::backend::cuda::device::abi::{TILE_CODES, TILE_ROWS};
use crate::backend::cuda::device::launch::{Commands, Launch};
use crate::backend::cuda::device::memory::Memory;
use crate::backend::cuda::device::unit::{Source, Unit};
use crate::ops::KernelParams;
use crate::pq::PqSpec;
use crate::{Error, Result};

/// Words of partial sums that pq_matmul_tables may take.
const PARTIAL_WORDS: usize = 16 << 20;

/// pq_matmul_tables.
#[derive(Clone, Debug)]
pub struct Tables {
    pub unit: Unit,
    /// Rows of x and of W that a block takes.
    tokens: u32,
    rows: u32,
    pub shared: u32,
}

impl Tables {
    /// Whether they multiply `rows` rows by a matrix of `out`.
    pub fn take(spec: &PqSpec, out: usize, rows: u32) -> bool {
        rows as usize * out <= PARTIAL_WORDS && Self::new(spec).is_some()
    }

    /// None where the tables exceed shared memory.
    pub fn new(spec: &PqSpec) -> Option<Self> {
        let (k, d) = (spec.k as u32, spec.d as u32);
        let tokens = (2048 / k).min(8);
        let row_tiles = if spec.code_bits() <= 8 { 4 } else { 2 };
        (tokens > 0).then(|| Self {
            unit: kernels::pq(Source::PqMatmulTables, spec).with("TABLES_TOKENS", tokens),
            tokens,
            rows: 8 * row_tiles * TILE_ROWS as u32,
            shared: (2 * 4 * k + 2 * TILE_CODES as u32 * d) * tokens * 4,
        })
    }
}

impl Lowering {
    pub(super) fn pq_matmul_tables(&self, c: &mut Commands, pq: &Pq, part: &Part, io: &Io<'_>) -> Result<()> {
        let tables = Tables::new(&pq.spec);
        let tables =
            tables.ok_or_else(|| Error::invalid(pq.spec.to_string(), "too large for the paper's tables"))?;
        let (rows, code_tiles) = (io.params.rows, pq.code_tiles as u32);
        let (across, down) = ((part.rows as u32).div_ceil(tables.rows), rows.div_ceil(tables.tokens));
        let most = (PARTIAL_WORDS / (rows as usize * part.rows)).clamp(1, pq.code_tiles) as u32;
        let splits = (2 * self.capabilities().sms / (across * down)).clamp(1, most);
        let partial = self.device.scratch(Scratch::Partial, (splits * rows) as usize * part.rows)?;
        let function = tables.unit.function("pq_matmul_tables");
        c.launch(
            Launch::new(function, [across, down, splits], 256, tables.shared)
                .memory(&pq.codes)
                .memory(&pq.codebooks)
                .memory_at(io.x, io.x_at())
                .memory(&partial)
                .word(part.rows as u32)
                .word(io.cols as u32)
                .word(pq.spec.subspaces(io.cols) as u32)
                .word(code_tiles)
                .word(pq.group as u32)
                .structure(io.params.words()),
        );
        self.sum_tables(c, &partial, splits, pq, part, io)
    }

    /// Adds up `parts` partial sums `[parts, rows of x, rows of the part]`.
    fn sum_tables(
        &self,
        c: &mut Commands,
        partial: &Memory,
        parts: u32,
        pq: &Pq,
        part: &Part,
        io: &Io<'_>,
    ) -> Result<()> {
        let function = Source::PqMatmul.unit().function("pq_reduce");
        c.launch(
            Launch::new(function, [part.rows.div_ceil(32) as u32, io.params.rows, 1], 256, 0)
                .memory(partial)
                .optional(pq.scales.as_ref(), 0)
                .optional(io.bias, part.first as u64 * 4)
                .memory_at(io.y, io.y_at())
                .word(part.rows as u32)
                .word(parts)
                .structure(io.of_part(part).words()),
        );
        Ok(())
    }
}
