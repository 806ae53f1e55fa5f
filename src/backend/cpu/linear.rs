//! The linear layer over stacked matrices: the kernel for each by how it is stored and how many rows there are.

use super::weight::{Block, Output, Weight};
use super::{Buffer, dense_matmul, pq_matmul, pq_matvec};
use crate::ops::Linear;

/// Up to this many rows, a PQ weight is multiplied row by row without decoding it.
const MATVEC_ROWS: usize = 4;

/// `y = W x (+ bias) (+ y)`.
pub fn run(op: Linear<'_, Buffer, Weight>) {
    let params = op.params;
    let (rows, stride, cols) = (params.rows as usize, params.y_stride as usize, op.weight.cols);
    let (x, mut y, bias) = (op.x.f32(), op.y.f32_mut(), op.bias.map(Buffer::f32));
    let (x, y) = (&x[..rows * cols], &mut y[..]);
    let mut offset = params.y_offset as usize;
    let mut bias = bias.as_deref();
    for block in &op.weight.blocks {
        let out = Output {
            stride,
            offset,
            accumulate: params.accumulate != 0,
            bias: bias.map(|b| &b[..block.rows()]),
        };
        match block {
            Block::Pq(pq) if rows <= MATVEC_ROWS => {
                for (x, y) in x.chunks_exact(cols).zip(y.chunks_mut(stride)) {
                    pq_matvec::run(pq, x, y, out);
                }
            }
            Block::Pq(pq) => pq_matmul::run(pq, x, rows, y, out),
            Block::Dense(dense) => dense_matmul::run(dense, x, rows, y, out),
        }
        offset += block.rows();
        bias = bias.map(|b| &b[block.rows()..]);
    }
}
