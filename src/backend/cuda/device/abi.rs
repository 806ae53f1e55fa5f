//! What the kernels and the host agree on besides the operations' parameters: constants, and structs with addresses.
//!
//! Both come from one declaration, in Rust and in CUDA C++ ([`CUDA`]).

use crate::ops::{
    EmbedParams, GatherRowsParams, GluParams, KernelParams, LinearParams, QkNormParams, RmsNormParams,
    RopeCacheParams, RotateParams,
};

/// An address on the device, 0 for none.
pub type Address = u64;

/// A field of a struct that a kernel reads: its alignment in words, and its words.
pub trait Field {
    const ALIGN: usize;
    fn push(&self, words: &mut Vec<u32>);
}

impl Field for u32 {
    const ALIGN: usize = 1;
    fn push(&self, words: &mut Vec<u32>) {
        words.push(*self);
    }
}

impl Field for f32 {
    const ALIGN: usize = 1;
    fn push(&self, words: &mut Vec<u32>) {
        words.push(self.to_bits());
    }
}

impl Field for u64 {
    const ALIGN: usize = 2;
    fn push(&self, words: &mut Vec<u32>) {
        words.extend([*self as u32, (*self >> 32) as u32]);
    }
}

impl<T: Field, const N: usize> Field for [T; N] {
    const ALIGN: usize = T::ALIGN;
    fn push(&self, words: &mut Vec<u32>) {
        self.iter().for_each(|item| item.push(words));
    }
}

impl<P: KernelParams> Field for P {
    const ALIGN: usize = 4;
    fn push(&self, words: &mut Vec<u32>) {
        words.extend(self.words());
    }
}

/// Alignment of the structs below, in words: that of a parameter struct.
const ALIGN: usize = 4;

/// Declares structs with their words, and the text of the same structs in CUDA C++, where a field's type stands behind it.
macro_rules! kernel_structs {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $ty:ty = $c:literal $([$count:literal])?),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq)]
            pub struct $name { $($(#[$field_doc])* pub $field: $ty,)* }

            impl $name {
                /// The struct as it lies in memory.
                pub fn words(&self) -> Vec<u32> {
                    let mut words = Vec::new();
                    $(
                        words.resize(words.len().next_multiple_of(<$ty as Field>::ALIGN), 0);
                        self.$field.push(&mut words);
                    )*
                    words.resize(words.len().next_multiple_of(ALIGN), 0);
                    words
                }
            }
        )*

        /// The structs in CUDA C++.
        pub const CUDA: &str = concat!($(
            "struct __align__(16) ", stringify!($name), " {\n",
            $("    ", $c, " ", stringify!($field), $("[", $count, "]",)? ";\n",)*
            "};\n",
        )*);
    };
}

