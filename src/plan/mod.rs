//! A forward pass as data: recorded operations are checked, then rewritten into the steps that a backend runs.
//!
//! 1. The model records a list of [`Op`]s.
//! 2. [`check()`] compares every operation's buffers, strides and shapes with what it needs, and with the backend's
//!    [`Limits`].
//! 3. [`rewrite`] fuses neighbours. A rewrite is one file of this folder: the pattern, its conditions, the fused step,
//!    a test. What the hardware can do is the backend's to say ([`Fuse`]).
//! 4. The backend lowers each [`Step`] to launches.
//!
//! A fused step leaves what passes between its operations unwritten: after [`rewrite`] a buffer that is written by one
//! operation of a list and read by no later one holds anything.
//!
//! A plan is text as well ([`Step`] is [`Display`]): `tests/plans` holds one for each family and backend.

mod added_norm;
mod check;
mod delta_step;
#[cfg(any(test, feature = "test-support"))]
pub mod dry;
mod linear_glu;
mod norm_linear;
mod pack_rows;
mod rope_attention;
mod rotate_linear;
mod split;
#[cfg(test)]
mod testing;
mod text;

pub use check::{Limits, check};

use std::fmt::Display;
use std::ops::Range;

use crate::Result;
use crate::ops::{
    Access, Attention, CausalConv, DeltaRule, GatedNorm, Glu, Linear, Matrix, Op, Operand, RmsNorm, RopeCache,
};

/// What a backend fuses, of operations on its buffers `B` and weights `W`. Each question is about a pattern whose own
/// conditions (which buffer is read where, and by nobody else) hold already. By default nothing is fused.
pub trait Fuse<B, W> {
    /// How a product with a weight is computed.
    type Algorithm: Copy + Display;
    /// A layout of activation rows that some algorithms read instead of f32 rows.
    type Packing: Copy + PartialEq + Display;

    /// The products that compute a linear layer.
    fn split(&self, linear: &Linear<'_, B, W>) -> Result<Vec<Product<Self::Algorithm>>>;

    /// The layout in which a product wants its input; none for f32 rows.
    fn packing(&self, _linear: &FusedLinear<'_, B, W, Self>) -> Option<Self::Packing> {
        None
    }
    /// Whether the kernel of `op` can write its rows in that layout as well.
    fn writes_packed(&self, _op: &Op<'_, B, W>, _packing: Self::Packing) -> bool {
        false
    }
    /// Whether the product can normalise its input itself.
    fn norm_linear(&self, _norm: &RmsNorm<'_, B>, _linear: &FusedLinear<'_, B, W, Self>) -> bool {
        false
    }
    /// Whether the product, which normalises its input, can compute it as a sum with another norm before.
    fn added_norm(&self, _added: &RmsNorm<'_, B>, _linear: &FusedLinear<'_, B, W, Self>) -> bool {
        false
    }
    /// Whether the product of gate and up can apply the activation to its output.
    fn linear_glu(&self, _linear: &FusedLinear<'_, B, W, Self>, _glu: &Glu<'_, B>) -> bool {
        false
    }
    /// Whether the product can rotate its input itself, by blocks of `block`.
    fn rotate_linear(&self, _block: u32, _linear: &FusedLinear<'_, B, W, Self>) -> bool {
        false
    }
    /// Whether attention can embed and store the keys and values of its own rows.
    fn rope_attention(&self, _rope: &RopeCache<'_, B>, _attention: &Attention<'_, B>) -> bool {
        false
    }
    /// Whether convolution, delta rule and norm can be one kernel.
    fn delta_step(
        &self,
        _conv: &CausalConv<'_, B>,
        _rule: &DeltaRule<'_, B>,
        _norm: &GatedNorm<'_, B>,
    ) -> bool {
        false
    }
}

/// A share of a linear layer: some rows of the input times some of the weight's parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product<A> {
    pub rows: Range<u32>,
    pub parts: Range<usize>,
    pub algorithm: A,
}

