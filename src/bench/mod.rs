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

/// Times what `record` records on `sets` in turns: all in one list of launches, which is replayed where the backend can, so
/// that what enqueueing them and waiting for them costs the host is not in it. Gives the time of one.
async fn cold<B: Backend, S>(
    backend: &B,
    sets: &mut [S],
    repeat: usize,
    mut record: impl FnMut(&mut B::Commands, &mut S) -> Result<()>,
) -> Result<Samples> {
    let end = backend.alloc(1)?;
    let (key, rounds) = ([unique(), 0, 0, 0], LAUNCHES.div_ceil(sets.len()));
    let mut runs = Vec::new();
    for run in 0..repeat.max(1) + 3 {
        let start = Instant::now();
        if !backend.replay(&key)? {
            let mut commands = backend.begin()?;
            for _ in 0..rounds {
                for set in &mut *sets {
                    record(&mut commands, set)?;
                }
            }
            backend.submit_as(commands, key)?;
        }
        backend.read(&end, 0, 1).await?;
        // The first runs compile, record and capture.
        if run >= 3 {
            runs.push(start.elapsed() / (rounds * sets.len()) as u32);
        }
    }
    Ok(Samples::new(runs))
}
