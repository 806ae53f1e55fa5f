//! The mathematics of product quantization: no I/O, no model.

pub mod assign;
pub mod carry;
mod cells;
pub mod kmeans;
pub mod matrix;
pub mod pack;
pub mod quantize;
pub mod rotate;
pub mod spec;
pub mod universal;

pub use carry::Carry;
pub use matrix::PqMatrix;
pub use quantize::{Quantized, SquaredError, quantize, relative_error};
pub use rotate::Rotation;
pub use spec::{PqSpec, RowScale, Scope};
