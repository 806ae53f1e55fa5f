//! Sizes that the kernels are written for, declared once for Rust and WGSL.

use crate::{Error, Result};

/// Declares constants, and the text of the same constants in WGSL.
macro_rules! constants {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        $($(#[$doc])* pub const $name: usize = $value;)*

        /// The constants in WGSL.
        pub const WGSL: &str = concat!($("const ", stringify!($name), " = ", stringify!($value), "u;\n",)*);
    };
}

constants! {
    /// Elements of a row that a workgroup holds in `block`: the largest block of a rotation.
    MAX_BLOCK = 512;
    /// Elements of a head of attention.
    MAX_HEAD_DIM = 256;
    /// Taps of a causal convolution.
    MAX_TAPS = 8;
    /// Elements of a key of the delta rule.
    MAX_KEY_DIM = 256;
    /// Columns of a delta net's state that a workgroup of delta_rule.wgsl takes.
    DELTA_COLUMNS = 32;
    /// Value heads of a layer in delta_step.wgsl.
    MAX_VALUE_HEADS = 64;
    /// Dot products over heads that a workgroup of delta_step.wgsl makes side by side.
    MAX_PRODUCTS = 16;
    /// Channels of the convolution that a workgroup of delta_step.wgsl takes.
    MAX_CHANNELS = 2048;
    /// Parts of a row whose maxima argmax.wgsl finds side by side.
    ARGMAX_PARTS = 64;
    /// Weights of a sub-vector, and bits of a code.
    MAX_D = 8;
    MAX_CODE_BITS = 16;
    /// Codes of a stream (prelude.wgsl).
    STREAM = 32;
    /// Slices of a weight that pq_matvec.wgsl takes together.
    MAX_SPANS = 4;
    /// Rows of a weight that an invocation of pq_matvec.wgsl multiplies.
    MATVEC_ROWS = 4;
    /// Invocations that share rows of the weight in dense_matmul.wgsl, the rows that they share, and rows of x.
    DENSE_LANES = 32;
    DENSE_W_ROWS = 4;
    DENSE_X_ROWS = 4;
    /// Rows of the weight and rows of x of a workgroup of pq_matmul.wgsl, and columns of a step.
    TILE_W_ROWS = 64;
    TILE_X_ROWS = 128;
    TILE_COLUMNS = 16;
    /// The same of pq_matmul_tensor.wgsl.
    TENSOR_W_ROWS = 128;
    TENSOR_X_ROWS = 128;
    TENSOR_COLUMNS = 32;
    /// Rows of the weight of an invocation of pq_matmul_lut.wgsl, and rows of x of a workgroup.
    LUT_W_ROWS = 4;
    LUT_X_ROWS = 4;
    /// Words of codes, columns and words of centroids that an invocation of pq_matvec_table.wgsl holds.
    TABLE_CODE_WORDS = 4;
    TABLE_COLUMNS = 32;
    TABLE_CENTROID_WORDS = 16;
}

/// Fails where `found`, the `what` of an operation, is more than its kernel is written for.
pub fn at_most(op: &str, what: &str, found: u32, limit: usize) -> Result<()> {
    if found as usize > limit {
        return Err(Error::mismatch(format!("{what} of {op} on wgpu"), format!("at most {limit}"), found));
    }
    Ok(())
}
