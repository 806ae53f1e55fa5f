//! The CPU backend: the specification of every operation, in safe slices, and usable on its own.
//!
//! Operations run as they are recorded, each spread over the threads of the current rayon pool.

mod attention;
mod causal_conv;
mod delta_rule;
mod dense_matmul;
mod embed;
mod gated_norm;
mod gather_rows;
mod lanes;
mod linear;
mod pq_matmul;
mod pq_matvec;
mod quantize;
mod rms_norm;
mod rope_cache;
mod rotate;
mod swiglu;
mod weight;

pub use weight::Weight;

use super::{Backend, WeightData};
use crate::ops;
use crate::{Error, Result};

/// The CPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

/// An array of 4-byte words in memory.
#[derive(Debug)]
pub struct Buffer(Vec<u32>);

impl Buffer {
    fn words(&self) -> &[u32] {
        &self.0
    }

    fn f32(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }

    fn f32_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// The rows of one sequence in a batch.
#[derive(Clone, Copy, Debug)]
struct Segment {
    slot: usize,
    start: usize,
    rows: usize,
    /// Of the first row.
    position: usize,
}

fn segments(buffer: &Buffer, count: u32) -> impl Iterator<Item = Segment> + '_ {
    buffer.words().chunks_exact(4).take(count as usize).map(|w| Segment {
        slot: w[0] as usize,
        start: w[1] as usize,
        rows: w[2] as usize,
        position: w[3] as usize,
    })
}

impl Backend for Cpu {
    type Buffer = Buffer;
    type Weight = Weight;
    type Commands = ();

    fn describe(&self) -> String {
        let threads = rayon::current_num_threads();
        format!("cpu, {threads} thread{}", if threads == 1 { "" } else { "s" })
    }

    fn alloc(&self, words: usize) -> Result<Buffer> {
        let mut data = Vec::new();
        let gib = (words as f64 * 4.0) / f64::from(1 << 30);
        data.try_reserve_exact(words)
            .map_err(|e| Error::backend("cpu", format!("{gib:.1} GiB of memory: {e}")))?;
        data.resize(words, 0);
        Ok(Buffer(data))
    }

    fn write(&self, buffer: &mut Buffer, words: &[u32]) -> Result<()> {
        buffer.0[..words.len()].copy_from_slice(words);
        Ok(())
    }

    async fn read(&self, buffer: &Buffer, start: usize, words: usize) -> Result<Vec<u32>> {
        Ok(buffer.0[start..start + words].to_vec())
    }

    fn weight(&self, blocks: &[WeightData<'_>]) -> Result<Weight> {
        Ok(Weight::new(blocks))
    }

    fn begin(&self) -> Result<()> {
        Ok(())
    }

    fn submit(&self, (): ()) -> Result<()> {
        Ok(())
    }

    fn embed(&self, _: &mut (), op: ops::Embed<'_, Buffer, Weight>) -> Result<()> {
        embed::run(op);
        Ok(())
    }

    fn gather_rows(&self, _: &mut (), op: ops::GatherRows<'_, Buffer>) -> Result<()> {
        gather_rows::run(op);
        Ok(())
    }

    fn rms_norm(&self, _: &mut (), op: ops::RmsNorm<'_, Buffer>) -> Result<()> {
        rms_norm::run(op);
        Ok(())
    }

    fn rotate(&self, _: &mut (), op: ops::Rotate<'_, Buffer>) -> Result<()> {
        rotate::run(op);
        Ok(())
    }

    fn linear(&self, _: &mut (), op: ops::Linear<'_, Buffer, Weight>) -> Result<()> {
        linear::linear(op);
        Ok(())
    }

    fn rope_cache(&self, _: &mut (), op: ops::RopeCache<'_, Buffer>) -> Result<()> {
        rope_cache::run(op);
        Ok(())
    }

    fn attention(&self, _: &mut (), op: ops::Attention<'_, Buffer>) -> Result<()> {
        attention::run(op);
        Ok(())
    }

    fn swiglu(&self, _: &mut (), op: ops::SwiGlu<'_, Buffer>) -> Result<()> {
        swiglu::run(op);
        Ok(())
    }

    fn causal_conv(&self, _: &mut (), op: ops::CausalConv<'_, Buffer>) -> Result<()> {
        causal_conv::run(op);
        Ok(())
    }

    fn delta_rule(&self, _: &mut (), op: ops::DeltaRule<'_, Buffer>) -> Result<()> {
        delta_rule::run(op);
        Ok(())
    }

    fn gated_norm(&self, _: &mut (), op: ops::GatedNorm<'_, Buffer>) -> Result<()> {
        gated_norm::run(op);
        Ok(())
    }
}
