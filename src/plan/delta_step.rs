//! A delta net's convolution, delta rule and gated norm: one kernel, where what passes between them is read by nobody else.

use super::{DeltaStep, Fuse, Later, Step, read_by, same};
use crate::ops::{Matrix, Op, Operand};

pub fn rewrite<B: Operand, W: Matrix, F: Fuse<B, W>>(
    steps: &mut Vec<Step<'_, B, W, F>>,
    later: &Later<'_, B>,
    fuse: &F,
) {
    let mut i = 0;
    while i + 2 < steps.len() {
        if let [
            Step::Op { op: Op::CausalConv(conv), .. },
            Step::Op { op: Op::DeltaRule(rule), .. },
            Step::Op { op: Op::GatedNorm(norm), .. },
            rest @ ..,
        ] = &steps[i..]
            && same(conv.y, rule.qkv)
            && same(conv.x, rule.proj)
            && same(conv.segments, rule.segments)
            && same(rule.y, norm.x)
            && same(norm.gate, rule.proj)
            && conv.params.stride == rule.params.stride
            && [norm.params.rows, norm.params.heads, norm.params.dim]
                == [rule.params.rows, rule.params.value_heads, rule.params.value_dim]
            && !read_by(rest, later, conv.y)
            && !read_by(rest, later, rule.y)
            && fuse.delta_step(conv, rule, norm)
        {
            steps[i] = Step::DeltaStep(DeltaStep { conv: *conv, rule: *rule, norm: *norm });
            steps.drain(i + 1..i + 3);
        }
        i += 1;
    }
}

#[cfg(test)]
mod tests {
    use crate::plan::testing::{Everything, Pass};

    #[test]
    fn a_delta_net_is_one_step() {
        let pass = Pass::default();
        let (net, other) = (pass.net(), pass.net());
        let everything = Everything::default();
        let [conv, rule, norm] = net.ops();
        let text = "causal_conv > delta_rule > gated_norm 1 x 2 heads of 16\n";
        assert_eq!(pass.plan(&[conv, rule, norm], &everything), text);
        // Another net's convolution, and a convolution that is read again.
        assert!(pass.plan(&[other.ops()[0], rule, norm], &everything).starts_with("causal_conv 1 x "));
        assert!(pass.plan(&[conv, rule, norm, rule], &everything).starts_with("causal_conv 1 x "));
    }
}
