//! The operations of a forward pass: one argument struct each, and their scalar parameters.
//!
//! Every buffer is an array of 4-byte words on its device. Activations are f32 `[rows, ...]`; a *row* is one token
//! of one sequence, a *segment* the rows of one sequence in a batch, which are consecutive. Weights are opaque
//! ([`crate::backend::Backend::Weight`]). The parameter structs of Rust, WGSL and CUDA come from ONE declaration
//! (`kernel_params!`): 4-byte scalars only, padded to 16 bytes.
//!
//! `rotate` in a parameter struct is the block of the [`crate::pq::Rotation`] that the operation applies to each
//! of its output rows, 0 for none: the linear layer that follows then finds its input rotated without another pass.

/// Declares parameter structs, each with its words for upload, and the text of the same structs in WGSL and CUDA.
macro_rules! kernel_params {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $ty:ident),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq)]
            pub struct $name { $($(#[$field_doc])* pub $field: $ty,)* }

            impl $name {
                /// The fields in order, padded with zeros to a multiple of four words.
                pub fn words(&self) -> Vec<u32> {
                    let mut words = vec![$(bytemuck::cast::<$ty, u32>(self.$field)),*];
                    words.resize(words.len().next_multiple_of(4), 0);
                    words
                }
            }
        )*

        /// The parameter structs in WGSL.
        pub const WGSL: &str = concat!($(
            "struct ", stringify!($name), " {\n", $("    ", stringify!($field), ": ", stringify!($ty), ",\n",)* "}\n",
        )*);

        /// The parameter structs in CUDA C++, for `u32` and `f32` as type names.
        pub const CUDA: &str = concat!($(
            "struct __align__(16) ", stringify!($name), " {\n", $("    ", stringify!($ty), " ", stringify!($field), ";\n",)* "};\n",
        )*);
    };
}

kernel_params! {
    /// Of [`Embed`].
    EmbedParams { rows: u32, dim: u32 }
    /// Of [`GatherRows`]: `rows` of the output.
    GatherRowsParams { rows: u32, dim: u32 }
    /// Of [`RmsNorm`].
    RmsNormParams {
        rows: u32,
        dim: u32,
        eps: f32,
        /// Added to each weight: 1 for zero-centred norms, else 0.
        weight_offset: f32,
        rotate: u32,
    }
    /// Of [`Rotate`].
    RotateParams { rows: u32, dim: u32, rotate: u32 }
    /// Of [`Linear`]; the weight knows its own `[out, in]`.
    LinearParams {
        rows: u32,
        /// Elements from one output row to the next.
        y_stride: u32,
        /// First column of the output that is written.
        y_offset: u32,
        /// 1: add to what the output holds (a residual); 0: overwrite.
        accumulate: u32,
    }
    /// Of [`RopeCache`].
    RopeCacheParams {
        rows: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        /// Leading elements of a head that rotary embedding turns; even, the rest pass.
        rotary_dim: u32,
        /// Elements from one row of `qkv` to the next.
        stride: u32,
        /// Elements from one query head to the next: `2 * head_dim` where a gate follows each head's query.
        q_stride: u32,
        /// First key element in a row.
        k_offset: u32,
        /// First value element in a row.
        v_offset: u32,
        /// Positions that the cache holds per slot.
        context: u32,
        eps: f32,
        weight_offset: f32,
    }
    /// Of [`Attention`].
    AttentionParams {
        rows: u32,
        segments: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        stride: u32,
        q_stride: u32,
        context: u32,
        /// Multiplies the scores: 1 / sqrt(head_dim).
        scale: f32,
        /// 1: the output is multiplied by the sigmoid of the gate that follows each head's query.
        gated: u32,
        rotate: u32,
    }
    /// Of [`SwiGlu`]: `dim` of the output.
    SwiGluParams { rows: u32, dim: u32, rotate: u32 }
    /// Of [`CausalConv`].
    CausalConvParams {
        rows: u32,
        segments: u32,
        channels: u32,
        /// Taps of the convolution; the state holds `kernel - 1` columns.
        kernel: u32,
        /// Elements from one input row to the next; the channels come first in a row.
        stride: u32,
    }
    /// Of [`DeltaRule`].
    DeltaRuleParams {
        rows: u32,
        segments: u32,
        key_heads: u32,
        value_heads: u32,
        key_dim: u32,
        value_dim: u32,
        /// Elements from one row of `proj` to the next.
        stride: u32,
        /// First element of `a` in a row of `proj`.
        a_offset: u32,
        /// First element of `b` in a row of `proj`.
        b_offset: u32,
    }
    /// Of [`GatedNorm`].
    GatedNormParams {
        rows: u32,
        heads: u32,
        /// Elements of one head.
        dim: u32,
        /// Elements from one row of `gate` to the next.
        stride: u32,
        /// First gate element in a row.
        offset: u32,
        eps: f32,
        rotate: u32,
    }
}

