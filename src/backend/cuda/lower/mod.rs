//! Lowering: from a step of a plan to launches of kernels, a file for each kind.
//!
//! Which kernel serves which operation, how it is specialised ([`kernels`]) and the shape of its launch follow from the
//! operation's parameters, the weight's form and the device's [`Capabilities`]; nothing here looks back at launches.

mod attention;
mod delta_net;
mod embed;
pub mod kernels;
mod linear;
mod matmul;
mod packing;
pub mod paper;
mod rows;
mod search;
mod subspace;
pub mod weight;

use std::rc::Rc;

pub use attention::{
    AttentionAlgorithm, Splits, by_splits, by_tiles, persistent_shared, rows_shared, short_context,
    split_shared,
};
pub use delta_net::{by_chunks, by_rows};
pub use linear::Io;
pub use linear::dtype_number;
pub use matmul::{MatmulAlgorithm, SINGLE_ROWS, Tiles, pack_unit};
pub use packing::Packing;
pub use rows::{gather_rows_shape, glu_shape, qk_norm_shape, rms_norm_shape, row_threads, spans_shape};
pub use weight::Weight;

use super::device::memory::Memory;
use super::device::{Capabilities, Device};
use crate::backend::unique;
use crate::ops::Operand;
use kernels::Cache;

/// An array of 4-byte words on the device; a cache in [`Precision::Half`] has two elements a word.
pub struct Buffer {
    memory: Memory,
    id: u64,
    elements: usize,
}

impl Buffer {
    pub fn new(memory: Memory, elements: usize) -> Self {
        Self { memory, id: unique(), elements }
    }

    pub fn memory(&self) -> &Memory {
        &self.memory
    }
}

impl Operand for Buffer {
    fn id(&self) -> u64 {
        self.id
    }

    fn elements(&self) -> usize {
        self.elements
    }
}

/// What linear layers make of their input rows, attention of its cache, and the delta rule of many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Inputs in f32 for up to 4 rows (decode), in f16 for more: tensor cores at their full rate. The cache in f16. The
    /// delta rule by chunks of rows, in pairs of bf16.
    Half,
    /// f32 always, 4 rows at a time: for comparisons.
    Single,
}

impl Precision {
    pub fn cache(self) -> Cache {
        match self {
            Self::Half => Cache::F16,
            Self::Single => Cache::F32,
        }
    }
}

/// Makes launches for one device.
#[derive(Clone)]
pub struct Lowering {
    pub device: Rc<Device>,
    pub precision: Precision,
}

impl Lowering {
    pub fn capabilities(&self) -> &Capabilities {
        &self.device.capabilities
    }

    /// See [`crate::backend::Backend::working_bytes`]: scratch memory, which grows to powers of two, and what the driver
    /// and cuBLAS load, as measured on an H200.
    pub fn working_bytes(&self, rows: usize, cols: usize) -> u64 {
        const LIBRARIES: usize = 512 << 20;
        // Rows in f16, and in the tensor cores' layout, of whole tiles and padded entries.
        let half = (rows * cols * 2).next_power_of_two();
        let tiles = (rows.next_multiple_of(64) * cols * 4).next_power_of_two();
        let partial = 128 << 20;
        (LIBRARIES + half + tiles + partial + matmul::SLAB_BYTES) as u64
    }
}

/// Whether there are multiprocessors for two blocks of each of `rows`: then kernels divide a row among blocks.
pub fn few(capabilities: &Capabilities, rows: u32) -> bool {
    rows.saturating_mul(2) <= capabilities.sms
}
