//! Rotary embedding with the cache's new rows, and the attention that reads them: one kernel, which leaves the queries of
//! `qkv` as they are.

use super::{Fuse, Later, RopeAttention, Step, read_by, same};
use crate::ops::{Attention, Matrix, Op, Operand, RopeCache};

pub fn rewrite<B: Operand, W: Matrix, F: Fuse<B, W>>(
    steps: &mut Vec<Step<'_, B, W, F>>,
    later: &Later<'_, B>,
    fuse: &F,
) {
    let mut i = 0;
    while i + 1 < steps.len() {
        if let [
            Step::Op { op: Op::RopeCache(rope), .. },
            Step::Op { op: Op::Attention(attention), .. },
            rest @ ..,
        ] = &steps[i..]
            && same(rope.qkv, attention.qkv)
            && same(rope.rows, attention.rows)
            && same(rope.k_cache, attention.k_cache)
            && same(rope.v_cache, attention.v_cache)
            && shape(rope) == shape_read(attention)
            && !read_by(rest, later, rope.qkv)
            && fuse.rope_attention(rope, attention)
        {
            let fused = RopeAttention { rope: *rope, attention: *attention, rotated_by_next: false };
            steps[i] = Step::RopeAttention(fused);
            steps.remove(i + 1);
        }
        i += 1;
    }
}

/// What both must agree on: heads, their size and their places in a row.
fn shape<B>(op: &RopeCache<'_, B>) -> [u32; 7] {
    let p = op.params;
    [p.rows, p.heads, p.kv_heads, p.head_dim, p.stride, p.q_stride, p.context]
}

fn shape_read<B>(op: &Attention<'_, B>) -> [u32; 7] {
    let p = op.params;
    [p.rows, p.heads, p.kv_heads, p.head_dim, p.stride, p.q_stride, p.context]
}

#[cfg(test)]
mod tests {
    use crate::plan::testing::{Everything, Pass};

    #[test]
    fn rope_moves_into_the_attention_that_reads_it() {
        let pass = Pass::default();
        let (heads, other) = (pass.heads(), pass.heads());
        let everything = Everything::default();
        let text = "rope_cache > attention 1 x 2 heads of 32\n";
        assert_eq!(pass.plan(&[heads.rope(), heads.attention(0)], &everything), text);
        let text = "rope_cache 1 x 2 heads of 32\nattention 1 x 2 heads of 32\n";
        assert_eq!(pass.plan(&[other.rope(), heads.attention(0)], &everything), text);
        // The embedded queries are read again.
        let twice = [heads.rope(), heads.attention(0), heads.attention(0)];
        assert!(pass.plan(&twice, &everything).starts_with("rope_cache 1 x 2 heads of 32\n"));
    }
}
