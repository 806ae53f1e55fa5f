//! [`quantize()`]: a dense matrix to a [`PqMatrix`].

use std::ops::AddAssign;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::assign::Nearest;
use super::{Feedback, PqMatrix, PqSpec, RowScale, Scope, feedback, kmeans, pack, universal};
use crate::{Error, Result};

/// The most vectors that a codebook is trained on; more do not help (5 Lloyd steps on 64 k equal 60 on all vectors).
pub(crate) const SAMPLE: usize = 1 << 16;

/// Lloyd steps from the universal codebook; more without row scales, as such weights are less Gaussian.
pub(crate) fn steps(spec: PqSpec) -> usize {
    if spec.scale == RowScale::None { 12 } else { 5 }
}

/// A quantized matrix and its error.
#[derive(Clone, Debug)]
pub struct Quantized {
    pub matrix: PqMatrix<'static>,
    pub error: SquaredError,
}

/// Sum of squared differences and sum of squared weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SquaredError {
    pub error: f64,
    pub total: f64,
}

impl SquaredError {
    /// |W - W'|^2 / |W|^2; 0 for a matrix of zeros.
    pub fn relative(&self) -> f64 {
        if self.total > 0.0 { self.error / self.total } else { 0.0 }
    }
}

impl AddAssign for SquaredError {
    fn add_assign(&mut self, other: Self) {
        self.error += other.error;
        self.total += other.total;
    }
}

impl std::iter::Sum for SquaredError {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), |mut sum, part| {
            sum += part;
            sum
        })
    }
}

/// Quantizes `weights` `[rows, cols]`. Error texts call them the rows of matrix `name` from `first_row` on.
///
/// With `feedback`, computed for these columns and the spec's d and rotation, later columns of a row compensate the
/// errors of earlier ones; without, each sub-vector gets its nearest centroid.
///
/// The result does not depend on the number of threads. With a universal codebook rows are independent, so a matrix may
/// be quantized in blocks of rows.
///
/// # Errors
/// A weight that is not finite, or too large for f16 scales and centroids; a spec with a rotation that `cols` does not
/// allow (see [`PqSpec::for_cols`]).
pub fn quantize(
    name: &str,
    first_row: usize,
    mut weights: Vec<f32>,
    cols: usize,
    spec: PqSpec,
    feedback: Option<&Feedback>,
) -> Result<Quantized> {
    let rows = check(name, weights.len(), cols, spec, feedback)?;
    let totals = weights
        .par_chunks_mut(cols)
        .enumerate()
        .map(|(n, row)| {
            prepare(row, spec).map_err(|why| Error::invalid(format!("{name}, row {}", first_row + n), why))
        })
        .collect::<Result<Vec<_>>>()?;
    let codebooks = match spec.scope {
        Scope::Universal => universal::codebook(spec.d, spec.k),
        _ => train(name, &weights, cols, spec)?,
    };
    let mut books = Books::new(codebooks.clone(), spec, rows, cols);
    if feedback.is_some() {
        books.block_rows = feedback::ROWS;
    }
    let row_bytes = spec.row_bytes(cols);
    let mut codes = vec![0; rows * row_bytes];
    let errors: Vec<SquaredError> = codes
        .par_chunks_mut(books.block_rows * row_bytes)
        .zip(weights.par_chunks(books.block_rows * cols))
        .zip(totals.par_chunks(books.block_rows))
        .map(|((codes, weights), rows)| books.encode(weights, rows, feedback, codes))
        .collect();
    let scales =
        if spec.scale == RowScale::None { vec![] } else { totals.iter().map(|row| row.scale).collect() };
    let matrix = PqMatrix { spec, rows, cols, codes: codes.into(), codebooks, scales: scales.into() };
    Ok(Quantized { matrix: matrix.checked(name)?, error: errors.into_iter().sum() })
}

/// The number of rows.
///
/// # Errors
/// The number of weights, the spec or the feedback does not fit `cols`.
pub(crate) fn check(
    name: &str,
    weights: usize,
    cols: usize,
    spec: PqSpec,
    feedback: Option<&Feedback>,
) -> Result<usize> {
    if weights == 0 || cols == 0 || !weights.is_multiple_of(cols) {
        return Err(Error::mismatch(name, format!("rows of {cols} weights"), weights));
    }
    if spec != spec.for_cols(cols) {
        return Err(Error::invalid(name, format!("{cols} columns cannot be rotated as {spec} asks")));
    }
    if let Some(feedback) = feedback.filter(|feedback| feedback.shape() != (cols, spec.d)) {
        let expected = format!("error feedback for {cols} columns and d = {}", spec.d);
        return Err(Error::mismatch(name, expected, format!("{:?}", feedback.shape())));
    }
    Ok(weights / cols)
}

