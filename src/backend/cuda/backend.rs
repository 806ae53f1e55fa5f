//! [`Backend`] for [`Cuda`].

use super::Cuda;
use super::device::abi::{MAX_HEAD_DIM, SPAN};
use super::device::graphs::enqueue;
use super::device::launch::{Commands, Launch};
use super::device::unit::Source;
use super::lower::{Buffer, Precision, Weight, weight};
use super::quantizing::Sums;
use super::schedule::{self, Tuned};
use crate::Result;
use crate::backend::{Backend, Bandwidth, Form, HessianSum, Key, Quantizer, WeightData};
use crate::ops::Op;
use crate::plan::Limits;

/// Taps of a causal convolution, and elements of a delta net's key, that a thread holds in registers.
const MAX_TAPS: u32 = 16;
const MAX_KEY_DIM: u32 = 256;

impl Backend for Cuda {
    type Buffer = Buffer;
    type Weight = Weight;

    fn describe(&self) -> String {
        format!("cuda, {}", self.device().name())
    }

    fn limits(&self) -> Limits {
        Limits {
            head_dim: Some(MAX_HEAD_DIM as u32),
            rotation: Some(SPAN as u32),
            conv_taps: Some(MAX_TAPS),
            key_dim: Some(MAX_KEY_DIM),
            value_dim: None,
        }
    }

    fn working_bytes(&self, rows: usize, cols: usize) -> u64 {
        self.lowering.working_bytes(rows, cols)
    }

    fn check_memory(&self, bytes: u64) -> Result<()> {
        self.device().check_memory(bytes)
    }

    fn free_memory(&self) -> Option<u64> {
        self.device().memory().ok().map(|(free, _)| free as u64)
    }

    fn weight_bytes(&self, form: &Form) -> u64 {
        weight::bytes(form, self.device().capabilities.shared_limit)
    }

    fn cache_bytes(&self, elements: usize) -> u64 {
        4 * self.cache_words(elements) as u64
    }

    fn alloc(&self, words: usize) -> Result<Buffer> {
        Ok(Buffer::new(self.device().alloc(words, true)?, words))
    }

    fn alloc_cache(&self, elements: usize) -> Result<Buffer> {
        Ok(Buffer::new(self.device().alloc(self.cache_words(elements), true)?, elements))
    }

    fn write(&self, buffer: &Buffer, words: &[u32]) -> Result<()> {
        self.device().write(buffer.memory(), bytemuck::cast_slice(words))
    }

    async fn read(&self, buffer: &Buffer, start: usize, words: usize) -> Result<Vec<u32>> {
        self.device().read(buffer.memory(), start, words)
    }

    fn weight(&self, blocks: &[WeightData<'_>]) -> Result<Weight> {
        Weight::upload(self.device(), blocks)
    }

    fn run(&self, ops: &[Op<'_, Buffer, Weight>], key: Option<Key>) -> Result<()> {
        let list = ops.iter().map(Op::identity).collect();
        self.graphs.submit(self.device(), list, key, || {
            let tuned = Tuned { lowering: &self.lowering, tuner: &self.tuner, forced: self.forced };
            let capabilities = self.device().capabilities;
            let plan = schedule::plan(ops, capabilities, self.lowering.precision, &tuned)?;
            schedule::lower(&self.lowering, &plan)
        })
    }

    fn replay(&self, key: &Key) -> Result<bool> {
        self.graphs.replay(self.device(), key)
    }

    async fn argmax(&self, x: &Buffer, rows: usize, dim: usize) -> Result<Vec<(u32, f32)>> {
        self.lowering.argmax(x, rows, dim)
    }

    async fn top_k(&self, x: &Buffer, dim: usize, k: usize) -> Result<Vec<(u32, f32)>> {
        self.lowering.top_k(x, dim, k)
    }

    fn quantizer(&self) -> &dyn Quantizer {
        self
    }

    fn hessian_sum(&self, dim: usize) -> Result<Option<Box<dyn HessianSum<Buffer> + '_>>> {
        Ok(Some(Box::new(Sums::new(&self.lowering, dim)?)))
    }

    fn bandwidth(&self) -> Result<Option<Bandwidth>> {
        const BYTES: usize = 4 << 30;
        let device = self.device();
        let (memory, sink) = (device.alloc(BYTES / 4, true)?, device.alloc(4, true)?);
        let function = Source::StreamRead.unit().function("stream_read");
        let mut commands = Commands::default();
        commands.launch(
            Launch::new(function, [device.capabilities.sms * 2, 1, 1], 1024, 0)
                .memory(&memory)
                .memory(&sink)
                .long((BYTES / 16) as u64),
        );
        let mut best = f64::MAX;
        for _ in 0..5 {
            device.synchronize()?;
            let start = std::time::Instant::now();
            enqueue(device, &commands)?;
            device.synchronize()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(Some(Bandwidth { peak: device.peak_bandwidth()?, measured: BYTES as f64 / best }))
    }
}

impl Cuda {
    fn cache_words(&self, elements: usize) -> usize {
        match self.lowering.precision {
            Precision::Half => elements.div_ceil(2),
            Precision::Single => elements,
        }
    }
}
