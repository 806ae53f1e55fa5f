//! What this backend fuses: where every segment is one row (decoding), attention with the embedding of its rows, and a delta
//! net's convolution, delta rule and norm.

use std::fmt::{self, Display, Formatter};

use super::limits::{MAX_BLOCK, MAX_CHANNELS, MAX_PRODUCTS, MAX_VALUE_HEADS};
use crate::Result;
use crate::ops::{
    Attention, CausalConv, DeltaRule, DeltaRuleParams, GatedNorm, GatedNormParams, Linear, Matrix, Operand,
    RopeCache,
};
use crate::plan::{Fuse, Product};

/// See [`Fuse`].
pub struct Fusions;

/// A product's kernels are chosen for each slice of its weight (linear.rs).
#[derive(Clone, Copy, Debug)]
pub struct BySlices;

impl Display for BySlices {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("by slices")
    }
}

/// No kernel reads rows in another layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {}

impl Display for Packing {
    fn fmt(&self, _: &mut Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

impl<B: Operand, W: Matrix> Fuse<B, W> for Fusions {
    type Algorithm = BySlices;
    type Packing = Packing;

    fn split(&self, linear: &Linear<'_, B, W>) -> Result<Vec<Product<BySlices>>> {
        let (rows, parts) = (0..linear.params.rows, 0..linear.weight.parts().len());
        Ok(vec![Product { rows, parts, algorithm: BySlices }])
    }

    fn rope_attention(&self, _: &RopeCache<'_, B>, attention: &Attention<'_, B>) -> bool {
        // Rows of different slots do not see each other's keys.
        attention.params.rows == attention.params.segments
    }

    fn delta_step(&self, conv: &CausalConv<'_, B>, rule: &DeltaRule<'_, B>, norm: &GatedNorm<'_, B>) -> bool {
        // Longer segments are convolved side by side.
        conv.params.rows == conv.params.segments && delta_heads(&rule.params, &norm.params).is_some()
    }
}

/// Value heads of a workgroup of delta_step.wgsl: all that share a key head and all of a block of the rotation together.
/// None where that is more than its limits.
pub fn delta_heads(p: &DeltaRuleParams, n: &GatedNormParams) -> Option<u32> {
    let per_key = p.value_heads / p.key_heads;
    let heads = if n.rotate > p.value_dim { n.rotate / p.value_dim } else { 1 };
    let (more, less) = (heads.max(per_key), heads.min(per_key));
    let blocks = n.rotate == 0 || (more * p.value_dim).is_multiple_of(n.rotate);
    let keys = more / per_key;
    let fits = more.is_multiple_of(less)
        && p.value_heads.is_multiple_of(more)
        && more * p.value_dim <= MAX_BLOCK as u32
        && p.value_heads <= MAX_VALUE_HEADS as u32
        && more.max(3 * keys) <= MAX_PRODUCTS as u32
        && 2 * keys * p.key_dim + more * p.value_dim <= MAX_CHANNELS as u32;
    (fits && blocks).then_some(more)
}
