//! [`Weight`]: stacked matrices, in slices that fit a binding, with codes in the order that the kernels read.

use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::layout::{Layout, STREAM};
use super::{Buffer, PART_ALIGN, Wgpu};
use crate::backend::{Dtype, WeightData};
use crate::pq::PqMatrix;
use crate::{Error, Result};

/// Rows that a workgroup may take together; a slice that has a table per matrix changes it on this boundary only.
pub const ALIGN: usize = 64;
/// Slices that one kernel may take (spans.wgsl).
const MAX_SPANS: usize = 4;
/// Bytes that are staged at a time while a weight is uploaded.
const STAGED: usize = 32 << 20;

/// Matrices with the same `in`, stacked along `out`.
pub struct Weight {
    pub(super) slices: Vec<Slice>,
}

/// Neighbouring rows of a weight, in one layout. Neighbouring slices are parts of the same buffers as long as there is
/// room for them in a binding: a kernel of few rows then takes them together.
pub(super) struct Slice {
    pub layout: Layout,
    /// First of the weight's rows that is here.
    first: usize,
    pub rows: usize,
    pub cols: usize,
    /// `[rows, stride]`: elements or codes.
    pub words: Buffer,
    /// `[codebooks, K, ceil(d / 2)]` pairs of f16, one matrix's after another's.
    pub tables: Option<Buffer>,
    /// `[rows]`: scale (f32) and first word of the row's codebooks.
    pub places: Option<Buffer>,
    /// Whether all rows have the same codebooks.
    pub together: bool,
}

impl Slice {
    /// The words of `Weight` in prelude.wgsl.
    pub fn params(&self) -> Vec<u32> {
        let (group, rotate) = match self.layout {
            Layout::Dense(_) => (1, 0),
            Layout::Pq { group, rotate, .. } => (group, rotate),
        };
        let (stride, chunks) = (self.layout.stride(self.cols), self.layout.chunks(self.cols));
        [self.first, self.rows, self.cols, stride, chunks, group, rotate, 0].map(|n| n as u32).to_vec()
    }

    /// The words of `Span` in spans.wgsl, for a slice whose `count` workgroups begin with number `begin`.
    pub fn span(&self, begin: usize, count: usize, spec: u32) -> Vec<u32> {
        let group = if let Layout::Pq { group, .. } = self.layout { group } else { 1 };
        let (stride, chunks) = (self.layout.stride(self.cols), self.layout.chunks(self.cols));
        let start = |part: &Buffer| part.start() as usize;
        let tables = self.tables.as_ref().map_or(0, start);
        let places = self.places.as_ref().map_or(0, start) / 2;
        let sizes = [self.first, self.rows, self.cols, stride, chunks, group];
        let all = [&sizes[..], &[start(&self.words), tables, places, begin, count, spec as usize]].concat();
        all.into_iter().map(|n| n as u32).collect()
    }

    /// Streams of codes in a row.
    pub fn chunks(&self) -> usize {
        self.layout.chunks(self.cols)
    }

    /// Whether codes or columns are missing at the end of the last streams.
    pub fn ragged(&self) -> bool {
        match self.layout {
            Layout::Pq { d, .. } => self.chunks() * STREAM * d != self.cols,
            Layout::Dense(_) => !self.cols.is_multiple_of(2),
        }
    }

    /// Whether all subspaces of a row share a codebook.
    pub fn single(&self) -> bool {
        match self.layout {
            Layout::Pq { d, group, .. } => group >= self.cols.div_ceil(d),
            Layout::Dense(_) => true,
        }
    }
}

/// Rows `start..start + rows` of a block.
struct Piece<'a, 'b> {
    block: &'a WeightData<'b>,
    start: usize,
    rows: usize,
}

/// The pieces of a slice.
struct Pieces<'a, 'b> {
    layout: Layout,
    /// First of the weight's rows.
    first: usize,
    rows: usize,
    cols: usize,
    all: Vec<Piece<'a, 'b>>,
}

impl Pieces<'_, '_> {
    /// Whether a kernel of few rows takes it with others: dense rows of whole vectors of words as well.
    fn joins(&self) -> bool {
        match self.layout {
            Layout::Dense(dtype) => dtype == Dtype::F16 && self.cols.is_multiple_of(8),
            Layout::Pq { .. } => true,
        }
    }

    fn words(&self) -> usize {
        self.rows * self.layout.stride(self.cols)
    }
}

