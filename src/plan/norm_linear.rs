//! A norm and the product that reads it: the product's kernel normalises its input itself.

use super::{Fuse, Input, Later, Step, read_by, same};
use crate::ops::{Matrix, Op, Operand};

pub fn rewrite<B: Operand, W: Matrix, F: Fuse<B, W>>(
    steps: &mut Vec<Step<'_, B, W, F>>,
    later: &Later<'_, B>,
    fuse: &F,
) {
    let mut i = 0;
    while i + 1 < steps.len() {
        let (before, rest) = steps.split_at_mut(i + 2);
        if let [Step::Op { op: Op::RmsNorm(norm), .. }, Step::Linear(linear)] = &mut before[i..]
            && matches!(linear.input, Input::Plain)
            && norm.residual.is_none()
            && same(linear.linear.x, norm.y)
            && linear.product.rows == (0..norm.params.rows)
            && norm.params.dim as usize == linear.linear.weight.cols()
            && fuse.norm_linear(norm, linear)
        {
            linear.input = Input::Norm { norm: *norm, keep: read_by(rest, later, norm.y), added: None };
            steps.remove(i);
        }
        i += 1;
    }
}

#[cfg(test)]
mod tests {
    use crate::plan::testing::{Everything, Pass};

    #[test]
    fn a_norm_moves_into_the_product_that_reads_it() {
        let pass = Pass::default();
        let (x, normed, y, other) = (pass.buffer(8), pass.buffer(8), pass.buffer(4), pass.buffer(8));
        let (weight, norm) = (pass.weight(&[4], 8), pass.buffer(8));
        let moved = [pass.norm(&x, &norm, &normed, 1), pass.linear(&normed, &weight, &y, 1, false)];
        assert_eq!(pass.plan(&moved, &Everything::default()), "rms_norm > linear [4, 8] f16, any\n");
        // A second product reads the normalised row.
        let kept = [moved[0], moved[1], pass.linear(&normed, &weight, &y, 1, true)];
        let text = "rms_norm (kept) > linear [4, 8] f16, any\nlinear [4, 8] f16, any, added to y\n";
        assert_eq!(pass.plan(&kept, &Everything::default()), text);
        // Another row is multiplied.
        let apart = [moved[0], pass.linear(&other, &weight, &y, 1, false)];
        let text = "rms_norm 1 x 8\nlinear [4, 8] f16, any\n";
        assert_eq!(pass.plan(&apart, &Everything::default()), text);
    }
}
