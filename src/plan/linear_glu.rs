//! The product of gate and up, and GLU: the product's kernel writes the activation instead of its output. Where the
//! activation is rotated, the product behind it must take the rotation over.

use super::{Activation, Fuse, FusedLinear, Input, Later, Step, read_by, rotate_linear, same};
use crate::ops::{Glu, Matrix, Op, Operand};

pub fn rewrite<B: Operand, W: Matrix, F: Fuse<B, W>>(
    steps: &mut Vec<Step<'_, B, W, F>>,
    later: &Later<'_, B>,
    fuse: &F,
) {
    let mut i = 0;
    while i + 1 < steps.len() {
        if let [Step::Linear(linear), Step::Op { op: Op::Glu(glu), packed: None }, rest @ ..] = &steps[i..]
            && whole(linear, glu)
            && !read_by(rest, later, linear.linear.y)
            && fuse.linear_glu(linear, glu)
            && (glu.params.rotate == 0 || rotate_linear::takes(glu.y, glu.params.rotate, rest, fuse))
        {
            let (glu, block) = (*glu, glu.params.rotate);
            if block > 0 {
                rotate_linear::hand_over(glu.y, block, &mut steps[i + 2..], later);
            }
            if let Step::Linear(linear) = &mut steps[i] {
                linear.activation = Some(Activation { glu, rotated_by_next: block > 0 });
            }
            steps.remove(i + 1);
        }
        i += 1;
    }
}

/// Whether the product overwrites exactly what GLU reads.
fn whole<B: Operand, W: Matrix, F: Fuse<B, W>>(linear: &FusedLinear<'_, B, W, F>, glu: &Glu<'_, B>) -> bool {
    let (p, product) = (linear.linear.params, &linear.product);
    let out = linear.linear.weight.out();
    linear.activation.is_none()
        && !matches!(linear.input, Input::Packed(_))
        && same(linear.linear.y, glu.x)
        && product.parts.len() == linear.linear.weight.parts().len()
        && product.rows == (0..glu.params.rows)
        && (p.y_offset, p.accumulate) == (0, 0)
        && out == p.y_stride as usize
        && out == 2 * glu.params.dim as usize
}

#[cfg(test)]
mod tests {
    use crate::plan::testing::{Everything, Pass};

    #[test]
    fn glu_moves_into_the_product_before_it() {
        let pass = Pass::default();
        let (x, both, y, z) = (pass.buffer(8), pass.buffer(64), pass.buffer(32), pass.buffer(8));
        let (gate_up, down) = (pass.weight(&[64], 8), pass.weight(&[8], 32));
        let everything = Everything::default();
        let product = pass.linear(&x, &gate_up, &both, 1, false);
        let plain = [product, pass.glu(&both, &y, 1, 0)];
        assert_eq!(pass.plan(&plain, &everything), "linear [64, 8] f16, any > glu\n");
        // Rotated by the product behind it, or not moved.
        let rotated = [product, pass.glu(&both, &y, 1, 16), pass.linear(&y, &down, &z, 1, true)];
        let text =
            "linear [64, 8] f16, any > glu, signs of 16\nrotate 16 > linear [8, 32] f16, any, added to y\n";
        assert_eq!(pass.plan(&rotated, &everything), text);
        assert_eq!(pass.plan(&rotated[..2], &everything), "linear [64, 8] f16, any\nglu 1 x 32, rotate 16\n");
        // The output before the activation is read later.
        let read = [plain[0], plain[1], pass.glu(&both, &z, 1, 0)];
        assert!(pass.plan(&read, &everything).starts_with("linear [64, 8] f16, any\n"));
        // Added to what is there.
        let added = [pass.linear(&x, &gate_up, &both, 1, true), plain[1]];
        assert!(pass.plan(&added, &everything).starts_with("linear [64, 8] f16, any, added to y\n"));
    }
}
