//! What a session works with: batches of rows, the state of each sequence, and scratch that is allocated once.

use std::collections::BTreeMap;

use super::arch::{self, Input};
use crate::backend::Backend;
use crate::config::{Mixer, ModelConfig};
use crate::family::Norms;
use crate::{Error, Result};

/// One token of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub token: u32,
    /// The sequence.
    pub slot: u32,
    /// The token's index in its sequence.
    pub position: u32,
    /// Whether the logits after this token are wanted.
    pub want_logits: bool,
}

/// Rows to run through the model together. The rows of a slot are neighbours and continue its sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub rows: Vec<Row>,
}

impl Batch {
    /// The tokens of one slot from `position` on; with logits after the last one, or after all.
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

/// The neighbouring rows of one slot in a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub slot: usize,
    pub start: usize,
    pub rows: usize,
    pub position: usize,
}

/// The capacity of a session.
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

/// The state of a layer, for every slot.
pub(super) enum LayerState<B: Backend> {
    Attention(Cache<B>),
    DeltaNet(Recurrence<B>),
}

/// Keys and values, `[slots, kv_heads, context, head_dim]` each.
pub(super) struct Cache<B: Backend> {
    pub k: B::Buffer,
    pub v: B::Buffer,
}

/// The state of a delta net layer.
pub(super) struct Recurrence<B: Backend> {
    /// `[slots, channels, kernel - 1]`.
    pub conv: B::Buffer,
    /// `[slots, value_heads, key_dim, value_dim]`.
    pub rule: B::Buffer,
}

impl<B: Backend> LayerState<B> {
    pub fn new(backend: &B, config: &ModelConfig, mixer: Mixer, options: &SessionOptions) -> Result<Self> {
        let [a, b] = Self::sizes(config, mixer, options)?;
        Ok(match mixer {
            Mixer::DeltaNet => {
                Self::DeltaNet(Recurrence { conv: backend.alloc(a)?, rule: backend.alloc(b)? })
            }
            Mixer::Attention => {
                Self::Attention(Cache { k: backend.alloc_cache(a)?, v: backend.alloc_cache(b)? })
            }
        })
    }

    /// Elements of the two buffers.
    pub fn sizes(config: &ModelConfig, mixer: Mixer, options: &SessionOptions) -> Result<[usize; 2]> {
        let size = |sizes: &[usize]| product("the state of a session", sizes);
        match (mixer, config.delta_net) {
            (Mixer::DeltaNet, Some(net)) => Ok([
                size(&[options.slots, net.channels(), net.conv_kernel - 1])?,
                size(&[options.slots, net.value_heads, net.key_dim, net.value_dim])?,
            ]),
            (Mixer::DeltaNet, None) => {
                Err(Error::invalid("config.json", "a linear_attention layer without linear_* sizes"))
            }
            (Mixer::Attention, _) => {
                Ok([size(&[options.slots, config.kv_heads, options.context, config.head_dim])?; 2])
            }
        }
    }
}

