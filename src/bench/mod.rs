//! Measurements: prefill and decode speed of a model, quantizing, and single kernels cold: every launch works on other
//! memory, and all of it together is several times larger than any L2.

pub mod kernels;
pub mod operations;
pub mod quantize;
pub mod shapes;
pub mod speed;

use std::time::{Duration, Instant};

use crate::Result;
use crate::backend::{Backend, unique};
use crate::ops::Op;

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

/// Bytes that the memory of one measurement has together, at least, and its launches.
const COLD_BYTES: usize = 512 << 20;
const LAUNCHES: usize = 64;

/// So many sets of `bytes` each, taken in turns, are cold whenever one's turn comes.
fn copies(bytes: usize) -> usize {
    COLD_BYTES.div_ceil(bytes).clamp(2, LAUNCHES)
}

/// Times operations, each on memory of its own, in turns: all in one list, which is replayed where the backend can, so that
/// what enqueueing them and waiting for them costs the host is not in it. Gives the time of one.
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