/// `y[r] = table[tokens[r]]`, un-rotated where the table is stored rotated.
pub struct Embed<'a, B, W> {
    /// u32 `[rows]`.
    pub tokens: &'a B,
    /// `[vocab, dim]`.
    pub table: &'a W,
    /// `[rows, dim]`.
    pub y: &'a mut B,
    pub params: EmbedParams,
}

/// `y[r] = x[index[r]]`.
pub struct GatherRows<'a, B> {
    /// `[*, dim]`.
    pub x: &'a B,
    /// u32 `[rows]`.
    pub index: &'a B,
    /// `[rows, dim]`.
    pub y: &'a mut B,
    pub params: GatherRowsParams,
}

/// `y = (weight + weight_offset) * x / sqrt(mean(x^2) + eps)` per row.
pub struct RmsNorm<'a, B> {
    /// `[rows, dim]`.
    pub x: &'a B,
    /// `[dim]`.
    pub weight: &'a B,
    /// `[rows, dim]`.
    pub y: &'a mut B,
    pub params: RmsNormParams,
}

/// `y = R x` per row.
pub struct Rotate<'a, B> {
    /// `[rows, dim]`.
    pub x: &'a B,
    /// `[rows, dim]`.
    pub y: &'a mut B,
    pub params: RotateParams,
}

/// `y = W x (+ bias) (+ y)` per row, for dense and product-quantized W `[out, in]`.
pub struct Linear<'a, B, W> {
    /// `[rows, in]`, rotated if the weight is.
    pub x: &'a B,
    pub weight: &'a W,
    /// `[out]`.
    pub bias: Option<&'a B>,
    /// `[rows, y_stride]`, of which `out` columns from `y_offset` are written.
    pub y: &'a mut B,
    pub params: LinearParams,
}

/// Normalises each query and key head (where the norms are there), applies rotary position embedding to queries in
/// place, and writes keys (normalised, embedded) and values to the cache.
pub struct RopeCache<'a, B> {
    /// `[rows, stride]`: query heads at 0, key heads at `k_offset`, value heads at `v_offset`.
    pub qkv: &'a mut B,
    /// `[head_dim]`.
    pub q_norm: Option<&'a B>,
    /// `[head_dim]`.
    pub k_norm: Option<&'a B>,
    /// `[rotary_dim / 2]`: radians per position.
    pub inv_freq: &'a B,
    /// u32 `[rows, 2]`: slot and position of each row.
    pub rows: &'a B,
    /// `[slots, kv_heads, context, head_dim]`.
    pub k_cache: &'a mut B,
    /// `[slots, kv_heads, context, head_dim]`.
    pub v_cache: &'a mut B,
    pub params: RopeCacheParams,
}

/// Causal softmax attention of each row over positions `0..=position` of its slot; query head h reads key/value head
/// `h / (heads / kv_heads)`.
pub struct Attention<'a, B> {
    /// `[rows, stride]`, queries first.
    pub qkv: &'a B,
    pub k_cache: &'a B,
    pub v_cache: &'a B,
    /// u32 `[rows, 2]`: slot and position of each row.
    pub rows: &'a B,
    /// u32 `[segments, 4]`: slot, first row, rows, position of the first row.
    pub segments: &'a B,
    /// `[rows, heads * head_dim]`.
    pub y: &'a mut B,
    pub params: AttentionParams,
}