/// Activations of one batch.
pub(super) struct Scratch<B: Backend> {
    /// u32 `[max_rows]`.
    pub tokens: B::Buffer,
    /// u32 `[max_rows, 2]`: slot and position.
    pub positions: B::Buffer,
    /// u32 `[slots, 4]`.
    pub segments: B::Buffer,
    /// u32 `[max_rows]`: rows whose logits are wanted.
    pub wanted: B::Buffer,
    /// The residual stream `[max_rows, hidden]`.
    pub x: B::Buffer,
    /// A normalised copy of it.
    pub normed: B::Buffer,
    /// A rotated copy of a linear layer's input, if layers that read it differ in their rotation.
    pub rotated: B::Buffer,
    /// The residual stream after a norm was added to it, in families that do: layer after layer the two change places.
    pub next_x: B::Buffer,
    /// Outputs of the projections of a mixer, or of gate and up, side by side: `[max_rows, widest]`.
    pub wide: B::Buffer,
    /// Inputs of a mixer's output projection and of the down projection.
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
    pub fn new(backend: &B, config: &ModelConfig, options: &SessionOptions) -> Result<Self> {
        let [
            tokens,
            positions,
            segments,
            wanted,
            x,
            normed,
            rotated,
            next_x,
            wide,
            inner,
            conv,
            delta,
            last,
            logits,
        ] = Self::sizes(config, options)?;
        Ok(Self {
            tokens: backend.alloc(tokens)?,
            positions: backend.alloc(positions)?,
            segments: backend.alloc(segments)?,
            wanted: backend.alloc(wanted)?,
            x: backend.alloc(x)?,
            normed: backend.alloc(normed)?,
            rotated: backend.alloc(rotated)?,
            next_x: backend.alloc(next_x)?,
            wide: backend.alloc(wide)?,
            inner: backend.alloc(inner)?,
            conv: backend.alloc(conv)?,
            delta: backend.alloc(delta)?,
            last: backend.alloc(last)?,
            logits: backend.alloc(logits)?,
            logit_rows: logit_rows(options),
        })
    }

    /// Words of the buffers, in their order.
    pub fn sizes(config: &ModelConfig, options: &SessionOptions) -> Result<[usize; 14]> {
        let rows = |dim: usize| product("the activations of a session", &[options.max_rows, dim]);
        let net = config.delta_net;
        let values = net.map_or(0, |net| net.values());
        let (inner, wide) = widest(config);
        let logit_rows = logit_rows(options);
        Ok([
            rows(1)?,
            rows(2)?,
            options.slots * 4,
            rows(1)?,
            rows(config.hidden)?,
            rows(config.hidden)?,
            rows(inner.max(config.hidden))?,
            rows(if config.family.norms == Norms::Before { 0 } else { config.hidden })?,
            rows(wide)?,
            rows(inner)?,
            rows(net.map_or(0, |net| net.channels()))?,
            rows(values)?,
            logit_rows * config.hidden,
            product("the logits of a session", &[logit_rows, config.vocab])?,
        ])
    }

    /// Makes the buffers large enough for the logits of `rows` rows; true if they were reallocated.
    pub fn reserve_logits(&mut self, backend: &B, config: &ModelConfig, rows: usize) -> Result<bool> {
        let grows = rows > self.logit_rows;
        if grows {
            self.last = backend.alloc(rows * config.hidden)?;
            self.logits = backend.alloc(product("the logits of a session", &[rows, config.vocab])?)?;
            self.logit_rows = rows;
        }
        Ok(grows)
    }
}

/// Rows of logits that a new session has buffers for.
fn logit_rows(options: &SessionOptions) -> usize {
    options.slots.min(options.max_rows)
}

/// Columns of the widest input of a block's output and down projections, and of the widest output of the projections
/// before them, side by side.
fn widest(config: &ModelConfig) -> (usize, usize) {
    let (mut inner, mut wide) = (0, BTreeMap::<Input, usize>::new());
    for tensor in arch::tensors(config, &|_| true) {
        match tensor.input {
            Some(input) if input.is_norm() => *wide.entry(input).or_default() += tensor.shape[0],
            Some(_) => inner = inner.max(tensor.shape[1]),
            None => {}
        }
    }
    (inner, wide.into_values().max().unwrap_or(0))
}

/// The product of sizes, which must stay below 2^32 words: kernels index with 32 bits.
fn product(what: &str, sizes: &[usize]) -> Result<usize> {
    let words = sizes.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
    let words = words.ok_or_else(|| Error::mismatch(what, "less than 2^32 words", format!("{sizes:?}")))?;
    word(what, words)?;
    Ok(words)
}

/// A size as a kernel's parameters hold it.
pub(super) fn word(what: &str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::mismatch(what, "less than 2^32", n))
}
