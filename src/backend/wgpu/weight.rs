//! [`Weight`]: stacked matrices, in slices that fit a binding, with codes in the order that the kernels read.

use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::layout::Layout;
use super::limits::{MAX_CODE_BITS, MAX_D, MAX_SPANS, STREAM, at_most};
use super::{Buffer, PART_ALIGN, Wgpu};
use crate::backend::{Dtype, Form, WeightData, unique};
use crate::ops::Matrix;
use crate::pq::PqMatrix;
use crate::{Error, Result};

/// Rows that a workgroup takes at most: within them a slice's codebook does not change.
pub const ALIGN: usize = 64;
/// Bytes that are staged at a time while a weight is uploaded.
const STAGED: usize = 32 << 20;

/// Matrices with the same `in`, stacked along `out`.
pub struct Weight {
    id: u64,
    /// The matrices' forms.
    forms: Vec<Form>,
    pub(super) slices: Vec<Slice>,
}

impl Matrix for Weight {
    fn id(&self) -> u64 {
        self.id
    }

    fn parts(&self) -> &[Form] {
        &self.forms
    }
}

/// Neighbouring rows of a weight, in one layout. Neighbouring slices are parts of the same buffers as long as these fit
/// a binding: a kernel of few rows then takes them together.
pub(super) struct Slice {
    pub layout: Layout,
    /// First of the weight's rows that is here.
    first: usize,
    pub rows: usize,
    pub cols: usize,
    /// `[rows, stride]`: elements or codes.
    pub words: Buffer,
    /// `[codebooks, K, ceil(d / 2)]` pairs of f16, one matrix's after another's; anything for dense rows.
    pub tables: Buffer,
    /// `[rows]`: scale (f32) and first word of the row's codebooks.
    pub row_info: Buffer,
    /// Whether all rows have the same codebooks.
    pub one_codebook: bool,
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
        let (tables, row_info) = (start(&self.tables), start(&self.row_info) / 2);
        let sizes = [self.first, self.rows, self.cols, stride, chunks, group];
        let all = [&sizes[..], &[start(&self.words), tables, row_info, begin, count, spec as usize]].concat();
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
        let pieces = Self::pieces(backend.weight_slice(), blocks)?;
        let mut slices = Vec::with_capacity(pieces.len());
        let mut rest = &pieces[..];
        while !rest.is_empty() {
            // As many as fit one binding, and one kernel.
            let (mut count, mut words) = (0, 0);
            while let Some(next) = rest.get(count).filter(|next| {
                let more = words + next.words().next_multiple_of(PART_ALIGN);
                let joins = next.joins() && rest[0].joins();
                count == 0 || joins && count < MAX_SPANS && 4 * more as u64 <= backend.weight_slice()
            }) {
                words += next.words().next_multiple_of(PART_ALIGN);
                count += 1;
            }
            let (now, later) = rest.split_at(count);
            slices.extend(upload(backend, now)?);
            rest = later;
        }
        backend.flush_uploads();
        Ok(Self { id: unique(), forms: blocks.iter().map(WeightData::form).collect(), slices })
    }

    /// Slices of blocks, each of up to `slice_bytes`: neighbours of one layout together.
    fn pieces<'a, 'b>(slice_bytes: u64, blocks: &'a [WeightData<'b>]) -> Result<Vec<Pieces<'a, 'b>>> {
        let mut slices = Vec::<Pieces<'_, '_>>::new();
        for block in blocks {
            let (block_rows, cols) = block.shape();
            let layout = Layout::of(block);
            if let Layout::Pq { d, bits, .. } = layout {
                at_most("linear", "d", d as u32, MAX_D)?;
                at_most("linear", "bits of a code", bits as u32, MAX_CODE_BITS)?;
            }
            if cols == 0 {
                return Err(Error::mismatch("columns of a weight on wgpu", "at least 1", cols));
            }
            let row_bytes = 4 * layout.stride(cols);
            let most = slice_bytes / row_bytes as u64 / ALIGN as u64 * ALIGN as u64;
            // More rows than the host can count fit any binding.
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            if most == 0 {
                let expected = format!("rows under {} bytes", slice_bytes / ALIGN as u64);
                return Err(Error::mismatch("weight for this adapter", expected, row_bytes));
            }
            let mut start = 0;
            while start < block_rows {
                let goes_on = slices.last().is_some_and(|slice| {
                    let stacks = |last: &Piece<'_, '_>| stacks(last.block, block, slice.rows);
                    slice.rows < most && slice.all.last().is_some_and(stacks)
                });
                if !goes_on {
                    let first = slices.last().map_or(0, |slice| slice.first + slice.rows);
                    slices.push(Pieces { layout, first, rows: 0, cols, all: Vec::new() });
                }
                let last = slices.len() - 1;
                let slice = &mut slices[last];
                let rows = (most - slice.rows).min(block_rows - start);
                slice.all.push(Piece { block, start, rows });
                (start, slice.rows) = (start + rows, slice.rows + rows);
            }
        }
        Ok(slices)
    }
}

