//! [`Session`]: runs batches of some sequences through a model and keeps their state.

use super::linear::Ops;
use super::load::Model;
use super::memory;
use super::pass::Pass;
use super::state::{Batch, LayerState, Scratch, Segment, SessionOptions, word};
use crate::backend::{Backend, Key, unique};
use crate::config::Rope;
use crate::ops::{Embed, GatherRows, GatherRowsParams, Linear, LinearParams, RmsNorm, RmsNormParams};
use crate::{Error, Result};

/// Called with named activations `[rows, dim]` as they are computed: `embed`, `layer_I` (the residual stream after
/// block I), `norm` (the final norm, of the rows whose logits are wanted).
pub type Tap<'a> = &'a mut dyn FnMut(&str, &[f32]);

/// The state of some sequences, each in a slot, and the buffers to run batches of them through a model.
pub struct Session<'m, B: Backend> {
    pub(super) model: &'m Model<B>,
    options: SessionOptions,
    pub(super) scratch: Scratch<B>,
    pub(super) state: Vec<LayerState<B>>,
    /// For each of the model's rotary embeddings, `[rotary_dim / 2]`: they may depend on the session's context.
    pub(super) inv_freqs: Vec<B::Buffer>,
    /// Tokens that each slot holds.
    positions: Vec<usize>,
    /// Allocation id: changes whenever the buffers are reallocated.
    buffers: u64,
}

impl<'m, B: Backend> Session<'m, B> {
    /// Allocates everything that a session needs.
    ///
    /// # Errors
    /// An option is zero; the device has too little memory.
    pub fn new(model: &'m Model<B>, options: SessionOptions) -> Result<Self> {
        for (what, n) in
            [("slots", options.slots), ("context", options.context), ("max_rows", options.max_rows)]
        {
            if n == 0 {
                return Err(Error::mismatch(format!("session {what}"), "at least 1", n));
            }
            word(what, n)?;
        }
        let config = &model.config;
        model.backend.check_memory(memory::session(&model.backend, config, &options)?)?;
        let state = config
            .layers
            .iter()
            .map(|layer| LayerState::new(&model.backend, config, layer.mixer, &options))
            .collect::<Result<_>>()?;
        let scratch = Scratch::new(&model.backend, config, &options)?;
        let table = |rope: &Rope| model.backend.upload(bytemuck::cast_slice(&rope.inv_freq(options.context)));
        let inv_freqs = config.ropes.iter().map(table).collect::<Result<_>>()?;
        let positions = vec![0; options.slots];
        Ok(Self { model, options, scratch, state, inv_freqs, positions, buffers: unique() })
    }

