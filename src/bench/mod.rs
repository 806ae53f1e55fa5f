//! Measurements: prefill and decode speed of a model, quantizing, and single operations with cold caches: each launch
//! uses memory of its own, several times the size of any L2 in total.

pub mod kernels;
pub mod operations;
pub mod quantize;
pub mod shapes;
pub mod speed;

use std::time::{Duration, Instant};

use crate::Result;
use crate::backend::{Backend, unique};
use crate::ops::Op;

/// Times of several runs of the same work.
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

    /// Half of the difference between the slowest and the fastest run, relative to the median.
    pub fn spread(&self) -> f64 {
        let (first, last) = (self.sorted[0], self.sorted[self.sorted.len() - 1]);
        (last - first).as_secs_f64() / 2.0 / self.median()
    }
}

/// Memory that the launches of one measurement use together, in bytes, if [`LAUNCHES`] allow it.
const COLD_BYTES: usize = 512 << 20;
/// Launches of one measurement.
const LAUNCHES: usize = 64;

/// The number of sets of `bytes` each that, used in turn, are never in a cache.
fn copies(bytes: usize) -> usize {
    COLD_BYTES.div_ceil(bytes).clamp(2, LAUNCHES)
}

/// The time of one of the operations `ops`, each of which has memory of its own. They run in one list, replayed if the
/// backend can, so that the host's time for enqueueing and waiting hardly counts.
async fn cold<B: Backend>(
    backend: &B,
    ops: &[Op<'_, B::Buffer, B::Weight>],
    repeat: usize,
) -> Result<Samples> {
    let end = backend.alloc(1)?;
    let all = ops.repeat(LAUNCHES.div_ceil(ops.len()));
    let key = [unique(), 0, 0, 0];
    let mut runs = Vec::new();
    for run in 0..repeat.max(1) + 3 {
        let start = Instant::now();
        if !backend.replay(&key)? {
            backend.submit_as(&all, key)?;
        }
        backend.read(&end, 0, 1).await?;
        // The first runs compile, record and capture.
        if run >= 3 {
            runs.push(start.elapsed() / all.len() as u32);
        }
    }
    Ok(Samples::new(runs))
}
