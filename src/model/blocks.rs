//! A model one block at a time, all of a text at once: what error feedback and sensitivities need.

use super::pass::Pass;
use super::session::Session;
use super::state::Batch;
use crate::backend::Backend;
use crate::ops::{Embed, GatherRows, GatherRowsParams, RmsNorm, RmsNormParams};
use crate::{Error, Result};

impl<B: Backend> Session<'_, B> {
    /// The residual stream `[tokens, hidden]` before the first block.
    pub fn embed(&mut self, tokens: &[u32]) -> Result<B::Buffer> {
        self.begin(tokens)?;
        let (backend, s) = (&self.model.backend, &self.scratch);
        let params = self.model.embed_params(tokens.len() as u32);
        let x = backend.alloc(tokens.len() * self.model.config.hidden)?;
        backend
            .submit(&[Embed { tokens: &s.tokens, table: self.model.embed.weight(), y: &x, params }.into()])?;
        Ok(x)
    }

    /// Runs block `layer` on the residual stream `x` `[rows, hidden]` of a whole sequence, in place. Returns the inputs
    /// of the block's linear layers, each `[rows, in]` with its `in`, in the order of [`super::arch::Input::at`]; an
    /// input is rotated if the layers that read it are. Uses slot 0 and leaves it empty.
    pub fn block(&mut self, layer: usize, x: &B::Buffer, rows: usize) -> Result<Vec<(B::Buffer, usize)>> {
        let segments = self.begin(&vec![0; rows])?;
        let (backend, s) = (&self.model.backend, &self.scratch);
        let (Some(block), Some(state)) = (self.model.layers.get(layer), self.state.get(layer)) else {
            return Err(Error::mismatch("block", format!("below {}", self.state.len()), layer));
        };
        let cols = block.input_cols;
        let inputs: Vec<_> = cols.iter().map(|cols| backend.alloc(rows * cols)).collect::<Result<_>>()?;
        let params = GatherRowsParams { rows: rows as u32, dim: self.model.config.hidden as u32 };
        let mut pass = Pass {
            config: &self.model.config,
            inv_freqs: &self.inv_freqs,
            context: self.options().context,
            scratch: s,
            x: &s.x,
            next_x: &s.next_x,
            rows: rows as u32,
            segments,
            inputs: &inputs,
            ops: Vec::new(),
        };
        pass.record(GatherRows { x, index: &s.wanted, y: &s.x, params });
        block.record(&mut pass, state)?;
        pass.record(GatherRows { x: pass.x, index: &s.wanted, y: x, params });
        backend.submit(&pass.ops)?;
        drop(pass);
        Ok(inputs.into_iter().zip(cols).collect())
    }

    /// The final norm of the residual stream `x` `[rows, hidden]`: the input of the head, not rotated.
    pub fn norm(&mut self, x: &B::Buffer, rows: usize) -> Result<&B::Buffer> {
        let config = &self.model.config;
        let (backend, s) = (&self.model.backend, &self.scratch);
        let params = RmsNormParams {
            rows: rows as u32,
            dim: config.hidden as u32,
            eps: config.norm_eps,
            weight_offset: self.model.norm_offset(),
            rotate: 0,
        };
        backend.submit(&[
            RmsNorm { x, weight: &self.model.norm, residual: None, y: &s.normed, params }.into()
        ])?;
        Ok(&s.normed)
    }

    /// Writes a sequence that starts in an empty slot 0; returns the number of segments.
    fn begin(&mut self, tokens: &[u32]) -> Result<u32> {
        if tokens.is_empty() {
            return Err(Error::mismatch("tokens of a sequence", "at least 1", 0));
        }
        self.reset(0)?;
        let batch = Batch::of_slot(0, 0, tokens, true);
        let segments = self.check(&batch)?;
        let all: Vec<u32> = (0..tokens.len() as u32).collect();
        self.write_batch(&batch, &segments, &all)?;
        Ok(segments.len() as u32)
    }
}
