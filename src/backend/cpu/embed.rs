//! Token embedding.

use super::{Buffer, Weight};
use crate::ops::Embed;

pub fn run(op: Embed<'_, Buffer, Weight>) {
    let tokens = op.tokens.words();
    let tokens = tokens.iter().take(op.params.rows as usize);
    for (token, y) in tokens.zip(op.y.f32_mut().chunks_exact_mut(op.params.dim as usize)) {
        op.table.lookup(*token as usize, y);
        y.iter_mut().for_each(|y| *y *= op.params.scale);
    }
}
