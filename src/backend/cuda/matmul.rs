//! Several rows times a product-quantized matrix: the ways to do it.

use super::Cuda;
use super::commands::{Commands, Launch};
use super::device::Scratch;
use super::io::{Io, Ready};
use super::kernels::{self, Lookup, TILE_CODES, TILE_ROWS};
use super::memory::Memory;
use super::unit::Unit;
use super::weight::{Part, Pq};
use crate::Result;
use crate::backend::Dtype;
use crate::pq::PqSpec;

/// How a product-quantized matrix is multiplied by several rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// By the decode kernels, a few rows at most.
    Matvec,
    /// Codes looked up into tensor cores' operands (kernels/pq_matmul_tiles.cu).
    Tiles,
    /// By tables of the rows' products with all centroids (kernels/pq_matmul_tables.cu).
    Tables,
    /// Decoded to f16 in memory, a slab at a time, for cuBLAS (kernels/pq_matmul.cu).
    Decoded,
}

impl Way {
    pub const ALL: [Self; 4] = [Self::Matvec, Self::Tiles, Self::Tables, Self::Decoded];

    pub fn name(self) -> &'static str {
        match self {
            Self::Matvec => "matvec",
            Self::Tiles => "tiles",
            Self::Tables => "tables",
            Self::Decoded => "decoded",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|way| way.name() == name)
    }

    /// Whether this way multiplies so many rows by so many; `exact`: without rounding x to f16.
    pub fn takes(self, pq: &Pq, out: usize, rows: u32, exact: bool) -> bool {
        match self {
            Self::Matvec => rows <= pq.tokens && (rows <= SPLIT_ROWS || !exact),
            Self::Tiles => rows <= SPLIT_ROWS || !exact,
            Self::Tables => rows as usize * out <= PARTIAL_WORDS && Tables::new(&pq.spec).is_some(),
            Self::Decoded => !exact,
        }
    }
}

/// Rows of x that tensor cores take as f16 and what that leaves of the f32, in two columns.
const SPLIT_ROWS: u32 = 4;

/// Columns that so many rows of x are to them.
fn columns(rows: u32) -> u32 {
    if rows <= SPLIT_ROWS { 2 * rows } else { rows }
}

/// Words of decoded weights at a time. What would stay in L2, a quarter of this, makes cuBLAS slower by more than memory
/// takes: 587 instead of 528 us for a layer of llama3-8b by 512 rows on an H200.
const SLAB_WORDS: usize = 32 << 20;
/// Words of partial sums that pq_matmul_tables may take.
const PARTIAL_WORDS: usize = 16 << 20;

/// pq_matmul_tiles for some number of rows.
#[derive(Clone, Copy, Debug)]
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
        let (columns, split) = (columns(rows), rows <= SPLIT_ROWS);
        let entry = if spec.d == 1 { 1 } else { kernels::entry_halves(spec) as u32 };
        let (unit, table) = match lookup {
            Lookup::Shared { replicas } => {
                let table = spec.k as u32 * 2 * kernels::entry_halves(spec) as u32 * replicas;
                let unit = kernels::pq("pq_matmul_tiles", spec);
                (unit.with("PQ_REPLICAS", replicas).with("PQ_TABLE_AT", TILES_TABLE_AT), table)
            }
            _ => (kernels::pq("pq_matmul_tiles", spec), 0),
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
        let shared = |[mt, nt, rows, codes, stages, _]: [u32; 6]| {
            let x = nt * 8 * TILE_CODES as u32 * entry * 2;
            let stage = codes * (rows * mt * spec.code_bits() as u32 * 128 + x);
            let sums = (codes - 1) * rows * mt * nt * 512;
            TILES_TABLE_AT + table + stages * stage + sums
        };
        let room = limit as u32 / blocks - 1024;
        while shared(shape) > room {
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
            .with("TILES_SPLIT", split.into());
        Self {
            unit,
            rows: rows * mt * TILE_ROWS as u32,
            columns: nt * 8,
            codes,
            threads: rows * codes * 32,
            shared: shared(shape),
            blocks,
        }
    }

    /// Column groups of 8 to which `rows` rows of x are packed.
    fn groups(&self, rows: u32) -> u32 {
        columns(rows).next_multiple_of(self.columns) / 8
    }
}

