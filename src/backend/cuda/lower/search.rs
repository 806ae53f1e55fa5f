//! The largest values of rows.

use super::{Buffer, Lowering};
use crate::Result;
use crate::backend::cuda::device::Scratch;
use crate::backend::cuda::device::abi::{ARGMAX_BLOCKS, TOP_K};
use crate::backend::cuda::device::graphs::enqueue;
use crate::backend::cuda::device::launch::{Commands, Launch};
use crate::backend::cuda::device::unit::Source;
use crate::ops;

impl Lowering {
    /// See [`crate::backend::Backend::argmax`].
    pub fn argmax(&self, x: &Buffer, rows: usize, dim: usize) -> Result<Vec<(u32, f32)>> {
        let device = &self.device;
        let found = device.scratch(Scratch::Found, 2 * rows)?;
        let values = device.scratch(Scratch::Sums, rows * ARGMAX_BLOCKS)?;
        let positions = device.scratch(Scratch::Partial, rows * ARGMAX_BLOCKS)?;
        let unit = Source::Argmax.unit();
        let mut c = Commands::default();
        let grid = [ARGMAX_BLOCKS as u32, rows as u32, 1];
        c.launch(
            Launch::new(unit.function("argmax_part"), grid, 256, 0)
                .memory(x.memory())
                .memory(&values)
                .memory(&positions)
                .word(dim as u32),
        );
        c.launch(
            Launch::new(unit.function("argmax"), [rows as u32, 1, 1], 32, 0)
                .memory(&values)
                .memory(&positions)
                .memory(&found),
        );
        enqueue(device, &c)?;
        let words = device.read(&found, 0, 2 * rows)?;
        Ok(words.chunks_exact(2).map(|found| (found[0], f32::from_bits(found[1]))).collect())
    }

    /// See [`crate::backend::Backend::top_k`].
    pub fn top_k(&self, x: &Buffer, dim: usize, k: usize) -> Result<Vec<(u32, f32)>> {
        let device = &self.device;
        if k == 0 || k > TOP_K || k > dim {
            return Ok(ops::top_k(bytemuck::cast_slice(&device.read(x.memory(), 0, dim)?), k));
        }
        let found = device.scratch(Scratch::Found, 2 * k)?;
        let mut c = Commands::default();
        c.launch(
            Launch::new(Source::TopK.unit().function("top_k"), [1, 1, 1], 1024, 0)
                .memory(x.memory())
                .memory(&found)
                .word(dim as u32)
                .word(k as u32),
        );
        enqueue(device, &c)?;
        let words = device.read(&found, 0, 2 * k)?;
        let (positions, values) = words.split_at(k);
        Ok(positions.iter().zip(values).map(|(i, value)| (*i, f32::from_bits(*value))).collect())
    }
}
