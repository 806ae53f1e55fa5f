//! [`Session`]: a model at work on some sequences.

use super::load::Model;
use super::pass::Pass;
use super::room;
use super::state::{Batch, LayerState, Scratch, Segment, SessionOptions, word};
use crate::backend::{Backend, Key, unique};
use crate::ops::{self, EmbedParams, GatherRowsParams, LinearParams, RmsNormParams};
use crate::{Error, Result};

/// Sees named activations `[rows, dim]` as they are computed: `embed`, `layer_I` (the residual stream after block
/// I), `norm` (the final norm, of the rows whose logits are wanted).
pub type Tap<'a> = &'a mut dyn FnMut(&str, &[f32]);

/// A model at work on some sequences.
pub struct Session<'m, B: Backend> {
    pub(super) model: &'m Model<B>,
    options: SessionOptions,
    pub(super) scratch: Scratch<B>,
    pub(super) state: Vec<LayerState<B>>,
    /// Tokens that each slot holds.
    positions: Vec<usize>,
    /// A number that no other session's buffers have, nor these before they were allocated anew.
    buffers: u64,
}

impl<'m, B: Backend> Session<'m, B> {
    /// Allocates everything that a session needs. No option may be zero.
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
        model.backend.check_room(room::session(&model.backend, config, &options)?)?;
        let state = config
            .layers
            .iter()
            .map(|&mixer| LayerState::new(&model.backend, config, mixer, &options))
            .collect::<Result<_>>()?;
        let scratch = Scratch::new(&model.backend, config, &options)?;
        let positions = vec![0; options.slots];
        Ok(Self { model, options, scratch, state, positions, buffers: unique() })
    }

    pub fn model(&self) -> &'m Model<B> {
        self.model
    }

    pub fn options(&self) -> SessionOptions {
        self.options
    }

    /// Tokens that the slot holds.
    pub fn position(&self, slot: usize) -> usize {
        self.positions[slot]
    }

    /// Empties the slot.
    pub fn reset(&mut self, slot: usize) {
        self.positions[slot] = 0;
    }

    /// Drops the slot's tokens from `position` on and returns how many it holds then. A delta net's state cannot go
    /// back: such a model keeps all or nothing.
    pub fn rewind(&mut self, slot: usize, position: usize) -> usize {
        let now = self.positions[slot];
        if position < now {
            self.positions[slot] = if self.model.config.delta_net.is_some() { 0 } else { position };
        }
        self.positions[slot]
    }

    /// Runs a batch and returns the logits `[wanted rows, vocab]`.
    pub async fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let wanted = self.run(batch, None).await?;
        self.logits(wanted).await
    }

    /// The likeliest token after each row whose logits are wanted: [`Session::forward`] without moving the logits.
    pub async fn greedy(&mut self, batch: &Batch) -> Result<Vec<u32>> {
        let wanted = self.run(batch, None).await?;
        self.model.backend.argmax(&self.scratch.logits, wanted, self.model.config.vocab).await
    }

    /// [`Session::forward`], showing the activations to `tap`.
    pub async fn forward_tapped(&mut self, batch: &Batch, tap: Tap<'_>) -> Result<Vec<f32>> {
        let wanted = self.run(batch, Some(tap)).await?;
        self.logits(wanted).await
    }

    /// [`Session::extend`] by at least one token; the logits `[vocab]` after the last one.
    pub async fn prefill(&mut self, slot: usize, tokens: &[u32]) -> Result<Vec<f32>> {
        self.extend(slot, tokens).await?;
        self.logits(1).await
    }

    /// The `k` likeliest of the first `among` tokens after the last row, with their logits; see [`Backend::top_k`].
    pub async fn top_k(&self, among: usize, k: usize) -> Result<Vec<(u32, f32)>> {
        self.model.backend.top_k(&self.scratch.logits, among.min(self.model.config.vocab), k).await
    }

    /// Appends tokens to a slot, in batches of `max_rows`. The logits after the last one stay on the device.
    pub async fn extend(&mut self, slot: usize, tokens: &[u32]) -> Result<()> {
        let mut left = tokens;
        while !left.is_empty() {
            let (now, rest) = left.split_at(left.len().min(self.options.max_rows));
            let mut batch = Batch::of_slot(slot, self.positions[slot], now, false);
            if let (Some(row), false) = (batch.rows.last_mut(), rest.is_empty()) {
                row.want_logits = false;
            }
            self.run(&batch, None).await?;
            left = rest;
        }
        Ok(())
    }

    /// Runs the batch; how many rows of logits there are now.
    async fn run(&mut self, batch: &Batch, tap: Option<Tap<'_>>) -> Result<usize> {
        let segments = self.check(batch)?;
        let wanted: Vec<u32> =
            (0u32..).zip(&batch.rows).filter(|(_, row)| row.want_logits).map(|(i, _)| i).collect();
        if self.scratch.reserve_logits(&self.model.backend, &self.model.config, wanted.len())? {
            self.buffers = unique();
        }
        self.write_batch(batch, &segments, &wanted)?;

        let key = [self.buffers, batch.rows.len() as u64, segments.len() as u64, wanted.len() as u64];
        if tap.is_some() || !self.model.backend.replay(&key)? {
            self.record(batch, segments.len(), wanted.len(), key, tap).await?;
        }
        for segment in segments {
            self.positions[segment.slot] = segment.position + segment.rows;
        }
        Ok(wanted.len())
    }

    /// Records the batch and submits it.
    async fn record(
        &mut self,
        batch: &Batch,
        segments: usize,
        wanted: usize,
        key: Key,
        mut tap: Option<Tap<'_>>,
    ) -> Result<()> {
        let (backend, config) = (&self.model.backend, &self.model.config);
        let (rows, dim) = (batch.rows.len() as u32, config.hidden as u32);
        let mut commands = backend.begin()?;
        let s = &mut self.scratch;
        let params = EmbedParams { rows, dim };
        let op = ops::Embed { tokens: &s.tokens, table: self.model.embed.weight(), y: &mut s.x, params };
        backend.embed(&mut commands, op)?;
        commands = show(backend, commands, &mut tap, "embed", &s.x, (rows * dim) as usize).await?;
        for (i, (layer, state)) in self.model.layers.iter().zip(&mut self.state).enumerate() {
            let mut pass = Pass {
                backend,
                config,
                inv_freq: &self.model.inv_freq,
                commands: &mut commands,
                scratch: &mut self.scratch,
                rows,
                segments: segments as u32,
                context: self.options.context,
                inputs: None,
            };
            layer.forward(&mut pass, state)?;
            let name = format!("layer_{i}");
            commands =
                show(backend, commands, &mut tap, &name, &self.scratch.x, (rows * dim) as usize).await?;
        }
        if wanted > 0 {
            commands = self.head(commands, wanted as u32, &mut tap).await?;
        }
        if tap.is_some() { backend.submit(commands) } else { backend.submit_as(commands, key) }
    }

    /// The first `rows` rows of logits.
    pub(crate) async fn logits(&self, rows: usize) -> Result<Vec<f32>> {
        let words = rows * self.model.config.vocab;
        Ok(bytemuck::cast_vec(self.model.backend.read(&self.scratch.logits, 0, words).await?))
    }

    /// Logits of the wanted rows.
    async fn head(
        &mut self,
        mut commands: B::Commands,
        rows: u32,
        tap: &mut Option<Tap<'_>>,
    ) -> Result<B::Commands> {
        let (model, backend, s) = (self.model, &self.model.backend, &mut self.scratch);
        let dim = model.config.hidden as u32;
        let params = GatherRowsParams { rows, dim };
        let op = ops::GatherRows { x: &s.x, index: &s.wanted, y: &mut s.last, params };
        backend.gather_rows(&mut commands, op)?;
        let (eps, weight_offset) = (model.config.norm_eps, model.norm_offset());
        let norm = |rotate| RmsNormParams { rows, dim, eps, weight_offset, rotate };
        if tap.is_some() {
            let op = ops::RmsNorm { x: &s.last, weight: &model.norm, y: &mut s.normed, params: norm(0) };
            backend.rms_norm(&mut commands, op)?;
            commands = show(backend, commands, tap, "norm", &s.normed, (rows * dim) as usize).await?;
        }
        let head = model.head();
        let op =
            ops::RmsNorm { x: &s.last, weight: &model.norm, y: &mut s.normed, params: norm(head.rotate) };
        backend.rms_norm(&mut commands, op)?;
        let params = LinearParams { rows, y_stride: model.config.vocab as u32, y_offset: 0, accumulate: 0 };
        let op = ops::Linear { x: &s.normed, weight: head.weight(), bias: None, y: &mut s.logits, params };
        backend.linear(&mut commands, op)?;
        Ok(commands)
    }

    /// The batch's segments; an error if a row does not fit the session.
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
                    format!("rows of slot {slot} do not stand together"),
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

    pub(super) fn write_batch(&mut self, batch: &Batch, segments: &[Segment], wanted: &[u32]) -> Result<()> {
        let (backend, s) = (&self.model.backend, &mut self.scratch);
        let tokens: Vec<u32> = batch.rows.iter().map(|row| row.token).collect();
        let places: Vec<u32> = batch.rows.iter().flat_map(|row| [row.slot, row.position]).collect();
        let segments: Vec<u32> =
            segments.iter().flat_map(|s| [s.slot, s.start, s.rows, s.position].map(|n| n as u32)).collect();
        backend.write(&mut s.tokens, &tokens)?;
        backend.write(&mut s.places, &places)?;
        backend.write(&mut s.segments, &segments)?;
        backend.write(&mut s.wanted, wanted)
    }

    /// A delta net layer's state of a slot: the convolution's `[channels, kernel - 1]` and the recurrent
    /// `[value_heads, key_dim, value_dim]`; none for an attention layer.
    pub async fn delta_state(&self, layer: usize, slot: usize) -> Result<Option<(Vec<f32>, Vec<f32>)>> {
        let (Some(LayerState::DeltaNet { conv, recurrent }), Some(net)) =
            (self.state.get(layer), self.model.config.delta_net)
        else {
            return Ok(None);
        };
        let conv_len = net.channels() * (net.conv_kernel - 1);
        let recurrent_len = net.values() * net.key_dim;
        let conv = self.model.backend.read(conv, slot * conv_len, conv_len).await?;
        let recurrent = self.model.backend.read(recurrent, slot * recurrent_len, recurrent_len).await?;
        Ok(Some((bytemuck::cast_vec(conv), bytemuck::cast_vec(recurrent))))
    }
}

/// Shows `words` values of a buffer to the tap, if there is one: submits, reads, and begins anew.
async fn show<B: Backend>(
    backend: &B,
    commands: B::Commands,
    tap: &mut Option<Tap<'_>>,
    name: &str,
    buffer: &B::Buffer,
    words: usize,
) -> Result<B::Commands> {
    let Some(tap) = tap else { return Ok(commands) };
    backend.submit(commands)?;
    let words = backend.read(buffer, 0, words).await?;
    tap(name, bytemuck::cast_slice(&words));
    backend.begin()
}