/// Where pq_matmul_tiles' codebook begins in shared memory: behind the driver's 1 KiB and the kernel's own.
const TILES_TABLE_AT: u32 = 2 << 10;

/// Packing of x for codes of `spec`.
pub fn pack(spec: &PqSpec) -> Unit {
    // The order depends on how many values an entry has, and not on the codes.
    Unit::new("pack_rows", &[("PQ_D", spec.d as u32), ("PQ_BITS", 8)])
}

/// pq_matmul_tables.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    pub unit: Unit,
    /// Rows of x and of W that a block takes.
    tokens: u32,
    rows: u32,
    pub shared: u32,
}

impl Tables {
    /// None where the tables have no room.
    pub fn new(spec: &PqSpec) -> Option<Self> {
        let (k, d) = (spec.k as u32, spec.d as u32);
        let tokens = (2048 / k).min(8);
        let row_tiles = if spec.code_bits() <= 8 { 4 } else { 2 };
        (tokens > 0).then(|| Self {
            unit: kernels::pq("pq_matmul_tables", spec).with("TABLES_TOKENS", tokens),
            tokens,
            rows: 8 * row_tiles * TILE_ROWS as u32,
            shared: (2 * 4 * k + 2 * TILE_CODES as u32 * d) * tokens * 4,
        })
    }
}

