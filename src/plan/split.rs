//! Linear layers become the products that compute them: one each, or one for some parts of the weight.

use super::{Fuse, FusedLinear, Input, Step};
use crate::Result;
use crate::ops::{Matrix, Op, Operand};

pub fn rewrite<'a, B: Operand, W: Matrix, F: Fuse<B, W>>(
    ops: &[Op<'a, B, W>],
    fuse: &F,
) -> Result<Vec<Step<'a, B, W, F>>> {
    let mut steps = Vec::with_capacity(ops.len());
    for op in ops {
        match op {
            Op::Linear(linear) => steps.extend(fuse.split(linear)?.into_iter().map(|product| {
                Step::Linear(FusedLinear { linear: *linear, product, input: Input::Plain, activation: None })
            })),
            _ => steps.push(Step::Op { op: *op, packed: None }),
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use crate::plan::testing::{Everything, Pass};

    #[test]
    fn a_layer_of_two_matrices_is_two_products() {
        let pass = Pass::default();
        let (x, y) = (pass.buffer(8), pass.buffer(12));
        let weight = pass.weight(&[4, 8], 8);
        let ops = [pass.linear(&x, &weight, &y, 1, false)];
        let text = "linear [4, 8] f16, any\nlinear [8, 8] f16, any\n";
        assert_eq!(pass.plan(&ops, &Everything { split: true, ..Everything::default() }), text);
        assert_eq!(pass.plan(&ops, &Everything::default()), "linear [4, 8] f16 + [8, 8] f16, any\n");
    }
}