kernel_structs! {
    /// A second copy of a kernel's output rows in the layout that the next product reads (rows.cuh).
    PackedRows {
        at: Address = "uint4*",
        groups: u32 = "u32",
        split: u32 = "u32",
        log_d: u32 = "u32",
        cols: u32 = "u32",
        dtype: u32 = "u32",
    }
    /// Codes and decode tables of stacked matrices (pq_matvec_subspace.cu).
    SubspaceMatrices {
        codes: [Address; SUBSPACE_MATRICES] = "const u32*" [4],
        tables: [Address; SUBSPACE_MATRICES] = "const u32*" [4],
    }
    /// Their row scales, and where each one's rows and blocks end.
    SubspaceRows {
        scales: [Address; SUBSPACE_MATRICES] = "const u16*" [4],
        rows_end: [u32; SUBSPACE_MATRICES] = "u32" [4],
        blocks_end: [u32; SUBSPACE_MATRICES] = "u32" [4],
    }
    /// A norm of the input row, which is also written to `normed`; `weight` null: none.
    SubspaceNorm {
        weight: Address = "const f32*",
        normed: Address = "f32*",
        eps: f32 = "f32",
        weight_offset: f32 = "f32",
    }
    /// The head of a phase of the persistent kernel (persistent.cu): what it is, its grid, and the index of the phase
    /// behind it where the row sees few positions, and where it sees many.
    PhaseHead {
        kind: u32 = "u32",
        grid: [u32; 3] = "u32" [3],
        next_short: u32 = "u32",
        next_long: u32 = "u32",
    }
    /// Arguments of the phase embed_pq.
    EmbedCall {
        tokens: Address = "const u32*",
        codes: Address = "const u32*",
        codebook: Address = "const u16*",
        scales: Address = "const u16*",
        y: Address = "f32*",
        code_tiles: u32 = "u32",
        group: u32 = "u32",
        rotate: u32 = "u32",
        params: EmbedParams = "EmbedParams",
    }
    /// Arguments of the phase gather_rows.
    GatherRowsCall {
        x: Address = "const f32*",
        index: Address = "const u32*",
        y: Address = "f32*",
        params: GatherRowsParams = "GatherRowsParams",
    }
    /// Arguments of the phase rms_norm.
    RmsNormCall {
        x: Address = "const f32*",
        weight: Address = "const f32*",
        /// What the norm is added to, or null.
        residual: Address = "const f32*",
        y: Address = "f32*",
        params: RmsNormParams = "RmsNormParams",
    }
    /// Arguments of the phase qk_norm.
    QkNormCall {
        qkv: Address = "f32*",
        q_norm: Address = "const f32*",
        k_norm: Address = "const f32*",
        params: QkNormParams = "QkNormParams",
    }
    /// Arguments of the phase rotate.
    RotateCall {
        x: Address = "const f32*",
        y: Address = "f32*",
        params: RotateParams = "RotateParams",
    }
    /// Arguments of the phase glu.
    GluCall {
        x: Address = "const f32*",
        y: Address = "f32*",
        params: GluParams = "GluParams",
    }
    /// Arguments of the phase pq_row: one row times a product-quantized matrix.
    PqRowCall {
        codes: Address = "const u32*",
        codebook: Address = "const u32*",
        scales: Address = "const u16*",
        bias: Address = "const f32*",
        x: Address = "f32*",
        y: Address = "f32*",
        out: u64 = "u64",
        cols: u64 = "u64",
        code_tiles: u64 = "u64",
        /// Passes whose x is staged at a time.
        chunk_passes: u64 = "u64",
        params: LinearParams = "LinearParams",
        /// Of a norm, or null.
        weight: Address = "const f32*",
        /// The weight of a norm of `added`, or null: then the row is `residual` plus that norm, and is written to x.
        added_weight: Address = "const f32*",
        added: Address = "const f32*",
        residual: Address = "const f32*",
        added_eps: f32 = "f32",
        added_offset: f32 = "f32",
        /// Where the row is wanted as it is multiplied, or null.
        prepared: Address = "f32*",
        /// The codes of the next matrix, or null.
        next: Address = "const char*",
        eps: f32 = "f32",
        weight_offset: f32 = "f32",
        /// Block of the rotation, or 0.
        rotate: u32 = "u32",
        /// 0: x is multiplied as it is.
        prepare: u32 = "u32",
        /// 1: y = f(first half of the rows) * second half, with SiLU as f, or GELU if `gelu` is 1.
        paired: u32 = "u32",
        gelu: u32 = "u32",
        /// 1: y gets the signs of the next matrix's rotation.
        with_signs: u32 = "u32",
        /// Of the next matrix.
        next_tile_bytes: u32 = "u32",
        next_row_tiles: u32 = "u32",
        next_paired: u32 = "u32",
    }
    /// Arguments of the phase dense_row: one row times a dense matrix.
    DenseRowCall {
        weight: Address = "const uint4*",
        bias: Address = "const f32*",
        x: Address = "const f32*",
        y: Address = "f32*",
        out: u64 = "u64",
        cols: u64 = "u64",
        params: LinearParams = "LinearParams",
        /// A norm's weight, or null.
        norm: Address = "const f32*",
        /// Where the normalised row goes.
        prepared: Address = "f32*",
        /// The next matrix, or null.
        next: Address = "const char*",
        eps: f32 = "f32",
        weight_offset: f32 = "f32",
        next_tile_bytes: u32 = "u32",
        next_row_tiles: u32 = "u32",
    }
    /// Arguments of the phase attention_step.
    AttentionStepCall {
        params: RopeCacheParams = "RopeCacheParams",
        qkv: Address = "const f32*",
        q_norm: Address = "const f32*",
        k_norm: Address = "const f32*",
        inv_freq: Address = "const f32*",
        k_cache: Address = "void*",
        v_cache: Address = "void*",
        /// The output; what KV splits found.
        y: Address = "f32*",
        partial: Address = "f32*",
        sums: Address = "f32*",
        score_scale: f32 = "f32",
        /// Positions that the row sees, 0 for all.
        window: u32 = "u32",
        gated: u32 = "u32",
        with_signs: u32 = "u32",
        /// Query heads of a block.
        count: u32 = "u32",
    }
}

/// Declares constants, and the same in CUDA C++.
macro_rules! kernel_constants {
    ($($(#[$doc:meta])* $name:ident: $c:literal = $value:literal),* $(,)?) => {
        $($(#[$doc])* pub const $name: usize = $value;)*

        /// The constants in CUDA C++.
        pub const CUDA_CONSTANTS: &str =
            concat!($("constexpr ", $c, " ", stringify!($name), " = ", $value, ";\n",)*);
    };
}

kernel_constants! {
    /// Rows of a tile of product-quantized codes.
    TILE_ROWS: "int" = 16,
    /// Codes of one of its rows.
    TILE_CODES: "int" = 64,
    /// Elements of a row that a warp takes, where it takes a span; the largest block of a rotation.
    SPAN: "u32" = 512,
    /// Elements of an attention head that its kernels' threads hold.
    MAX_HEAD_DIM: "u32" = 256,
    /// Matrices that a launch of pq_matvec_subspace takes at most.
    SUBSPACE_MATRICES: "u32" = 4,
    /// Parts of a row in argmax.cu.
    ARGMAX_BLOCKS: "u32" = 64,
    /// Values that top_k.cu finds at most.
    TOP_K: "u32" = 1024,
    /// Rows of a piece of the causal convolution.
    CONV_PIECE: "int" = 64,
    /// Rows of a chunk of the delta rule; tiles of 16 x 8 numbers of a stage, and of what mixes a chunk's rows.
    DELTA_CHUNK: "int" = 32,
    DELTA_STAGE_TILES: "int" = 32,
    DELTA_MIX_TILES: "int" = 12,
    /// Columns, warps and rows of a block of feedback.cu.
    FEEDBACK_COLUMNS: "u32" = 128,
    FEEDBACK_WARPS: "u32" = 8,
    FEEDBACK_ROWS: "u32" = 32,
    /// Bytes of the next matrix that a block of the persistent kernel prefetches before a barrier.
    PREFETCH_BYTES: "u32" = 65536,
}