impl Cuda {
    /// y of a part by one of the ways, which takes so many rows; `ready` keeps forms of x for the next part.
    #[expect(
        clippy::too_many_arguments,
        reason = "the way, the weight, what it is applied to, and what is kept"
    )]
    pub(super) fn pq_by(
        &self,
        c: &mut Commands,
        way: Way,
        pq: &Pq,
        part: &Part,
        cols: usize,
        io: &Io<'_>,
        ready: &mut Ready,
    ) -> Result<()> {
        match way {
            Way::Matvec => self.pq_matvec(c, pq, part, cols, io, ready),
            Way::Tiles => self.pq_matmul_tiles(c, pq, part, cols, io, ready),
            Way::Tables => self.pq_matmul_tables(c, pq, part, cols, io, ready),
            Way::Decoded => {
                let x = self.input_as(c, Dtype::F16, cols, io, ready)?;
                self.pq_matmul_decoded(c, pq, &x, part, cols, io)?;
                self.add_bias(c, part, io)
            }
        }
    }

    /// x in the order of the tensor cores (kernels/pack_rows.cu), in `groups` groups of 8 columns, packed once for all parts.
    pub(super) fn packed(
        &self,
        c: &mut Commands,
        pq: &Pq,
        cols: usize,
        io: &Io<'_>,
        groups: u32,
        ready: &mut Ready,
    ) -> Result<Memory> {
        let entry = if pq.spec.d == 1 { 1 } else { kernels::entry_halves(&pq.spec) };
        // Of 16 bytes, 8 values.
        let pieces = pq.code_tiles as u32 * groups * (TILE_CODES * entry) as u32;
        let packed = self.device.scratch(Scratch::Packed, pieces as usize * 4)?;
        let unit = pack(&pq.spec);
        if ready.packed.replace((unit, groups)) != Some((unit, groups)) {
            let function = self.device.function(unit, "pack_rows")?;
            c.launch(
                Launch::new(function, [pieces.div_ceil(256), 1, 1], 256, 0)
                    .memory_at(io.x, io.x_at(cols))
                    .memory(&packed)
                    .word(io.params.rows)
                    .word(cols as u32)
                    .word(groups)
                    .word(pieces)
                    .word((io.params.rows <= SPLIT_ROWS).into()),
            );
        }
        Ok(packed)
    }

    fn pq_matmul_tiles(
        &self,
        c: &mut Commands,
        pq: &Pq,
        part: &Part,
        cols: usize,
        io: &Io<'_>,
        ready: &mut Ready,
    ) -> Result<()> {
        let rows = io.params.rows;
        let tiles = Tiles::new(&pq.spec, pq.lookup, rows, self.device.shared_limit);
        let (code_tiles, groups) = (pq.code_tiles as u32, tiles.groups(rows));
        let packed = self.packed(c, pq, cols, io, groups, ready)?;
        let outputs = (part.rows as u32).div_ceil(tiles.rows) * (groups * 8 / tiles.columns);
        let grid = (self.device.sms * tiles.blocks).min(outputs * code_tiles.div_ceil(tiles.codes));
        let partial =
            self.device.scratch(Scratch::Partial, (grid * 2 * tiles.rows * tiles.columns) as usize)?;
        let arrivals = self.device.scratch(Scratch::Arrivals, outputs as usize)?;
        let function = self.device.function(tiles.unit, "pq_matmul_tiles")?;
        c.launch(
            io.multiply(Launch::new(function, [grid, 1, 1], tiles.threads, tiles.shared), pq, part)
                .memory(&packed)
                .memory_at(io.y, io.y_at())
                .memory(&partial)
                .memory(&arrivals)
                .word(part.rows as u32)
                .word(pq.spec.subspaces(cols) as u32)
                .word(code_tiles)
                .word(pq.group as u32)
                .word(groups)
                .params(&io.of_part(part).words()),
        );
        Ok(())
    }

    fn pq_matmul_tables(
        &self,
        c: &mut Commands,
        pq: &Pq,
        part: &Part,
        cols: usize,
        io: &Io<'_>,
        ready: &mut Ready,
    ) -> Result<()> {
        let Some(tables) = Tables::new(&pq.spec) else {
            return self.pq_matvec(c, pq, part, cols, io, ready);
        };
        let (rows, code_tiles) = (io.params.rows, pq.code_tiles as u32);
        let (across, down) = ((part.rows as u32).div_ceil(tables.rows), rows.div_ceil(tables.tokens));
        let most = (PARTIAL_WORDS / (rows as usize * part.rows)).clamp(1, pq.code_tiles) as u32;
        let splits = (2 * self.device.sms / (across * down)).clamp(1, most);
        let partial = self.device.scratch(Scratch::Partial, (splits * rows) as usize * part.rows)?;
        c.launch(
            Launch::new(
                self.device.function(tables.unit, "pq_matmul_tables")?,
                [across, down, splits],
                256,
                tables.shared,
            )
            .memory(&pq.codes)
            .memory(&pq.codebooks)
            .memory_at(io.x, io.x_at(cols))
            .memory(&partial)
            .word(part.rows as u32)
            .word(cols as u32)
            .word(pq.spec.subspaces(cols) as u32)
            .word(code_tiles)
            .word(pq.group as u32)
            .params(&io.params.words()),
        );
        self.pq_reduce(c, &partial, splits, pq, part, io)
    }

    /// Many rows: slabs of W decoded to f16, each multiplied by cuBLAS.
    fn pq_matmul_decoded(
        &self,
        c: &mut Commands,
        pq: &Pq,
        x: &Memory,
        part: &Part,
        cols: usize,
        io: &Io<'_>,
    ) -> Result<()> {
        let slab = (SLAB_WORDS * 2 / cols / TILE_ROWS * TILE_ROWS)
            .clamp(TILE_ROWS, part.rows.next_multiple_of(TILE_ROWS));
        let scratch = self.device.scratch(Scratch::HalfWeight, (slab * cols).div_ceil(2))?;
        let (unit, shared) = kernels::decode(&pq.spec, pq.lookup);
        let function = self.device.function(unit, "pq_decode")?;
        for first in (0..part.rows).step_by(slab) {
            let rows = slab.min(part.rows - first);
            let tiles = (pq.code_tiles * rows.div_ceil(TILE_ROWS)) as u32;
            let grid = (self.device.sms * 2).min(tiles.div_ceil(8)); // 8 warps, a tile each
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
            self.gemm(c, Dtype::F16, &scratch, x, (first, rows), part, cols, io);
        }
        Ok(())
    }
}
