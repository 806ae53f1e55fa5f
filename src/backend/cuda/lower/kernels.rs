//! The specialisations in which the kernels are compiled, and the shapes of their launches.

use crate::backend::cuda::device::abi::{SPAN, TILE_CODES, TILE_ROWS};
use crate::backend::cuda::device::unit::{Source, Unit};
use crate::pq::PqSpec;

/// Shared memory for a codebook's copies, of a block that may have `limit`.
fn table_limit(limit: usize) -> usize {
    if limit >= ROOMY { 64 << 10 } else { 32 << 10 }
}

/// How the kernels look codebook entries of a spec up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lookup {
    /// One codebook, in shared memory, so many times.
    Shared { replicas: u32 },
    /// A codebook per subspace, those of a code tile in shared memory.
    Subspace,
    /// From memory, through L1.
    Memory,
}

/// Halves of a codebook entry on the device: d padded to what one load takes.
pub fn entry_halves(d: usize) -> usize {
    match d {
        1 | 2 => 2,
        3 | 4 => 4,
        _ => 8,
    }
}

/// The same in words.
pub fn entry_words(d: usize) -> usize {
    entry_halves(d) / 2
}

impl Lookup {
    pub fn of(spec: &PqSpec, cols: usize, shared_limit: usize) -> Self {
        let entry = 2 * entry_halves(spec.d);
        let table = spec.k * entry;
        // The copies of an entry are at least the 16 bytes that fill_table writes at once.
        if spec.codebooks(cols) == 1 && table * 16_usize.div_ceil(entry) <= table_limit(shared_limit) {
            let replicas = (128 / entry).min(table_limit(shared_limit) / table);
            Self::Shared { replicas: 1 << replicas.ilog2() }
        } else if spec.subspaces_per_codebook(cols) == 1
            && MatvecSubspace::new(spec, 1).table as usize <= shared_limit
        {
            Self::Subspace
        } else {
            Self::Memory
        }
    }
}

/// Shared memory of a block from which on copies of a codebook's entries are spread; see PQ_SPREAD in pq_tile.cuh.
pub const ROOMY: usize = 160 << 10;

/// A kernel with `replicas` copies of a codebook in shared memory, of which a block may have `limit`; and the shared
/// memory up to their end.
fn with_table(unit: Unit, spec: &PqSpec, replicas: u32, limit: usize) -> (Unit, u32) {
    let copies = 2 * entry_halves(spec.d) as u32 * replicas;
    let unit = unit.with("PQ_REPLICAS", replicas).with("PQ_TABLE_AT", TABLE_AT);
    if matches!(spec.code_bits(), 6 | 8) && copies == 128 && limit >= ROOMY {
        (unit.with("PQ_SPREAD", 1), TABLE_AT + 256 * 256)
    } else {
        (unit, TABLE_AT + spec.k as u32 * copies)
    }
}

pub fn pq(source: Source, spec: &PqSpec) -> Unit {
    Unit::new(source, &[("PQ_D", spec.d as u32), ("PQ_BITS", spec.code_bits() as u32)])
}

/// Rows of x that the decode kernels take at once, where a block may have `limit` bytes of shared memory.
pub fn matvec_tokens(spec: &PqSpec, lookup: Lookup, limit: usize) -> u32 {
    let most = if spec.d > 4 { 8 } else { 16 };
    let fits = |tokens: &u32| match lookup {
        Lookup::Shared { replicas } => {
            Rows::new(spec, replicas, *tokens, limit).shared + FIXED_SHARED <= limit as u32
        }
        Lookup::Subspace => MatvecSubspace::new(spec, *tokens).table as usize <= limit,
        Lookup::Memory => true,
    };
    [16, 8, 4].into_iter().filter(|tokens| *tokens <= most).find(fits).unwrap_or(1)
}

/// The rows of x that a decode kernel for `rows` is made for.
fn tokens(rows: u32) -> u32 {
    [1, 4, 8, 16].into_iter().find(|tokens| rows <= *tokens).unwrap_or(16)
}

/// The decode kernel of a shared codebook for one row, and its shape.
#[derive(Clone, Debug)]
pub struct Matvec {
    pub unit: Unit,
    /// Warps of a block; each takes 64 codes of a row at a time, so all of them make a pass over the columns.
    pub warps: u32,
    /// Shared memory up to the end of the codebook's copies.
    pub table: u32,
    /// Bytes of a tile of codes.
    pub tile_bytes: u32,
    /// Bytes of the sums of a batch of row tiles, and of x of a pass.
    sums: u32,
    stage: u32,
    limit: u32,
    /// The spec's values of an entry.
    d: u32,
}

