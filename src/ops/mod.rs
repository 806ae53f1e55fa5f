//! The operations of a forward pass: one argument struct each, their scalar parameters, and [`Op`], one of them recorded.
//!
//! A forward pass is a list of operations, which [`crate::plan`] checks and rewrites before a backend runs it. Every
//! buffer is an array of 4-byte words on its device. Activations are f32 `[rows, ...]`; a *row* is one token of one
//! sequence, a *segment* the rows of one sequence in a batch, which are consecutive. Weights are opaque
//! ([`crate::backend::Backend::Weight`]). The parameter structs of Rust, WGSL and CUDA come from ONE declaration
//! (`kernel_params!`): 4-byte scalars only, padded to 16 bytes.
//!
//! `rotate` in a parameter struct is the block of the [`crate::pq::Rotation`] that the operation applies to each
//! of its output rows, 0 for none: the linear layer that follows then finds its input rotated without another pass.

mod arguments;
mod params;
mod top_k;

pub use arguments::*;
pub use params::*;
pub use top_k::top_k;

use crate::tensor::Form;

/// A buffer's identity and size: all that checks and plans need of it.
pub trait Operand {
    /// Differs from every other allocation's in this program.
    fn id(&self) -> u64;
    /// Elements that it was allocated for.
    fn elements(&self) -> usize;
}

/// A weight's identity and shape.
pub trait Matrix {
    /// Differs from every other weight's in this program.
    fn id(&self) -> u64;
    /// The matrices `[out, in]` that it stacks along `out`, as its backend holds them; at least one.
    fn parts(&self) -> &[Form];

    /// Output rows of all parts.
    fn out(&self) -> usize {
        self.parts().iter().map(|part| part.rows).sum()
    }

    /// Input columns, which the parts share.
    fn cols(&self) -> usize {
        self.parts()[0].cols
    }
}

/// How an operation uses a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads it.
    Read,
    /// Overwrites its rows, or columns of them; what it leaves of them nobody reads.
    Write,
    /// Reads and writes it, or writes only some of its rows.
    Update,
}

/// Declares [`Op`] over the argument structs, with each operation's name.
macro_rules! operations {
    ($($name:literal $op:ident<$($handle:ident),*>),* $(,)?) => {
        /// A recorded operation.
        pub enum Op<'a, B, W> {
            $($op($op<'a, $($handle),*>),)*
        }

        impl<B, W> Op<'_, B, W> {
            /// The operation's name, which is its kernel's on every backend.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$op(_) => $name,)*
                }
            }

            /// The parameters' words, which stand for the operation together with its buffers.
            pub fn words(&self) -> Vec<u32> {
                match self {
                    $(Self::$op(op) => op.params.words(),)*
                }
            }
        }

        impl<B, W> Clone for Op<'_, B, W> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<B, W> Copy for Op<'_, B, W> {}

        $(
            impl<'a, B, W> From<$op<'a, $($handle),*>> for Op<'a, B, W> {
                fn from(op: $op<'a, $($handle),*>) -> Self {
                    Self::$op(op)
                }
            }
        )*

        /// Every operation's name.
        pub const NAMES: &[&str] = &[$($name),*];
    };
}

operations!(
    "embed" Embed<B, W>,
    "gather_rows" GatherRows<B>,
    "rms_norm" RmsNorm<B>,
    "qk_norm" QkNorm<B>,
    "rotate" Rotate<B>,
    "linear" Linear<B, W>,
    "rope_cache" RopeCache<B>,
    "attention" Attention<B>,
    "glu" Glu<B>,
    "causal_conv" CausalConv<B>,
    "delta_rule" DeltaRule<B>,
    "gated_norm" GatedNorm<B>,
);

/// The kernels, each of which every backend has under this name: one an operation, but `linear` is three: dense, one
/// row of PQ (decode), many rows of PQ (prefill).
pub fn kernels() -> impl Iterator<Item = &'static str> {
    let linear = ["dense_matmul", "pq_matvec", "pq_matmul"];
    NAMES.iter().copied().filter(|name| *name != "linear").chain(linear)
}

