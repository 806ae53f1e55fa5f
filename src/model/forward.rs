//! [`Layer`]: a transformer block, whose forward pass is the same for every family and backend.

use super::arch::Input;
use super::attention::Attention;
use super::delta_net::DeltaNet;
use super::mlp::Mlp;
use super::pass::Pass;
use super::source::Tensors;
use super::state::LayerState;
use crate::backend::Backend;
use crate::config::{Mixer, ModelConfig};
use crate::{Error, Result};

/// A transformer block.
pub struct Layer<B: Backend> {
    mixer_norm: B::Buffer,
    mixer: MixerWeights<B>,
    mlp_norm: B::Buffer,
    mlp: Mlp<B>,
    /// Columns of each [`Input`].
    pub(super) input_cols: [usize; Input::PER_LAYER],
}

enum MixerWeights<B: Backend> {
    Attention(Attention<B>),
    DeltaNet(DeltaNet<B>),
}

impl<B: Backend> Layer<B> {
    pub(super) fn load(tensors: &mut Tensors<'_, B>, config: &ModelConfig, i: usize) -> Result<Self> {
        Ok(Self {
            mixer_norm: tensors.block_buffer(i, "input_layernorm.weight")?,
            mixer: match config.layers[i] {
                Mixer::Attention => MixerWeights::Attention(Attention::load(tensors, config, i)?),
                Mixer::DeltaNet => MixerWeights::DeltaNet(DeltaNet::load(tensors, config, i)?),
            },
            mlp_norm: tensors.block_buffer(i, "post_attention_layernorm.weight")?,
            mlp: Mlp::load(tensors, i)?,
            input_cols: tensors.input_cols(i),
        })
    }

    /// Records the block.
    ///
    /// # Errors
    /// The state is that of a layer of another kind.
    pub(super) fn record<'a>(&'a self, pass: &mut Pass<'a, B>, state: &'a LayerState<B>) -> Result<()> {
        match (&self.mixer, state) {
            (MixerWeights::Attention(attention), LayerState::Attention(cache)) => {
                attention.record(pass, &self.mixer_norm, cache);
            }
            (MixerWeights::DeltaNet(net), LayerState::DeltaNet(state)) => {
                net.record(pass, &self.mixer_norm, state);
            }
            (MixerWeights::Attention(_), LayerState::DeltaNet(_))
            | (MixerWeights::DeltaNet(_), LayerState::Attention(_)) => {
                return Err(Error::invalid("a layer's state", "it is that of a layer of another kind"));
            }
        }
        self.mlp.record(pass, &self.mlp_norm);
        Ok(())
    }
}
