//! The operations' scalar parameters, declared once for Rust, WGSL and CUDA.

/// The scalar parameters of an operation.
pub trait KernelParams {
    /// The fields in order, padded with zeros to a multiple of four words.
    fn words(&self) -> Vec<u32>;
}

/// Declares parameter structs, each with its words for upload, and the text of the same structs in WGSL and CUDA.
macro_rules! kernel_params {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $ty:ident),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq)]
            pub struct $name { $($(#[$field_doc])* pub $field: $ty,)* }

            impl KernelParams for $name {
                fn words(&self) -> Vec<u32> {
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
    /// Of [`super::Embed`].
    EmbedParams {
        rows: u32,
        dim: u32,
        /// Multiplies each element.
        scale: f32,
    }
    /// Of [`super::GatherRows`]: `rows` of the output.
    GatherRowsParams { rows: u32, dim: u32 }
    /// Of [`super::RmsNorm`].
    RmsNormParams {
        rows: u32,
        dim: u32,
        eps: f32,
        /// Added to each weight: 1 for zero-centred norms, else 0.
        weight_offset: f32,
        rotate: u32,
    }
    /// Of [`super::QkNorm`].
    QkNormParams {
        rows: u32,
        /// Elements from one row of `qkv` to the next.
        stride: u32,
        /// Elements of all query heads, which come first in a row.
        q_dim: u32,
        /// First key element in a row.
        k_offset: u32,
        /// Elements of all key heads.
        k_dim: u32,
        eps: f32,
        weight_offset: f32,
    }
    /// Of [`super::Rotate`].
    RotateParams { rows: u32, dim: u32, rotate: u32 }
    /// Of [`super::Linear`]; the weight knows its own `[out, in]`.
    LinearParams {
        rows: u32,
        /// Elements from one output row to the next.
        y_stride: u32,
        /// First column of the output that is written.
        y_offset: u32,
        /// 1: add to what the output holds (a residual); 0: overwrite.
        accumulate: u32,
    }
    /// Of [`super::RopeCache`].
    RopeCacheParams {
        rows: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        /// Leading elements of a head that rotary embedding turns; even, the rest pass. 0: none.
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
        /// Multiplies sines and cosines.
        amplitude: f32,
        /// Queries at position p are multiplied by `1 + query_beta * ln(1 + floor(p / query_context))`; 0: they are not.
        query_beta: f32,
        query_context: f32,
    }
    /// Of [`super::Attention`].
    AttentionParams {
        rows: u32,
        segments: u32,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        stride: u32,
        q_stride: u32,
        context: u32,
        /// Positions that a row sees, its own among them; 0: all before it.
        window: u32,
        /// Multiplies the scores.
        scale: f32,
        /// 1: the output is multiplied by the sigmoid of the gate that follows each head's query.
        gated: u32,
        rotate: u32,
    }
    /// Of [`super::Glu`]: `dim` of the output.
    GluParams {
        rows: u32,
        dim: u32,
        rotate: u32,
        /// 1: GELU as approximated by tanh; 0: SiLU.
        gelu: u32,
    }
    /// Of [`super::CausalConv`].
    CausalConvParams {
        rows: u32,
        segments: u32,
        channels: u32,
        /// Taps of the convolution; the state holds `kernel - 1` columns.
        kernel: u32,
        /// Elements from one input row to the next; the channels come first in a row.
        stride: u32,
    }
    /// Of [`super::DeltaRule`].
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
    /// Of [`super::GatedNorm`].
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
