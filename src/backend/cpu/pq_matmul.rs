//! Products of many rows with a product-quantized matrix: tiles of the weight are decoded to f32 and multiplied.

use super::dense_matmul::tiled;
use super::weight::{Codes, Output, Pq};

/// `y = W x` for `rows` rows of x, rotated if the weight is.
pub fn run(weight: &Pq, x: &[f32], rows: usize, y: &mut [f32], out: Output<'_>) {
    tiled(weight.rows, weight.cols, x, rows, y, out, |start, tile| decode(weight, start, tile));
}

/// Rows from `start`, still rotated, into `out`, a multiple of `cols` long.
pub fn decode(weight: &Pq, start: usize, out: &mut [f32]) {
    match &weight.codes {
        Codes::U8(codes) => decode_from(weight, codes, start, out),
        Codes::U16(codes) => decode_from(weight, codes, start, out),
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