impl<'a, B, W> Op<'a, B, W> {
    /// The buffers by the names of their fields.
    pub fn operands(&self) -> Vec<(&'static str, Access, &'a B)> {
        use Access::{Read, Update, Write};
        let given = |name, buffer: Option<&'a B>| buffer.map(|buffer| (name, Read, buffer));
        match self {
            Op::Embed(op) => vec![("tokens", Read, op.tokens), ("y", Write, op.y)],
            Op::GatherRows(op) => vec![("x", Read, op.x), ("index", Read, op.index), ("y", Write, op.y)],
            Op::RmsNorm(op) => [("x", Read, op.x), ("weight", Read, op.weight), ("y", Write, op.y)]
                .into_iter()
                .chain(given("residual", op.residual))
                .collect(),
            Op::QkNorm(op) => {
                vec![("qkv", Update, op.qkv), ("q_norm", Read, op.q_norm), ("k_norm", Read, op.k_norm)]
            }
            Op::Rotate(op) => vec![("x", Read, op.x), ("y", Write, op.y)],
            Op::Linear(op) => {
                let y = if op.params.accumulate == 1 { Update } else { Write };
                [("x", Read, op.x), ("y", y, op.y)].into_iter().chain(given("bias", op.bias)).collect()
            }
            Op::RopeCache(op) => [
                ("qkv", Update, op.qkv),
                ("inv_freq", Read, op.inv_freq),
                ("rows", Read, op.rows),
                ("k_cache", Update, op.k_cache),
                ("v_cache", Update, op.v_cache),
            ]
            .into_iter()
            .chain(given("q_norm", op.q_norm))
            .chain(given("k_norm", op.k_norm))
            .collect(),
            Op::Attention(op) => vec![
                ("qkv", Read, op.qkv),
                ("k_cache", Read, op.k_cache),
                ("v_cache", Read, op.v_cache),
                ("rows", Read, op.rows),
                ("segments", Read, op.segments),
                ("y", Write, op.y),
            ],
            Op::Glu(op) => vec![("x", Read, op.x), ("y", Write, op.y)],
            Op::CausalConv(op) => vec![
                ("x", Read, op.x),
                ("weight", Read, op.weight),
                ("segments", Read, op.segments),
                ("state", Update, op.state),
                ("y", Write, op.y),
            ],
            Op::DeltaRule(op) => vec![
                ("qkv", Read, op.qkv),
                ("proj", Read, op.proj),
                ("a_log", Read, op.a_log),
                ("dt_bias", Read, op.dt_bias),
                ("segments", Read, op.segments),
                ("state", Update, op.state),
                ("y", Write, op.y),
            ],
            Op::GatedNorm(op) => vec![
                ("x", Read, op.x),
                ("gate", Read, op.gate),
                ("weight", Read, op.weight),
                ("y", Write, op.y),
            ],
        }
    }

    /// The weight, where the operation has one.
    pub fn weight(&self) -> Option<&'a W> {
        match self {
            Op::Embed(op) => Some(op.table),
            Op::Linear(op) => Some(op.weight),
            Op::GatherRows(_)
            | Op::RmsNorm(_)
            | Op::QkNorm(_)
            | Op::Rotate(_)
            | Op::RopeCache(_)
            | Op::Attention(_)
            | Op::Glu(_)
            | Op::CausalConv(_)
            | Op::DeltaRule(_)
            | Op::GatedNorm(_) => None,
        }
    }
}

/// What tells one recorded operation from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    name: &'static str,
    params: Vec<u32>,
    weight: Option<u64>,
    buffers: Vec<u64>,
}

impl<B: Operand, W: Matrix> Op<'_, B, W> {
    pub fn identity(&self) -> Identity {
        Identity {
            name: self.name(),
            params: self.words(),
            weight: self.weight().map(Matrix::id),
            buffers: self.operands().into_iter().map(|(_, _, buffer)| buffer.id()).collect(),
        }
    }
}
