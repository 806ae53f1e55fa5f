//! A rotation and the product that reads the rotated row: the product's kernel rotates it, and the step before leaves
//! only the signs in.

use super::{Fuse, Input, Later, Step, read_by, same};
use crate::ops::{Matrix, Operand};

pub fn rewrite<B: Operand, W: Matrix, F: Fuse<B, W>>(
    steps: &mut [Step<'_, B, W, F>],
    later: &Later<'_, B>,
    fuse: &F,
) {
    for i in 1..steps.len() {
        let (before, rest) = steps.split_at_mut(i);
        if let Some(Step::RopeAttention(fused)) = before.last_mut() {
            let (y, block) = (fused.attention.y, fused.attention.params.rotate);
            if block > 0 && takes(y, block, rest, fuse) {
                fused.rotated_by_next = true;
                hand_over(y, block, rest, later);
            }
        }
    }
}

/// Whether the first of `steps` is a product that reads x and can rotate it by `block`.
pub fn takes<B: Operand, W: Matrix, F: Fuse<B, W>>(
    x: &B,
    block: u32,
    steps: &[Step<'_, B, W, F>],
    fuse: &F,
) -> bool {
    match steps.first() {
        Some(Step::Linear(linear)) => {
            matches!(linear.input, Input::Plain)
                && same(linear.linear.x, x)
                && fuse.rotate_linear(block, linear)
        }
        _ => false,
    }
}

/// Makes the first of `steps`, which [`takes`] it, rotate x.
pub fn hand_over<B: Operand, W: Matrix, F: Fuse<B, W>>(
    x: &B,
    block: u32,
    steps: &mut [Step<'_, B, W, F>],
    later: &Later<'_, B>,
) {
    let keep = read_by(&steps[1..], later, x);
    if let Some(Step::Linear(linear)) = steps.first_mut() {
        linear.input = Input::Rotate { block, keep };
    }
}

#[cfg(test)]
mod tests {
    use crate::plan::testing::{Everything, Pass};

    #[test]
    fn attention_hands_its_rotation_to_the_product_behind_it() {
        let pass = Pass::default();
        let (heads, z) = (pass.heads(), pass.buffer(8));
        let weight = pass.weight(&[8], 64);
        let ops = [heads.rope(), heads.attention(64), pass.linear(&heads.y, &weight, &z, 1, false)];
        let everything = Everything::default();
        let text =
            "rope_cache > attention 1 x 2 heads of 32, signs of 64\nrotate 64 > linear [8, 64] f16, any\n";
        assert_eq!(pass.plan(&ops, &everything), text);
        // Nobody to take it over.
        let text = "rope_cache > attention 1 x 2 heads of 32, rotate 64\n";
        assert_eq!(pass.plan(&ops[..2], &everything), text);
        // A second product reads the rotated row.
        let twice = [ops[0], ops[1], ops[2], pass.linear(&heads.y, &weight, &z, 1, true)];
        assert!(pass.plan(&twice, &everything).contains("rotate 64 (kept) > linear"));
    }
}
