//! Tensors as files store them: bytes with a type and a shape.

use std::borrow::Cow;

use half::{bf16, f16};

use crate::pq::{PqMatrix, PqSpec};
use crate::{Error, Result};

/// Element type of a dense weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F16,
    BF16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
        }
    }
}

/// A linear layer's or embedding's weight `[rows, cols]` (`[out, in]`), as it stands in a file.
#[derive(Clone, Debug)]
pub enum WeightData<'a> {
    /// Row-major, little-endian.
    Dense {
        dtype: Dtype,
        rows: usize,
        cols: usize,
        bytes: &'a [u8],
    },
    Pq(PqMatrix<'a>),
}

impl WeightData<'_> {
    /// `[out, in]`.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            WeightData::Dense { rows, cols, .. } => (*rows, *cols),
            WeightData::Pq(matrix) => (matrix.rows, matrix.cols),
        }
    }

    pub fn form(&self) -> Form {
        let (rows, cols) = self.shape();
        let stored = match self {
            WeightData::Dense { dtype, .. } => Stored::Dense(*dtype),
            WeightData::Pq(matrix) => Stored::Pq(matrix.spec),
        };
        Form { rows, cols, stored }
    }
}

/// Shape and storage of a weight `[rows, cols]`, without its numbers: what its size depends on.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub rows: usize,
    pub cols: usize,
    pub stored: Stored,
}

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Dense(Dtype),
    Pq(PqSpec),
}

impl Form {
    /// Bytes in a file, without a universal codebook.
    pub fn bytes(&self) -> u64 {
        match self.stored {
            Stored::Dense(dtype) => (self.rows * self.cols * dtype.size()) as u64,
            Stored::Pq(spec) => spec.matrix_bytes(self.rows, self.cols) as u64,
        }
    }
}

/// The columns of matrices that are to be stacked along their rows.
///
/// # Errors
/// There are no matrices, or their columns differ.
pub fn shared_cols(blocks: &[WeightData<'_>]) -> Result<usize> {
    let cols = blocks.first().map(|block| block.shape().1);
    let cols = cols.ok_or_else(|| Error::mismatch("matrices of a weight", "at least 1", 0))?;
    match blocks.iter().find(|block| block.shape().1 != cols) {
        Some(other) => Err(Error::mismatch("columns of stacked matrices", cols, other.shape().1)),
        None => Ok(cols),
    }
}

/// A dense tensor as it stands in a file, little-endian.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// The elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            Dtype::F32 => {
                self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Dtype::F16 => self.bits16().map(|bits| f16::from_bits(bits).to_f32()).collect(),
            Dtype::BF16 => self.bits16().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
        }
    }

    /// The words of a 16-bit type.
    fn bits16(&self) -> impl Iterator<Item = u16> + '_ {
        self.bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
    }

    /// The tensor as a weight `[out, in]`; an error that names it if it has not two dimensions.
    pub fn weight(&self, name: &str) -> Result<WeightData<'a>> {
        let &[rows, cols] = &self.shape[..] else {
            return Err(Error::mismatch(name, "two dimensions", format!("{:?}", self.shape)));
        };
        Ok(WeightData::Dense { dtype: self.dtype, rows, cols, bytes: self.bytes })
    }
}

/// f16 values from little-endian bytes, borrowed where their address allows it.
pub(crate) fn f16_slice(bytes: &[u8]) -> Cow<'_, [f16]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(values) if cfg!(target_endian = "little") => Cow::Borrowed(values),
        _ => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect(),
    }
}
