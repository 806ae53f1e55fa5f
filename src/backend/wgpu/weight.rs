//! [`Weight`]: stacked matrices, in slices that fit a binding, with codes in the order that the kernels read.

use half::f16;
use rayon::prelude::*;

use super::{Buffer, Wgpu};
use crate::backend::{Dtype, WeightData};
use crate::pq::PqMatrix;
use crate::{Error, Result};

/// Codes of a stream.
const STREAM: usize = 32;
/// Rows that a workgroup may take together; a slice that has a table per matrix changes it on this boundary only.
pub const ALIGN: usize = 64;
/// Bytes that are staged at a time while a weight is uploaded.
const STAGED: usize = 32 << 20;

/// Matrices with the same `in`, stacked along `out`.
pub struct Weight {
    pub(super) slices: Vec<Slice>,
}

/// Neighbouring rows of a weight, in one layout.
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

/// How the words of a slice are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Dense(Dtype),
    Pq {
        d: usize,
        /// Of a code as it is stored here.
        bits: usize,
        /// Words of a codebook.
        book: usize,
        /// Subspaces that share one.
        group: usize,
        /// Block of the rotation, 0 for none.
        rotate: usize,
    },
}

impl Layout {
    /// A CPU finds codes faster where none crosses from one word to the next; a GPU has less time for their bytes.
    fn of(block: &WeightData<'_>, backend: &Wgpu) -> Self {
        let stored =
            |bits: usize| if backend.0.device.is_software() { bits.next_power_of_two() } else { bits };
        match block {
            WeightData::Dense { dtype, .. } => Self::Dense(*dtype),
            WeightData::Pq(matrix) => Self::Pq {
                d: matrix.spec.d,
                bits: stored(matrix.spec.code_bits()),
                book: matrix.spec.d.div_ceil(2) * matrix.spec.k,
                group: matrix.spec.subspaces_per_codebook(matrix.cols),
                rotate: matrix.rotation().map_or(0, |rotation| rotation.block),
            },
        }
    }

    /// Streams in a row of `cols`, 0 for dense rows.
    fn chunks(self, cols: usize) -> usize {
        match self {
            Self::Dense(_) => 0,
            Self::Pq { d, .. } => cols.div_ceil(d).div_ceil(STREAM),
        }
    }

    /// Words from one row of `cols` to the next.
    fn stride(self, cols: usize) -> usize {
        match self {
            Self::Dense(dtype) => (cols * dtype.size()).div_ceil(4),
            Self::Pq { bits, .. } => bits * self.chunks(cols),
        }
    }

    /// The kernels' FORMAT.
    pub fn format(self) -> u32 {
        match self {
            Self::Dense(Dtype::F32) => 0,
            Self::Dense(Dtype::F16) => 1,
            Self::Dense(Dtype::BF16) => 2,
            Self::Pq { .. } => 3,
        }
    }
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

    /// Streams of codes in a row.
    pub fn chunks(&self) -> usize {
        self.layout.chunks(self.cols)
    }

    /// Whether all subspaces of a row share a codebook.
    pub fn single(&self) -> bool {
        matches!(self.layout, Layout::Pq { d, group, .. } if group >= self.cols.div_ceil(d))
    }
}

/// Rows `start..start + rows` of a block.
struct Piece<'a, 'b> {
    block: &'a WeightData<'b>,
    start: usize,
    rows: usize,
}

impl Weight {
    pub(super) fn new(backend: &Wgpu, blocks: &[WeightData<'_>]) -> Result<Self> {
        let slice_bytes = backend.weight_slice();
        let (mut slices, mut pieces, mut first, mut rows) = (Vec::new(), Vec::<Piece<'_, '_>>::new(), 0, 0);
        for block in blocks {
            let (block_rows, cols) = block.shape();
            let row_bytes = 4 * Layout::of(block, backend).stride(cols);
            let most = slice_bytes / row_bytes as u64 / ALIGN as u64 * ALIGN as u64;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            if most == 0 {
                let expected = format!("rows under {} bytes", slice_bytes / ALIGN as u64);
                return Err(Error::mismatch("weight for this adapter", expected, row_bytes));
            }
            let mut start = 0;
            while start < block_rows {
                if rows == most || pieces.last().is_some_and(|last| !stacks(backend, last.block, block, rows))
                {
                    slices.push(Slice::new(backend, &pieces, first)?);
                    (first, rows) = (first + rows, 0);
                    pieces.clear();
                }
                let taken = (most - rows).min(block_rows - start);
                pieces.push(Piece { block, start, rows: taken });
                (start, rows) = (start + taken, rows + taken);
            }
        }
        slices.push(Slice::new(backend, &pieces, first)?);
        backend.flush_uploads();
        Ok(Self { slices })
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

impl Slice {
    fn new(backend: &Wgpu, pieces: &[Piece<'_, '_>], first: usize) -> Result<Self> {
        let layout =
            pieces.first().map_or(Layout::Dense(Dtype::F32), |piece| Layout::of(piece.block, backend));
        let cols = pieces.first().map_or(0, |piece| piece.block.shape().1);
        let (rows, stride) = (pieces.iter().map(|piece| piece.rows).sum(), layout.stride(cols));
        let words = backend.storage(rows * stride)?;
        let (mut at, mut tables, mut places) = (0, Vec::new(), Vec::new());
        let mut last: Option<(&PqMatrix<'_>, usize)> = None;
        for piece in pieces {
            let staged = (STAGED / (4 * stride)).max(1);
            for start in (0..piece.rows).step_by(staged) {
                let count = staged.min(piece.rows - start);
                let mut staging = vec![0u32; count * stride];
                let filled = staging.par_chunks_exact_mut(stride).enumerate();
                filled.for_each(|(i, row)| repack(piece.block, piece.start + start + i, layout, row));
                backend.upload_at(&words, (at + start) * stride, &staging);
            }
            at += piece.rows;
            if let WeightData::Pq(matrix) = piece.block {
                let base = match last {
                    Some((last, base)) if same_tables(last, matrix) => base,
                    _ => {
                        let base = tables.len();
                        tables.extend(table_words(&matrix.codebooks, matrix.spec.d));
                        base
                    }
                };
                last = Some((matrix, base));
                let rows = piece.start..piece.start + piece.rows;
                places.extend(rows.flat_map(|n| [matrix.scale(n).to_bits(), base as u32]));
            }
        }
        let together = places.chunks_exact(2).all(|place| place[1] == 0);
        let upload = |words: &[u32]| -> Result<Option<Buffer>> {
            if words.is_empty() {
                return Ok(None);
            }
            let buffer = backend.storage(words.len())?;
            backend.upload_at(&buffer, 0, words);
            Ok(Some(buffer))
        };
        let (tables, places) = (upload(&tables)?, upload(&places)?);
        Ok(Self { layout, first, rows, cols, words, tables, places, together })
    }
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
