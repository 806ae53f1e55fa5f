//! A plan as text, one line a step: `>` stands between what is one kernel.

use std::fmt::{self, Display, Formatter};

use super::{DeltaStep, Fuse, FusedLinear, Input, RopeAttention, Step};
use crate::ops::{Attention, Matrix, Op};
use crate::tensor::{Dtype, Form, Stored};

/// `, rotate 512`, or nothing.
struct Rotation(u32);

impl Display for Rotation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0 > 0 { write!(f, ", rotate {}", self.0) } else { Ok(()) }
    }
}

/// `, the last 1024 positions`, or nothing.
struct Window(u32);

impl Display for Window {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0 > 0 { write!(f, ", the last {} positions", self.0) } else { Ok(()) }
    }
}

/// `, gelu`, or nothing.
struct Gelu(u32);

impl Display for Gelu {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0 > 0 { write!(f, ", gelu") } else { Ok(()) }
    }
}

impl<B, W: Matrix> Display for Op<'_, B, W> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.name())?;
        match self {
            Op::Embed(op) => write!(f, "{} of {}", op.params.rows, op.table.parts()[0]),
            Op::GatherRows(op) => write!(f, "{} x {}", op.params.rows, op.params.dim),
            Op::RmsNorm(op) => {
                write!(f, "{} x {}{}", op.params.rows, op.params.dim, Rotation(op.params.rotate))?;
                if op.residual.is_some() { write!(f, ", added") } else { Ok(()) }
            }
            Op::QkNorm(op) => write!(f, "{} x {} and {}", op.params.rows, op.params.q_dim, op.params.k_dim),
            Op::Rotate(op) => {
                write!(f, "{} x {}{}", op.params.rows, op.params.dim, Rotation(op.params.rotate))
            }
            Op::Linear(op) => write!(f, "{} x [{}, {}]", op.params.rows, op.weight.out(), op.weight.cols()),
            Op::RopeCache(op) => {
                let p = op.params;
                write!(f, "{} x {} heads of {}", p.rows, p.heads, p.head_dim)
            }
            Op::Attention(op) => {
                let p = op.params;
                write!(f, "{} x {} heads of {}", p.rows, p.heads, p.head_dim)?;
                write!(f, "{}{}", Window(p.window), Rotation(p.rotate))
            }
            Op::Glu(op) => {
                let p = op.params;
                write!(f, "{} x {}{}{}", p.rows, p.dim, Gelu(p.gelu), Rotation(p.rotate))
            }
            Op::CausalConv(op) => write!(f, "{} x {}", op.params.rows, op.params.channels),
            Op::DeltaRule(op) => {
                let p = op.params;
                write!(f, "{} x {} heads of {}", p.rows, p.value_heads, p.value_dim)
            }
            Op::GatedNorm(op) => {
                let p = op.params;
                write!(f, "{} x {} heads of {}{}", p.rows, p.heads, p.dim, Rotation(p.rotate))
            }
        }
    }
}

impl Display for Form {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}] {}", self.rows, self.cols, self.stored)
    }
}

impl Display for Stored {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense(Dtype::F32) => write!(f, "f32"),
            Self::Dense(Dtype::F16) => write!(f, "f16"),
            Self::Dense(Dtype::BF16) => write!(f, "bf16"),
            Self::Pq(spec) => write!(f, "{spec}"),
        }
    }
}

impl<B, W: Matrix, F: Fuse<B, W>> Display for Step<'_, B, W, F> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Op { op, packed: None } => write!(f, "{op}"),
            Self::Op { op, packed: Some(packing) } => write!(f, "{op} ({packing})"),
            Self::Pack(pack) => write!(f, "pack {} x {} ({})", pack.rows.len(), pack.cols, pack.packing),
            Self::Linear(linear) => write!(f, "{linear}"),
            Self::RopeAttention(fused) => write!(f, "{fused}"),
            Self::DeltaStep(fused) => write!(f, "{fused}"),
        }
    }
}

impl<B, W: Matrix, F: Fuse<B, W>> Display for FusedLinear<'_, B, W, F> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kept = |keep: bool| if keep { " (kept)" } else { "" };
        match &self.input {
            Input::Plain | Input::Packed(_) => {}
            Input::Norm { norm, keep, added } => {
                if added.is_some() {
                    write!(f, "rms_norm, added > ")?;
                }
                write!(f, "rms_norm{}{} > ", Rotation(norm.params.rotate), kept(*keep))?;
            }
            Input::Rotate { block, keep } => write!(f, "rotate {block}{} > ", kept(*keep))?,
        }
        let p = self.linear.params;
        let parts = &self.linear.weight.parts()[self.product.parts.clone()];
        let parts: Vec<_> = parts.iter().map(ToString::to_string).collect();
        write!(f, "linear {}, {}", parts.join(" + "), self.product.algorithm)?;
        if self.product.rows != (0..p.rows) {
            write!(f, ", rows {} to {}", self.product.rows.start, self.product.rows.end)?;
        }
        if let Input::Packed(packing) = &self.input {
            write!(f, ", {packing}")?;
        }
        if p.accumulate == 1 {
            write!(f, ", added to y")?;
        }
        let Some(activation) = &self.activation else { return Ok(()) };
        let p = activation.glu.params;
        write!(f, " > glu{}{}", Gelu(p.gelu), Signs(activation.rotated_by_next, p.rotate))
    }
}

/// `, signs of 512`: a rotation by such blocks is left to the next product; or the rotation.
struct Signs(bool, u32);

impl Display for Signs {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0 { write!(f, ", signs of {}", self.1) } else { write!(f, "{}", Rotation(self.1)) }
    }
}

impl<B> Display for RopeAttention<'_, B> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Attention { params: p, .. } = self.attention;
        let rotation = Signs(self.rotated_by_next, p.rotate);
        let window = Window(p.window);
        write!(f, "rope_cache > attention {} x {} heads of {}{window}{rotation}", p.rows, p.heads, p.head_dim)
    }
}

impl<B> Display for DeltaStep<'_, B> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let p = self.norm.params;
        write!(f, "causal_conv > delta_rule > gated_norm {} x {} heads of {}", p.rows, p.heads, p.dim)?;
        write!(f, "{}", Rotation(p.rotate))
    }
}
