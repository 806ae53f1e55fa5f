//! Large copies between the host's memory and the device's: through two pinned buffers, of which all threads fill or
//! empty one while the other is on its way.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice, result};
use rayon::prelude::*;

use super::error;
use super::memory::{Memory, address, driver};
use crate::Result;

/// Bytes of one pinned buffer, and what a thread copies at once.
const STAGE: usize = 32 << 20;
const PIECE: usize = 1 << 20;

/// Two pinned buffers.
pub struct Staging([Stage; 2]);

struct Stage {
    memory: PinnedHostSlice<u8>,
    /// The last copy from or to `memory`.
    copied: CudaEvent,
}

impl Stage {
    /// The first `count` bytes, once the device is done with them.
    fn bytes(&mut self, count: usize) -> Result<&mut [u8]> {
        self.copied.synchronize().map_err(driver)?;
        let start = self.memory.as_mut_ptr().map_err(driver)?;
        // SAFETY: `count` is at most STAGE, which is what the buffer has; it is initialised, and the last copy is over.
        Ok(unsafe { std::slice::from_raw_parts_mut(start, count) })
    }
}

impl Staging {
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let stage = || {
            // SAFETY: zeroed right below.
            let mut memory =
                unsafe { stream.context().alloc_pinned_with_flags::<u8>(STAGE, 0) }.map_err(driver)?;
            // SAFETY: the pointer is to STAGE bytes that nothing else uses.
            unsafe { memory.as_mut_ptr().map_err(driver)?.write_bytes(0, STAGE) };
            Ok(Stage { memory, copied: stream.record_event(None).map_err(driver)? })
        };
        Ok(Self([stage()?, stage()?]))
    }

    /// Copies `bytes` to the start of `memory`, which is large enough.
    pub fn write(&mut self, stream: &Arc<CudaStream>, memory: &Memory, bytes: &[u8]) -> Result<()> {
        if bytes.len() > memory.num_bytes() {
            return Err(error(format!("writing {} bytes to {}", bytes.len(), memory.num_bytes())));
        }
        for (i, from) in bytes.chunks(STAGE).enumerate() {
            let stage = &mut self.0[i % 2];
            let staged = stage.bytes(from.len())?;
            staged
                .par_chunks_mut(PIECE)
                .zip(from.par_chunks(PIECE))
                .for_each(|(to, from)| to.copy_from_slice(from));
            let to = address(memory) + (i * STAGE) as u64;
            // SAFETY: `memory` is alive and large enough; `staged` is not touched before the event below.
            unsafe { result::memcpy_htod_async(to, staged, stream.cu_stream()) }.map_err(driver)?;
            stage.copied.record(stream).map_err(driver)?;
        }
        Ok(())
    }

    /// Copies the start of `memory` to `bytes`, after everything enqueued so far.
    pub fn read(&mut self, stream: &Arc<CudaStream>, memory: &Memory, bytes: &mut [u8]) -> Result<()> {
        if bytes.len() > memory.num_bytes() {
            return Err(error(format!("reading {} bytes of {}", bytes.len(), memory.num_bytes())));
        }
        let mut chunks: Vec<&mut [u8]> = bytes.chunks_mut(STAGE).collect();
        for i in 0..=chunks.len() {
            if let Some(next) = chunks.get(i) {
                let stage = &mut self.0[i % 2];
                let staged = stage.bytes(next.len())?;
                let from = address(memory) + (i * STAGE) as u64;
                // SAFETY: `memory` is alive and large enough; `staged` is not touched before the event below.
                unsafe { result::memcpy_dtoh_async(staged, from, stream.cu_stream()) }.map_err(driver)?;
                stage.copied.record(stream).map_err(driver)?;
            }
            if let Some(done) = i.checked_sub(1).map(|last| &mut *chunks[last]) {
                let staged = self.0[(i - 1) % 2].bytes(done.len())?;
                done.par_chunks_mut(PIECE)
                    .zip(staged.par_chunks(PIECE))
                    .for_each(|(to, from)| to.copy_from_slice(from));
            }
        }
        Ok(())
    }
}