    pub fn model(&self) -> &'m Model<B> {
        self.model
    }

    pub fn options(&self) -> SessionOptions {
        self.options
    }

    /// Tokens that the slot holds.
    ///
    /// # Errors
    /// The session has no such slot; every method that takes a slot has this error.
    pub fn position(&self, slot: usize) -> Result<usize> {
        self.positions.get(slot).copied().ok_or_else(|| self.no_slot(slot))
    }

    /// Empties the slot.
    pub fn reset(&mut self, slot: usize) -> Result<()> {
        self.rewind(slot, 0).map(|_| ())
    }

    /// Drops the slot's tokens from `position` on and returns how many are left. A delta net's state cannot be rewound:
    /// such a model keeps all tokens or none.
    pub fn rewind(&mut self, slot: usize, position: usize) -> Result<usize> {
        let now = self.position(slot)?;
        if position < now {
            self.positions[slot] = if self.model.config.delta_net.is_some() { 0 } else { position };
        }
        self.position(slot)
    }

    fn no_slot(&self, slot: usize) -> Error {
        Error::mismatch("slot of a session", format!("below {}", self.options.slots), slot)
    }

    /// Runs a batch and returns the logits `[wanted rows, vocab]`.
    pub async fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let wanted = self.run(batch, None).await?;
        self.logits(wanted).await
    }

    /// The likeliest token after each row whose logits are wanted; the logits stay on the device.
    ///
    /// # Errors
    /// A logit is NaN.
    pub async fn greedy(&mut self, batch: &Batch) -> Result<Vec<u32>> {
        let wanted = self.run(batch, None).await?;
        let vocab = self.model.config.vocab;
        let largest = self.model.backend.argmax(&self.scratch.logits, wanted, vocab).await?;
        let token = |(row, (token, logit)): (usize, (u32, f32))| {
            if logit.is_nan() {
                let what = format!("logit of token {token} after wanted row {row}");
                return Err(Error::mismatch(what, "a number", logit));
            }
            Ok(token)
        };
        largest.into_iter().enumerate().map(token).collect()
    }

    /// [`Session::forward`] that calls `tap` with the activations.
    pub async fn forward_tapped(&mut self, batch: &Batch, tap: Tap<'_>) -> Result<Vec<f32>> {
        let wanted = self.run(batch, Some(tap)).await?;
        self.logits(wanted).await
    }

    /// [`Session::extend`] by at least one token; the logits `[vocab]` after the last one.
    pub async fn prefill(&mut self, slot: usize, tokens: &[u32]) -> Result<Vec<f32>> {
        if tokens.is_empty() {
            return Err(Error::mismatch("tokens of a prompt", "at least 1", 0));
        }
        self.extend(slot, tokens).await?;
        self.logits(1).await
    }

    /// The `k` likeliest of the first `among` tokens after the last row, with their logits; see [`Backend::top_k`].
    pub async fn top_k(&self, among: usize, k: usize) -> Result<Vec<(u32, f32)>> {
        self.model.backend.top_k(&self.scratch.logits, among.min(self.model.config.vocab), k).await
    }

    /// Appends tokens to a slot, in batches of `max_rows`. The logits after the last one stay on the device.
    pub async fn extend(&mut self, slot: usize, tokens: &[u32]) -> Result<()> {
        let mut position = self.position(slot)?;
        let mut left = tokens;
        while !left.is_empty() {
            let (now, rest) = left.split_at(left.len().min(self.options.max_rows));
            let mut batch = Batch::of_slot(slot, position, now, false);
            if let (Some(row), false) = (batch.rows.last_mut(), rest.is_empty()) {
                row.want_logits = false;
            }
            self.run(&batch, None).await?;
            (left, position) = (rest, position + now.len());
        }
        Ok(())
    }

    /// Runs the batch; returns the number of rows of logits.
    pub(crate) async fn run(&mut self, batch: &Batch, tap: Option<Tap<'_>>) -> Result<usize> {
        let segments = self.check(batch)?;
        let wanted: Vec<u32> =
            (0u32..).zip(&batch.rows).filter(|(_, row)| row.want_logits).map(|(i, _)| i).collect();
        if self.scratch.reserve_logits(&self.model.backend, &self.model.config, wanted.len())? {
            self.buffers = unique();
        }
        self.write_batch(batch, &segments, &wanted)?;
        if self.model.config.delta_net.is_some() {
            // A pass that fails half-way leaves these slots' states at an unknown position, so they count as empty
            // until it has succeeded.
            segments.iter().for_each(|segment| self.positions[segment.slot] = 0);
        }

        let key = [self.buffers, batch.rows.len() as u64, segments.len() as u64, wanted.len() as u64];
        if tap.is_some() || !self.model.backend.replay(&key)? {
            self.record(batch, segments.len() as u32, wanted.len() as u32, key, tap).await?;
        }
        for segment in segments {
            self.positions[segment.slot] = segment.position + segment.rows;
        }
        Ok(wanted.len())
    }

    /// Records the batch and submits it.
    async fn record(
        &self,
        batch: &Batch,
        segments: u32,
        wanted: u32,
        key: Key,
        tap: Option<Tap<'_>>,
    ) -> Result<()> {
        let (backend, config, s) = (&self.model.backend, &self.model.config, &self.scratch);
        let (rows, dim) = (batch.rows.len() as u32, config.hidden as u32);
        let mut shown = Shown { backend, tap };
        let mut pass = Pass {
            config,
            inv_freqs: &self.inv_freqs,
            scratch: s,
            x: &s.x,
            next_x: &s.next_x,
            rows,
            segments,
            context: self.options.context,
            inputs: &[],
            ops: Vec::new(),
        };
        let params = self.model.embed_params(rows);
        pass.record(Embed { tokens: &s.tokens, table: self.model.embed.weight(), y: &s.x, params });
        shown.show(&mut pass.ops, "embed", &s.x, (rows * dim) as usize).await?;
        for (i, (layer, state)) in self.model.layers.iter().zip(&self.state).enumerate() {
            layer.record(&mut pass, state)?;
            shown.show(&mut pass.ops, &format!("layer_{i}"), pass.x, (rows * dim) as usize).await?;
        }
        if wanted > 0 {
            self.head(&mut pass, wanted, &mut shown).await?;
        }
        match shown.tap {
            Some(_) => backend.submit(&pass.ops),
            None => backend.submit_as(&pass.ops, key),
        }
    }

    /// Records the logits of the wanted rows.
    async fn head<'a>(
        &'a self,
        pass: &mut Pass<'a, B>,
        rows: u32,
        shown: &mut Shown<'_, '_, B>,
    ) -> Result<()> {
        let (model, s) = (self.model, &self.scratch);
        let (dim, head) = (model.config.hidden as u32, model.head());
        let params = GatherRowsParams { rows, dim };
        pass.record(GatherRows { x: pass.x, index: &s.wanted, y: &s.last, params });
        let (eps, weight_offset) = (model.config.norm_eps, model.norm_offset());
        let norm = |rotate| RmsNorm {
            x: &s.last,
            weight: &model.norm,
            residual: None,
            y: &s.normed,
            params: RmsNormParams { rows, dim, eps, weight_offset, rotate },
        };
        if shown.tap.is_some() {
            pass.record(norm(0));
            shown.show(&mut pass.ops, "norm", &s.normed, (rows * dim) as usize).await?;
        }
        pass.record(norm(head.rotate));
        let params = LinearParams { rows, y_stride: model.config.vocab as u32, y_offset: 0, accumulate: 0 };
        pass.record(Linear { x: &s.normed, weight: head.weight(), bias: None, y: &s.logits, params });
        Ok(())
    }

    /// The first `rows` rows of logits.
    pub(crate) async fn logits(&self, rows: usize) -> Result<Vec<f32>> {
        let words = rows * self.model.config.vocab;
        Ok(bytemuck::cast_vec(self.model.backend.read(&self.scratch.logits, 0, words).await?))
    }

    /// The batch's segments.
    ///
    /// # Errors
    /// A row does not fit the session.
    pub(super) fn check(&self, batch: &Batch) -> Result<Vec<Segment>> {
        let rows = batch.rows.len();
        if rows == 0 || rows > self.options.max_rows {
            return Err(Error::mismatch("rows of a batch", format!("1 to {}", self.options.max_rows), rows));
        }
        let mut segments: Vec<Segment> = Vec::new();
        for (i, row) in batch.rows.iter().enumerate() {
            let (slot, position) = (row.slot as usize, row.position as usize);
            if row.token as usize >= self.model.config.vocab {
                return Err(Error::mismatch(
                    format!("token of row {i}"),
                    format!("an id below the vocabulary of {}", self.model.config.vocab),
                    row.token,
                ));
            }
            if slot >= self.options.slots {
                return Err(Error::mismatch(
                    format!("slot of row {i}"),
                    format!("below {}", self.options.slots),
                    slot,
                ));
            }
            let (next, continues) = match segments.last() {
                Some(last) if last.slot == slot => (last.position + last.rows, true),
                _ => (self.positions[slot], false),
            };
            if !continues && segments.iter().any(|segment| segment.slot == slot) {
                return Err(Error::invalid(
                    format!("row {i} of a batch"),
                    format!("rows of slot {slot} are not neighbours"),
                ));
            }
            if position != next {
                return Err(Error::mismatch(format!("position of row {i}"), next, position));
            }
            if position >= self.options.context {
                return Err(Error::mismatch(
                    "position",
                    format!("below the context of {}", self.options.context),
                    position,
                ));
            }
            match segments.last_mut() {
                Some(last) if continues => last.rows += 1,
                _ => segments.push(Segment { slot, start: i, rows: 1, position }),
            }
        }
        Ok(segments)
    }

    pub(super) fn write_batch(&self, batch: &Batch, segments: &[Segment], wanted: &[u32]) -> Result<()> {
        let (backend, s) = (&self.model.backend, &self.scratch);
        let tokens: Vec<u32> = batch.rows.iter().map(|row| row.token).collect();
        let positions: Vec<u32> = batch.rows.iter().flat_map(|row| [row.slot, row.position]).collect();
        let segments: Vec<u32> =
            segments.iter().flat_map(|s| [s.slot, s.start, s.rows, s.position].map(|n| n as u32)).collect();
        backend.write(&s.tokens, &tokens)?;
        backend.write(&s.positions, &positions)?;
        backend.write(&s.segments, &segments)?;
        backend.write(&s.wanted, wanted)
    }

    /// A delta net layer's state of a slot: the convolution's `[channels, kernel - 1]` and the recurrent
    /// `[value_heads, key_dim, value_dim]`; none for an attention layer.
    pub async fn delta_state(&self, layer: usize, slot: usize) -> Result<Option<(Vec<f32>, Vec<f32>)>> {
        let layers = self.state.len();
        let state = self.state.get(layer);
        let state = state.ok_or_else(|| Error::mismatch("layer", format!("below {layers}"), layer))?;
        self.position(slot)?;
        let (LayerState::DeltaNet(state), Some(net)) = (state, self.model.config.delta_net) else {
            return Ok(None);
        };
        let conv_len = net.channels() * (net.conv_kernel - 1);
        let recurrent_len = net.values() * net.key_dim;
        let conv = self.model.backend.read(&state.conv, slot * conv_len, conv_len).await?;
        let recurrent = self.model.backend.read(&state.rule, slot * recurrent_len, recurrent_len).await?;
        Ok(Some((bytemuck::cast_vec(conv), bytemuck::cast_vec(recurrent))))
    }
}

/// The tap of a pass, if it has one.
struct Shown<'b, 't, B> {
    backend: &'b B,
    tap: Option<Tap<'t>>,
}

impl<B: Backend> Shown<'_, '_, B> {
    /// Calls the tap with the first `words` values of a buffer: submits the recorded operations first.
    async fn show(
        &mut self,
        ops: &mut Ops<'_, B>,
        name: &str,
        buffer: &B::Buffer,
        words: usize,
    ) -> Result<()> {
        let Some(tap) = &mut self.tap else { return Ok(()) };
        self.backend.submit(ops)?;
        ops.clear();
        let words = self.backend.read(buffer, 0, words).await?;
        tap(name, bytemuck::cast_slice(&words));
        Ok(())
    }
}
