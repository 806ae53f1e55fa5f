//! Each refusal names the operation, the argument, what was expected and what was found.

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
        pass.glu(&x, &small, 1, 16),
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
    refuses(pass.glu(&x, &small, 1, 64), &NONE, &["glu: rotate", "divides 32", "64"]);
    refuses(pass.glu(&x, &small, 1, 12), &NONE, &["glu: rotate", "power of two", "12"]);
    let Op::Linear(linear) = pass.linear(&x, &weight, &y, 4, false) else { panic!("a linear layer") };
    let params = LinearParams { y_offset: 1, ..linear.params };
    refuses(Linear { params, ..linear }.into(), &NONE, &["linear: y_stride", "at least 17", "16"]);
    let params = LinearParams { accumulate: 2, ..linear.params };
    refuses(Linear { params, ..linear }.into(), &NONE, &["linear: accumulate", "0 or 1", "2"]);
    refuses(Linear { bias: Some(&norm), weight: &stacked, ..linear }.into(), &NONE, &["linear: y_stride"]);
}

#[test]
fn shapes_must_agree() {
    let pass = Pass::default();
    let (heads, net) = (pass.heads(), pass.net());
    let Op::RopeCache(rope) = heads.rope() else { panic!("rope_cache") };
    let of = |params| RopeCache { params, ..rope }.into();
    let p = rope.params;
    refuses(of(RopeCacheParams { kv_heads: 0, ..p }), &NONE, &["rope_cache: kv_heads", "at least 1", "0"]);
    refuses(
        of(RopeCacheParams { heads: 3, kv_heads: 2, ..p }),
        &NONE,
        &["rope_cache: heads", "multiple", "3"],
    );
    refuses(of(RopeCacheParams { rotary_dim: 31, ..p }), &NONE, &["rope_cache: rotary_dim", "31"]);
    refuses(of(RopeCacheParams { rotary_dim: 34, ..p }), &NONE, &["rope_cache: rotary_dim", "at most 32"]);
    refuses(of(RopeCacheParams { v_offset: 65, ..p }), &NONE, &["rope_cache: v_offset", "at least 96", "65"]);
    refuses(of(RopeCacheParams { context: 9, ..p }), &NONE, &["rope_cache: k_cache", "at least 288", "256"]);
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
    refuses(pass.glu(&x, &y, 1, 64), &rotation, &["glu: rotate", "at most 32", "64"]);
    refuses(heads.attention(64), &rotation, &["attention: rotate", "at most 32", "64"]);
    let taps = limits(|limits| limits.conv_taps = Some(3));
    refuses(conv, &taps, &["causal_conv: kernel", "at most 3", "4"]);
    let key_dim = limits(|limits| limits.key_dim = Some(15));
    refuses(rule, &key_dim, &["delta_rule: key_dim", "at most 15", "16"]);
    let value_dim = limits(|limits| limits.value_dim = Some(15));
    refuses(rule, &value_dim, &["delta_rule: value_dim", "at most 15", "16"]);
}
