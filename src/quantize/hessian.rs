//! [`Hessian`] of a linear layer's squared output error: sums of x x^T over the layer's inputs x (second moments).

use rayon::prelude::*;

use super::cholesky::cholesky;
use crate::gemm::{self, matmul};
use crate::pq::{Feedback, Rotation};
use crate::{Error, Result};

/// Columns of a tile, the unit of work.
const TILE: usize = 256;
/// Rows whose products are summed in f32 before they go into the sums in f64.
const ROWS: usize = 1024;
/// What is added to the diagonal, in parts of its mean, until the factorization succeeds.
pub const DAMPING: [f64; 4] = [0.01, 0.1, 1.0, 10.0];

/// Sums of x x^T over rows x.
#[derive(Clone, Debug)]
pub struct Hessian {
    dim: usize,
    /// Tiles (i, j) with i <= j, each `[dim, dim]`'s part `[TILE, TILE]`, cut off at its edges.
    tiles: Vec<Tile>,
}

#[derive(Clone, Debug)]
struct Tile {
    row: usize,
    col: usize,
    rows: usize,
    cols: usize,
    sums: Vec<f64>,
}

impl Hessian {
    /// Of vectors of `dim` elements, none yet.
    pub fn new(dim: usize) -> Self {
        let starts = || (0..dim).step_by(TILE);
        let size = |start: usize| TILE.min(dim - start);
        let tile = |row: usize, col: usize| {
            let (rows, cols) = (size(row), size(col));
            Tile { row, col, rows, cols, sums: vec![0.0; rows * cols] }
        };
        let tiles =
            starts().flat_map(|row| starts().filter(move |&col| col >= row).map(move |col| tile(row, col)));
        Self { dim, tiles: tiles.collect() }
    }

    /// Of sums `[dim, dim]` that were made elsewhere; those at and above the diagonal count.
    pub fn of_sums(dim: usize, sums: &[f64]) -> Self {
        let mut hessian = Self::new(dim);
        hessian.tiles.par_iter_mut().for_each(|tile| {
            for (r, to) in tile.sums.chunks_exact_mut(tile.cols).enumerate() {
                let row = tile.row + r;
                for (to, col) in to.iter_mut().zip(tile.col..) {
                    *to = sums[row.min(col) * dim + row.max(col)];
                }
            }
        });
        hessian
    }

    /// Bytes that the Hessian of `dim` elements and its factorization take at most.
    pub fn bytes(dim: usize) -> usize {
        // Half a matrix of sums and the factor in f64; the matrix and the shares in f32.
        (4 + 8 + 4 + 4) * dim * dim
    }

    /// Adds the vectors `x` `[rows, dim]`. The sums are the same for any number of threads.
    pub fn add(&mut self, x: &[f32]) {
        let dim = self.dim;
        self.tiles.par_iter_mut().for_each(|tile| {
            let mut product = vec![0f32; tile.sums.len()];
            for x in x.chunks(ROWS * dim) {
                let a = gemm::Mat::rows(&x[tile.row..], dim).t();
                let b = gemm::Mat::rows(&x[tile.col..], dim);
                matmul((tile.rows, x.len() / dim, tile.cols), a, b, &mut product);
                for (sum, &p) in tile.sums.iter_mut().zip(&product) {
                    *sum += f64::from(p);
                }
            }
        });
    }

    /// The symmetric matrix `[dim, dim]`, of rotated vectors where there is a rotation.
    pub fn matrix(&self, rotation: Option<Rotation>) -> Vec<f32> {
        let dim = self.dim;
        let mut matrix = vec![0f32; dim * dim];
        matrix.par_chunks_mut(TILE * dim).enumerate().for_each(|(i, rows)| {
            let start = i * TILE;
            for tile in self.tiles.iter().filter(|tile| tile.row == start) {
                for (row, sums) in rows.chunks_exact_mut(dim).zip(tile.sums.chunks_exact(tile.cols)) {
                    for (to, &sum) in row[tile.col..].iter_mut().zip(sums) {
                        *to = sum as f32;
                    }
                }
            }
            for tile in self.tiles.iter().filter(|tile| tile.col == start) {
                for (c, row) in rows.chunks_exact_mut(dim).enumerate() {
                    for (r, to) in row[tile.row..][..tile.rows].iter_mut().enumerate() {
                        *to = tile.sums[r * tile.cols + c] as f32;
                    }
                }
            }
        });
        if let Some(rotation) = rotation {
            let rotate =
                |matrix: &mut [f32]| matrix.par_chunks_exact_mut(dim).for_each(|row| rotation.apply(row));
            rotate(&mut matrix);
            matrix = transposed(&matrix, dim);
            rotate(&mut matrix);
        }
        matrix
    }

    /// Error feedback for weights of sub-vectors of `d` that are rotated so, and the damping that it took.
    ///
    /// # Errors
    /// A Hessian that is not finite.
    pub fn feedback(&self, name: &str, rotation: Option<Rotation>, d: usize) -> Result<(Feedback, f64)> {
        let (dim, matrix) = (self.dim, self.matrix(rotation));
        let mean = (0..dim).map(|i| f64::from(matrix[i * dim + i])).sum::<f64>() / dim as f64;
        if !mean.is_finite() {
            return Err(Error::mismatch(format!("{name}: its inputs' mean square"), "a finite number", mean));
        }
        // The upper factor of a matrix is the lower one of the same matrix from back to front.
        let back = |i: usize| dim - 1 - i;
        for damping in DAMPING {
            let add = if mean > 0.0 { damping * mean } else { 1.0 };
            let mut factor: Vec<f64> = matrix.par_iter().rev().map(|&v| f64::from(v)).collect();
            factor.iter_mut().step_by(dim + 1).for_each(|v| *v += add);
            if cholesky(&mut factor, dim) {
                return Ok((Feedback::new(dim, d, |i, j| factor[back(i) * dim + back(j)]), damping));
            }
        }
        Err(Error::invalid(format!("{name}: Hessian of its inputs"), "not positive definite"))
    }
}

/// Of a matrix `[dim, dim]`, tile by tile.
fn transposed(matrix: &[f32], dim: usize) -> Vec<f32> {
    const SIDE: usize = 64;
    let mut out = vec![0f32; dim * dim];
    out.par_chunks_mut(SIDE * dim).enumerate().for_each(|(tile, rows)| {
        for from in (0..dim).step_by(SIDE) {
            for (i, row) in rows.chunks_exact_mut(dim).enumerate() {
                let column = matrix[from * dim + tile * SIDE + i..].iter().step_by(dim);
                for (to, &v) in row[from..].iter_mut().take(SIDE).zip(column) {
                    *to = v;
                }
            }
        }
    });
    out
}