impl Weight {
    pub(super) fn new(backend: &Wgpu, blocks: &[WeightData<'_>]) -> Result<Self> {
        let pieces = Self::pieces(backend, blocks)?;
        let mut slices = Vec::with_capacity(pieces.len());
        let mut rest = &pieces[..];
        while !rest.is_empty() {
            // As many as fit one binding, and one kernel.
            let (mut count, mut words) = (0, 0);
            while let Some(next) = rest.get(count).filter(|next| {
                let more = words + next.words().next_multiple_of(PART_ALIGN);
                // A kernel of many specs is long, and SwiftShader compiles slowly.
                let device = &backend.0.device;
                let alone = !next.joins() || !rest[0].joins() || device.is_software() && !device.rows;
                count == 0 || !alone && count < MAX_SPANS && 4 * more as u64 <= backend.weight_slice()
            }) {
                words += next.words().next_multiple_of(PART_ALIGN);
                count += 1;
            }
            let (together, others) = rest.split_at(count);
            slices.extend(upload(backend, together)?);
            rest = others;
        }
        backend.flush_uploads();
        Ok(Self { slices })
    }

    /// Slices of blocks: neighbours of one layout together, as far as a binding reaches.
    fn pieces<'a, 'b>(backend: &Wgpu, blocks: &'a [WeightData<'b>]) -> Result<Vec<Pieces<'a, 'b>>> {
        let slice_bytes = backend.weight_slice();
        let mut slices = Vec::<Pieces<'_, '_>>::new();
        for block in blocks {
            let (block_rows, cols) = block.shape();
            let layout = Layout::of(block, backend);
            let row_bytes = 4 * layout.stride(cols);
            let most = slice_bytes / row_bytes as u64 / ALIGN as u64 * ALIGN as u64;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            if most == 0 {
                let expected = format!("rows under {} bytes", slice_bytes / ALIGN as u64);
                return Err(Error::mismatch("weight for this adapter", expected, row_bytes));
            }
            let mut start = 0;
            while start < block_rows {
                let goes_on = |slice: &&mut Pieces<'_, '_>| {
                    let last = slice.all.last();
                    slice.rows < most
                        && last.is_some_and(|last| stacks(backend, last.block, block, slice.rows))
                };
                let first = slices.last().map_or(0, |slice| slice.first + slice.rows);
                if slices.last_mut().as_ref().filter(|slice| goes_on(slice)).is_none() {
                    slices.push(Pieces { layout, first, rows: 0, cols, all: Vec::new() });
                }
                let Some(slice) = slices.last_mut() else { continue };
                let rows = (most - slice.rows).min(block_rows - start);
                slice.all.push(Piece { block, start, rows });
                (start, slice.rows) = (start + rows, slice.rows + rows);
            }
        }
        Ok(slices)
    }
}

/// Slices in buffers that they share.
fn upload(backend: &Wgpu, together: &[Pieces<'_, '_>]) -> Result<Vec<Slice>> {
    let parts: usize = together.iter().map(|pieces| pieces.words().next_multiple_of(PART_ALIGN)).sum();
    let all = backend.storage(parts)?;
    let (mut at, mut tables, mut places) = (0, Vec::new(), Vec::new());
    let mut starts = Vec::new();
    for pieces in together {
        let words = all.part(at, pieces.words());
        at += pieces.words().next_multiple_of(PART_ALIGN);
        tables.resize(tables.len().next_multiple_of(PART_ALIGN), 0);
        places.resize(places.len().next_multiple_of(PART_ALIGN), 0);
        let (first_table, first_place) = (tables.len(), places.len());
        fill(backend, pieces, &words, (&mut tables, &mut places));
        starts.push((words, first_table..tables.len(), first_place..places.len()));
    }
    let store = |words: &[u32]| -> Result<Option<Buffer>> {
        if words.is_empty() {
            return Ok(None);
        }
        let buffer = backend.storage(words.len())?;
        backend.upload_at(&buffer, 0, words);
        Ok(Some(buffer))
    };
    let (table_buffer, place_buffer) = (store(&tables)?, store(&places)?);
    let part = |buffer: &Option<Buffer>, range: &Range<usize>| {
        buffer.as_ref().map(|buffer| buffer.part(range.start, range.len()))
    };
    let slices = together.iter().zip(starts).map(|(pieces, (words, table, place))| Slice {
        layout: pieces.layout,
        first: pieces.first,
        rows: pieces.rows,
        cols: pieces.cols,
        words,
        tables: part(&table_buffer, &table),
        places: part(&place_buffer, &place),
        together: places[place].chunks_exact(2).all(|place| place[1] == 0),
    });
    Ok(slices.collect())
}

