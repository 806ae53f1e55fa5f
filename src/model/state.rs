//! What a session keeps: rows of a batch, the state of each sequence, and scratch that is allocated once.

use super::linear::word;
use super::load::Model;
use crate::backend::Backend;
use crate::config::{Mixer, ModelConfig};
use crate::{Error, Result};

/// One token of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub token: u32,
    /// The sequence.
    pub slot: u32,
    /// Its place in the sequence, from 0.
    pub position: u32,
    /// Whether the logits after this token are wanted.
    pub want_logits: bool,
}

/// Rows to run through the model together. Rows of a slot stand together and continue its sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub rows: Vec<Row>,
}

impl Batch {
    /// The tokens of one slot from `position` on; logits are wanted of the last one, or of all.
    pub fn of_slot(slot: usize, position: usize, tokens: &[u32], all_logits: bool) -> Self {
        let last = tokens.len().saturating_sub(1);
        let row = |(i, &token): (usize, &u32)| Row {
            token,
            slot: slot as u32,
            position: (position + i) as u32,
            want_logits: all_logits || i == last,
        };
        Self { rows: tokens.iter().enumerate().map(row).collect() }
    }
}

/// The rows of one slot in a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub slot: usize,
    pub start: usize,
    pub rows: usize,
    pub position: usize,
}

/// How much a session can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Sequences side by side.
    pub slots: usize,
    /// Positions of each.
    pub context: usize,
    /// Rows of one batch.
    pub max_rows: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { slots: 1, context: 2048, max_rows: 512 }
    }
}

/// What a layer remembers of each slot.
pub(super) enum LayerState<B: Backend> {
    /// `[slots, kv_heads, context, head_dim]` each.
    Attention { k: B::Buffer, v: B::Buffer },
    /// `[slots, channels, kernel - 1]` and `[slots, value_heads, key_dim, value_dim]`.
    DeltaNet { conv: B::Buffer, recurrent: B::Buffer },
}

impl<B: Backend> LayerState<B> {
    pub fn new(backend: &B, config: &ModelConfig, mixer: Mixer, options: &SessionOptions) -> Result<Self> {
        let alloc = |sizes: &[usize]| backend.alloc(product("the state of a session", sizes)?);
        match (mixer, config.delta_net) {
            (Mixer::DeltaNet, Some(net)) => Ok(Self::DeltaNet {
                conv: alloc(&[options.slots, net.channels(), net.conv_kernel - 1])?,
                recurrent: alloc(&[options.slots, net.value_heads, net.key_dim, net.value_dim])?,
            }),
            _ => {
                let sizes = [options.slots, config.kv_heads, options.context, config.head_dim];
                let cache = || backend.alloc_cache(product("the state of a session", &sizes)?);
                Ok(Self::Attention { k: cache()?, v: cache()? })
            }
        }
    }
}

/// Activations of one batch.
pub(super) struct Scratch<B: Backend> {
    /// u32 `[max_rows]`.
    pub tokens: B::Buffer,
    /// u32 `[max_rows, 2]`: slot and position.
    pub places: B::Buffer,
    /// u32 `[slots, 4]`.
    pub segments: B::Buffer,
    /// u32 `[max_rows]`: rows whose logits are wanted.
    pub wanted: B::Buffer,
    /// The residual stream `[max_rows, hidden]`.
    pub x: B::Buffer,
    /// A normalised copy of it.
    pub normed: B::Buffer,
    /// A rotated copy of a linear layer's input, where layers disagree.
    pub rotated: B::Buffer,
    /// Outputs of the first linear of a block `[max_rows, widest]`.
    pub wide: B::Buffer,
    /// Inputs of the last linear of a block.
    pub inner: B::Buffer,
    /// Outputs of the convolution.
    pub conv: B::Buffer,
    /// Outputs of the delta rule.
    pub delta: B::Buffer,
    /// `[logit_rows, hidden]`.
    pub last: B::Buffer,
    /// `[logit_rows, vocab]`.
    pub logits: B::Buffer,
    pub logit_rows: usize,
}

impl<B: Backend> Scratch<B> {
    pub fn new(model: &Model<B>, options: &SessionOptions) -> Result<Self> {
        let (backend, config) = (&model.backend, &model.config);
        let rows = options.max_rows;
        let alloc = |dim: usize| backend.alloc(product("the activations of a session", &[rows, dim])?);
        let wide = model.layers.iter().map(|layer| layer.widest()).max().unwrap_or(0);
        let net = config.delta_net;
        let values = net.map_or(0, |net| net.values());
        let inner = config.intermediate.max(config.heads * config.head_dim).max(values);
        let logit_rows = options.slots.min(rows);
        Ok(Self {
            tokens: alloc(1)?,
            places: alloc(2)?,
            segments: backend.alloc(options.slots * 4)?,
            wanted: alloc(1)?,
            x: alloc(config.hidden)?,
            normed: alloc(config.hidden)?,
            rotated: alloc(inner.max(config.hidden))?,
            wide: alloc(wide)?,
            inner: alloc(inner)?,
            conv: alloc(net.map_or(0, |net| net.channels()))?,
            delta: alloc(values)?,
            last: backend.alloc(logit_rows * config.hidden)?,
            logits: backend.alloc(product("the logits of a session", &[logit_rows, config.vocab])?)?,
            logit_rows,
        })
    }

    /// Makes room for the logits of `rows` rows; whether that took other buffers.
    pub fn reserve_logits(&mut self, model: &Model<B>, rows: usize) -> Result<bool> {
        let grows = rows > self.logit_rows;
        if grows {
            self.last = model.backend.alloc(rows * model.config.hidden)?;
            self.logits =
                model.backend.alloc(product("the logits of a session", &[rows, model.config.vocab])?)?;
            self.logit_rows = rows;
        }
        Ok(grows)
    }
}

/// The product of sizes, which must stay below 2^32 words: kernels index with 32 bits.
fn product(what: &str, sizes: &[usize]) -> Result<usize> {
    let words = sizes.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
    let words = words.ok_or_else(|| Error::mismatch(what, "less than 2^32 words", format!("{sizes:?}")))?;
    word(what, words)?;
    Ok(words)
}
