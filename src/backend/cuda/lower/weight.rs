//! Weights on the device: dense as they are, product-quantized codes in tiles (see kernels/pq_tile.cuh).

use std::sync::Arc;

use half::{bf16, f16};
use rayon::prelude::*;

use super::kernels::{self, Lookup};
use crate::Result;
use crate::backend::cuda::device::Device;
use crate::backend::cuda::device::abi::{TILE_CODES, TILE_ROWS};
use crate::backend::cuda::device::graphs::enqueue;
use crate::backend::cuda::device::launch::{Commands, Launch};
use crate::backend::cuda::device::memory::Memory;
use crate::backend::cuda::device::unit::Source;
use crate::backend::unique;
use crate::ops::Matrix;
use crate::pq::{PqMatrix, PqSpec, RowScale, Scope};
use crate::tensor::{Dtype, Form, Stored, WeightData, shared_cols};

/// Matrices that share their `in`, stacked along `out`.
pub struct Weight {
    id: u64,
    pub parts: Vec<Part>,
    /// The parts' forms.
    forms: Vec<Form>,
    pub cols: usize,
}

impl Matrix for Weight {
    fn id(&self) -> u64 {
        self.id
    }

    fn parts(&self) -> &[Form] {
        &self.forms
    }
}

/// Neighbouring matrices that one kernel can take together.
pub struct Part {
    /// First row in the weight.
    pub first: usize,
    pub rows: usize,
    pub kind: Kind,
}

impl Part {
    pub fn pq(&self) -> Option<&Pq> {
        match &self.kind {
            Kind::Pq(pq) => Some(pq),
            Kind::Dense { .. } => None,
        }
    }

    pub fn form(&self, cols: usize) -> Form {
        let stored = match &self.kind {
            Kind::Dense { dtype, .. } => Stored::Dense(*dtype),
            Kind::Pq(pq) => Stored::Pq(pq.spec),
        };
        Form { rows: self.rows, cols, stored }
    }
}

pub enum Kind {
    Dense { dtype: Dtype, memory: Memory },
    Pq(Pq),
}

pub struct Pq {
    pub spec: PqSpec,
    pub lookup: Lookup,
    /// `[row tiles, code tiles, bits * 32]`.
    pub codes: Memory,
    /// `[codebooks, k, entry_halves]` f16.
    pub codebooks: Memory,
    /// The codebooks as the decode kernel of [`Lookup::Subspace`] fills its tables from them, for that lookup:
    /// `[code tiles, k, 64 subspaces, entry_halves]` f16.
    pub tables: Option<Memory>,
    /// `[rows]` f16.
    pub scales: Option<Memory>,
    pub code_tiles: usize,
    /// Subspaces per codebook.
    pub group: usize,
}

