//! [`Weight`]: stacked matrices as the CPU kernels like them.

use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::Result;
use crate::backend::{Dtype, Form, WeightData, unique};
use crate::ops::Matrix;
use crate::pq::{PqMatrix, Rotation, Scope};
use crate::tensor::{TensorView, shared_cols};

/// Matrices with the same `in`, stacked along `out`.
#[derive(Debug)]
pub struct Weight {
    id: u64,
    parts: Vec<Form>,
    pub(super) cols: usize,
    pub(super) blocks: Vec<Block>,
}

#[derive(Debug)]
pub(super) enum Block {
    Dense(Dense),
    Pq(Pq),
}

/// A dense matrix `[rows, cols]`.
#[derive(Debug)]
pub(super) struct Dense {
    pub rows: usize,
    pub cols: usize,
    data: DenseData,
}

#[derive(Debug)]
enum DenseData {
    F32(Vec<f32>),
    F16(Vec<f16>),
    /// The upper halves of f32 numbers.
    BF16(Vec<u16>),
}

/// A product-quantized matrix `[rows, cols]` with unpacked codes.
#[derive(Debug)]
pub(super) struct Pq {
    pub rows: usize,
    pub cols: usize,
    pub d: usize,
    pub k: usize,
    /// Subspaces that share a codebook.
    pub group: usize,
    pub rotation: Option<Rotation>,
    pub codes: Codes,
    /// d rounded up to a power of two: what SIMD loads take.
    pub lanes: usize,
    /// `[codebooks, k, lanes]`, zeros after d.
    pub codebooks: Vec<f32>,
    /// `[rows]`.
    pub scales: Vec<f32>,
    /// The table in the file, which tells matrices that share it.
    shared: Option<Arc<[f16]>>,
}

/// Codes `[rows, subspaces]`, in the smallest type that holds them.
#[derive(Debug)]
pub(super) enum Codes {
    U8(Vec<u8>),
    U16(Vec<u16>),
}

impl Weight {
    /// # Errors
    /// There are no matrices, or their columns differ.
    pub(super) fn new(data: &[WeightData<'_>]) -> Result<Self> {
        let cols = shared_cols(data)?;
        let mut blocks: Vec<Block> = Vec::new();
        for weight in data {
            match weight {
                WeightData::Dense { dtype, rows, cols, bytes } => {
                    blocks.push(Block::Dense(Dense::new(*dtype, *rows, *cols, bytes)))
                }
                WeightData::Pq(matrix) => match blocks.last_mut() {
                    Some(Block::Pq(last)) if last.continues(matrix) => last.append(Pq::new(matrix)),
                    _ => blocks.push(Block::Pq(Pq::new(matrix))),
                },
            }
        }
        Ok(Self { id: unique(), parts: data.iter().map(WeightData::form).collect(), cols, blocks })
    }

    /// Row `n` of an embedding table, un-rotated, into `out` `[cols]`.
    pub(super) fn lookup(&self, mut n: usize, out: &mut [f32]) {
        for block in &self.blocks {
            if n < block.rows() {
                block.decode(n, out);
                if let Block::Pq(Pq { rotation: Some(rotation), .. }) = block {
                    rotation.invert(out);
                }
                return;
            }
            n -= block.rows();
        }
    }
}

impl Matrix for Weight {
    fn id(&self) -> u64 {
        self.id
    }

    fn parts(&self) -> &[Form] {
        &self.parts
    }
}

impl Block {
    pub(super) fn rows(&self) -> usize {
        match self {
            Block::Dense(dense) => dense.rows,
            Block::Pq(pq) => pq.rows,
        }
    }

    /// Rows from `start` as they are stored, into `out`, a multiple of `cols` long.
    fn decode(&self, start: usize, out: &mut [f32]) {
        match self {
            Block::Dense(dense) => dense.decode(start, out),
            Block::Pq(pq) => pq.decode(start, out),
        }
    }
}

impl Dense {
    fn new(dtype: Dtype, rows: usize, cols: usize, bytes: &[u8]) -> Self {
        let data = match dtype {
            Dtype::F32 => DenseData::F32(TensorView { dtype, shape: vec![rows, cols], bytes }.to_f32()),
            Dtype::F16 => DenseData::F16(crate::tensor::f16_slice(bytes).into_owned()),
            Dtype::BF16 => {
                DenseData::BF16(bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect())
            }
        };
        Self { rows, cols, data }
    }

