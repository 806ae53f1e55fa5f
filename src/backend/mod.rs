//! Where a forward pass computes: the [`Backend`] trait, its implementations, and the choice between them.

mod choice;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod quantizer;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use choice::{BackendTask, Choice, choose};
pub use quantizer::{HessianSum, Quantizer, Rows};

pub use crate::tensor::{Dtype, Form, Stored, WeightData};

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Result;
use crate::ops;

/// What a list of commands depends on.
pub type Key = [u64; 4];

/// A number that no other call returns, to tell keys apart.
pub fn unique() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// Memory bandwidth in bytes per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bandwidth {
    /// As the device describes itself.
    pub peak: f64,
    /// In a kernel that only reads.
    pub measured: f64,
}

/// A device that runs the operations of [`crate::ops`].
///
/// Operations are recorded into commands and take effect, in order, no later than [`Backend::submit`]. Arguments
/// have been checked for shape by [`crate::model`] before they arrive here. A backend must give what
/// [`cpu::Cpu`] gives, within the tolerances of `tests/conformance`.
#[allow(async_fn_in_trait)] // used with static dispatch only; a browser cannot block, so reading is async
pub trait Backend {
    /// An array of 4-byte words.
    type Buffer;
    /// A weight, repacked for this backend's kernels.
    type Weight;
    /// Operations recorded and not yet submitted.
    type Commands;

    /// What runs here, for people: "cpu, 2 threads", "cuda, NVIDIA H200".
    fn describe(&self) -> String;

    /// An error that says how much there is where there is no room for `bytes` more and what working takes besides.
    fn check_room(&self, _bytes: u64) -> Result<()> {
        Ok(())
    }
    /// Bytes of the device's memory that are free, where the backend knows.
    fn free_memory(&self) -> Option<u64> {
        None
    }
    /// Bytes that [`Backend::weight`] takes for a matrix.
    fn weight_bytes(&self, form: &Form) -> u64 {
        form.bytes()
    }
    /// Bytes that [`Backend::alloc_cache`] takes.
    fn cache_bytes(&self, elements: usize) -> u64 {
        4 * elements as u64
    }

    /// A buffer of `words` zeros.
    fn alloc(&self, words: usize) -> Result<Self::Buffer>;
    /// A key or value cache of `elements` zeros, in the element type of this backend's [`Backend::attention`].
    fn alloc_cache(&self, elements: usize) -> Result<Self::Buffer> {
        self.alloc(elements)
    }
    /// Overwrites the first words of a buffer, before anything submitted afterwards.
    fn write(&self, buffer: &mut Self::Buffer, words: &[u32]) -> Result<()>;
    /// `words` words from word `start`, after everything submitted so far.
    async fn read(&self, buffer: &Self::Buffer, start: usize, words: usize) -> Result<Vec<u32>>;
    /// The matrices, which share their `in`, stacked along `out` into one weight.
    fn weight(&self, blocks: &[WeightData<'_>]) -> Result<Self::Weight>;

    /// Starts recording.
    fn begin(&self) -> Result<Self::Commands>;
    /// Runs what was recorded.
    fn submit(&self, commands: Self::Commands) -> Result<()>;
    /// [`Backend::submit`] of commands that are the same whenever `key` is.
    fn submit_as(&self, commands: Self::Commands, _key: Key) -> Result<()> {
        self.submit(commands)
    }
    /// Runs the commands of a key again, if they are there still; else they have to be recorded.
    fn replay(&self, _key: &Key) -> Result<bool> {
        Ok(false)
    }

    fn embed(&self, c: &mut Self::Commands, op: ops::Embed<'_, Self::Buffer, Self::Weight>) -> Result<()>;
    fn gather_rows(&self, c: &mut Self::Commands, op: ops::GatherRows<'_, Self::Buffer>) -> Result<()>;
    fn rms_norm(&self, c: &mut Self::Commands, op: ops::RmsNorm<'_, Self::Buffer>) -> Result<()>;
    fn rotate(&self, c: &mut Self::Commands, op: ops::Rotate<'_, Self::Buffer>) -> Result<()>;
    fn linear(&self, c: &mut Self::Commands, op: ops::Linear<'_, Self::Buffer, Self::Weight>) -> Result<()>;
    fn rope_cache(&self, c: &mut Self::Commands, op: ops::RopeCache<'_, Self::Buffer>) -> Result<()>;
    fn attention(&self, c: &mut Self::Commands, op: ops::Attention<'_, Self::Buffer>) -> Result<()>;
    fn swiglu(&self, c: &mut Self::Commands, op: ops::SwiGlu<'_, Self::Buffer>) -> Result<()>;
    fn causal_conv(&self, c: &mut Self::Commands, op: ops::CausalConv<'_, Self::Buffer>) -> Result<()>;
    fn delta_rule(&self, c: &mut Self::Commands, op: ops::DeltaRule<'_, Self::Buffer>) -> Result<()>;
    fn gated_norm(&self, c: &mut Self::Commands, op: ops::GatedNorm<'_, Self::Buffer>) -> Result<()>;

    /// For each of the first `rows` rows of x `[rows, dim]`, the first place of its largest value, after everything
    /// submitted so far.
    async fn argmax(&self, x: &Self::Buffer, rows: usize, dim: usize) -> Result<Vec<u32>> {
        let words = self.read(x, 0, rows * dim).await?;
        let largest = |row: &[u32]| {
            let values = row.iter().map(|word| f32::from_bits(*word)).enumerate();
            values.fold((0, f32::NEG_INFINITY), |best, (i, v)| if v > best.1 { (i, v) } else { best }).0
                as u32
        };
        Ok(words.chunks_exact(dim).map(largest).collect())
    }

    /// What quantizes matrices for this backend: the CPU where the device cannot.
    fn quantizer(&self) -> &dyn Quantizer {
        &cpu::Cpu
    }

    /// Sums of x^T x over rows of `dim` elements, none yet; None where they are left to the CPU.
    fn hessian_sum(&self, _dim: usize) -> Result<Option<Box<dyn HessianSum<Self::Buffer> + '_>>> {
        Ok(None)
    }

    /// The `k` largest of the first `dim` values of x with their places, after everything submitted so far: in falling
    /// order, the lower place first among equals, NaN before everything.
    async fn top_k(&self, x: &Self::Buffer, dim: usize, k: usize) -> Result<Vec<(u32, f32)>> {
        Ok(ops::top_k(bytemuck::cast_slice(&self.read(x, 0, dim).await?), k))
    }

    /// The device's memory bandwidth, measured anew, where the backend can.
    fn bandwidth(&self) -> Result<Option<Bandwidth>> {
        Ok(None)
    }

    /// Kernels started so far, where the backend counts them.
    fn dispatches(&self) -> Option<u64> {
        None
    }

    /// A buffer that holds `words`.
    fn upload(&self, words: &[u32]) -> Result<Self::Buffer> {
        let mut buffer = self.alloc(words.len())?;
        self.write(&mut buffer, words)?;
        Ok(buffer)
    }
}
