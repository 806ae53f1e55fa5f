//! [`Layout`]: how the kernels find a weight's codes or elements.

use super::Wgpu;
use crate::backend::{Dtype, WeightData};

/// Codes of a stream.
pub const STREAM: usize = 32;

/// How the words of a slice are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Dense(Dtype),
    Pq {
        d: usize,
        /// Of a code as it is stored here.
        bits: usize,
        /// Words of a codebook.
        book: usize,
        /// Subspaces that share one.
        group: usize,
        /// Block of the rotation, 0 for none.
        rotate: usize,
        /// What the number of streams in a row is a multiple of.
        abreast: usize,
    },
}

impl Layout {
    /// A CPU finds codes faster where none crosses from one word to the next, and four words at a time; a GPU has less
    /// time for their bytes.
    pub fn of(block: &WeightData<'_>, backend: &Wgpu) -> Self {
        let software = backend.0.device.is_software();
        let stored = |bits: usize| if software { bits.next_power_of_two() } else { bits };
        match block {
            WeightData::Dense { dtype, .. } => Self::Dense(*dtype),
            WeightData::Pq(matrix) => Self::Pq {
                d: matrix.spec.d,
                bits: stored(matrix.spec.code_bits()),
                book: matrix.spec.d.div_ceil(2) * matrix.spec.k,
                group: matrix.spec.subspaces_per_codebook(matrix.cols),
                rotate: matrix.rotation().map_or(0, |rotation| rotation.block),
                abreast: if backend.0.device.rows { 4 } else { 1 },
            },
        }
    }

    /// Streams in a row of `cols`, 0 for dense rows.
    pub fn chunks(self, cols: usize) -> usize {
        match self {
            Self::Dense(_) => 0,
            Self::Pq { d, abreast, .. } => cols.div_ceil(d).div_ceil(STREAM).next_multiple_of(abreast),
        }
    }

    /// Words from one row of `cols` to the next.
    pub fn stride(self, cols: usize) -> usize {
        match self {
            Self::Dense(dtype) => (cols * dtype.size()).div_ceil(4),
            Self::Pq { bits, .. } => bits * self.chunks(cols),
        }
    }

    /// The kernels' FORMAT.
    pub fn format(self) -> u32 {
        match self {
            Self::Dense(Dtype::F32) => 0,
            Self::Dense(Dtype::F16) => 1,
            Self::Dense(Dtype::BF16) => 2,
            Self::Pq { .. } => 3,
        }
    }
}
