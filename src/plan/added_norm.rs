//! A norm that is added to the residual stream, and the norm of the sum that a product applies to its input: the product's
//! kernel computes both.

use super::{Fuse, Input, Step, same};
use crate::ops::{Matrix, Op, Operand};

pub fn rewrite<B: Operand, W: Matrix, F: Fuse<B, W>>(steps: &mut Vec<Step<'_, B, W, F>>, fuse: &F) {
    let mut i = 0;
    while i + 1 < steps.len() {
        let (before, _) = steps.split_at_mut(i + 2);
        if let [Step::Op { op: Op::RmsNorm(first), packed: None }, Step::Linear(linear)] = &mut before[i..]
            && first.residual.is_some()
            && let Input::Norm { norm, keep, added: None } = &linear.input
            && same(norm.x, first.y)
            && norm.params.rows == first.params.rows
            && norm.params.dim == first.params.dim
            // What is kept may not take the place of what is still read.
            && !(*keep && same(norm.y, first.x))
            && fuse.added_norm(first, linear)
        {
            linear.input = Input::Norm { norm: *norm, keep: *keep, added: Some(*first) };
            steps.remove(i);
        }
        i += 1;
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::{Op, RmsNorm};
    use crate::plan::testing::{Everything, Pass};

    #[test]
    fn an_added_norm_moves_into_the_product_that_normalises_the_sum() {
        let pass = Pass::default();
        let [x, y, sum, normed] = [8; 4].map(|n| pass.buffer(n));
        let (out, weight, norm) = (pass.buffer(4), pass.weight(&[4], 8), pass.buffer(8));
        let added = |residual| match pass.norm(&y, &norm, &sum, 1) {
            Op::RmsNorm(op) => Op::from(RmsNorm { residual, ..op }),
            _ => panic!("rms_norm"),
        };
        let ops = [
            added(Some(&x)),
            pass.norm(&sum, &norm, &normed, 1),
            pass.linear(&normed, &weight, &out, 1, false),
        ];
        let everything = Everything::default();
        assert_eq!(pass.plan(&ops, &everything), "rms_norm, added > rms_norm > linear [4, 8] f16, any\n");
        // Not added to anything.
        let alone = [added(None), ops[1], ops[2]];
        assert!(pass.plan(&alone, &everything).starts_with("rms_norm 1 x 8\n"));
        // The normalised row would overwrite what is added.
        let kept = [
            ops[0],
            pass.norm(&sum, &norm, &y, 1),
            pass.linear(&y, &weight, &out, 1, false),
            pass.linear(&y, &weight, &out, 1, true),
        ];
        assert!(pass.plan(&kept, &everything).starts_with("rms_norm 1 x 8, added\n"));
    }
}
