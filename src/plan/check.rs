//! Every operation's buffers, strides, shapes and limits, checked before a backend sees it.

use std::fmt::Display;

use crate::ops::{
    Access, Attention, CausalConv, DeltaRule, Embed, GatedNorm, GatherRows, Glu, Linear, Matrix, Op, Operand,
    QkNorm, RmsNorm, RopeCache, Rotate,
};
use crate::{Error, Result};

/// The largest sizes that a backend's kernels take; none where there is no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Elements of an attention head.
    pub head_dim: Option<u32>,
    /// Elements of a rotation's block.
    pub rotation: Option<u32>,
    /// Taps of a causal convolution.
    pub conv_taps: Option<u32>,
    /// Elements of a delta net's key.
    pub key_dim: Option<u32>,
    /// Elements of a delta net's value.
    pub value_dim: Option<u32>,
}

/// Checks a list of operations.
///
/// # Errors
/// Names the operation, what was expected of which argument, and what was found.
pub fn check<B: Operand, W: Matrix>(ops: &[Op<'_, B, W>], limits: &Limits) -> Result<()> {
    ops.iter().try_for_each(|op| {
        let check = Check { name: op.name(), limits };
        check.apart(op)?;
        match op {
            Op::Embed(op) => check.embed(op),
            Op::GatherRows(op) => check.gather_rows(op),
            Op::RmsNorm(op) => check.rms_norm(op),
            Op::QkNorm(op) => check.qk_norm(op),
            Op::Rotate(op) => check.rotate(op),
            Op::Linear(op) => check.linear(op),
            Op::RopeCache(op) => check.rope_cache(op),
            Op::Attention(op) => check.attention(op),
            Op::Glu(op) => check.glu(op),
            Op::CausalConv(op) => check.causal_conv(op),
            Op::DeltaRule(op) => check.delta_rule(op),
            Op::GatedNorm(op) => check.gated_norm(op),
        }
    })
}

/// The checks of one operation.
struct Check<'a> {
    name: &'static str,
    limits: &'a Limits,
}

/// The product of sizes, which no 32-bit sizes can overflow.
fn product<const N: usize>(sizes: [u32; N]) -> u128 {
    sizes.into_iter().map(u128::from).product()
}

