//! [`Model`]: a source's weights on a backend.

use super::forward::Layer;
use super::linear::Embedding;
use super::memory;
use super::source::{Source, Tensors};
use crate::Result;
use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::ops::EmbedParams;

/// A model, its weights on a backend.
pub struct Model<B: Backend> {
    pub(super) backend: B,
    pub(super) config: ModelConfig,
    pub(super) embed: Embedding<B>,
    pub(super) layers: Vec<Layer<B>>,
    pub(super) norm: B::Buffer,
    /// None if the embedding is the head as well.
    pub(super) head: Option<Embedding<B>>,
    weight_bytes: u64,
}

impl<B: Backend> Model<B> {
    /// Loads every weight of `source` onto the backend.
    pub fn load(backend: B, source: &Source) -> Result<Self> {
        backend.check_memory(memory::weights(&backend, source)?)?;
        let config = source.config().clone();
        let mut tensors = Tensors::new(source, &backend);
        let names = tensors.names.clone();
        let embed = Embedding::load(&mut tensors, &names.embed())?;
        let embed_bytes = tensors.bytes;
        let layers =
            (0..config.layers.len()).map(|i| Layer::load(&mut tensors, &config, i)).collect::<Result<_>>()?;
        let norm = tensors.buffer(&names.norm())?;
        let head = if names.tied { None } else { Some(Embedding::load(&mut tensors, &names.head())?) };
        let bytes = tensors.finish()?;
        // Of an embedding that is not the head as well, a token reads one row.
        let weight_bytes = if head.is_some() { bytes - embed_bytes } else { bytes };
        Ok(Self { config, embed, layers, norm, head, weight_bytes, backend })
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Bytes of weights, as stored, that one decoded token reads.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    pub(super) fn head(&self) -> &Embedding<B> {
        self.head.as_ref().unwrap_or(&self.embed)
    }

    /// The offset that this family adds to norm weights.
    pub(super) fn norm_offset(&self) -> f32 {
        self.config.family.norm_offset
    }

    /// Of the embedding of `rows` tokens.
    pub(super) fn embed_params(&self, rows: u32) -> EmbedParams {
        EmbedParams { rows, dim: self.config.hidden as u32, scale: self.config.embed_scale }
    }
}