/// |W - W'|^2 / |W|^2 of a quantized matrix against the original `[rows, cols]`.
pub fn relative_error(matrix: &PqMatrix<'_>, original: &[f32]) -> f64 {
    let errors: Vec<SquaredError> = original
        .par_chunks(matrix.cols)
        .enumerate()
        .map(|(n, row)| {
            let mut decoded = vec![0.0; matrix.cols];
            matrix.decode_row(n, &mut decoded);
            if let Some(rotation) = matrix.rotation() {
                rotation.invert(&mut decoded);
            }
            let error = row.iter().zip(&decoded).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            SquaredError { error, total: sum_of_squares(row) }
        })
        .collect();
    errors.into_iter().sum::<SquaredError>().relative()
}

/// Scale and norm of a prepared row.
struct Row {
    scale: f16,
    /// Of the row before it was scaled.
    sum_of_squares: f64,
}

/// Rotates a row and divides it by its scale, as the spec says.
fn prepare(row: &mut [f32], spec: PqSpec) -> Result<Row, String> {
    if let Some(weight) = row.iter().find(|w| !w.is_finite()) {
        return Err(format!("weights must be finite, found {weight}"));
    }
    if let Some(rotation) = spec.rotation(row.len()) {
        rotation.apply(row);
    }
    let sum_of_squares = sum_of_squares(row);
    let scale = match spec.scale {
        RowScale::None => return Ok(Row { scale: f16::ONE, sum_of_squares }),
        RowScale::Rms => libm::sqrt(sum_of_squares / row.len() as f64) as f32,
        RowScale::AbsMax => row.iter().fold(0f32, |max, w| max.max(w.abs())) / 3.0,
    };
    let rounded = f16::from_f32(scale);
    if !rounded.is_finite() {
        return Err(format!("its scale must fit into f16, found {scale}"));
    }
    if rounded > f16::ZERO {
        let inverse = 1.0 / rounded.to_f32();
        row.iter_mut().for_each(|w| *w *= inverse);
    }
    Ok(Row { scale: rounded, sum_of_squares })
}

/// Eight interleaved sums, so that the additions overlap.
fn sum_of_squares(row: &[f32]) -> f64 {
    let mut sums = [0f64; 8];
    for part in row.chunks(8) {
        for (sum, &w) in sums.iter_mut().zip(part) {
            *sum += f64::from(w) * f64::from(w);
        }
    }
    sums.iter().sum()
}

/// One codebook for each group of subspaces of the prepared `weights`, rounded to f16: `[codebooks, k, d]`.
fn train(name: &str, weights: &[f32], cols: usize, spec: PqSpec) -> Result<Arc<[f16]>> {
    let start = universal::codebook(spec.d, spec.k).to_f32_vec();
    let books: Vec<Vec<f32>> = (0..spec.codebooks(cols))
        .into_par_iter()
        .map(|book| {
            let sample = sample(weights, cols, spec, book);
            let mut centroids = start.clone();
            fit(&mut centroids, &sample, spec.d);
            kmeans::lloyd(&sample, spec.d, &mut centroids, steps(spec));
            centroids
        })
        .collect();
    round(name, &books.concat(), spec.d)
}

/// Rounds centroids of `d` elements to f16; fails if one does not fit.
pub(crate) fn round(name: &str, centroids: &[f32], d: usize) -> Result<Arc<[f16]>> {
    let rounded: Arc<[f16]> = centroids.iter().map(|&c| f16::from_f32(c)).collect();
    match rounded.iter().position(|c| !c.is_finite()) {
        Some(at) => Err(Error::invalid(name, format!("centroid {} does not fit into f16", at / d))),
        None => Ok(rounded),
    }
}

/// The vectors `[n, d]` that a codebook is trained on: all of its subspaces' or a fixed random choice of them.
fn sample(weights: &[f32], cols: usize, spec: PqSpec, book: usize) -> Vec<f32> {
    let PqSpec { d, .. } = spec;
    let group = spec.subspaces_per_codebook(cols);
    let first = book * group;
    // A padded last vector would train the padding; it is used only if the codebook has no other.
    let last = (first + group).min(cols / d).max(first + 1);
    let (rows, subspaces) = (weights.len() / cols, last - first);
    let total = rows * subspaces;
    let mut out = Vec::with_capacity(total.min(SAMPLE) * d);
    let mut push = |i: usize| {
        let row = &weights[(i / subspaces) * cols..][..cols];
        let vector = &row[(first + i % subspaces) * d..];
        let vector = &vector[..d.min(vector.len())];
        out.extend_from_slice(vector);
        out.extend(std::iter::repeat_n(0.0, d - vector.len()));
    };
    if total <= SAMPLE {
        (0..total).for_each(&mut push);
    } else {
        (0..SAMPLE as u64).for_each(|i| push((mix(i) % total as u64) as usize));
    }
    out
}

