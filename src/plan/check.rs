//! Every operation's buffers, strides, shapes and limits, checked before a backend sees it.

use std::fmt::Display;

use crate::ops::{
    Access, Attention, CausalConv, DeltaRule, Embed, GatedNorm, GatherRows, Linear, Matrix, Op, Operand,
    RmsNorm, RopeCache, Rotate, SwiGlu,
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
            Op::Rotate(op) => check.rotate(op),
            Op::Linear(op) => check.linear(op),
            Op::RopeCache(op) => check.rope_cache(op),
            Op::Attention(op) => check.attention(op),
            Op::SwiGlu(op) => check.swiglu(op),
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
        self.holds("y", op.y, product([p.rows, p.dim]))
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
        self.holds("inv_freq", op.inv_freq, (p.rotary_dim / 2).into())?;
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

    fn swiglu<B: Operand>(&self, op: &SwiGlu<'_, B>) -> Result<()> {
        let p = op.params;
        self.positive([("rows", p.rows), ("dim", p.dim)])?;
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
mod tests {
    use super::*;
    use crate::ops::{
        AttentionParams, CausalConvParams, DeltaRuleParams, GatedNormParams, LinearParams, RopeCacheParams,
    };
    use crate::plan::testing::{Buffer, Pass, Recorded, Weight};

    const NONE: Limits =
        Limits { head_dim: None, rotation: None, conv_taps: None, key_dim: None, value_dim: None };

    /// The error of one operation, which must name all of `parts`.
    fn refuses(op: Recorded<'_>, limits: &Limits, parts: &[&str]) {
        let error = check::<Buffer, Weight>(&[op], limits).expect_err(&parts.concat()).to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}: not {parts:?}");
    }

    #[test]
    fn buffers_must_be_large_enough_and_apart() {
        let pass = Pass::default();
        let (x, y, small, norm) = (pass.buffer(64), pass.buffer(64), pass.buffer(63), pass.buffer(16));
        let (weight, stacked) = (pass.weight(&[16], 16), pass.weight(&[16, 48], 16));
        let heads = pass.heads();
        let net = pass.net();
        let fine = [
            pass.norm(&x, &norm, &y, 4),
            pass.linear(&x, &weight, &y, 4, true),
            pass.swiglu(&x, &small, 1, 16),
            heads.rope(),
            heads.attention(64),
        ];
        for op in fine.into_iter().chain(net.ops()) {
            assert!(check::<Buffer, Weight>(&[op], &NONE).is_ok(), "{}", op.name());
        }
        refuses(pass.norm(&small, &norm, &y, 4), &NONE, &["rms_norm: x", "at least 64", "63"]);
        refuses(pass.norm(&x, &norm, &small, 4), &NONE, &["rms_norm: y", "at least 64", "63"]);
        refuses(pass.norm(&x, &norm, &x, 4), &NONE, &["rms_norm: y", "of its own", "x"]);
        refuses(pass.norm(&x, &norm, &y, 0), &NONE, &["rms_norm: rows", "at least 1", "0"]);
        refuses(pass.linear(&x, &stacked, &y, 4, false), &NONE, &["linear: y", "at least 256", "64"]);
        refuses(pass.swiglu(&x, &small, 1, 64), &NONE, &["swiglu: rotate", "divides 32", "64"]);
        refuses(pass.swiglu(&x, &small, 1, 12), &NONE, &["swiglu: rotate", "power of two", "12"]);
        let Op::Linear(linear) = pass.linear(&x, &weight, &y, 4, false) else { panic!("a linear layer") };
        let params = LinearParams { y_offset: 1, ..linear.params };
        refuses(Linear { params, ..linear }.into(), &NONE, &["linear: y_stride", "at least 17", "16"]);
        let params = LinearParams { accumulate: 2, ..linear.params };
        refuses(Linear { params, ..linear }.into(), &NONE, &["linear: accumulate", "0 or 1", "2"]);
        refuses(
            Linear { bias: Some(&norm), weight: &stacked, ..linear }.into(),
            &NONE,
            &["linear: y_stride"],
        );
    }

    #[test]
    fn shapes_must_agree() {
        let pass = Pass::default();
        let (heads, net) = (pass.heads(), pass.net());
        let Op::RopeCache(rope) = heads.rope() else { panic!("rope_cache") };
        let of = |params| RopeCache { params, ..rope }.into();
        let p = rope.params;
        refuses(
            of(RopeCacheParams { kv_heads: 0, ..p }),
            &NONE,
            &["rope_cache: kv_heads", "at least 1", "0"],
        );
        refuses(
            of(RopeCacheParams { heads: 3, kv_heads: 2, ..p }),
            &NONE,
            &["rope_cache: heads", "multiple", "3"],
        );
        refuses(of(RopeCacheParams { rotary_dim: 31, ..p }), &NONE, &["rope_cache: rotary_dim", "31"]);
        refuses(
            of(RopeCacheParams { rotary_dim: 34, ..p }),
            &NONE,
            &["rope_cache: rotary_dim", "at most 32"],
        );
        refuses(
            of(RopeCacheParams { v_offset: 65, ..p }),
            &NONE,
            &["rope_cache: v_offset", "at least 96", "65"],
        );
        refuses(
            of(RopeCacheParams { context: 9, ..p }),
            &NONE,
            &["rope_cache: k_cache", "at least 288", "256"],
        );
        // Sizes whose product is beyond 64 bits.
        let huge = RopeCacheParams { context: u32::MAX, kv_heads: 2, head_dim: 32, ..p };
        refuses(of(huge), &NONE, &["rope_cache"]);
        let one = RopeCache { q_norm: Some(rope.inv_freq), ..rope };
        refuses(one.into(), &NONE, &["rope_cache: q_norm and k_norm", "both or none"]);
        let Op::Attention(attention) = heads.attention(0) else { panic!("attention") };
        let of = |params| Attention { params, ..attention }.into();
        let p = attention.params;
        refuses(of(AttentionParams { gated: 1, ..p }), &NONE, &["attention: q_stride", "at least 64", "32"]);
        refuses(of(AttentionParams { segments: 2, ..p }), &NONE, &["attention: segments", "at most 1", "2"]);
        let [conv, rule, norm] = net.ops();
        let (Op::CausalConv(conv), Op::DeltaRule(rule), Op::GatedNorm(norm)) = (conv, rule, norm) else {
            panic!("a delta net")
        };
        let params = CausalConvParams { kernel: 1, ..conv.params };
        refuses(CausalConv { params, ..conv }.into(), &NONE, &["causal_conv: kernel", "at least 2", "1"]);
        let params = DeltaRuleParams { key_heads: 0, ..rule.params };
        refuses(DeltaRule { params, ..rule }.into(), &NONE, &["delta_rule: key_heads", "at least 1", "0"]);
        let params = DeltaRuleParams { a_offset: 131, ..rule.params };
        refuses(DeltaRule { params, ..rule }.into(), &NONE, &["delta_rule: stride", "at least 133", "132"]);
        let params = GatedNormParams { offset: 101, ..norm.params };
        refuses(GatedNorm { params, ..norm }.into(), &NONE, &["gated_norm: stride", "at least 133", "132"]);
    }

    #[test]
    fn a_backends_limits_are_named() {
        let pass = Pass::default();
        let (x, y) = (pass.buffer(128), pass.buffer(64));
        let (heads, net) = (pass.heads(), pass.net());
        let [conv, rule, _] = net.ops();
        let limits = |of: fn(&mut Limits)| {
            let mut limits = NONE;
            of(&mut limits);
            limits
        };
        let head_dim = limits(|limits| limits.head_dim = Some(31));
        refuses(heads.rope(), &head_dim, &["rope_cache: head_dim", "at most 31", "32"]);
        refuses(heads.attention(0), &head_dim, &["attention: head_dim", "at most 31", "32"]);
        let rotation = limits(|limits| limits.rotation = Some(32));
        refuses(pass.swiglu(&x, &y, 1, 64), &rotation, &["swiglu: rotate", "at most 32", "64"]);
        refuses(heads.attention(64), &rotation, &["attention: rotate", "at most 32", "64"]);
        let taps = limits(|limits| limits.conv_taps = Some(3));
        refuses(conv, &taps, &["causal_conv: kernel", "at most 3", "4"]);
        let key_dim = limits(|limits| limits.key_dim = Some(15));
        refuses(rule, &key_dim, &["delta_rule: key_dim", "at most 15", "16"]);
        let value_dim = limits(|limits| limits.value_dim = Some(15));
        refuses(rule, &value_dim, &["delta_rule: value_dim", "at most 15", "16"]);
    }
}
