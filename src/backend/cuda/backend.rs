//! The operations, each a launch or two.

use super::commands::{Commands, Launch};
use super::device::Scratch;
use super::hessian::Sums;
use super::io::Io;
use super::kernels;
use super::linear;
use super::pack;
use super::weight::{self, Kind, Weight};
use super::{Buffer, Cuda, Precision, error};
use crate::Result;
use crate::backend::{Backend, Bandwidth, Form, HessianSum, Key, Quantizer, WeightData};
use crate::ops::{self, LinearParams};

/// Pieces of a row in argmax.cu.
const ARGMAX_BLOCKS: u32 = 64;

/// Threads for a row of `dim` elements.
fn row_threads(dim: u32) -> u32 {
    (dim / 4).next_multiple_of(32).clamp(32, 1024)
}

impl Backend for Cuda {
    type Buffer = Buffer;
    type Weight = Weight;
    type Commands = Commands;

    fn describe(&self) -> String {
        format!("cuda, {}", self.device.name())
    }

    fn check_room(&self, bytes: u64) -> Result<()> {
        self.device.check_room(bytes)
    }

    fn free_memory(&self) -> Option<u64> {
        self.device.memory().ok().map(|(free, _)| free as u64)
    }

    fn weight_bytes(&self, form: &Form) -> u64 {
        weight::bytes(form, self.device.shared_limit)
    }

    fn cache_bytes(&self, elements: usize) -> u64 {
        4 * self.cache_words(elements) as u64
    }

    fn alloc(&self, words: usize) -> Result<Buffer> {
        self.device.alloc(words, true).map(Buffer)
    }

    fn alloc_cache(&self, elements: usize) -> Result<Buffer> {
        self.alloc(self.cache_words(elements))
    }

    async fn argmax(&self, x: &Buffer, rows: usize, dim: usize) -> Result<Vec<u32>> {
        let found = self.device.scratch(Scratch::Found, rows)?;
        let values = self.device.scratch(Scratch::Sums, rows * ARGMAX_BLOCKS as usize)?;
        let places = self.device.scratch(Scratch::Partial, rows * ARGMAX_BLOCKS as usize)?;
        let unit = kernels::plain("argmax");
        let mut c = Commands::default();
        c.launch(
            Launch::new(self.entry(unit, "argmax_part")?, [ARGMAX_BLOCKS, rows as u32, 1], 256, 0)
                .memory(&x.0)
                .memory(&values)
                .memory(&places)
                .word(dim as u32),
        );
        c.launch(
            Launch::new(self.entry(unit, "argmax")?, [rows as u32, 1, 1], 32, 0)
                .memory(&values)
                .memory(&places)
                .memory(&found),
        );
        self.graphs.once(&self.device, &c)?;
        self.device.read(&found, 0, rows)
    }

    async fn top_k(&self, x: &Buffer, dim: usize, k: usize) -> Result<Vec<(u32, f32)>> {
        if k == 0 || k > kernels::TOP_K || k > dim {
            return Ok(ops::top_k(bytemuck::cast_slice(&self.device.read(&x.0, 0, dim)?), k));
        }
        let found = self.device.scratch(Scratch::Found, 2 * k)?;
        let mut c = Commands::default();
        c.launch(
            Launch::new(self.plain("top_k")?, [1, 1, 1], 1024, 0)
                .memory(&x.0)
                .memory(&found)
                .word(dim as u32)
                .word(k as u32),
        );
        self.graphs.once(&self.device, &c)?;
        let words = self.device.read(&found, 0, 2 * k)?;
        let (places, values) = words.split_at(k);
        Ok(places.iter().zip(values).map(|(place, value)| (*place, f32::from_bits(*value))).collect())
    }

    fn write(&self, buffer: &mut Buffer, words: &[u32]) -> Result<()> {
        self.device.write(&buffer.0, bytemuck::cast_slice(words))
    }

    async fn read(&self, buffer: &Buffer, start: usize, words: usize) -> Result<Vec<u32>> {
        self.device.read(&buffer.0, start, words)
    }

