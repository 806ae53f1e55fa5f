//! [`Feedback`]: error feedback, the recursion of GPTQ (arXiv 2210.17323) on sub-vectors, in the form of QuIP's LDLQ
//! (arXiv 2307.13304): H = U D U^T with U unit upper triangular in blocks of d, and each sub-vector is quantized
//! after the errors of those before it, multiplied by U, have been added.

use multiversion::multiversion;
use rayon::prelude::*;

use super::assign::Nearest;
use crate::gemm::{Mat, matmul};

/// Rows that are assigned together.
pub const ROWS: usize = 64;
/// Columns of a block. Errors are added to later columns of their own block at once, to later blocks by a matrix
/// product.
pub const BLOCK: usize = 128;

/// How much of each column's error is added to the columns after it, for sub-vectors of `d` columns.
#[derive(Clone, Debug)]
pub struct Feedback {
    d: usize,
    cols: usize,
    /// `[cols, cols]`: row j, column k holds the share of column j's error in column k; 0 unless k belongs to a
    /// later sub-vector than j.
    shares: Vec<f32>,
}

impl Feedback {
    /// From the upper triangular `factor` V of the Hessian H = V V^T, `[cols, cols]` as a function of row and column:
    /// the shares are V_J / V_JJ, where J are the columns of a sub-vector.
    pub fn new(cols: usize, d: usize, factor: impl Fn(usize, usize) -> f64 + Sync) -> Self {
        let mut shares = vec![0.0; cols * cols];
        shares.par_chunks_exact_mut(cols).enumerate().for_each(|(j, row)| {
            for (block, to) in row.chunks_mut(d).enumerate().skip(j / d + 1) {
                let first = block * d;
                let mut share = [0f64; 8];
                for k in 0..to.len() {
                    let known: f64 = (0..k).map(|i| share[i] * factor(first + i, first + k)).sum();
                    share[k] = (factor(j, first + k) - known) / factor(first + k, first + k);
                    to[k] = share[k] as f32;
                }
            }
        });
        Self { d, cols, shares }
    }

    /// (columns of a matrix, columns of a sub-vector).
    pub fn shape(&self) -> (usize, usize) {
        (self.cols, self.d)
    }

    /// `[cols, cols]`: row j, column k holds the share of column j's error in column k.
    pub fn shares(&self) -> &[f32] {
        &self.shares
    }

    /// Assigns up to [`ROWS`] prepared rows `weights` `[rows, cols]` into `codes` `[rows, subspaces]`. `codebook` gives
    /// the centroids `[k, d]` of a subspace and their search.
    pub fn assign<'b>(
        &self,
        weights: &[f32],
        codebook: impl Fn(usize) -> (&'b [f32], &'b Nearest),
        codes: &mut [u16],
    ) {
        let (cols, d) = (self.cols, self.d);
        let (rows, subspaces) = (weights.len() / cols, cols.div_ceil(d));
        // Column-major from here on: [cols, ROWS].
        let mut errors = vec![[0f32; ROWS]; cols];
        let mut block = vec![[0f32; ROWS]; BLOCK];
        let (mut vectors, mut found) = (vec![0f32; rows * d], vec![0u16; rows]);
        let width = BLOCK / d * d;
        for start in (0..cols).step_by(width) {
            let end = cols.min(start + width);
            let correction = &mut block[..end - start];
            if start > 0 {
                let shares = Mat::rows(&self.shares[start..], cols).t();
                let done = Mat::rows(errors[..start].as_flattened(), ROWS);
                matmul((end - start, start, ROWS), shares, done, correction.as_flattened_mut());
            } else {
                correction.fill([0.0; ROWS]);
            }
            for first in (start..end).step_by(d) {
                let columns = first..end.min(first + d);
                let size = columns.len();
                for (n, row) in weights.chunks_exact(cols).enumerate() {
                    for (i, c) in columns.clone().enumerate() {
                        vectors[n * size + i] = row[c] + correction[c - start][n];
                    }
                }
                let (centroids, nearest) = codebook(first / d);
                if size == d {
                    nearest.assign(&vectors, &mut found);
                } else {
                    for (code, vector) in found.iter_mut().zip(vectors.chunks_exact(size)) {
                        *code = nearest.assign_ragged(vector);
                    }
                }
                for (n, (row, &code)) in weights.chunks_exact(cols).zip(&found).enumerate() {
                    codes[n * subspaces + first / d] = code;
                    for (i, c) in columns.clone().enumerate() {
                        errors[c][n] = row[c] - centroids[usize::from(code) * d + i];
                    }
                }
                for c in columns.clone() {
                    let shares = &self.shares[c * cols..][columns.end..end];
                    spread(shares, &errors[c], &mut correction[columns.end - start..]);
                }
            }
        }
    }
}

/// Adds a column's error to later columns.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn spread(shares: &[f32], error: &[f32; ROWS], columns: &mut [[f32; ROWS]]) {
    for (column, &share) in columns.iter_mut().zip(shares) {
        for (c, e) in column.iter_mut().zip(error) {
            *c += share * e;
        }
    }
}
