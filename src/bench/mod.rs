//! Measurements: prefill and decode speed of a model, single kernels cold, and quantizing.

pub mod kernels;
pub mod quantize;
pub mod shapes;
pub mod speed;

use std::time::Duration;

/// Several runs of the same thing.
#[derive(Clone, Debug)]
pub struct Samples {
    sorted: Vec<Duration>,
}

impl Samples {
    /// `runs` must not be empty.
    pub fn new(mut runs: Vec<Duration>) -> Self {
        runs.sort();
        Self { sorted: runs }
    }

    /// Seconds of the middle run.
    pub fn median(&self) -> f64 {
        self.sorted[self.sorted.len() / 2].as_secs_f64()
    }

    /// Half of the distance from the fastest to the slowest, over the median.
    pub fn spread(&self) -> f64 {
        let (first, last) = (self.sorted[0], self.sorted[self.sorted.len() - 1]);
        (last - first).as_secs_f64() / 2.0 / self.median()
    }
}
