//! What the kernels of linear layers read and write.

use super::commands::Launch;
use super::memory::Memory;
use super::unit::Unit;
use super::weight::{Part, Pq};
use crate::backend::Dtype;
use crate::ops::LinearParams;

/// What a linear layer is applied to: `params.rows` rows of x and y, from row `first` on.
pub struct Io<'a> {
    pub x: &'a Memory,
    pub bias: Option<&'a Memory>,
    pub y: &'a Memory,
    pub first: u64,
    pub params: LinearParams,
}

impl Io<'_> {
    /// Bytes before the first row of x.
    pub fn x_at(&self, cols: usize) -> u64 {
        self.first * cols as u64 * 4
    }

    /// Bytes before the first row of y.
    pub fn y_at(&self) -> u64 {
        self.first * u64::from(self.params.y_stride) * 4
    }

    /// The parameters with the part's columns.
    pub fn of_part(&self, part: &Part) -> LinearParams {
        LinearParams { y_offset: self.params.y_offset + part.first as u32, ..self.params }
    }

    /// A launch with a part's codes, codebooks, scales and bias, which its other arguments follow.
    pub fn multiply(&self, launch: Launch, pq: &Pq, part: &Part) -> Launch {
        launch
            .memory(&pq.codes)
            .memory(&pq.codebooks)
            .optional(pq.scales.as_ref(), 0)
            .optional(self.bias, part.first as u64 * 4)
    }
}

/// Forms of x that are there for a weight's next part.
#[derive(Default)]
pub struct Ready {
    /// In another element type.
    pub half: Option<(Dtype, Memory)>,
    /// Packed, by this kernel to so many column groups.
    pub packed: Option<(Unit, u32)>,
}
