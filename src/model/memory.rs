//! Device memory of a model and its session, computed before anything is allocated.

use std::collections::BTreeSet;

use super::arch::{self, TensorSpec};
use super::source::Source;
use super::state::{LayerState, Scratch, SessionOptions};
use crate::Result;
use crate::backend::Backend;
use crate::config::{Mixer, ModelConfig};

/// Bytes of the weights that a model loads from `source`; ignored tensors, such as a vision tower's, do not count.
pub fn weights<B: Backend>(backend: &B, source: &Source) -> Result<u64> {
    weights_of(backend, source, &tensors(source))
}

/// Every tensor that a model loads from `source`.
fn tensors(source: &Source) -> Vec<TensorSpec> {
    let present: BTreeSet<&str> = source.names().collect();
    arch::tensors(source.config(), &|name| present.contains(name))
}

fn weights_of<B: Backend>(backend: &B, source: &Source, tensors: &[TensorSpec]) -> Result<u64> {
    let mut bytes = 0;
    for tensor in tensors {
        bytes += match tensor.shape[..] {
            [_, _] => backend.weight_bytes(&source.form(&tensor.name)?),
            // Norms and other small tensors, as f32.
            _ => 4 * tensor.shape.iter().product::<usize>() as u64,
        };
    }
    Ok(bytes)
}

/// Bytes of a session's caches, states and activations.
pub fn session<B: Backend>(backend: &B, config: &ModelConfig, options: &SessionOptions) -> Result<u64> {
    let mut bytes = 4 * Scratch::<B>::sizes(config, options)?.iter().sum::<usize>() as u64;
    bytes += 4 * config.ropes.iter().map(|rope| rope.rotary_dim / 2).sum::<usize>() as u64;
    for layer in &config.layers {
        let [a, b] = LayerState::<B>::sizes(config, layer.mixer, options)?;
        bytes += match layer.mixer {
            Mixer::Attention => backend.cache_bytes(a) + backend.cache_bytes(b),
            Mixer::DeltaNet => 4 * (a + b) as u64,
        };
    }
    Ok(bytes)
}

/// Bytes of a model of `source`, a session of it, and what the backend takes to run them.
pub fn total<B: Backend>(backend: &B, source: &Source, options: &SessionOptions) -> Result<u64> {
    let (rows, config) = (options.max_rows, source.config());
    let tensors = tensors(source);
    let cols = tensors.iter().filter_map(|tensor| tensor.shape.get(1)).copied();
    let widest = cols.fold(config.hidden, usize::max);
    let model = weights_of(backend, source, &tensors)? + session(backend, config, options)?;
    Ok(model + backend.working_bytes(rows, widest))
}

/// Fails if [`total`] exceeds the device's free memory; the error names both.
pub fn check<B: Backend>(backend: &B, source: &Source, options: &SessionOptions) -> Result<()> {
    backend.check_memory(total(backend, source, options)?)
}
