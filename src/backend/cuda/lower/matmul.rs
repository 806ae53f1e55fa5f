//! Products of several rows with a product-quantized matrix: the algorithms, and their launches.

use std::fmt::{self, Display, Formatter};

use super::kernels::{self, Lookup};
use super::linear::Io;
use super::paper;
use super::weight::{Part, Pq};
use super::{Lowering, Packing};
use crate::Result;
use crate::backend::cuda::device::Scratch;
use crate::backend::cuda::device::abi::{TILE_CODES, TILE_ROWS};
use crate::backend::cuda::device::launch::{Commands, Launch};
use crate::backend::cuda::device::memory::Memory;
use crate::backend::cuda::device::unit::{Source, Unit};
use crate::ops::KernelParams;
use crate::pq::PqSpec;
use crate::tensor::{Dtype, Form, Stored};

/// How a matrix is multiplied by rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatmulAlgorithm {
    /// Dense, one row (kernels/dense_row.cu).
    DenseRow,
    /// Dense, up to [`SINGLE_ROWS`] rows in f32 (kernels/dense_matmul.cu).
    DenseFew,
    /// Dense, many rows: cuBLAS.
    DenseGemm,
    /// Codes, by the decode kernels, a few rows at most.
    Matvec,
    /// Codes looked up into tensor cores' operands (kernels/pq_matmul_tiles.cu).
    Tiles,
    /// The paper's: tables of the rows' products with all centroids (kernels/paper/pq_matmul_tables.cu).
    Tables,
    /// Codes decoded to f16 in memory, a slab at a time, for cuBLAS (kernels/pq_matmul.cu).
    Decoded,
}

impl Display for MatmulAlgorithm {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DenseRow => "one row",
            Self::DenseFew => "few rows",
            Self::DenseGemm => "cublas",
            Self::Matvec => "matvec",
            Self::Tiles => "tiles",
            Self::Tables => "tables",
            Self::Decoded => "decoded",
        })
    }
}

impl MatmulAlgorithm {
    /// Those for product-quantized matrices.
    pub const PQ: [Self; 4] = [Self::Matvec, Self::Tiles, Self::Tables, Self::Decoded];

    /// One of [`MatmulAlgorithm::PQ`] by its text.
    pub fn parse(name: &str) -> Option<Self> {
        Self::PQ.into_iter().find(|algorithm| algorithm.to_string() == name)
    }

    /// Whether this algorithm multiplies `rows` rows by a product-quantized matrix; `exact`: without rounding x to f16.
    pub fn takes(self, form: &Form, rows: u32, exact: bool, shared_limit: usize) -> bool {
        let Stored::Pq(spec) = form.stored else { return false };
        let split = rows <= SINGLE_ROWS;
        match self {
            Self::DenseRow | Self::DenseFew | Self::DenseGemm => false,
            Self::Matvec => {
                let lookup = Lookup::of(&spec, form.cols, shared_limit);
                rows <= kernels::matvec_tokens(&spec, lookup, shared_limit) && (split || !exact)
            }
            Self::Tiles => split || !exact,
            Self::Tables => paper::Tables::take(&spec, form.rows, rows),
            Self::Decoded => !exact,
        }
    }

    /// The layout in which it reads rows; none for f32.
    pub fn packing(self, form: &Form, rows: u32, shared_limit: usize) -> Option<Packing> {
        let split = rows <= SINGLE_ROWS;
        match (self, form.stored) {
            (Self::DenseGemm, Stored::Dense(dtype)) => (dtype != Dtype::F32).then_some(Packing::Half(dtype)),
            (Self::Decoded, Stored::Pq(_)) => Some(Packing::Half(Dtype::F16)),
            (Self::Tiles, Stored::Pq(spec)) => {
                let lookup = Lookup::of(&spec, form.cols, shared_limit);
                let groups = Tiles::new(&spec, lookup, rows, shared_limit).groups(rows);
                Some(Packing::Tiles { d: spec.d, groups, split })
            }
            (Self::Matvec, Stored::Pq(spec)) if rows > 1 => {
                match Lookup::of(&spec, form.cols, shared_limit) {
                    Lookup::Shared { replicas } => {
                        let groups = kernels::Rows::new(&spec, replicas, rows, shared_limit).groups;
                        Some(Packing::Tiles { d: spec.d, groups, split })
                    }
                    Lookup::Subspace | Lookup::Memory => None,
                }
            }
            (Self::DenseRow | Self::DenseFew | Self::Tables | Self::Matvec, _)
            | (Self::DenseGemm, Stored::Pq(_))
            | (Self::Decoded | Self::Tiles, Stored::Dense(_)) => None,
        }
    }
}

