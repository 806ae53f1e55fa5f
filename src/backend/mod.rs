//! Where a forward pass computes: the [`Backend`] trait, its implementations, and the choice between them.

mod choice;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(any(test, feature = "test-support"))]
pub mod dry;
mod quantizer;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use choice::{BackendTask, Choice, choose};
pub use quantizer::{HessianSum, Quantizer, Rows};

pub use crate::tensor::{Dtype, Form, Stored, WeightData};

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Result;
use crate::ops::{self, Matrix, Op, Operand};
use crate::plan::{self, Limits};

/// What a list of operations depends on: the same key, the same list.
pub type Key = [u64; 4];

/// A number that no other call returns: an identity for buffers, weights and sessions.
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
/// A backend must give what [`cpu::Cpu`] gives, within the tolerances of `tests/conformance`.
#[allow(async_fn_in_trait)] // used with static dispatch only; a browser cannot block, so reading is async
pub trait Backend {
    /// An array of 4-byte words; operations share it, so that it can be written through a reference.
    type Buffer: Operand;
    /// A weight, repacked for this backend's kernels.
    type Weight: Matrix;

    /// What runs here, for people: "cpu, 2 threads", "cuda, NVIDIA H200".
    fn describe(&self) -> String;

    /// The largest sizes that the kernels take.
    fn limits(&self) -> Limits {
        Limits::default()
    }
    /// Bytes that running lists of up to `rows` rows takes besides weights and buffers, at most; `cols`: of the widest
    /// linear layer's input.
    fn working_bytes(&self, _rows: usize, _cols: usize) -> u64 {
        0
    }
    /// Fails if `bytes` exceed free memory; the error names both.
    fn check_memory(&self, _bytes: u64) -> Result<()> {
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
    /// A key or value cache of `elements` zeros, in the element type of this backend's attention.
    fn alloc_cache(&self, elements: usize) -> Result<Self::Buffer> {
        self.alloc(elements)
    }
    /// Overwrites the first words of a buffer, before anything submitted afterwards.
    ///
    /// # Errors
    /// More words than the buffer has; a device that fails.
    fn write(&self, buffer: &Self::Buffer, words: &[u32]) -> Result<()>;
    /// `words` words from word `start`, after everything submitted so far.
    async fn read(&self, buffer: &Self::Buffer, start: usize, words: usize) -> Result<Vec<u32>>;
    /// The matrices, which share their `in`, stacked along `out` into one weight.
    fn weight(&self, blocks: &[WeightData<'_>]) -> Result<Self::Weight>;

    /// Runs operations in their order, after everything submitted so far. A buffer that one of them writes and no
    /// later one of the list reads may hold anything afterwards if the one behind it reads it: both may be one kernel.
    ///
    /// # Errors
    /// Names the operation and argument that [`plan::check()`] refuses; a device that fails.
    fn submit(&self, ops: &[Op<'_, Self::Buffer, Self::Weight>]) -> Result<()> {
        plan::check(ops, &self.limits())?;
        self.run(ops, None)
    }
    /// [`Backend::submit`] of operations that are the same whenever `key` is.
    fn submit_as(&self, ops: &[Op<'_, Self::Buffer, Self::Weight>], key: Key) -> Result<()> {
        plan::check(ops, &self.limits())?;
        self.run(ops, Some(key))
    }
    /// Runs operations that have been checked; what [`Backend::submit`] and [`Backend::submit_as`] call.
    fn run(&self, ops: &[Op<'_, Self::Buffer, Self::Weight>], key: Option<Key>) -> Result<()>;
    /// Runs the operations of a key again, if they are kept; else they have to be recorded.
    fn replay(&self, _key: &Key) -> Result<bool> {
        Ok(false)
    }

    /// The largest of each of the first `rows` rows of x `[rows, dim]` with its position, after everything submitted so
    /// far: the lowest position among equals, and NaN before everything.
    async fn argmax(&self, x: &Self::Buffer, rows: usize, dim: usize) -> Result<Vec<(u32, f32)>> {
        let words = self.read(x, 0, rows * dim).await?;
        Ok(words.chunks_exact(dim).flat_map(|row| ops::top_k(bytemuck::cast_slice(row), 1)).collect())
    }

    /// What quantizes matrices for this backend: the CPU where the device cannot.
    fn quantizer(&self) -> &dyn Quantizer {
        &cpu::Cpu
    }

    /// Sums of x^T x over rows of `dim` elements, none yet; None where they are left to the CPU.
    fn hessian_sum(&self, _dim: usize) -> Result<Option<Box<dyn HessianSum<Self::Buffer> + '_>>> {
        Ok(None)
    }

    /// The `k` largest of the first `dim` values of x with their positions, after everything submitted so far: in falling
    /// order, the lower position first among equals, NaN before everything.
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
        let buffer = self.alloc(words.len())?;
        self.write(&buffer, words)?;
        Ok(buffer)
    }
}