impl Matvec {
    /// Where a block may have `limit` bytes of shared memory.
    pub fn new(spec: &PqSpec, replicas: u32, limit: usize) -> Self {
        // Row tiles between two meetings of a block's warps.
        let batch = if limit >= ROOMY { 16 } else { 8 };
        let shape = |warps: u32| {
            let entry = if spec.d == 1 { 1 } else { entry_halves(spec.d) as u32 };
            // f16, and what it leaves of the f32.
            let stage = warps * TILE_CODES as u32 * entry * 2 * 2;
            let tile_bytes = spec.code_bits() as u32 * 128;
            let sums = 2 * warps * (batch * TILE_ROWS as u32 + 4) * 4;
            let unit = pq(Source::PqMatvec, spec)
                .with("PQ_TOKENS", 1)
                .with("PQ_WARPS", warps)
                .with("PQ_BATCH", batch)
                .with("PQ_SUMS_SHARED", sums)
                .with("PQ_STAGE_SHARED", stage);
            let (unit, table) = with_table(unit, spec, replicas, limit);
            let limit = limit as u32 - FIXED_SHARED;
            Self { unit, warps, table, tile_bytes, sums, stage, limit, d: spec.d as u32 }
        };
        let wide = shape(16);
        if spec.d <= 4 && wide.shared(1) <= wide.limit { wide } else { shape(8) }
    }

    /// Passes over `code_tiles` code tiles a row.
    pub fn passes(&self, code_tiles: u32) -> u32 {
        code_tiles.div_ceil(self.warps)
    }

    /// Passes whose x is in shared memory at a time.
    pub fn chunk(&self, code_tiles: u32) -> u32 {
        let memory = self.limit.saturating_sub(self.table + self.sums) / self.stage;
        memory.clamp(1, self.passes(code_tiles))
    }

    /// Shared memory of a block with x of `chunk` passes.
    pub fn shared(&self, chunk: u32) -> u32 {
        self.table + self.sums + chunk * self.stage
    }

    /// The same in the persistent kernel (pq_row.cu), where x stands with gaps.
    pub fn persistent_shared(&self, chunk: u32) -> u32 {
        self.table + self.sums + chunk * self.persistent_stage()
    }

    /// Passes whose x is in shared memory at a time there.
    pub fn persistent_chunk(&self, code_tiles: u32) -> u32 {
        let memory = self.limit.saturating_sub(self.persistent_shared(0)) / self.persistent_stage();
        memory.clamp(1, self.passes(code_tiles))
    }

    /// Bytes of x of a pass there: PITCH instead of 32 words.
    fn persistent_stage(&self) -> u32 {
        self.stage / 32 * 40
    }

    /// Whether pq_row.cu can prepare a row of `cols` that is a sum with a norm: each warp has a span of it at once.
    pub fn adds_norms(&self, cols: usize) -> bool {
        let code_tiles = cols.div_ceil(TILE_CODES * self.d as usize) as u32;
        cols <= self.warps as usize * SPAN && self.persistent_chunk(code_tiles) == self.passes(code_tiles)
    }

    /// Whether pq_row.cu can prepare a row that is rotated by blocks of `rotate`: a warp takes a span.
    pub fn prepares(&self, rotate: u32) -> bool {
        matches!(self.d, 1 | 2 | 4 | 8) && rotate as usize <= SPAN
    }
}

/// The kernel of a shared codebook for a few rows, and its shape.
#[derive(Clone, Debug)]
pub struct Rows {
    pub unit: Unit,
    pub warps: u32,
    pub shared: u32,
    /// Column groups of 8 to which x is packed.
    pub groups: u32,
}

impl Rows {
    /// For up to `rows` rows where a block may have `limit` bytes of shared memory.
    pub fn new(spec: &PqSpec, replicas: u32, rows: u32, limit: usize) -> Self {
        let tokens = tokens(rows).max(4);
        let unit = pq(Source::PqRows, spec).with("PQ_TOKENS", tokens);
        let (unit, table) = with_table(unit, spec, replicas, limit);
        // Warps, and row tiles between two of their meetings.
        let shape = |(warps, batch): (u32, u32)| {
            let sums = 3 * warps * (tokens * (batch * TILE_ROWS as u32 + 8) + 8) * 4;
            let unit = unit.clone().with("PQ_WARPS", warps).with("PQ_BATCH", batch);
            Self {
                unit: unit.with("PQ_SUMS_SHARED", sums),
                warps,
                shared: table + sums,
                groups: tokens.div_ceil(8),
            }
        };
        let wide = spec.d <= 2 || spec.d <= 4 && tokens <= 8;
        let shapes = [(16, 4), (16, 2), (8, 4), (8, 2)].map(shape);
        let fits = |it: &&Self| (wide || it.warps == 8) && it.shared + FIXED_SHARED <= limit as u32;
        // The smallest is taken where none fits: matvec_tokens() then lets nobody use it.
        shapes.iter().find(fits).unwrap_or(&shapes[3]).clone()
    }
}

/// Shared memory that kernels with a table have besides what a launch gives them, at most.
const FIXED_SHARED: u32 = 11 << 10;
/// Where a codebook's copies begin in shared memory, behind that and the driver's 1 KiB.
const TABLE_AT: u32 = 12 << 10;

/// Shared memory of a row of `dim` that is rotated; see padded() in rows.cuh.
pub fn row_shared(dim: u32) -> u32 {
    (dim / 64 * 72 + 72) * 4
}

/// Shared memory of a block whose first `warps` warps have spans.
pub fn spans_shared(warps: u32) -> u32 {
    warps * (SPAN as u32 / 8 * 9) * 4
}