/// Rows of x that are multiplied in f32; tensor cores take them as f16 and what that leaves of the f32, in two columns.
pub const SINGLE_ROWS: u32 = 4;

/// Columns that so many rows of x are to tensor cores.
fn columns(rows: u32) -> u32 {
    if rows <= SINGLE_ROWS { 2 * rows } else { rows }
}

/// Words of decoded weights at a time. What would stay in L2, a quarter of this, makes cuBLAS slower by more than memory
/// takes: 587 instead of 528 us for a layer of llama3-8b by 512 rows on an H200.
const SLAB_WORDS: usize = 32 << 20;
pub const SLAB_BYTES: usize = SLAB_WORDS * 4;

/// pq_matmul_tiles for some number of rows.
#[derive(Clone, Debug)]
pub struct Tiles {
    pub unit: Unit,
    /// Rows of W, columns of x and code tiles of a row in a block's unit of work.
    rows: u32,
    columns: u32,
    codes: u32,
    threads: u32,
    pub shared: u32,
    /// Blocks of a multiprocessor.
    blocks: u32,
}

impl Tiles {
    /// Where a block may have `limit` bytes of shared memory.
    pub fn new(spec: &PqSpec, lookup: Lookup, rows: u32, limit: usize) -> Self {
        let (columns, split) = (columns(rows), rows <= SINGLE_ROWS);
        let entry = if spec.d == 1 { 1 } else { kernels::entry_halves(spec.d) as u32 };
        let (unit, table) = match lookup {
            Lookup::Shared { replicas } => {
                let table = spec.k as u32 * 2 * kernels::entry_halves(spec.d) as u32 * replicas;
                let unit = kernels::pq(Source::PqMatmulTiles, spec);
                (unit.with("PQ_REPLICAS", replicas).with("PQ_TABLE_AT", TILES_TABLE_AT), table)
            }
            _ => (kernels::pq(Source::PqMatmulTiles, spec), 0),
        };
        // Row tiles and column groups of a warp; warps across rows and codes; stages; blocks.
        let twice = if limit < kernels::ROOMY || table == 0 { 1 } else { 2 };
        let mut shape @ [_, _, _, _, _, blocks] = match columns {
            0..=8 => [2, 1, 2, 4, 3, twice],
            9..=16 => [2, 2, 2, 4, 3, twice],
            17..=32 => [2, 4, 2, 4, 3, 1],
            33..=128 => [2, 8, 4, 2, 3, 1],
            _ => [2, 8, 8, 1, 3, 1],
        };
        // Shared memory behind the table.
        let behind = |[mt, nt, rows, codes, stages, _]: [u32; 6]| {
            let x = nt * 8 * TILE_CODES as u32 * entry * 2;
            let stage = codes * (rows * mt * spec.code_bits() as u32 * 128 + x);
            let sums = (codes - 1) * rows * mt * nt * 512;
            stages * stage + sums
        };
        let most = (limit as u32 / blocks).saturating_sub(1024 + TILES_TABLE_AT + table);
        while behind(shape) > most {
            let [mt, nt, rows, codes, stages, _] = &mut shape;
            match () {
                () if *stages > 2 => *stages -= 1,
                () if *codes > 1 => *codes /= 2,
                () if *nt > 1 => *nt /= 2,
                () if *rows > 1 => *rows /= 2,
                () if *mt > 1 => *mt /= 2,
                () => break,
            }
        }
        let [mt, nt, rows, codes, stages, blocks] = shape;
        let unit = unit
            .with("TILES_MT", mt)
            .with("TILES_NT", nt)
            .with("TILES_WARP_ROWS", rows)
            .with("TILES_WARP_CODES", codes)
            .with("TILES_STAGES", stages)
            .with("TILES_BLOCKS", blocks)
            .with("TILES_SHARED", behind(shape))
            .with("TILES_SPLIT", split.into());
        Self {
            unit,
            rows: rows * mt * TILE_ROWS as u32,
            columns: nt * 8,
            codes,
            threads: rows * codes * 32,
            shared: TILES_TABLE_AT + table + behind(shape),
            blocks,
        }
    }