/// SplitMix64's output function (S. Vigna, public domain).
fn mix(i: u64) -> u64 {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Gives Gaussian `centroids` each dimension's mean and standard deviation in `vectors`.
fn fit(centroids: &mut [f32], vectors: &[f32], d: usize) {
    let count = (vectors.len() / d) as f64;
    for i in 0..d {
        let values = || vectors.iter().skip(i).step_by(d).map(|&v| f64::from(v));
        let mean = values().sum::<f64>() / count;
        let deviation = libm::sqrt(values().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count);
        for c in centroids.iter_mut().skip(i).step_by(d) {
            *c = (mean + deviation * f64::from(*c)) as f32;
        }
    }
}

/// The codebooks of a matrix, prepared to encode blocks of its rows.
struct Books {
    spec: PqSpec,
    cols: usize,
    /// `[codebooks, k, d]`.
    centroids: Vec<f32>,
    nearest: Vec<Nearest>,
    /// Rows that are encoded together: enough to fill the SIMD lanes for each codebook.
    block_rows: usize,
}

impl Books {
    /// For `rows` rows of `cols` weights.
    fn new(codebooks: Arc<[f16]>, spec: PqSpec, rows: usize, cols: usize) -> Self {
        let centroids = codebooks.to_f32_vec();
        let count = rows * spec.subspaces_per_codebook(cols);
        let books = centroids.par_chunks(spec.k * spec.d);
        let nearest: Vec<_> = books.map(|book| Nearest::for_many(book, spec.d, count)).collect();
        let block_rows = if nearest.len() > 1 { 64 } else { 8 };
        Self { spec, cols, centroids, nearest, block_rows }
    }

    /// Encodes prepared `weights` `[rows.len(), cols]` into packed `codes` `[rows.len(), row_bytes]`.
    fn encode(
        &self,
        weights: &[f32],
        rows: &[Row],
        feedback: Option<&Feedback>,
        codes: &mut [u8],
    ) -> SquaredError {
        let cols = self.cols;
        let subspaces = self.spec.subspaces(cols);
        let mut indices = vec![0u16; rows.len() * subspaces];
        match feedback {
            Some(feedback) => {
                let (PqSpec { d, k, .. }, group) = (self.spec, self.spec.subspaces_per_codebook(cols));
                let book = |j| (&self.centroids[j / group * k * d..][..k * d], &self.nearest[j / group]);
                feedback.assign(weights, book, &mut indices);
            }
            None => self.assign(weights, &mut indices),
        }
        let row_bytes = self.spec.row_bytes(cols);
        let parts = weights.chunks_exact(cols).zip(indices.chunks_exact(subspaces)).zip(rows);
        parts
            .zip(codes.chunks_exact_mut(row_bytes))
            .map(|(((weights, indices), row), codes)| {
                pack::pack(indices, self.spec.code_bits(), codes);
                self.error(weights, indices, row)
            })
            .sum()
    }

    /// The nearest centroids of prepared `weights` `[rows, cols]`, into `indices` `[rows, subspaces]`.
    fn assign(&self, weights: &[f32], indices: &mut [u16]) {
        let (cols, d) = (self.cols, self.spec.d);
        let subspaces = self.spec.subspaces(cols);
        let group = self.spec.subspaces_per_codebook(cols);
        let full = cols / d;
        let (mut vectors, mut found) = (vec![], vec![]);
        for (book, nearest) in self.nearest.iter().enumerate() {
            let (first, last) = (book * group, ((book + 1) * group).min(subspaces));
            let last_full = last.min(full).max(first);
            vectors.clear();
            for row in weights.chunks_exact(cols) {
                vectors.extend_from_slice(&row[first * d..last_full * d]);
            }
            found.resize(vectors.len() / d, 0);
            nearest.assign(&vectors, &mut found);
            for (n, row) in weights.chunks_exact(cols).enumerate() {
                let indices = &mut indices[n * subspaces..][..subspaces];
                let whole = last_full - first;
                indices[first..last_full].copy_from_slice(&found[n * whole..][..whole]);
                if last > last_full {
                    indices[last_full] = nearest.assign_ragged(&row[last_full * d..]);
                }
            }
        }
    }

    /// The error of one row, in the scale of the matrix.
    fn error(&self, weights: &[f32], indices: &[u16], row: &Row) -> SquaredError {
        let total = row.sum_of_squares;
        if row.scale == f16::ZERO {
            return SquaredError { error: total, total };
        }
        let PqSpec { d, k, .. } = self.spec;
        let group = self.spec.subspaces_per_codebook(self.cols);
        let mut error = 0.0;
        for (j, (vector, &index)) in weights.chunks(d).zip(indices).enumerate() {
            let centroid = &self.centroids[((j / group) * k + usize::from(index)) * d..][..d];
            let squared: f32 = vector.iter().zip(centroid).map(|(w, c)| (w - c) * (w - c)).sum();
            error += f64::from(squared);
        }
        SquaredError { error: error * f64::from(row.scale.to_f32()).powi(2), total }
    }
}