/// What a backend runs at once.
pub enum Step<'a, B, W, F: Fuse<B, W> + ?Sized> {
    /// An operation as it was recorded, of any kind but a linear layer.
    Op {
        op: Op<'a, B, W>,
        /// The layout in which it writes its rows besides f32.
        packed: Option<F::Packing>,
    },
    Pack(Pack<'a, B, F::Packing>),
    Linear(FusedLinear<'a, B, W, F>),
    RopeAttention(RopeAttention<'a, B>),
    DeltaStep(DeltaStep<'a, B>),
}

/// Rows `[rows, cols]` of x, copied into another layout.
pub struct Pack<'a, B, P> {
    pub x: &'a B,
    pub rows: Range<u32>,
    pub cols: usize,
    pub packing: P,
}

/// A product with what the operations beside it do to its rows.
pub struct FusedLinear<'a, B, W, F: Fuse<B, W> + ?Sized> {
    /// The whole layer.
    pub linear: Linear<'a, B, W>,
    /// The share of it that this is.
    pub product: Product<F::Algorithm>,
    pub input: Input<'a, B, F::Packing>,
    pub activation: Option<Activation<'a, B>>,
}

/// What becomes of a product's input before it is multiplied.
pub enum Input<'a, B, P> {
    /// x is multiplied as it is.
    Plain,
    /// The norm's input takes the place of x; `keep`: the normalised row is written to the norm's y as well. That input
    /// may be what `added` makes of the row before, and is written to its y then.
    Norm { norm: RmsNorm<'a, B>, keep: bool, added: Option<RmsNorm<'a, B>> },
    /// The step before leaves its row with the rotation's signs, in memory of the backend's own; the rest of the
    /// rotation, by blocks of `block`, is done here. `keep`: the rotated row is written to x as well.
    Rotate { block: u32, keep: bool },
    /// x is read in this layout.
    Packed(P),
}

/// GLU of a product's output, which takes the place of that output.
pub struct Activation<'a, B> {
    pub glu: Glu<'a, B>,
    /// The next product does the rotation but for its signs ([`Input::Rotate`]).
    pub rotated_by_next: bool,
}

/// Rotary embedding, the cache's new rows, and attention.
pub struct RopeAttention<'a, B> {
    pub rope: RopeCache<'a, B>,
    pub attention: Attention<'a, B>,
    /// The next product does the rotation but for its signs ([`Input::Rotate`]).
    pub rotated_by_next: bool,
}

/// A delta net's convolution, delta rule and gated norm.
pub struct DeltaStep<'a, B> {
    pub conv: CausalConv<'a, B>,
    pub rule: DeltaRule<'a, B>,
    pub norm: GatedNorm<'a, B>,
}

/// The steps that compute a list of operations.
pub fn rewrite<'a, B: Operand, W: Matrix, F: Fuse<B, W>>(
    ops: &[Op<'a, B, W>],
    fuse: &F,
) -> Result<Vec<Step<'a, B, W, F>>> {
    let mut steps = split(ops, fuse)?;
    fuse_steps(&mut steps, &|_| false, fuse);
    Ok(steps)
}

/// The first rewrite alone: products instead of linear layers.
pub fn split<'a, B: Operand, W: Matrix, F: Fuse<B, W>>(
    ops: &[Op<'a, B, W>],
    fuse: &F,
) -> Result<Vec<Step<'a, B, W, F>>> {
    split::rewrite(ops, fuse)
}

/// The other rewrites, of a part of a list; `later` says whether the steps behind the part read what a buffer holds then.
pub fn fuse_steps<'a, B: Operand, W: Matrix, F: Fuse<B, W>>(
    steps: &mut Vec<Step<'a, B, W, F>>,
    later: &Later<'_, B>,
    fuse: &F,
) {
    norm_linear::rewrite(steps, later, fuse);
    added_norm::rewrite(steps, fuse);
    linear_glu::rewrite(steps, later, fuse);
    rope_attention::rewrite(steps, later, fuse);
    rotate_linear::rewrite(steps, later, fuse);
    delta_step::rewrite(steps, later, fuse);
    pack_rows::rewrite(steps, fuse);
}

/// Whether steps behind those at hand read a buffer.
pub type Later<'l, B> = dyn Fn(&B) -> bool + 'l;