    fn weight(&self, blocks: &[WeightData<'_>]) -> Result<Weight> {
        Weight::upload(&self.device, &self.graphs, blocks)
    }

    fn begin(&self) -> Result<Commands> {
        Ok(Commands::default())
    }

    fn submit(&self, commands: Commands) -> Result<()> {
        self.graphs.submit_as(&self.device, commands, None)
    }

    fn submit_as(&self, commands: Commands, key: Key) -> Result<()> {
        self.graphs.submit_as(&self.device, commands, Some(key))
    }

    fn replay(&self, key: &Key) -> Result<bool> {
        self.graphs.replay(&self.device, key)
    }

    fn quantizer(&self) -> &dyn Quantizer {
        self
    }

    fn hessian_sum(&self, dim: usize) -> Result<Option<Box<dyn HessianSum<Buffer> + '_>>> {
        Ok(Some(Box::new(Sums::new(self, dim)?)))
    }

    fn bandwidth(&self) -> Result<Option<Bandwidth>> {
        const BYTES: usize = 4 << 30;
        let (memory, sink) = (self.device.alloc(BYTES / 4, true)?, self.device.alloc(4, true)?);
        let function = self.plain("stream_read")?;
        let mut best = f64::MAX;
        for _ in 0..5 {
            let mut commands = Commands::default();
            commands.launch(
                Launch::new(function.clone(), [self.device.sms * 2, 1, 1], 1024, 0)
                    .memory(&memory)
                    .memory(&sink)
                    .long((BYTES / 16) as u64),
            );
            self.device.synchronize()?;
            let start = std::time::Instant::now();
            self.graphs.once(&self.device, &commands)?;
            self.device.synchronize()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(Some(Bandwidth { peak: self.device.peak_bandwidth(), measured: BYTES as f64 / best }))
    }

    fn embed(&self, c: &mut Commands, op: ops::Embed<'_, Buffer, Weight>) -> Result<()> {
        let p = op.params;
        let (grid, threads, shared) = ([p.rows, 1, 1], row_threads(p.dim), kernels::row_shared(p.dim));
        let Some(part) = op.table.parts.first().filter(|_| op.table.parts.len() == 1) else {
            return Err(error("an embedding table is one matrix"));
        };
        let launch = match &part.kind {
            Kind::Dense { dtype, memory } => Launch::new(self.plain("embed")?, grid, threads, shared)
                .memory(&op.tokens.0)
                .memory(memory)
                .memory(&op.y.0)
                .word(linear::dtype_number(*dtype)),
            Kind::Pq(pq) => {
                let rotation = pq.spec.rotate.then(|| crate::pq::Rotation::for_dim(op.table.cols)).flatten();
                Launch::new(self.entry(kernels::embed_pq(&pq.spec), "embed_pq")?, grid, threads, shared)
                    .memory(&op.tokens.0)
                    .memory(&pq.codes)
                    .memory(&pq.codebooks)
                    .optional(pq.scales.as_ref(), 0)
                    .memory(&op.y.0)
                    .word(pq.code_tiles as u32)
                    .word(pq.group as u32)
                    .word(rotation.map_or(0, |rotation| rotation.block as u32))
            }
        };
        c.launch(launch.params(&p.words()));
        Ok(())
    }

    fn gather_rows(&self, c: &mut Commands, op: ops::GatherRows<'_, Buffer>) -> Result<()> {
        let p = op.params;
        c.launch(
            Launch::new(self.plain("gather_rows")?, [p.dim.div_ceil(256), p.rows, 1], 256, 0)
                .memory(&op.x.0)
                .memory(&op.index.0)
                .memory(&op.y.0)
                .params(&p.words()),
        );
        Ok(())
    }

    fn rms_norm(&self, c: &mut Commands, op: ops::RmsNorm<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let (entry, parts, threads, shared) = if self.few(p.rows) {
            // A few rows are shared out among all multiprocessors, by blocks that fit beside a matrix' kernel.
            let unit = if p.rotate > 0 { p.rotate } else { kernels::SPAN };
            let units = p.dim.div_ceil(unit);
            let parts = (self.device.sms / p.rows.max(1)).clamp(1, units);
            ("rms_norm", parts, 256, kernels::row_shared(units.div_ceil(parts) * unit))
        } else {
            let warps = p.dim.div_ceil(kernels::SPAN).min(16);
            ("rms_norm_rows", 1, warps * 32, kernels::spans_shared(warps))
        };
        let function = self.entry(kernels::plain("rms_norm"), entry)?;
        c.launch(
            Launch::new(function, [p.rows, parts, 1], threads, shared)
                .memory(&op.x.0)
                .memory(&op.weight.0)
                .memory(&op.y.0)
                .params(&p.words())
                .params(&pack::NOWHERE),
        );
        Ok(())
    }

    fn rotate(&self, c: &mut Commands, op: ops::Rotate<'_, Buffer>) -> Result<()> {
        self.rotate_rows(c, &op.x.0, &op.y.0, op.params)
    }

    fn linear(&self, c: &mut Commands, op: ops::Linear<'_, Buffer, Weight>) -> Result<()> {
        let ops::Linear { x, weight, bias, y, params } = op;
        let params: LinearParams = params;
        let step = match self.precision {
            Precision::Half => params.rows,
            Precision::Single => linear::SINGLE_ROWS,
        };
        for first in (0..params.rows).step_by(step.max(1) as usize) {
            let params = LinearParams { rows: step.min(params.rows - first), ..params };
            let io = Io { x: &x.0, bias: bias.map(|b| &b.0), y: &y.0, first: u64::from(first), params };
            self.linear_parts(c, weight, &io)?;
        }
        Ok(())
    }

    fn rope_cache(&self, c: &mut Commands, op: ops::RopeCache<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let lanes = if self.few(p.rows) { 128 } else { 32 };
        let function = self.entry(kernels::rope_cache(lanes, self.cache()), "rope_cache")?;
        let across = (p.heads + 2 * p.kv_heads).div_ceil(128 / lanes);
        c.launch(
            Launch::new(function, [across, p.rows, 1], 128, 0)
                .memory(&op.qkv.0)
                .optional(op.q_norm.map(|b| &b.0), 0)
                .optional(op.k_norm.map(|b| &b.0), 0)
                .memory(&op.inv_freq.0)
                .memory(&op.rows.0)
                .memory(&op.k_cache.0)
                .memory(&op.v_cache.0)
                .params(&p.words()),
        );
        Ok(())
    }

    fn attention(&self, c: &mut Commands, op: ops::Attention<'_, Buffer>) -> Result<()> {
        self.attend(c, op)
    }

    fn swiglu(&self, c: &mut Commands, op: ops::SwiGlu<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let (entry, (grid, threads, shared)) = if self.few(p.rows) {
            let size = if p.rotate > 0 { p.rotate } else { kernels::SPAN };
            ("swiglu", ([p.dim.div_ceil(size), p.rows, 1], 256, 0))
        } else {
            ("swiglu_rows", kernels::spans(p.rows, p.dim))
        };
        c.launch(
            Launch::new(self.entry(kernels::plain("swiglu"), entry)?, grid, threads, shared)
                .memory(&op.x.0)
                .memory(&op.y.0)
                .params(&p.words())
                .params(&pack::NOWHERE),
        );
        Ok(())
    }

    fn causal_conv(&self, c: &mut Commands, op: ops::CausalConv<'_, Buffer>) -> Result<()> {
        let p = op.params;
        let unit = kernels::causal_conv(p.kernel);
        let across = p.channels.div_ceil(128);
        let pieces = p.rows.div_ceil(kernels::CONV_PIECE);
        c.launch(
            Launch::new(self.entry(unit, "causal_conv")?, [across, p.segments, pieces], 128, 0)
                .memory(&op.x.0)
                .memory(&op.weight.0)
                .memory(&op.segments.0)
                .memory(&op.state.0)
                .memory(&op.y.0)
                .params(&p.words()),
        );
        if pieces > 1 {
            c.launch(
                Launch::new(self.entry(unit, "causal_conv_state")?, [across, p.segments, 1], 128, 0)
                    .memory(&op.x.0)
                    .memory(&op.segments.0)
                    .memory(&op.state.0)
                    .params(&p.words()),
            );
        }
        Ok(())
    }

    fn delta_rule(&self, c: &mut Commands, op: ops::DeltaRule<'_, Buffer>) -> Result<()> {
        self.delta(c, op)
    }

    fn gated_norm(&self, c: &mut Commands, op: ops::GatedNorm<'_, Buffer>) -> Result<()> {
        let p = op.params;
        // A block takes a rotation's block where that is of whole heads.
        let size = p.heads * p.dim;
        let part = if p.rotate > 0 && p.rotate.is_multiple_of(p.dim) { p.rotate } else { size };
        c.launch(
            Launch::new(
                self.plain("gated_norm")?,
                [size / part, p.rows, 1],
                row_threads(part),
                kernels::row_shared(part),
            )
            .memory(&op.x.0)
            .memory(&op.gate.0)
            .memory(&op.weight.0)
            .memory(&op.y.0)
            .params(&p.words()),
        );
        Ok(())
    }
}
