//! Lists of kernels: recorded, encoded, and encoded again ahead of their next use.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::pipelines::{Arg, Constants, Kept, Kernel};
use super::shader::Shader;
use super::{Buffer, Wgpu};
use crate::backend::Key;
use crate::{Error, Result};

/// Lists that are kept for their next use. Decoding uses one, a prompt another.
const MAX_KEPT: usize = 8;

impl Wgpu {
    /// Appends one kernel on a grid of workgroups.
    pub(super) fn dispatch(
        &self,
        kernels: &mut Vec<Kernel>,
        shader: Shader,
        constants: Constants<'_>,
        args: &[Arg<'_>],
        grid: [usize; 2],
    ) -> Result<()> {
        let limit = self.0.device.max_grid;
        if let Some(size) = grid.iter().find(|size| **size > limit) {
            let expected = format!("at most {limit} workgroups");
            return Err(Error::mismatch(format!("kernel {}", shader.name()), expected, size));
        }
        let pipeline = self.0.cache.pipeline(&self.0.device, shader, constants)?;
        let group = self.0.cache.bind_group(&self.0.device, &pipeline, args);
        kernels.push(Kernel { pipeline, group, grid: grid.map(|n| n as u32) });
        Ok(())
    }

    /// Adds kernels to an encoder.
    pub(super) fn encode(&self, encoder: &mut wgpu::CommandEncoder, kernels: &[Kernel]) {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for kernel in kernels {
            pass.set_pipeline(&kernel.pipeline.pipeline);
            pass.set_bind_group(0, &kernel.group, &[]);
            pass.dispatch_workgroups(kernel.grid[0], kernel.grid[1], 1);
        }
    }

    fn encoded(&self, kernels: &[Kernel]) -> wgpu::CommandBuffer {
        let mut encoder = self.encoder();
        self.encode(&mut encoder, kernels);
        encoder.finish()
    }

    pub(super) fn encoder(&self) -> wgpu::CommandEncoder {
        self.0.device.device.create_command_encoder(&Default::default())
    }

    fn start(&self, buffer: wgpu::CommandBuffer, kernels: usize) -> Result<()> {
        self.0.device.queue.submit([buffer]);
        self.0.dispatches.fetch_add(kernels as u64, Ordering::Relaxed);
        self.0.device.check()
    }

    pub(super) fn submit_kernels(&self, kernels: &[Kernel]) -> Result<()> {
        self.start(self.encoded(kernels), kernels.len())
    }

    /// Keeps a list for [`Wgpu::submit_kept`].
    pub(super) fn keep(&self, key: Key, kernels: Vec<Kernel>) {
        let mut kept = self.0.cache.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|list| list.key != key);
        if kept.len() >= MAX_KEPT {
            kept.remove(0);
        }
        kept.push(Kept { key, kernels, encoded: None });
    }

    /// Submits the list that was kept under a key, if there is one, and encodes it for the next time while it runs.
    pub(super) fn submit_kept(&self, key: &Key) -> Result<bool> {
        let mut kept = self.0.cache.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(list) = kept.iter_mut().find(|list| list.key == *key) else { return Ok(false) };
        let encoded = list.encoded.take().unwrap_or_else(|| self.encoded(&list.kernels));
        self.start(encoded, list.kernels.len())?;
        list.encoded = Some(self.encoded(&list.kernels));
        Ok(true)
    }

    /// Words of a buffer, after everything submitted so far and then these kernels.
    pub(super) async fn read_after(
        &self,
        kernels: &[Kernel],
        buffer: &Buffer,
        start: usize,
        words: usize,
    ) -> Result<Vec<u32>> {
        let device = &self.0.device;
        let size = 4 * words as u64;
        let kept = self.0.staging.lock().unwrap_or_else(PoisonError::into_inner).take();
        let staging = kept.filter(|kept| kept.size() >= size).unwrap_or_else(|| {
            device.buffer(&wgpu::BufferDescriptor {
                label: Some("results"),
                size: size.next_power_of_two(),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        });
        let mut encoder = self.encoder();
        self.encode(&mut encoder, kernels);
        encoder.copy_buffer_to_buffer(buffer.raw(), 4 * start as u64, &staging, 0, size);
        device.queue.submit([encoder.finish()]);
        self.0.dispatches.fetch_add(kernels.len() as u64, Ordering::Relaxed);
        let (done, mapped) = futures_channel::oneshot::channel();
        staging.map_async(wgpu::MapMode::Read, 0..size, move |result| {
            // The receiver is gone only where the reader was dropped.
            let _ = done.send(result);
        });
        #[cfg(not(target_arch = "wasm32"))]
        device.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| Error::backend("wgpu", e))?;
        let result = mapped.await;
        device.settled().await?;
        // A buffer that was made is not mapped only where its device is gone, which may be reported later.
        let lost = |e: String| Error::backend("wgpu", format!("{} was lost: {e}", device.name()));
        result.map_err(|e| lost(e.to_string()))?.map_err(|e| lost(e.to_string()))?;
        let data = {
            let view = staging.get_mapped_range(0..size).map_err(|e| Error::backend("wgpu", e))?;
            bytemuck::pod_collect_to_vec(&view[..])
        };
        staging.unmap();
        *self.0.staging.lock().unwrap_or_else(PoisonError::into_inner) = Some(staging);
        Ok(data)
    }
}