/// Slices in buffers that they share.
fn upload(backend: &Wgpu, pieces: &[Pieces<'_, '_>]) -> Result<Vec<Slice>> {
    let parts: usize = pieces.iter().map(|pieces| pieces.words().next_multiple_of(PART_ALIGN)).sum();
    let all = backend.storage(parts)?;
    let (mut at, mut tables, mut row_info) = (0, Vec::new(), Vec::new());
    let mut starts = Vec::new();
    for pieces in pieces {
        let words = all.part(at, pieces.words());
        at += pieces.words().next_multiple_of(PART_ALIGN);
        tables.resize(tables.len().next_multiple_of(PART_ALIGN), 0);
        row_info.resize(row_info.len().next_multiple_of(PART_ALIGN), 0);
        let (first_table, first_info) = (tables.len(), row_info.len());
        fill(backend, pieces, &words, (&mut tables, &mut row_info));
        starts.push((words, first_table..tables.len(), first_info..row_info.len()));
    }
    let store = |words: &[u32]| -> Result<Buffer> {
        if words.is_empty() {
            return Ok(backend.0.unused.share());
        }
        let buffer = backend.storage(words.len())?;
        backend.upload_at(&buffer, 0, words);
        Ok(buffer)
    };
    let (table_buffer, info_buffer) = (store(&tables)?, store(&row_info)?);
    // An empty part would begin behind the last word.
    let part = |buffer: &Buffer, range: &Range<usize>| {
        if range.is_empty() { buffer.whole() } else { buffer.part(range.start, range.len()) }
    };
    let slices = pieces.iter().zip(starts).map(|(pieces, (words, table, rows))| Slice {
        layout: pieces.layout,
        first: pieces.first,
        rows: pieces.rows,
        cols: pieces.cols,
        words,
        tables: part(&table_buffer, &table),
        row_info: part(&info_buffer, &rows),
        one_codebook: row_info[rows].chunks_exact(2).all(|info| info[1] == 0),
    });
    Ok(slices.collect())
}

/// Writes a slice's words, and adds its codebooks and its rows' scales and codebook offsets.
fn fill(
    backend: &Wgpu,
    pieces: &Pieces<'_, '_>,
    words: &Buffer,
    (tables, row_info): (&mut Vec<u32>, &mut Vec<u32>),
) {
    let stride = pieces.layout.stride(pieces.cols);
    let (mut at, first_table) = (0, tables.len());
    let mut last: Option<(&PqMatrix<'_>, usize)> = None;
    for piece in &pieces.all {
        let staged = (STAGED / (4 * stride)).max(1);
        for start in (0..piece.rows).step_by(staged) {
            let count = staged.min(piece.rows - start);
            let mut staging = vec![0u32; count * stride];
            let filled = staging.par_chunks_exact_mut(stride).enumerate();
            filled.for_each(|(i, row)| repack(piece.block, piece.start + start + i, row));
            backend.upload_at(words, (at + start) * stride, &staging);
        }
        at += piece.rows;
        if let WeightData::Dense { .. } = piece.block {
            row_info.extend([1f32.to_bits(), 0].repeat(piece.rows));
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
            row_info.extend(rows.flat_map(|n| [matrix.scale(n).to_bits(), base as u32]));
        }
    }
}

/// Whether `next` can follow `last` in a slice that holds `rows` rows.
fn stacks(last: &WeightData<'_>, next: &WeightData<'_>, rows: usize) -> bool {
    Layout::of(last) == Layout::of(next)
        && match (last, next) {
            (WeightData::Pq(last), WeightData::Pq(next)) => {
                rows.is_multiple_of(ALIGN) || same_tables(last, next)
            }
            (WeightData::Dense { .. }, _) | (_, WeightData::Dense { .. }) => true,
        }
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
fn repack(block: &WeightData<'_>, n: usize, out: &mut [u32]) {
    match block {
        WeightData::Pq(matrix) => {
            let bits = matrix.spec.code_bits();
            let mut codes = vec![0; out.len() / bits * STREAM];
            let subspaces = matrix.spec.subspaces(matrix.cols);
            matrix.unpack_row(n, &mut codes[..subspaces]);
            interleave(&codes, bits, out);
        }
        WeightData::Dense { dtype, cols, bytes, .. } => {
            let row = &bytes[n * cols * dtype.size()..][..cols * dtype.size()];
            bytemuck::cast_slice_mut::<u32, u8>(out)[..row.len()].copy_from_slice(row);
        }
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
