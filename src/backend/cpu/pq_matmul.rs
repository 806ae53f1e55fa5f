//! Products of many rows with a product-quantized matrix: tiles of the weight are decoded to f32 and multiplied.

use super::dense_matmul::tiled;
use super::weight::{Output, Pq};

/// `y = W x` for `rows` rows of x, rotated if the weight is.
pub fn run(weight: &Pq, x: &[f32], rows: usize, y: &mut [f32], out: Output<'_>) {
    tiled(weight.rows, weight.cols, x, rows, y, out, |start, tile| weight.decode(start, tile));
}
