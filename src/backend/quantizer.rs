//! The parts of quantizing a model that a device can do: [`Quantizer`] and [`HessianSum`].

use crate::Result;
use crate::pq::{Feedback, PqSpec, Quantized};
use crate::tensor::TensorView;

/// Rows of a matrix that is to be quantized.
pub struct Rows<'a> {
    /// The matrix, for error texts.
    pub name: &'a str,
    /// The first of these rows in the matrix, for error texts.
    pub first: usize,
    /// `[rows, cols]`.
    pub weights: TensorView<'a>,
}

/// Where matrices are quantized.
pub trait Quantizer {
    /// Name of the device, for messages.
    fn describe(&self) -> String;

    /// Preferred number of weights in a call, where rows are independent of each other.
    fn block(&self) -> usize;

    /// Does what [`crate::pq::quantize()`] does: to the same bytes without feedback, and with it to an error that differs by
    /// 0.1 % at most, since corrections are summed in another order.
    fn quantize(&self, rows: &Rows<'_>, spec: PqSpec, feedback: Option<&Feedback>) -> Result<Quantized>;
}

/// Sums of x^T x over rows x of `dim` elements, on a device whose buffers are `B`.
pub trait HessianSum<B> {
    /// Adds the rows x `[rows, dim]`.
    fn add(&mut self, x: &B, rows: usize) -> Result<()>;

    /// The symmetric sums `[dim, dim]`, of which those at and above the diagonal count.
    fn sums(&self) -> Result<Vec<f64>>;
}