/// `y = silu(gate) * up`.
pub struct SwiGlu<'a, B> {
    /// `[rows, 2 * dim]`: gate, then up.
    pub x: &'a B,
    /// `[rows, dim]`.
    pub y: &'a mut B,
    pub params: SwiGluParams,
}

/// Depthwise causal convolution over the rows of a segment, then silu. The state continues it from batch to batch;
/// a segment that begins at position 0 begins with zeros.
pub struct CausalConv<'a, B> {
    /// `[rows, stride]`, of which the first `channels` are convolved.
    pub x: &'a B,
    /// `[channels, kernel]`; the last tap is the current row's.
    pub weight: &'a B,
    /// u32 `[segments, 4]`.
    pub segments: &'a B,
    /// `[slots, channels, kernel - 1]`: the last inputs, oldest first.
    pub state: &'a mut B,
    /// `[rows, channels]`.
    pub y: &'a mut B,
    pub params: CausalConvParams,
}

/// The gated delta rule, with L2-normalised queries and keys: per row `S <- exp(g) S; e = beta (v - S^T k);
/// S <- S + k e^T; y = S^T q`. A segment that begins at position 0 begins with S = 0.
pub struct DeltaRule<'a, B> {
    /// `[rows, 2 * key_heads * key_dim + value_heads * value_dim]`: q, k, v.
    pub qkv: &'a B,
    /// `[rows, stride]`, which holds a and b of each value head.
    pub proj: &'a B,
    /// `[value_heads]`: g = -exp(a_log) softplus(a + dt_bias).
    pub a_log: &'a B,
    /// `[value_heads]`.
    pub dt_bias: &'a B,
    /// u32 `[segments, 4]`.
    pub segments: &'a B,
    /// S: `[slots, value_heads, key_dim, value_dim]`.
    pub state: &'a mut B,
    /// `[rows, value_heads * value_dim]`.
    pub y: &'a mut B,
    pub params: DeltaRuleParams,
}

/// `y = weight * x / sqrt(mean(x^2) + eps) * silu(gate)` per head.
pub struct GatedNorm<'a, B> {
    /// `[rows, heads * dim]`.
    pub x: &'a B,
    /// `[rows, stride]`, with `heads * dim` gate values from `offset`.
    pub gate: &'a B,
    /// `[dim]`.
    pub weight: &'a B,
    /// `[rows, heads * dim]`.
    pub y: &'a mut B,
    pub params: GatedNormParams,
}

/// The kernels, each of which every backend has under this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(pub &'static str);

impl Kernel {
    /// Every kernel. `linear` is three: dense, one row of PQ (decode), many rows of PQ (prefill).
    pub const ALL: &'static [Kernel] = &[
        Kernel("embed"),
        Kernel("gather_rows"),
        Kernel("rms_norm"),
        Kernel("rotate"),
        Kernel("dense_matmul"),
        Kernel("pq_matvec"),
        Kernel("pq_matmul"),
        Kernel("rope_cache"),
        Kernel("attention"),
        Kernel("swiglu"),
        Kernel("causal_conv"),
        Kernel("delta_rule"),
        Kernel("gated_norm"),
    ];
}

/// The `k` largest values with their places: in falling order, the lower place first among equals, NaN before everything.
pub fn top_k(values: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(values.iter().copied()).collect();
    let k = k.min(all.len());
    let larger = |a: &(u32, f32), b: &(u32, f32)| {
        let by_value = b.1.partial_cmp(&a.1).unwrap_or_else(|| b.1.is_nan().cmp(&a.1.is_nan()));
        by_value.then(a.0.cmp(&b.0))
    };
    if 0 < k && k < all.len() {
        all.select_nth_unstable_by(k - 1, larger);
    }
    all.truncate(k);
    all.sort_unstable_by(larger);
    all
}
