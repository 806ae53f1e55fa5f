//! Quantizing all matrices of a random model: from 16 bits in host memory to codes in host memory.

use std::time::Instant;

use super::Samples;
use crate::Result;
use crate::backend::{Quantizer, Rows};
use crate::model::random::Random;
use crate::pq::{PqSpec, Scope, SquaredError};
use crate::tensor::TensorView;

/// The result of a measurement.
#[derive(Clone, Debug)]
pub struct Measured {
    pub samples: Samples,
    /// Number of weights in all matrices.
    pub weights: usize,
    pub error: SquaredError,
}

/// Times quantizing all matrices of a dense random model to `spec`, `repeat` times.
pub fn quantize(quantizer: &dyn Quantizer, model: &Random, spec: PqSpec, repeat: usize) -> Result<Measured> {
    let (mut runs, mut weights, mut error) = (Vec::new(), 0, SquaredError::default());
    for _ in 0..repeat {
        let start = Instant::now();
        (weights, error) = (0, SquaredError::default());
        for name in model.matrix_names() {
            let view = model.tensor(name)?;
            let cols = view.shape[1];
            let of_cols = spec.for_cols(cols);
            let step = if spec.scope == Scope::Universal {
                (quantizer.block() / cols).max(1)
            } else {
                view.shape[0]
            };
            let row_bytes = cols * view.dtype.size();
            for (i, bytes) in view.bytes.chunks(step * row_bytes).enumerate() {
                let shape = vec![bytes.len() / row_bytes, cols];
                let rows =
                    Rows { name, first: i * step, weights: TensorView { dtype: view.dtype, shape, bytes } };
                error += quantizer.quantize(&rows, of_cols, None)?.error;
            }
            weights += view.shape.iter().product::<usize>();
        }
        runs.push(start.elapsed());
    }
    Ok(Measured { samples: Samples::new(runs), weights, error })
}