    pub(super) fn decode(&self, start: usize, out: &mut [f32]) {
        let range = start * self.cols..start * self.cols + out.len();
        match &self.data {
            DenseData::F32(data) => out.copy_from_slice(&data[range]),
            DenseData::F16(data) => data[range].convert_to_f32_slice(out),
            DenseData::BF16(data) => {
                for (out, bits) in out.iter_mut().zip(&data[range]) {
                    *out = f32::from_bits(u32::from(*bits) << 16);
                }
            }
        }
    }
}

impl Pq {
    fn new(matrix: &PqMatrix<'_>) -> Self {
        let PqMatrix { spec, rows, cols, .. } = *matrix;
        let subspaces = spec.subspaces(cols);
        let mut row = vec![0u16; subspaces];
        let unpacked = (0..rows).flat_map(|n| {
            matrix.unpack_row(n, &mut row);
            row.clone()
        });
        let codes = if spec.k <= 256 {
            Codes::U8(unpacked.map(|code| code as u8).collect())
        } else {
            Codes::U16(unpacked.collect())
        };
        let lanes = spec.d.next_power_of_two();
        let padded = |centroid: &[f16]| {
            let mut row = [0f32; 8];
            row.iter_mut().zip(centroid).for_each(|(to, c)| *to = c.to_f32());
            row.into_iter().take(lanes)
        };
        Self {
            rows,
            cols,
            d: spec.d,
            k: spec.k,
            group: spec.subspaces_per_codebook(cols),
            rotation: matrix.rotation(),
            codes,
            lanes,
            codebooks: matrix.codebooks.chunks_exact(spec.d).flat_map(padded).collect(),
            scales: (0..rows).map(|n| matrix.scale(n)).collect(),
            shared: (spec.scope == Scope::Universal).then(|| matrix.codebooks.clone()),
        }
    }

    pub fn subspaces(&self) -> usize {
        self.cols.div_ceil(self.d)
    }

    /// Rows from `start`, still rotated, into `out`, a multiple of `cols` long.
    pub fn decode(&self, start: usize, out: &mut [f32]) {
        match &self.codes {
            Codes::U8(codes) => decode_from(self, codes, start, out),
            Codes::U16(codes) => decode_from(self, codes, start, out),
        }
    }

    /// Whether `matrix` can be appended: it uses the same universal table in the same way.
    fn continues(&self, matrix: &PqMatrix<'_>) -> bool {
        let same_table = self.shared.as_ref().is_some_and(|table| Arc::ptr_eq(table, &matrix.codebooks));
        same_table && self.cols == matrix.cols && self.rotation == matrix.rotation()
    }

    fn append(&mut self, next: Self) {
        self.rows += next.rows;
        self.scales.extend(next.scales);
        match (&mut self.codes, next.codes) {
            (Codes::U8(codes), Codes::U8(next)) => codes.extend(next),
            (Codes::U16(codes), Codes::U16(next)) => codes.extend(next),
            _ => unreachable!("one table has one K, so one code type"),
        }
    }
}

fn decode_from<C: Copy + Into<usize>>(weight: &Pq, codes: &[C], start: usize, out: &mut [f32]) {
    let subspaces = weight.subspaces();
    for (i, row) in out.chunks_exact_mut(weight.cols).enumerate() {
        let n = start + i;
        let codes = &codes[n * subspaces..][..subspaces];
        match weight.d {
            1 => decode_row::<1, 1, C>(weight, codes, weight.scales[n], row),
            2 => decode_row::<2, 2, C>(weight, codes, weight.scales[n], row),
            3 => decode_row::<3, 4, C>(weight, codes, weight.scales[n], row),
            4 => decode_row::<4, 4, C>(weight, codes, weight.scales[n], row),
            5 => decode_row::<5, 8, C>(weight, codes, weight.scales[n], row),
            6 => decode_row::<6, 8, C>(weight, codes, weight.scales[n], row),
            7 => decode_row::<7, 8, C>(weight, codes, weight.scales[n], row),
            _ => decode_row::<8, 8, C>(weight, codes, weight.scales[n], row),
        }
    }
}

/// One row, of centroids of D elements in L lanes.
fn decode_row<const D: usize, const L: usize, C: Copy + Into<usize>>(
    weight: &Pq,
    codes: &[C],
    scale: f32,
    row: &mut [f32],
) {
    let (centroids, _) = weight.codebooks.as_chunks::<L>();
    for (books, (codes, row)) in
        centroids.chunks_exact(weight.k).zip(codes.chunks(weight.group).zip(row.chunks_mut(weight.group * D)))
    {
        let (whole, tail) = row.as_chunks_mut::<D>();
        for (w, &code) in whole.iter_mut().zip(codes) {
            let centroid = &books[code.into()];
            *w = std::array::from_fn(|i| scale * centroid[i]);
        }
        if let (Some(&code), false) = (codes.last(), tail.is_empty()) {
            for (w, c) in tail.iter_mut().zip(books[code.into()]) {
                *w = scale * c;
            }
        }
    }
}

/// Where a block's products go in an output row.
#[derive(Clone, Copy)]
pub(super) struct Output<'a> {
    pub stride: usize,
    pub offset: usize,
    pub accumulate: bool,
    pub bias: Option<&'a [f32]>,
}

impl Output<'_> {
    /// Stores `product`, of the block's row `n`, at `y`.
    pub fn store(&self, n: usize, product: f32, y: &mut f32) {
        let before = if self.accumulate { *y } else { 0.0 };
        *y = before + product + self.bias.map_or(0.0, |bias| bias[n]);
    }
}