/// The decode kernel of codebooks per subspace, and its shape.
#[derive(Clone, Debug)]
pub struct MatvecSubspace {
    pub unit: Unit,
    pub warps: u32,
    /// Shared memory up to the end of the table.
    pub table: u32,
}

impl MatvecSubspace {
    /// For up to `rows` rows.
    pub fn new(spec: &PqSpec, rows: u32) -> Self {
        let tokens = tokens(rows);
        // The most warps whose x, codes and addresses fit the registers (tests/integration/cuda_compile.rs).
        let warps = if tokens == 1 || spec.d <= 4 && tokens <= 8 { 16 } else { 8 };
        let unit = pq(Source::PqMatvecSubspace, spec)
            .with("PQ_TOKENS", tokens)
            .with("PQ_WARPS", warps)
            .with("PQ_DEPTH", 2)
            .with("PQ_TABLE_AT", TABLE_AT);
        // One row's products are a word each.
        let entry = if tokens == 1 { 1 } else { entry_words(spec.d) };
        Self { unit, warps, table: TABLE_AT + (spec.k * TILE_CODES * entry * 4) as u32 }
    }

    /// Blocks for each of stacked matrices of so many `rows`, of which `sms` work at a time: a multiple of `code_tiles`,
    /// so that all have as little to do as may be, the filling of a table counted as the codes of as many bytes.
    pub fn blocks(spec: &PqSpec, rows: &[usize], code_tiles: u32, sms: u32) -> Vec<u32> {
        let tiles: Vec<u32> = rows.iter().map(|rows| rows.div_ceil(TILE_ROWS) as u32).collect();
        let most = tiles.iter().copied().max().unwrap_or(1);
        let fill = (spec.k * 2 / spec.code_bits()) as u32;
        let blocks = |each: u32| tiles.iter().map(move |tiles| code_tiles * tiles.div_ceil(each));
        let cost = |each: &u32| blocks(*each).sum::<u32>().div_ceil(sms) * (each + fill);
        let each = (1..=most.min(64)).map(|splits| most.div_ceil(splits)).min_by_key(cost).unwrap_or(1);
        blocks(each).collect()
    }
}

/// Tables from codebooks.
pub fn tables(spec: &PqSpec) -> Unit {
    pq(Source::PqMatvecSubspace, spec)
}

/// The kernel of any spec, one row of x at a time.
pub fn matvec_any(spec: &PqSpec) -> Unit {
    pq(Source::PqMatvec, spec)
}

/// Decoding to f16, and its shared memory.
pub fn decode(spec: &PqSpec, lookup: Lookup) -> (Unit, u32) {
    let unit = pq(Source::PqMatmul, spec);
    match lookup {
        Lookup::Shared { replicas } => with_table(unit, spec, replicas, 0),
        _ => (unit, 0),
    }
}

pub fn embed_pq(spec: &PqSpec) -> Unit {
    pq(Source::Embed, spec)
}

/// Dense weights of a `dtype` with up to `rows` rows of x (1 to 4).
pub fn dense(dtype: u32, rows: u32) -> Unit {
    Unit::new(Source::DenseMatmul, &[("DENSE_DTYPE", dtype), ("DENSE_TOKENS", rows)])
}

/// Warps of a block of the kernel for one row.
pub const DENSE_ROW_WARPS: u32 = 16;

/// Dense weights of a `dtype` with one row of `cols`, and the shared memory of a block; None where the kernel cannot.
pub fn dense_row(dtype: u32, cols: usize, limit: usize) -> Option<(Unit, u32)> {
    // 16 bytes of weights at a time, of x and of whole rows; x padded to what a warp loads at a time.
    let wide = if dtype == 0 { 4 } else { 8 };
    let shared = cols.next_multiple_of(32 * 8 * wide) * 4;
    (cols.is_multiple_of(wide) && shared + FIXED_SHARED as usize <= limit)
        .then(|| (Unit::new(Source::DenseRow, &[("DENSE_DTYPE", dtype)]), shared as u32))
}

/// With `lanes` threads a head, 32 or 128.
pub fn rope_cache(lanes: u32, cache: Cache) -> Unit {
    cache.apply(Unit::new(Source::RopeCache, &[("ROPE_LANES", lanes)]))
}

/// Element type of the key and value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    F32,
    F16,
}

impl Cache {
    pub fn apply(self, unit: Unit) -> Unit {
        match self {
            Cache::F32 => unit,
            Cache::F16 => unit.with("CACHE_F16", 1),
        }
    }
}

pub fn causal_conv(kernel: u32) -> Unit {
    Unit::new(Source::CausalConv, &[("CONV_KERNEL", kernel)])
}

/// k-means and search for vectors of `d` elements.
pub fn kmeans(d: usize) -> Unit {
    Unit::new(Source::Kmeans, &[("VECTOR", d as u32)])
}

/// Assignment of such vectors with error feedback.
pub fn feedback(d: usize) -> Unit {
    Unit::new(Source::Feedback, &[("VECTOR", d as u32)])
}
