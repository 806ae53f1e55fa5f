//! [`Layout`]: how the kernels find a weight's codes or elements.

use super::limits::STREAM;
use crate::backend::{Dtype, WeightData};

/// How the words of a slice are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Dense(Dtype),
    Pq {
        d: usize,
        /// Of a code.
        bits: usize,
        /// Words of a codebook.
        book: usize,
        /// Subspaces that share one.
        group: usize,
        /// Block of the rotation, 0 for none.
        rotate: usize,
    },
}

impl Layout {
    /// The layout of a matrix.
    pub fn of(block: &WeightData<'_>) -> Self {
        match block {
            WeightData::Dense { dtype, .. } => Self::Dense(*dtype),
            WeightData::Pq(matrix) => Self::Pq {
                d: matrix.spec.d,
                bits: matrix.spec.code_bits(),
                book: matrix.spec.d.div_ceil(2) * matrix.spec.k,
                group: matrix.spec.subspaces_per_codebook(matrix.cols),
                rotate: matrix.rotation().map_or(0, |rotation| rotation.block),
            },
        }
    }

    /// Streams in a row of `cols`, 0 for dense rows.
    pub fn chunks(self, cols: usize) -> usize {
        match self {
            Self::Dense(_) => 0,
            Self::Pq { d, .. } => cols.div_ceil(d).div_ceil(STREAM),
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
