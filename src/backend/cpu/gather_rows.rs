//! Selection of rows.

use super::Buffer;
use crate::ops::GatherRows;

pub fn run(op: GatherRows<'_, Buffer>) {
    let dim = op.params.dim as usize;
    let (x, index) = (op.x.f32(), op.index.words());
    let index = index.iter().take(op.params.rows as usize);
    for (from, y) in index.zip(op.y.f32_mut().chunks_exact_mut(dim)) {
        y.copy_from_slice(&x[*from as usize * dim..][..dim]);
    }
}