impl<B, W, F: Fuse<B, W> + ?Sized> Clone for Step<'_, B, W, F> {
    fn clone(&self) -> Self {
        match self {
            Self::Op { op, packed } => Self::Op { op: *op, packed: *packed },
            Self::Pack(pack) => Self::Pack(pack.clone()),
            Self::Linear(linear) => Self::Linear(linear.clone()),
            Self::RopeAttention(fused) => Self::RopeAttention(*fused),
            Self::DeltaStep(fused) => Self::DeltaStep(*fused),
        }
    }
}

impl<B, P: Copy> Clone for Pack<'_, B, P> {
    fn clone(&self) -> Self {
        Self { rows: self.rows.clone(), ..*self }
    }
}

impl<B, W, F: Fuse<B, W> + ?Sized> Clone for FusedLinear<'_, B, W, F> {
    fn clone(&self) -> Self {
        Self { product: self.product.clone(), ..*self }
    }
}

/// Arguments are references and numbers, copied whatever the buffers are.
macro_rules! copied {
    ($($name:ident<$($handle:ident $(: $bound:ident)?),*>),* $(,)?) => {
        $(
            impl<$($handle $(: $bound)?),*> Clone for $name<'_, $($handle),*> {
                fn clone(&self) -> Self {
                    *self
                }
            }

            impl<$($handle $(: $bound)?),*> Copy for $name<'_, $($handle),*> {}
        )*
    };
}

copied!(Input<B, P: Copy>, Activation<B>, RopeAttention<B>, DeltaStep<B>);

impl<'a, B: Operand, W: Matrix, F: Fuse<B, W>> Step<'a, B, W, F> {
    /// The step's recorded operations.
    fn ops(&self) -> Vec<Op<'a, B, W>> {
        match self {
            Self::Op { op, .. } => vec![*op],
            Self::Pack(_) => Vec::new(),
            Self::Linear(fused) => {
                let norms = match &fused.input {
                    Input::Norm { norm, added, .. } => [*added, Some(*norm)],
                    Input::Plain | Input::Rotate { .. } | Input::Packed(_) => [None, None],
                };
                let norms = norms.into_iter().flatten().map(Op::RmsNorm);
                let glu = fused.activation.as_ref().map(|activation| Op::Glu(activation.glu));
                norms.chain([Op::Linear(fused.linear)]).chain(glu).collect()
            }
            Self::RopeAttention(fused) => vec![Op::RopeCache(fused.rope), Op::Attention(fused.attention)],
            Self::DeltaStep(fused) => {
                vec![Op::CausalConv(fused.conv), Op::DeltaRule(fused.rule), Op::GatedNorm(fused.norm)]
            }
        }
    }

    /// The first use of a buffer.
    fn first_use(&self, buffer: &B) -> Option<Access> {
        let operands = self.ops().into_iter().flat_map(|op| op.operands());
        operands.filter(|(_, _, used)| used.id() == buffer.id()).map(|(_, access, _)| access).next()
    }

    /// Whether the step writes to a buffer.
    fn writes(&self, buffer: &B) -> bool {
        let operands = self.ops().into_iter().flat_map(|op| op.operands());
        operands.into_iter().any(|(_, access, used)| access != Access::Read && used.id() == buffer.id())
    }
}

/// Whether one of these steps reads what the buffer holds before them; none if they do not use it.
pub fn reads<'s, 'a: 's, B: Operand + 'a, W: Matrix + 'a, F: Fuse<B, W> + 's>(
    steps: impl IntoIterator<Item = &'s Step<'a, B, W, F>>,
    buffer: &B,
) -> Option<bool> {
    steps.into_iter().find_map(|step| step.first_use(buffer)).map(|access| access != Access::Write)
}

/// Whether one of these steps, or a later one, reads what the buffer holds before them.
fn read_by<B: Operand, W: Matrix, F: Fuse<B, W>>(
    steps: &[Step<'_, B, W, F>],
    later: &Later<'_, B>,
    buffer: &B,
) -> bool {
    reads(steps, buffer).unwrap_or_else(|| later(buffer))
}

fn same<B: Operand>(a: &B, b: &B) -> bool {
    a.id() == b.id()
}