/// Writes a slice's words, and adds its codebooks and its rows' places.
fn fill(
    backend: &Wgpu,
    pieces: &Pieces<'_, '_>,
    words: &Buffer,
    (tables, places): (&mut Vec<u32>, &mut Vec<u32>),
) {
    let (layout, stride) = (pieces.layout, pieces.layout.stride(pieces.cols));
    let (mut at, first_table) = (0, tables.len());
    let mut last: Option<(&PqMatrix<'_>, usize)> = None;
    for piece in &pieces.all {
        let staged = (STAGED / (4 * stride)).max(1);
        for start in (0..piece.rows).step_by(staged) {
            let count = staged.min(piece.rows - start);
            let mut staging = vec![0u32; count * stride];
            let filled = staging.par_chunks_exact_mut(stride).enumerate();
            filled.for_each(|(i, row)| repack(piece.block, piece.start + start + i, layout, row));
            backend.upload_at(words, (at + start) * stride, &staging);
        }
        at += piece.rows;
        if let WeightData::Dense { .. } = piece.block {
            places.extend([1f32.to_bits(), 0].repeat(piece.rows));
        }
        if let WeightData::Pq(matrix) = piece.block {
            let base = match last {
                Some((last, base)) if same_tables(last, matrix) => base,
                _ => {
                    let base = tables.len() - first_table;
                    tables.extend(table_words(&matrix.codebooks, matrix.spec.d));
                    base
                }
            };
            last = Some((matrix, base));
            let rows = piece.start..piece.start + piece.rows;
            places.extend(rows.flat_map(|n| [matrix.scale(n).to_bits(), base as u32]));
        }
    }
}

/// Whether `next` can follow `last` in a slice that holds `rows` rows.
fn stacks(backend: &Wgpu, last: &WeightData<'_>, next: &WeightData<'_>, rows: usize) -> bool {
    let tables = match (last, next) {
        (WeightData::Pq(last), WeightData::Pq(next)) => rows.is_multiple_of(ALIGN) || same_tables(last, next),
        _ => true,
    };
    Layout::of(last, backend) == Layout::of(next, backend) && tables
}

fn same_tables(a: &PqMatrix<'_>, b: &PqMatrix<'_>) -> bool {
    std::sync::Arc::ptr_eq(&a.codebooks, &b.codebooks) || a.codebooks == b.codebooks
}

/// Centroids of `d` f16 each, padded to whole words.
fn table_words(codebooks: &[f16], d: usize) -> impl Iterator<Item = u32> {
    let pair = |pair: &[f16]| {
        let high = pair.get(1).map_or(0, |v| v.to_bits());
        u32::from(pair[0].to_bits()) | u32::from(high) << 16
    };
    codebooks.chunks_exact(d).flat_map(move |centroid| centroid.chunks(2).map(pair))
}

/// Row `n` of a block into `out` `[stride]`.
fn repack(block: &WeightData<'_>, n: usize, layout: Layout, out: &mut [u32]) {
    match (block, layout) {
        (WeightData::Pq(matrix), Layout::Pq { bits, .. }) => {
            let chunks = out.len() / bits;
            let mut codes = vec![0; chunks * STREAM];
            let subspaces = matrix.spec.subspaces(matrix.cols);
            matrix.unpack_row(n, &mut codes[..subspaces]);
            interleave(&codes, bits, out);
        }
        (WeightData::Dense { dtype, cols, bytes, .. }, _) => {
            let row = &bytes[n * cols * dtype.size()..][..cols * dtype.size()];
            bytemuck::cast_slice_mut::<u32, u8>(out)[..row.len()].copy_from_slice(row);
        }
        // Layouts are made of their blocks.
        (WeightData::Pq(_), Layout::Dense(_)) => unreachable!("a dense layout of product-quantized rows"),
    }
}

/// Codes of `bits` into streams: code j of a row is code j / chunks of stream j % chunks, and word w of stream c is
/// word w * chunks + c.
fn interleave(codes: &[u16], bits: usize, out: &mut [u32]) {
    let chunks = codes.len() / STREAM;
    for (c, column) in (0..chunks).map(|c| (c, codes[c..].iter().step_by(chunks))) {
        let (mut word, mut filled, mut at) = (0u64, 0, c);
        for &code in column {
            word |= u64::from(code) << filled;
            filled += bits;
            if filled >= 32 {
                out[at] = word as u32;
                (word, filled, at) = (word >> 32, filled - 32, at + chunks);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pq::pack;

    /// Codes of the stream layout back in their order.
    fn deinterleave(words: &[u32], bits: usize) -> Vec<u16> {
        let chunks = words.len() / bits;
        let code = |j: usize| {
            let (c, bit) = (j % chunks, j / chunks * bits);
            let stream: Vec<u8> = (0..bits).flat_map(|w| words[w * chunks + c].to_le_bytes()).collect();
            let mut codes = vec![0; STREAM];
            pack::unpack(&stream, bits, &mut codes);
            codes[bit / bits]
        };
        (0..chunks * STREAM).map(code).collect()
    }

    #[test]
    fn streams_hold_every_code() {
        for bits in 2..=16 {
            for chunks in [1, 3, 8] {
                let codes: Vec<u16> =
                    (0..chunks * STREAM).map(|j| ((j * 40503) & ((1 << bits) - 1)) as u16).collect();
                let mut words = vec![0; bits * chunks];
                interleave(&codes, bits, &mut words);
                assert_eq!(deinterleave(&words, bits), codes, "{bits} bits, {chunks} streams");
            }
        }
    }

    #[test]
    fn centroids_are_padded_to_words() {
        let values: Vec<f16> = [1.0, 2.0, 3.0].map(f16::from_f32).to_vec();
        assert_eq!(table_words(&values, 3).collect::<Vec<_>>(), [0x4000_3c00, 0x0000_4200]);
        assert_eq!(table_words(&values[..2], 1).collect::<Vec<_>>(), [0x3c00, 0x4000]);
    }
}
