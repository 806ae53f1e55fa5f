//! Matrix products, by the `gemm` crate, behind checked slices.

/// f32 or f64.
pub trait Element: Copy + From<u8> + Send + Sync + 'static {}
impl Element for f32 {}
impl Element for f64 {}

/// A matrix in a slice: element (i, j) is at `i * row + j * col`.
#[derive(Clone, Copy)]
pub struct Mat<'a, T> {
    pub data: &'a [T],
    pub row: usize,
    pub col: usize,
}

impl<'a, T> Mat<'a, T> {
    /// Row-major with `row` elements from row to row.
    pub fn rows(data: &'a [T], row: usize) -> Self {
        Self { data, row, col: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self { data: self.data, row: self.col, col: self.row }
    }

    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row + (cols - 1) * self.col < self.data.len()
    }
}

/// `y = a b` for a `[m, k]`, b `[k, n]` and row-major y `[m, n]`, on the calling thread.
pub fn matmul<T: Element>((m, k, n): (usize, usize, usize), a: Mat<'_, T>, b: Mat<'_, T>, y: &mut [T]) {
    assert!(a.holds(m, k) && b.holds(k, n) && m * n <= y.len(), "gemm: a matrix exceeds its slice");
    // SAFETY: the assertion above keeps every element (i, j) of the three matrices inside its slice, y is borrowed
    // exclusively, and all strides are far below isize::MAX because they index existing slices.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            T::from(0),
            T::from(1),
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_and_transposes() {
        let a = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0]; // [2, 2] in rows of 3
        let b = [5.0, 6.0, 7.0, 8.0];
        let mut y = [f32::NAN; 4];
        matmul((2, 2, 2), Mat::rows(&a, 3), Mat::rows(&b, 2), &mut y);
        assert_eq!(y, [19.0, 22.0, 43.0, 50.0]);
        matmul((2, 2, 2), Mat::rows(&a, 3), Mat::rows(&b, 2).t(), &mut y);
        assert_eq!(y, [17.0, 23.0, 39.0, 53.0]);
    }

    #[test]
    #[should_panic(expected = "exceeds its slice")]
    fn a_short_slice_is_refused() {
        matmul((2, 2, 2), Mat::rows(&[0.0; 3], 2), Mat::rows(&[0.0; 4], 2), &mut [0.0; 4]);
    }
}
