//! [`cholesky`]: the factorization of large matrices, panel by panel on all threads.

use rayon::prelude::*;

use crate::gemm::{Mat, matmul};

/// Columns of a panel.
const PANEL: usize = 128;
/// Rows of a task.
const ROWS: usize = 256;

/// Replaces a symmetric matrix `[n, n]` by its lower Cholesky factor L, with L L^T = a; what is above the diagonal
/// then means nothing. Returns false, and leaves `a` half done, if the matrix is not positive definite.
///
/// The result is the same for any number of threads.
pub fn cholesky(a: &mut [f64], n: usize) -> bool {
    assert_eq!(a.len(), n * n, "a square matrix");
    for start in (0..n).step_by(PANEL) {
        let end = n.min(start + PANEL);
        let (above, below) = a.split_at_mut(end * n);
        let panel = &mut above[start * n..];
        let mut corner = remainder(panel, panel, n, start);
        if !factorize(&mut corner, end - start) {
            return false;
        }
        store(&corner, panel, n, start);
        let panel = &*panel;
        below.par_chunks_mut(ROWS * n).for_each(|rows| {
            let mut x = remainder(rows, panel, n, start);
            solve(&corner, &mut x, end - start);
            store(&x, rows, n, start);
        });
    }
    true
}

/// What the columns before `start` leave of `rows` `[count, n]` in the columns of `panel` `[width, n]`, transposed:
/// `[width, count]`.
fn remainder(rows: &[f64], panel: &[f64], n: usize, start: usize) -> Vec<f64> {
    let (count, width) = (rows.len() / n, panel.len() / n);
    let mut x = vec![0.0; width * count];
    matmul((width, start, count), Mat::rows(panel, n), Mat::rows(rows, n).t(), &mut x);
    for (r, row) in rows.chunks_exact(n).enumerate() {
        for (x, a) in x[r..].iter_mut().step_by(count).zip(&row[start..]) {
            *x = a - *x;
        }
    }
    x
}

/// Writes `x` `[width, count]` into the columns from `start` of `rows` `[count, n]`.
fn store(x: &[f64], rows: &mut [f64], n: usize, start: usize) {
    let count = rows.len() / n;
    for (r, row) in rows.chunks_exact_mut(n).enumerate() {
        for (a, x) in row[start..].iter_mut().zip(x[r..].iter().step_by(count)) {
            *a = *x;
        }
    }
}

/// Replaces a symmetric matrix `[width, width]` by L^T, with zeros below the diagonal.
fn factorize(x: &mut [f64], width: usize) -> bool {
    for j in 0..width {
        let (done, rest) = x.split_at_mut(j * width);
        let row = &mut rest[..width];
        for other in done.chunks_exact(width) {
            subtract(&mut row[j..], other[j], &other[j..]);
        }
        let pivot = row[j];
        if !(pivot > 0.0 && pivot.is_finite()) {
            return false;
        }
        row[..j].fill(0.0);
        row[j..].iter_mut().for_each(|v| *v /= pivot.sqrt());
    }
    true
}

/// Solves L y = x for every column of x `[width, count]`, in place; `factor` is L^T.
fn solve(factor: &[f64], x: &mut [f64], width: usize) {
    let count = x.len() / width;
    for j in 0..width {
        let (done, rest) = x.split_at_mut(j * count);
        let row = &mut rest[..count];
        for (i, other) in done.chunks_exact(count).enumerate() {
            subtract(row, factor[i * width + j], other);
        }
        row.iter_mut().for_each(|v| *v /= factor[j * width + j]);
    }
}

/// `row -= share * other`.
fn subtract(row: &mut [f64], share: f64, other: &[f64]) {
    for (to, from) in row.iter_mut().zip(other) {
        *to -= share * from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// X X^T + I of a random X `[n, n]`.
    fn positive_definite(n: usize) -> Vec<f64> {
        let x: Vec<f64> =
            (0..n * n).map(|i| ((i * i * 7919 + i * 104_729) % 2003) as f64 / 1000.0 - 1.0).collect();
        let mut a = vec![0.0; n * n];
        matmul((n, n, n), Mat::rows(&x, n), Mat::rows(&x, n).t(), &mut a);
        a.iter_mut().step_by(n + 1).for_each(|v| *v += 1.0);
        a
    }

    #[test]
    fn the_factor_times_its_transpose_is_the_matrix() {
        for n in [1, 2, PANEL - 1, PANEL, PANEL + 1, 2 * PANEL + ROWS + 3] {
            let a = positive_definite(n);
            let mut lower = a.clone();
            assert!(cholesky(&mut lower, n));
            for (i, row) in lower.chunks_exact_mut(n).enumerate() {
                assert!(row[i] > 0.0);
                row[i + 1..].fill(0.0);
            }
            let mut product = vec![0.0; n * n];
            matmul((n, n, n), Mat::rows(&lower, n), Mat::rows(&lower, n).t(), &mut product);
            let worst = product.iter().zip(&a).map(|(p, a)| (p - a).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-10 * n as f64, "{n}: off by {worst}");
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_refused() {
        let n = PANEL + 5;
        for (place, value) in [(0, 0.0), (0, f64::NAN), (n - 1, -1.0), (n - 1, f64::INFINITY)] {
            let mut a = positive_definite(n);
            a[place * (n + 1)] = value;
            assert!(!cholesky(&mut a, n), "{value} at {place}");
        }
        assert!(!cholesky(&mut vec![1.0; n * n], n), "a matrix of rank 1");
    }
}
