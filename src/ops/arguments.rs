//! What each operation reads and writes.

use super::params::*;

/// `y[r] = scale * table[tokens[r]]`, un-rotated where the table is stored rotated.
pub struct Embed<'a, B, W> {
    /// u32 `[rows]`.
    pub tokens: &'a B,
    /// `[vocab, dim]`.
    pub table: &'a W,
    /// `[rows, dim]`.
    pub y: &'a B,
    pub params: EmbedParams,
}

/// `y[r] = x[index[r]]`.
pub struct GatherRows<'a, B> {
    /// `[*, dim]`.
    pub x: &'a B,
    /// u32 `[rows]`.
    pub index: &'a B,
    /// `[rows, dim]`.
    pub y: &'a B,
    pub params: GatherRowsParams,
}

/// `y = (residual +) (weight + weight_offset) * x / sqrt(mean(x^2) + eps)` per row.
pub struct RmsNorm<'a, B> {
    /// `[rows, dim]`.
    pub x: &'a B,
    /// `[dim]`.
    pub weight: &'a B,
    /// `[rows, dim]`; a norm that is added to it is not rotated.
    pub residual: Option<&'a B>,
    /// `[rows, dim]`.
    pub y: &'a B,
    pub params: RmsNormParams,
}

/// [`RmsNorm`] of all query heads of a row together, and of all its key heads, in place.
pub struct QkNorm<'a, B> {
    /// `[rows, stride]`.
    pub qkv: &'a B,
    /// `[q_dim]`.
    pub q_norm: &'a B,
    /// `[k_dim]`.
    pub k_norm: &'a B,
    pub params: QkNormParams,
}

/// `y = R x` per row.
pub struct Rotate<'a, B> {
    /// `[rows, dim]`.
    pub x: &'a B,
    /// `[rows, dim]`.
    pub y: &'a B,
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
    pub y: &'a B,
    pub params: LinearParams,
}

/// Normalises each query and key head (where the norms are there), applies rotary position embedding to queries in
/// place, and writes keys (normalised, embedded) and values to the cache. Queries may grow with their position.
pub struct RopeCache<'a, B> {
    /// `[rows, stride]`: query heads at 0, key heads at `k_offset`, value heads at `v_offset`.
    pub qkv: &'a B,
    /// `[head_dim]`.
    pub q_norm: Option<&'a B>,
    /// `[head_dim]`.
    pub k_norm: Option<&'a B>,
    /// `[rotary_dim / 2]`: radians per position.
    pub inv_freq: &'a B,
    /// u32 `[rows, 2]`: slot and position of each row.
    pub rows: &'a B,
    /// `[slots, kv_heads, context, head_dim]`.
    pub k_cache: &'a B,
    /// `[slots, kv_heads, context, head_dim]`.
    pub v_cache: &'a B,
    pub params: RopeCacheParams,
}

/// Causal softmax attention of each row over positions `0..=position` of its slot, or the last `window` of them; query
/// head h reads key/value head `h / (heads / kv_heads)`.
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
    pub y: &'a B,
    pub params: AttentionParams,
}

/// `y = f(gate) * up`, with SiLU or GELU as f.
pub struct Glu<'a, B> {
    /// `[rows, 2 * dim]`: gate, then up.
    pub x: &'a B,
    /// `[rows, dim]`.
    pub y: &'a B,
    pub params: GluParams,
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
    pub state: &'a B,
    /// `[rows, channels]`.
    pub y: &'a B,
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
    pub state: &'a B,
    /// `[rows, value_heads * value_dim]`.
    pub y: &'a B,
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
    pub y: &'a B,
    pub params: GatedNormParams,
}

/// Arguments are references and numbers, copied whatever the buffers are.
macro_rules! copied {
    ($($name:ident<$($handle:ident),*>),* $(,)?) => {
        $(
            impl<$($handle),*> Clone for $name<'_, $($handle),*> {
                fn clone(&self) -> Self {
                    *self
                }
            }

            impl<$($handle),*> Copy for $name<'_, $($handle),*> {}
        )*
    };
}

copied!(
    Embed<B, W>,
    GatherRows<B>,
    RmsNorm<B>,
    QkNorm<B>,
    Rotate<B>,
    Linear<B, W>,
    RopeCache<B>,
    Attention<B>,
    Glu<B>,
    CausalConv<B>,
    DeltaRule<B>,
    GatedNorm<B>,
);
