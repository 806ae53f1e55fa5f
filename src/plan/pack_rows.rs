//! Products of many rows read them in a layout of their own: rows are packed once for the products that share them, by the
//! kernel that makes them where it can.

use super::{Fuse, Input, Pack, Step, same};
use crate::ops::{Matrix, Op, Operand};

pub fn rewrite<'a, B: Operand, W: Matrix, F: Fuse<B, W>>(steps: &mut Vec<Step<'a, B, W, F>>, fuse: &F) {
    insert(steps, fuse);
    let mut i = 0;
    while i + 1 < steps.len() {
        if let [Step::Op { op, packed: None }, Step::Pack(pack)] = &steps[i..i + 2]
            && output(op).is_some_and(|(y, rows)| same(y, pack.x) && pack.rows == (0..rows))
            && fuse.writes_packed(op, pack.packing)
        {
            steps[i] = Step::Op { op: *op, packed: Some(pack.packing) };
            steps.remove(i + 1);
        }
        i += 1;
    }
}

/// A step before each product whose rows are not there in its layout.
fn insert<'a, B: Operand, W: Matrix, F: Fuse<B, W>>(steps: &mut Vec<Step<'a, B, W, F>>, fuse: &F) {
    let mut there: Option<Pack<'a, B, F::Packing>> = None;
    let mut i = 0;
    while i < steps.len() {
        let mut missing = None;
        if let Step::Linear(linear) = &mut steps[i]
            && matches!(linear.input, Input::Plain)
            && let Some(packing) = fuse.packing(linear)
        {
            let (x, rows) = (linear.linear.x, linear.product.rows.clone());
            let known = there
                .as_ref()
                .is_some_and(|there| same(there.x, x) && there.rows == rows && there.packing == packing);
            if !known {
                missing = Some(Pack { x, rows, cols: linear.linear.weight.cols(), packing });
            }
            linear.input = Input::Packed(packing);
        }
        if there.as_ref().is_some_and(|there| steps[i].writes(there.x)) {
            there = None;
        }
        if let Some(pack) = missing {
            there = Some(pack.clone());
            steps.insert(i, Step::Pack(pack));
            i += 1;
        }
        i += 1;
    }
}

/// The rows that an operation writes, and their number, where it overwrites whole rows of activations.
fn output<'a, B, W>(op: &Op<'a, B, W>) -> Option<(&'a B, u32)> {
    match op {
        Op::Embed(op) => Some((op.y, op.params.rows)),
        Op::GatherRows(op) => Some((op.y, op.params.rows)),
        Op::RmsNorm(op) => Some((op.y, op.params.rows)),
        Op::Rotate(op) => Some((op.y, op.params.rows)),
        Op::Attention(op) => Some((op.y, op.params.rows)),
        Op::Glu(op) => Some((op.y, op.params.rows)),
        Op::GatedNorm(op) => Some((op.y, op.params.rows)),
        Op::Linear(_) | Op::QkNorm(_) | Op::RopeCache(_) | Op::CausalConv(_) | Op::DeltaRule(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::plan::testing::{Everything, Pass};

    #[test]
    fn rows_are_packed_once_by_the_kernel_that_makes_them() {
        let pass = Pass::default();
        let (x, normed, y, z) = (pass.buffer(32), pass.buffer(32), pass.buffer(16), pass.buffer(16));
        let (weight, norm) = (pass.weight(&[4], 8), pass.buffer(8));
        let ops = [
            pass.norm(&x, &norm, &normed, 4),
            pass.linear(&normed, &weight, &y, 4, false),
            pass.linear(&normed, &weight, &z, 4, false),
        ];
        let many = Everything { pack: true, ..Everything::default() };
        let two = "linear [4, 8] f16, any, packed\nlinear [4, 8] f16, any, packed\n";
        assert_eq!(pass.plan(&ops, &many), format!("rms_norm 4 x 8 (packed)\n{two}"));
        assert_eq!(pass.plan(&ops[1..], &many), format!("pack 4 x 8 (packed)\n{two}"));
        // Rows that have changed since are packed again.
        let changed = [ops[1], pass.norm(&x, &norm, &normed, 4), ops[2]];
        let text = pass.plan(&changed, &many);
        assert_eq!(text.matches("(packed)").count(), 2, "{text}");
    }
}