    /// Column groups of 8 to which `rows` rows of x are packed.
    pub fn groups(&self, rows: u32) -> u32 {
        columns(rows).next_multiple_of(self.columns) / 8
    }
}

/// Where pq_matmul_tiles' codebook begins in shared memory: behind the driver's 1 KiB and the kernel's own.
const TILES_TABLE_AT: u32 = 2 << 10;

/// Packing of x for codes of `d` values.
pub fn pack_unit(d: usize) -> Unit {
    // The order depends on how many values an entry has, and not on the codes.
    Unit::new(Source::PackRows, &[("PQ_D", d as u32), ("PQ_BITS", 8)])
}

impl Lowering {
    pub(super) fn pq_matmul_tiles(
        &self,
        c: &mut Commands,
        pq: &Pq,
        part: &Part,
        packed: &Memory,
        io: &Io<'_>,
    ) -> Result<()> {
        let (rows, cols, sms) = (io.params.rows, io.cols, self.capabilities().sms);
        let tiles = Tiles::new(&pq.spec, pq.lookup, rows, self.capabilities().shared_limit);
        let (code_tiles, groups) = (pq.code_tiles as u32, tiles.groups(rows));
        let outputs = (part.rows as u32).div_ceil(tiles.rows) * (groups * 8 / tiles.columns);
        let grid = (sms * tiles.blocks).min(outputs * code_tiles.div_ceil(tiles.codes));
        let partial =
            self.device.scratch(Scratch::Partial, (grid * 2 * tiles.rows * tiles.columns) as usize)?;
        let arrivals = self.device.scratch(Scratch::Arrivals, outputs as usize)?;
        let function = tiles.unit.function("pq_matmul_tiles");
        c.launch(
            io.multiply(Launch::new(function, [grid, 1, 1], tiles.threads, tiles.shared), pq, part)
                .memory(packed)
                .memory_at(io.y, io.y_at())
                .memory(&partial)
                .memory(&arrivals)
                .word(part.rows as u32)
                .word(pq.spec.subspaces(cols) as u32)
                .word(code_tiles)
                .word(pq.group as u32)
                .word(groups)
                .structure(io.of_part(part).words()),
        );
        Ok(())
    }

    /// Many rows: slabs of W decoded to f16, each multiplied by cuBLAS.
    pub(super) fn pq_matmul_decoded(
        &self,
        c: &mut Commands,
        pq: &Pq,
        part: &Part,
        x: &Memory,
        io: &Io<'_>,
    ) -> Result<()> {
        let cols = io.cols;
        let slab = (SLAB_WORDS * 2 / cols / TILE_ROWS * TILE_ROWS)
            .clamp(TILE_ROWS, part.rows.next_multiple_of(TILE_ROWS));
        let scratch = self.device.scratch(Scratch::HalfWeight, (slab * cols).div_ceil(2))?;
        let (unit, shared) = kernels::decode(&pq.spec, pq.lookup);
        let function = unit.function("pq_decode");
        for first in (0..part.rows).step_by(slab) {
            let rows = slab.min(part.rows - first);
            let tiles = (pq.code_tiles * rows.div_ceil(TILE_ROWS)) as u32;
            let grid = (self.capabilities().sms * 2).min(tiles.div_ceil(8)); // 8 warps, a tile each
            c.launch(
                Launch::new(function.clone(), [grid, 1, 1], 256, shared)
                    .memory(&pq.codes)
                    .memory(&pq.codebooks)
                    .optional(pq.scales.as_ref(), 0)
                    .memory(&scratch)
                    .word(first as u32)
                    .word(rows as u32)
                    .word(cols as u32)
                    .word(pq.code_tiles as u32)
                    .word(pq.group as u32),
            );
            self.gemm(c, Dtype::F16, &scratch, x, (first, rows), part, io);
        }
        self.add_bias(c, part, io)
    }
}
