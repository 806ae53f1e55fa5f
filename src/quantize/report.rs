//! [`Report`]: what a finished file lost and took.

use serde::Serialize;

use crate::pq::PqSpec;

/// Of a finished run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub tensors: Vec<TensorReport>,
    /// Bytes of the whole file.
    pub bytes: u64,
    /// Bytes of the same tensors in FP16.
    pub fp16_bytes: u64,
    /// What [`run`](super::run()) took, without what came before: loading the model, the text to learn from.
    pub quantizing_seconds: f64,
    /// Weights that this run quantized, without those that it found done.
    pub weights: usize,
    /// What went another way than planned.
    pub remarks: Vec<String>,
}

/// Of a quantized matrix.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    pub name: String,
    pub spec: PqSpec,
    /// |W - W'|^2 / |W|^2.
    pub error: f64,
}

impl Report {
    /// Bytes in percent of FP16.
    pub fn percent(&self) -> f64 {
        100.0 * self.bytes as f64 / self.fp16_bytes as f64
    }

    /// Weights per second of quantizing.
    pub fn speed(&self) -> f64 {
        self.weights as f64 / self.quantizing_seconds.max(1e-9)
    }
}