impl Weight {
    pub fn upload(device: &Device, blocks: &[WeightData<'_>]) -> Result<Self> {
        let cols = shared_cols(blocks)?;
        let (mut parts, mut first, mut rest) = (Vec::new(), 0, blocks);
        while let Some(head) = rest.first() {
            let alike = rest.iter().take_while(|block| together(head, block)).count();
            let (now, later) = rest.split_at(alike);
            let rows = now.iter().map(|block| block.shape().0).sum();
            let kind = match head {
                WeightData::Dense { dtype, .. } => dense(device, *dtype, rows * cols, now)?,
                WeightData::Pq(matrix) => Kind::Pq(Pq::upload(device, matrix, rows, now)?),
            };
            parts.push(Part { first, rows, kind });
            first += rows;
            rest = later;
        }
        let forms = parts.iter().map(|part| part.form(cols)).collect();
        Ok(Self { id: unique(), parts, forms, cols })
    }
}

/// Bytes that a matrix takes on a device whose blocks may have `shared_limit` bytes of shared memory, without a universal
/// codebook.
pub fn bytes(form: &Form, shared_limit: usize) -> u64 {
    let Form { rows, cols, stored: Stored::Pq(spec) } = *form else { return form.bytes() };
    let code_tiles = spec.subspaces(cols).div_ceil(TILE_CODES);
    let codes = rows.div_ceil(TILE_ROWS) * code_tiles * spec.code_bits() * 128;
    let entries = if spec.scope == Scope::Universal { 0 } else { spec.codebooks(cols) * spec.k };
    let tables = match Lookup::of(&spec, cols, shared_limit) {
        Lookup::Subspace => table_words(&spec, code_tiles) * 4,
        _ => 0,
    };
    let scales = if spec.scale == RowScale::None { 0 } else { 2 * rows };
    (codes + entries * kernels::entry_halves(spec.d) * 2 + tables + scales) as u64
}

/// Whether two blocks can be one matrix: the same element type, or the same spec with one codebook for both.
fn together(a: &WeightData<'_>, b: &WeightData<'_>) -> bool {
    match (a, b) {
        (WeightData::Dense { dtype: a, .. }, WeightData::Dense { dtype: b, .. }) => a == b,
        (WeightData::Pq(a), WeightData::Pq(b)) => {
            let same = Arc::ptr_eq(&a.codebooks, &b.codebooks) || a.codebooks == b.codebooks;
            a.spec == b.spec && same
        }
        _ => false,
    }
}

/// Dense blocks one after the other; bf16 as f16, which is exact but for magnitudes below 2^-17, so that inputs keep
/// f16's three more bits in tensor cores. Weights too large for f16 stay.
fn dense(device: &Device, dtype: Dtype, elements: usize, blocks: &[WeightData<'_>]) -> Result<Kind> {
    let blocks = || {
        blocks.iter().filter_map(|block| match block {
            WeightData::Dense { bytes, .. } => Some(*bytes),
            WeightData::Pq(_) => None,
        })
    };
    let fits =
        |bytes: &[u8]| bytes.par_chunks_exact(2).all(|b| bf16_at(b).to_f32().abs() <= f16::MAX.to_f32());
    let narrow = dtype == Dtype::BF16 && blocks().all(fits);
    let memory = device.alloc((elements * dtype.size()).div_ceil(4), false)?;
    let mut at = 0;
    for bytes in blocks() {
        if narrow {
            let half: Vec<f16> =
                bytes.par_chunks_exact(2).map(|b| f16::from_f32(bf16_at(b).to_f32())).collect();
            device.write_at(&memory, at, bytemuck::cast_slice(&half))?;
        } else {
            device.write_at(&memory, at, bytes)?;
        }
        at += bytes.len();
    }
    Ok(Kind::Dense { dtype: if narrow { Dtype::F16 } else { dtype }, memory })
}

fn bf16_at(bytes: &[u8]) -> bf16 {
    bf16::from_le_bytes([bytes[0], bytes[1]])
}

impl Pq {
    /// Block of the rotation of an embedding table of `cols`, 0 for none.
    pub fn rotation(&self, cols: usize) -> u32 {
        self.spec.rotation(cols).map_or(0, |rotation| rotation.block as u32)
    }

    fn upload(device: &Device, head: &PqMatrix<'_>, rows: usize, blocks: &[WeightData<'_>]) -> Result<Self> {
        let (spec, cols) = (head.spec, head.cols);
        let mut pq = Self::empty(device, spec, rows, cols, &head.codebooks)?;
        if pq.lookup == Lookup::Subspace {
            pq.tables = Some(tables(device, &spec, cols, &pq)?);
        }
        let (subspaces, row_bytes) = (spec.subspaces(cols), spec.row_bytes(cols));
        let (mut first, mut scales) = (0, Vec::<f16>::with_capacity(rows));
        for block in blocks {
            let WeightData::Pq(matrix) = block else { continue };
            let staged = device.alloc(matrix.codes.len().div_ceil(4), false)?;
            device.write(&staged, &matrix.codes)?;
            let count = (matrix.rows * subspaces).div_ceil(256) as u32;
            let function = Source::PqTiles.unit().function("pq_tiles");
            let launch = Launch::new(function, [count, 1, 1], 256, 0)
                .memory(&staged)
                .memory(&pq.codes)
                .word(first as u32)
                .word(matrix.rows as u32)
                .word(subspaces as u32)
                .word(row_bytes as u32)
                .word(pq.code_tiles as u32)
                .word(spec.code_bits() as u32);
            let mut commands = Commands::default();
            commands.launch(launch);
            enqueue(device, &commands)?;
            scales.extend_from_slice(&matrix.scales);
            first += matrix.rows;
        }
        if !scales.is_empty() {
            let memory = device.alloc(scales.len().div_ceil(2), false)?;
            device.write(&memory, bytemuck::cast_slice(&scales))?;
            pq.scales = Some(memory);
        }
        Ok(pq)
    }

    /// A matrix with codes of zero and no scales.
    pub fn empty(device: &Device, spec: PqSpec, rows: usize, cols: usize, codebooks: &[f16]) -> Result<Self> {
        let code_tiles = spec.subspaces(cols).div_ceil(TILE_CODES);
        let tiles = rows.div_ceil(TILE_ROWS) * code_tiles;
        let lookup = Lookup::of(&spec, cols, device.capabilities.shared_limit);
        let entries = padded(&spec, codebooks);
        let memory = if spec.scope == Scope::Universal {
            device.universal(entries)?
        } else {
            let memory = device.alloc(entries.len().div_ceil(2), false)?;
            device.write(&memory, bytemuck::cast_slice(&entries))?;
            memory
        };
        Ok(Self {
            spec,
            lookup,
            codes: device.alloc(tiles * spec.code_bits() * 32, true)?,
            codebooks: memory,
            tables: None,
            scales: None,
            code_tiles,
            group: spec.subspaces_per_codebook(cols),
        })
    }
}

/// Words of [`Pq::tables`].
fn table_words(spec: &PqSpec, code_tiles: usize) -> usize {
    code_tiles * TILE_CODES * spec.k * kernels::entry_words(spec.d)
}

/// [`Pq::tables`].
fn tables(device: &Device, spec: &PqSpec, cols: usize, pq: &Pq) -> Result<Memory> {
    let subspaces = spec.subspaces(cols);
    let memory = device.alloc(table_words(spec, pq.code_tiles), true)?;
    let function = kernels::tables(spec).function("pq_tables");
    let mut commands = Commands::default();
    commands.launch(
        Launch::new(function, [(subspaces * spec.k).div_ceil(256) as u32, 1, 1], 256, 0)
            .memory(&pq.codebooks)
            .memory(&memory)
            .word(subspaces as u32),
    );
    enqueue(device, &commands)?;
    Ok(memory)
}

/// Codebook entries padded to what the kernels load at once; with d = 1, the value twice.
fn padded(spec: &PqSpec, codebooks: &[f16]) -> Vec<f16> {
    let width = kernels::entry_halves(spec.d);
    let mut out = Vec::with_capacity(codebooks.len() / spec.d * width);
    for entry in codebooks.chunks_exact(spec.d) {
        let fill = if spec.d == 1 { entry[0] } else { f16::ZERO };
        out.extend(entry.iter().copied().chain(std::iter::repeat(fill)).take(width));
    }
    out
}
