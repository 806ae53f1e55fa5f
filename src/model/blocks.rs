//! A model block by block: for work that looks at all of a text at one layer before it goes to the next.

use super::arch::Input;
use super::pass::Pass;
use super::session::Session;
use super::state::{Batch, Scratch};
use crate::backend::Backend;
use crate::ops::{self, EmbedParams, GatherRowsParams, RmsNormParams};
use crate::{Error, Result};

impl<B: Backend> Session<'_, B> {
    /// The residual stream `[tokens, hidden]` before the first block.
    pub fn embed(&mut self, tokens: &[u32]) -> Result<B::Buffer> {
        self.begin(tokens)?;
        let (backend, s) = (&self.model.backend, &mut self.scratch);
        let params = EmbedParams { rows: tokens.len() as u32, dim: self.model.config.hidden as u32 };
        let mut x = backend.alloc(tokens.len() * self.model.config.hidden)?;
        let op = ops::Embed { tokens: &s.tokens, table: self.model.embed.weight(), y: &mut x, params };
        let mut commands = backend.begin()?;
        backend.embed(&mut commands, op)?;
        backend.submit(commands)?;
        Ok(x)
    }

    /// Takes the residual stream `x` `[rows, hidden]` of a sequence, from its first token on, through block `layer`, and
    /// returns what the block's linear layers read, each `[tokens, in]` with its `in`, in the order of [`Input::at`]: rotated where their weights are. The sequence lies in slot 0, which is empty afterwards.
    pub fn block(&mut self, layer: usize, x: &mut B::Buffer, rows: usize) -> Result<Vec<(B::Buffer, usize)>> {
        let segments = self.begin(&vec![0; rows])?;
        let backend = &self.model.backend;
        let mut commands = backend.begin()?;
        let params = GatherRowsParams { rows: rows as u32, dim: self.model.config.hidden as u32 };
        let Scratch { wanted: index, x: stream, .. } = &mut self.scratch;
        backend.gather_rows(&mut commands, ops::GatherRows { x: &*x, index, y: stream, params })?;
        let mut inputs = Vec::with_capacity(Input::PER_LAYER);
        let mut pass = Pass {
            backend,
            config: &self.model.config,
            inv_freq: &self.model.inv_freq,
            commands: &mut commands,
            context: self.options().context,
            scratch: &mut self.scratch,
            rows: rows as u32,
            segments,
            inputs: Some(&mut inputs),
        };
        self.model.layers[layer].forward(&mut pass, &mut self.state[layer])?;
        let Scratch { wanted: index, x: stream, .. } = &self.scratch;
        backend.gather_rows(&mut commands, ops::GatherRows { x: stream, index, y: x, params })?;
        backend.submit(commands)?;
        Ok(inputs.into_iter().zip(self.model.layers[layer].inputs()).collect())
    }

    /// The final norm of the residual stream `x` `[rows, hidden]`: what the head reads, not rotated.
    pub fn norm(&mut self, x: &B::Buffer, rows: usize) -> Result<&B::Buffer> {
        let config = &self.model.config;
        let (backend, s) = (&self.model.backend, &mut self.scratch);
        let params = RmsNormParams {
            rows: rows as u32,
            dim: config.hidden as u32,
            eps: config.norm_eps,
            weight_offset: self.model.norm_offset(),
            rotate: 0,
        };
        let op = ops::RmsNorm { x, weight: &self.model.norm, y: &mut s.normed, params };
        let mut commands = backend.begin()?;
        backend.rms_norm(&mut commands, op)?;
        backend.submit(commands)?;
        Ok(&s.normed)
    }

    /// Prepares slot 0 for a sequence from its first token on; how many segments it makes.
    fn begin(&mut self, tokens: &[u32]) -> Result<u32> {
        if tokens.is_empty() {
            return Err(Error::mismatch("tokens of a sequence", "at least 1", 0));
        }
        self.reset(0);
        let batch = Batch::of_slot(0, 0, tokens, true);
        let segments = self.check(&batch)?;
        let all: Vec<u32> = (0..tokens.len() as u32).collect();
        self.write_batch(&batch, &segments, &all)?;
        Ok(segments.len() as u32)
    }
}