impl Check<'_> {
    fn error(&self, what: &str, expected: impl Display, found: impl Display) -> Error {
        Error::mismatch(format!("{}: {what}", self.name), expected, found)
    }

    /// No buffer that is written is another argument as well.
    fn apart<B: Operand, W>(&self, op: &Op<'_, B, W>) -> Result<()> {
        let operands = op.operands();
        for (i, (name, access, buffer)) in operands.iter().enumerate() {
            let same = |(j, other): (usize, &(&'static str, Access, &B))| {
                (j != i && other.2.id() == buffer.id()).then_some(other.0)
            };
            if *access != Access::Read
                && let Some(other) = operands.iter().enumerate().find_map(same)
            {
                return Err(self.error(name, "a buffer of its own", format!("that of {other}")));
            }
        }
        Ok(())
    }

    fn holds<B: Operand>(&self, name: &str, buffer: &B, elements: u128) -> Result<()> {
        if (buffer.elements() as u128) < elements {
            let found = format!("{} elements", buffer.elements());
            return Err(self.error(name, format!("at least {elements} elements"), found));
        }
        Ok(())
    }

    fn positive<const N: usize>(&self, sizes: [(&str, u32); N]) -> Result<()> {
        sizes.into_iter().try_for_each(|(name, size)| self.at_least(name, size, 1))
    }

    fn at_least(&self, name: &str, size: u32, least: u128) -> Result<()> {
        if u128::from(size) < least {
            return Err(self.error(name, format!("at least {least}"), size));
        }
        Ok(())
    }

    fn within(&self, name: &str, size: u32, limit: Option<u32>) -> Result<()> {
        match limit {
            Some(limit) if size > limit => Err(self.error(name, format!("at most {limit}"), size)),
            _ => Ok(()),
        }
    }

    fn flag(&self, name: &str, value: u32) -> Result<()> {
        if value > 1 { Err(self.error(name, "0 or 1", value)) } else { Ok(()) }
    }

    fn multiple(&self, name: &str, size: u32, of: (&str, u32)) -> Result<()> {
        if of.1 == 0 || !size.is_multiple_of(of.1) {
            return Err(self.error(name, format!("a multiple of {} {}", of.0, of.1), size));
        }
        Ok(())
    }

    /// The block of a rotation of rows of `dim` elements, 0 for none.
    fn rotation(&self, block: u32, dim: u128) -> Result<()> {
        if block > 0 && !(block.is_power_of_two() && dim.is_multiple_of(u128::from(block))) {
            let expected = format!("0 or a power of two that divides {dim}");
            return Err(self.error("rotate", expected, block));
        }
        self.within("rotate", block, self.limits.rotation)
    }

    fn embed<B: Operand, W: Matrix>(&self, op: &Embed<'_, B, W>) -> Result<()> {
        let p = op.params;
        self.positive([("rows", p.rows), ("dim", p.dim)])?;
        if op.table.parts().len() != 1 || op.table.cols() != p.dim as usize {
            let found = format!("{} of {} columns", op.table.parts().len(), op.table.cols());
            return Err(self.error("table", format!("one matrix of {} columns", p.dim), found));
        }
        self.holds("tokens", op.tokens, p.rows.into())?;
        self.holds("y", op.y, product([p.rows, p.dim]))
    }

    fn gather_rows<B: Operand>(&self, op: &GatherRows<'_, B>) -> Result<()> {
        let p = op.params;
        self.positive([("rows", p.rows), ("dim", p.dim)])?;
        self.holds("x", op.x, p.dim.into())?;
        self.holds("index", op.index, p.rows.into())?;
        self.holds("y", op.y, product([p.rows, p.dim]))
    }

    fn rms_norm<B: Operand>(&self, op: &RmsNorm<'_, B>) -> Result<()> {
        let p = op.params;
        self.positive([("rows", p.rows), ("dim", p.dim)])?;
        self.rotation(p.rotate, p.dim.into())?;
        self.holds("x", op.x, product([p.rows, p.dim]))?;
        self.holds("weight", op.weight, p.dim.into())?;
        if let Some(residual) = op.residual {
            self.holds("residual", residual, product([p.rows, p.dim]))?;
            self.within("rotate", p.rotate, Some(0))?;
        }
        self.holds("y", op.y, product([p.rows, p.dim]))
    }

    fn qk_norm<B: Operand>(&self, op: &QkNorm<'_, B>) -> Result<()> {
        let p = op.params;
        self.positive([("rows", p.rows), ("q_dim", p.q_dim), ("k_dim", p.k_dim)])?;
        self.at_least("k_offset", p.k_offset, p.q_dim.into())?;
        self.at_least("stride", p.stride, u128::from(p.k_offset) + u128::from(p.k_dim))?;
        self.holds("q_norm", op.q_norm, p.q_dim.into())?;
        self.holds("k_norm", op.k_norm, p.k_dim.into())?;
        self.holds("qkv", op.qkv, product([p.rows, p.stride]))
    }

    fn rotate<B: Operand>(&self, op: &Rotate<'_, B>) -> Result<()> {
        let p = op.params;
        self.positive([("rows", p.rows), ("dim", p.dim), ("rotate", p.rotate)])?;
        self.rotation(p.rotate, p.dim.into())?;
        self.holds("x", op.x, product([p.rows, p.dim]))?;
        self.holds("y", op.y, product([p.rows, p.dim]))
    }

    fn linear<B: Operand, W: Matrix>(&self, op: &Linear<'_, B, W>) -> Result<()> {
        let p = op.params;
        let (out, cols) = (op.weight.out() as u128, op.weight.cols() as u128);
        self.positive([("rows", p.rows)])?;
        self.flag("accumulate", p.accumulate)?;
        self.at_least("y_stride", p.y_stride, u128::from(p.y_offset) + out)?;
        self.holds("x", op.x, u128::from(p.rows) * cols)?;
        self.holds("y", op.y, product([p.rows, p.y_stride]))?;
        op.bias.map_or(Ok(()), |bias| self.holds("bias", bias, out))
    }

    fn rope_cache<B: Operand>(&self, op: &RopeCache<'_, B>) -> Result<()> {
        let p = op.params;
        self.heads(p.rows, p.heads, p.kv_heads, p.head_dim, p.context)?;
        let (kv, head_dim) = (product([p.kv_heads, p.head_dim]), u128::from(p.head_dim));
        self.at_least("q_stride", p.q_stride, head_dim)?;
        self.at_least("k_offset", p.k_offset, product([p.heads - 1, p.q_stride]) + head_dim)?;
        self.at_least("v_offset", p.v_offset, u128::from(p.k_offset) + kv)?;
        self.at_least("stride", p.stride, u128::from(p.v_offset) + kv)?;
        self.multiple("rotary_dim", p.rotary_dim, ("", 2))?;
        self.within("rotary_dim", p.rotary_dim, Some(p.head_dim))?;
        if op.q_norm.is_some() != op.k_norm.is_some() {
            return Err(self.error("q_norm and k_norm", "both or none", "one"));
        }
        for (name, norm) in [("q_norm", op.q_norm), ("k_norm", op.k_norm)] {
            norm.map_or(Ok(()), |norm| self.holds(name, norm, head_dim))?;
        }
        self.holds("qkv", op.qkv, product([p.rows, p.stride]))?;
        // Kernels may read an element that they do not use.
        self.holds("inv_freq", op.inv_freq, (p.rotary_dim / 2).max(1).into())?;
        if p.query_beta != 0.0 && (p.query_context < 1.0 || p.query_context.is_nan()) {
            return Err(self.error("query_context", "at least 1", p.query_context));
        }
        self.holds("rows", op.rows, product([p.rows, 2]))?;
        self.holds("k_cache", op.k_cache, product([p.kv_heads, p.context, p.head_dim]))?;
        self.holds("v_cache", op.v_cache, product([p.kv_heads, p.context, p.head_dim]))
    }

    fn attention<B: Operand>(&self, op: &Attention<'_, B>) -> Result<()> {
        let p = op.params;
        self.heads(p.rows, p.heads, p.kv_heads, p.head_dim, p.context)?;
        self.segments(op.segments, p.segments, p.rows)?;
        self.flag("gated", p.gated)?;
        self.at_least("q_stride", p.q_stride, product([p.head_dim, 1 + p.gated]))?;
        self.at_least("stride", p.stride, product([p.heads, p.q_stride]))?;
        self.rotation(p.rotate, product([p.heads, p.head_dim]))?;
        self.holds("qkv", op.qkv, product([p.rows, p.stride]))?;
        self.holds("k_cache", op.k_cache, product([p.kv_heads, p.context, p.head_dim]))?;
        self.holds("v_cache", op.v_cache, product([p.kv_heads, p.context, p.head_dim]))?;
        self.holds("rows", op.rows, product([p.rows, 2]))?;
        self.holds("y", op.y, product([p.rows, p.heads, p.head_dim]))
    }

    fn heads(&self, rows: u32, heads: u32, kv_heads: u32, head_dim: u32, context: u32) -> Result<()> {
        let sizes = [
            ("rows", rows),
            ("heads", heads),
            ("kv_heads", kv_heads),
            ("head_dim", head_dim),
            ("context", context),
        ];
        self.positive(sizes)?;
        self.multiple("heads", heads, ("kv_heads", kv_heads))?;
        self.within("head_dim", head_dim, self.limits.head_dim)
    }

    fn segments<B: Operand>(&self, buffer: &B, segments: u32, rows: u32) -> Result<()> {
        self.positive([("segments", segments)])?;
        self.within("segments", segments, Some(rows))?;
        self.holds("segments", buffer, product([segments, 4]))
    }

    fn glu<B: Operand>(&self, op: &Glu<'_, B>) -> Result<()> {
        let p = op.params;
        self.positive([("rows", p.rows), ("dim", p.dim)])?;
        self.flag("gelu", p.gelu)?;
        self.rotation(p.rotate, p.dim.into())?;
        self.holds("x", op.x, product([p.rows, p.dim, 2]))?;
        self.holds("y", op.y, product([p.rows, p.dim]))
    }

    fn causal_conv<B: Operand>(&self, op: &CausalConv<'_, B>) -> Result<()> {
        let p = op.params;
        self.positive([("rows", p.rows), ("channels", p.channels)])?;
        self.segments(op.segments, p.segments, p.rows)?;
        self.at_least("kernel", p.kernel, 2)?;
        self.within("kernel", p.kernel, self.limits.conv_taps)?;
        self.at_least("stride", p.stride, p.channels.into())?;
        self.holds("x", op.x, product([p.rows, p.stride]))?;
        self.holds("weight", op.weight, product([p.channels, p.kernel]))?;
        self.holds("state", op.state, product([p.channels, p.kernel - 1]))?;
        self.holds("y", op.y, product([p.rows, p.channels]))
    }

    fn delta_rule<B: Operand>(&self, op: &DeltaRule<'_, B>) -> Result<()> {
        let p = op.params;
        let sizes = [
            ("rows", p.rows),
            ("key_heads", p.key_heads),
            ("value_heads", p.value_heads),
            ("key_dim", p.key_dim),
            ("value_dim", p.value_dim),
        ];
        self.positive(sizes)?;
        self.segments(op.segments, p.segments, p.rows)?;
        self.multiple("value_heads", p.value_heads, ("key_heads", p.key_heads))?;
        self.within("key_dim", p.key_dim, self.limits.key_dim)?;
        self.within("value_dim", p.value_dim, self.limits.value_dim)?;
        let heads = u128::from(p.value_heads);
        self.at_least("stride", p.stride, u128::from(p.a_offset.max(p.b_offset)) + heads)?;
        let width = product([2, p.key_heads, p.key_dim]) + product([p.value_heads, p.value_dim]);
        self.holds("qkv", op.qkv, u128::from(p.rows) * width)?;
        self.holds("proj", op.proj, product([p.rows, p.stride]))?;
        self.holds("a_log", op.a_log, heads)?;
        self.holds("dt_bias", op.dt_bias, heads)?;
        self.holds("state", op.state, product([p.value_heads, p.key_dim, p.value_dim]))?;
        self.holds("y", op.y, product([p.rows, p.value_heads, p.value_dim]))
    }

    fn gated_norm<B: Operand>(&self, op: &GatedNorm<'_, B>) -> Result<()> {
        let p = op.params;
        let width = product([p.heads, p.dim]);
        self.positive([("rows", p.rows), ("heads", p.heads), ("dim", p.dim)])?;
        self.rotation(p.rotate, width)?;
        self.at_least("stride", p.stride, u128::from(p.offset) + width)?;
        self.holds("x", op.x, u128::from(p.rows) * width)?;
        self.holds("gate", op.gate, product([p.rows, p.stride]))?;
        self.holds("weight", op.weight, p.dim.into())?;
        self.holds("y", op.y, u128::from(p.rows) * width)
    }
}

#[cfg(test)]
mod tests;
