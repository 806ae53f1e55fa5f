//! The mathematics of product quantization: no I/O, no model.

pub mod assign;
mod cells;
pub mod feedback;
pub mod kmeans;
pub mod matrix;
pub mod pack;
pub mod quantize;
pub mod rotate;
pub mod spec;
pub mod universal;

pub use feedback::Feedback;
pub use matrix::PqMatrix;
pub use quantize::{Quantized, SquaredError, quantize, relative_error};
pub use rotate::Rotation;
pub use spec::{PqSpec, RowScale, Scope};
