//! [`Backend`] for [`Wgpu`].

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::device::WORKING_MEMORY;
use super::limits::{ARGMAX_PARTS, MAX_BLOCK, MAX_HEAD_DIM, MAX_KEY_DIM, MAX_TAPS};
use super::pipelines::Arg;
use super::plan::Fusions;
use super::shader::Shader;
use super::weight::Weight;
use super::{Buffer, Wgpu};
use crate::backend::{Backend, Key, WeightData};
use crate::ops::{Op, Operand};
use crate::plan::{self, Limits};
use crate::{Error, Result};

impl Backend for Wgpu {
    type Buffer = Buffer;
    type Weight = Weight;

    fn describe(&self) -> String {
        let device = &self.0.device;
        let software = if device.is_software() { ", on the CPU" } else { "" };
        let subgroups = if device.capabilities.subgroups { ", subgroups" } else { "" };
        format!("wgpu, {} ({}{software}{subgroups})", device.name(), device.info.backend)
    }

    fn limits(&self) -> Limits {
        let limit = |n: usize| Some(n as u32);
        Limits {
            head_dim: limit(MAX_HEAD_DIM),
            rotation: limit(MAX_BLOCK),
            conv_taps: limit(MAX_TAPS),
            key_dim: limit(MAX_KEY_DIM),
            value_dim: None,
        }
    }

    fn working_bytes(&self, _rows: usize, _cols: usize) -> u64 {
        WORKING_MEMORY
    }

    fn check_memory(&self, bytes: u64) -> Result<()> {
        self.0.device.check_memory(bytes)
    }

    fn alloc(&self, words: usize) -> Result<Buffer> {
        self.storage(words)
    }

    fn write(&self, buffer: &Buffer, words: &[u32]) -> Result<()> {
        if words.len() > buffer.elements() {
            let expected = format!("at most {}", buffer.elements());
            return Err(Error::mismatch("words written to a buffer on wgpu", expected, words.len()));
        }
        self.upload_at(buffer, 0, words);
        self.0.device.check()
    }

    fn dispatches(&self) -> Option<u64> {
        Some(self.0.dispatches.load(Ordering::Relaxed))
    }

    async fn read(&self, buffer: &Buffer, start: usize, words: usize) -> Result<Vec<u32>> {
        if words == 0 {
            return Ok(Vec::new());
        }
        if start.checked_add(words).is_none_or(|end| end > buffer.elements()) {
            let (expected, found) = (format!("{} words", buffer.elements()), format!("{words} from {start}"));
            return Err(Error::mismatch("reading a buffer on wgpu", expected, found));
        }
        self.read_after(&[], buffer, start, words).await
    }

    fn weight(&self, blocks: &[WeightData<'_>]) -> Result<Weight> {
        Weight::new(self, blocks)
    }

    fn run(&self, ops: &[Op<'_, Buffer, Weight>], key: Option<Key>) -> Result<()> {
        let mut kernels = Vec::new();
        for step in &plan::rewrite(ops, &Fusions)? {
            self.step(&mut kernels, step)?;
        }
        self.submit_kernels(&kernels)?;
        if let Some(key) = key {
            self.keep(key, kernels);
        }
        Ok(())
    }

    fn replay(&self, key: &Key) -> Result<bool> {
        self.submit_kept(key)
    }

    async fn argmax(&self, x: &Buffer, rows: usize, dim: usize) -> Result<Vec<(u32, f32)>> {
        if dim == 0 {
            return Err(Error::mismatch("row of argmax on wgpu", "at least one value", dim));
        }
        let count = 2 * rows * ARGMAX_PARTS;
        let kept = self.0.maxima.lock().unwrap_or_else(PoisonError::into_inner).take();
        let maxima = match kept.filter(|kept| kept.raw().size() >= 4 * count as u64) {
            Some(maxima) => maxima,
            None => self.storage(count)?,
        };
        let mut kernels = Vec::new();
        let args = [Arg::Params(vec![dim as u32, 0, 0, 0]), Arg::Buffer(x), Arg::Buffer(&maxima)];
        self.dispatch(&mut kernels, Shader::Argmax, &[], &args, [ARGMAX_PARTS, rows])?;
        let words = self.read_after(&kernels, &maxima, 0, count).await?;
        *self.0.maxima.lock().unwrap_or_else(PoisonError::into_inner) = Some(maxima);
        // Parts are in the order of their positions: of equals, the first is the lowest.
        let largest = |parts: &[u32]| {
            let parts = parts.chunks_exact(2).map(|part| (part[0], part[1]));
            let (rank, position) = parts.fold((0, 0), |best, part| if part.0 > best.0 { part } else { best });
            (position, of_rank(rank))
        };
        Ok(words.chunks_exact(2 * ARGMAX_PARTS).map(largest).collect())
    }
}

/// The value that has a rank in argmax.wgsl.
fn of_rank(rank: u32) -> f32 {
    const ZERO: u32 = 1 << 31;
    match rank {
        u32::MAX => f32::NAN,
        ZERO.. => f32::from_bits(rank - ZERO),
        _ => -f32::from_bits(ZERO - rank),
    }
}
