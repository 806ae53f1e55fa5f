//! The CPU backend: the specification of every operation, in safe slices, and usable on its own.
//!
//! Operations run one after the other, each spread over the threads of the current rayon pool.

mod attention;
mod cache;
mod causal_conv;
mod delta_rule;
mod dense_matmul;
mod embed;
mod gated_norm;
mod gather_rows;
mod glu;
mod lanes;
mod linear;
mod pq_matmul;
mod pq_matvec;
mod qk_norm;
mod quantize;
mod rms_norm;
mod rope_cache;
mod rotate;
mod weight;

pub use weight::Weight;

use std::cell::{Ref, RefCell, RefMut};

use super::{Backend, Key, WeightData, unique};
use crate::ops::{Op, Operand};
use crate::{Error, Result};

/// The CPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

/// An array of 4-byte words in memory.
#[derive(Debug)]
pub struct Buffer {
    id: u64,
    words: RefCell<Vec<u32>>,
}

impl Buffer {
    fn words(&self) -> Ref<'_, [u32]> {
        Ref::map(self.words.borrow(), Vec::as_slice)
    }

    fn f32(&self) -> Ref<'_, [f32]> {
        Ref::map(self.words.borrow(), |words| bytemuck::cast_slice(words))
    }

    /// Nothing else may look at the buffer meanwhile: the arguments of an operation that are written are apart from all
    /// others ([`crate::plan::check()`]).
    fn f32_mut(&self) -> RefMut<'_, [f32]> {
        RefMut::map(self.words.borrow_mut(), |words| bytemuck::cast_slice_mut(words))
    }
}

impl Operand for Buffer {
    fn id(&self) -> u64 {
        self.id
    }

    fn elements(&self) -> usize {
        self.words.borrow().len()
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

fn segments(buffer: &Buffer, count: u32) -> Vec<Segment> {
    let segment = |w: &[u32]| Segment {
        slot: w[0] as usize,
        start: w[1] as usize,
        rows: w[2] as usize,
        position: w[3] as usize,
    };
    buffer.words().chunks_exact(4).take(count as usize).map(segment).collect()
}

impl Backend for Cpu {
    type Buffer = Buffer;
    type Weight = Weight;

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
        Ok(Buffer { id: unique(), words: RefCell::new(data) })
    }

    fn write(&self, buffer: &Buffer, words: &[u32]) -> Result<()> {
        let mut all = buffer.words.borrow_mut();
        let (count, least) = (all.len(), words.len());
        let head = all.get_mut(..least);
        head.ok_or_else(|| outside("writing", 0, least, count))?.copy_from_slice(words);
        Ok(())
    }

    async fn read(&self, buffer: &Buffer, start: usize, words: usize) -> Result<Vec<u32>> {
        let all = buffer.words.borrow();
        let part = start.checked_add(words).and_then(|end| all.get(start..end));
        Ok(part.ok_or_else(|| outside("reading", start, words, all.len()))?.to_vec())
    }

    fn weight(&self, blocks: &[WeightData<'_>]) -> Result<Weight> {
        Weight::new(blocks)
    }

    fn run(&self, ops: &[Op<'_, Buffer, Weight>], _: Option<Key>) -> Result<()> {
        for op in ops {
            match *op {
                Op::Embed(op) => embed::run(op),
                Op::GatherRows(op) => gather_rows::run(op),
                Op::RmsNorm(op) => rms_norm::run(op),
                Op::QkNorm(op) => qk_norm::run(op),
                Op::Rotate(op) => rotate::run(op),
                Op::Linear(op) => linear::run(op),
                Op::RopeCache(op) => rope_cache::run(op),
                Op::Attention(op) => attention::run(op),
                Op::Glu(op) => glu::run(op),
                Op::CausalConv(op) => causal_conv::run(op),
                Op::DeltaRule(op) => delta_rule::run(op),
                Op::GatedNorm(op) => gated_norm::run(op),
            }
        }
        Ok(())
    }
}

fn outside(doing: &str, start: usize, words: usize, all: usize) -> Error {
    Error::backend("cpu", format!("{doing} {words} words from word {start} of a buffer of {all}"))
}
