//! The one forward pass of a block, for every family and backend.

use super::arch::{Input, Names};
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
}

enum MixerWeights<B: Backend> {
    Attention(Attention<B>),
    DeltaNet(DeltaNet<B>),
}

impl<B: Backend> Layer<B> {
    pub(super) fn load(
        tensors: &mut Tensors<'_, B>,
        config: &ModelConfig,
        names: &Names,
        i: usize,
    ) -> Result<Self> {
        let dim = [config.hidden];
        Ok(Self {
            mixer_norm: tensors.buffer(&names.layer(i, "input_layernorm.weight"), &dim)?,
            mixer: match config.layers[i] {
                Mixer::Attention => MixerWeights::Attention(Attention::load(tensors, config, names, i)?),
                Mixer::DeltaNet => MixerWeights::DeltaNet(DeltaNet::load(tensors, config, names, i)?),
            },
            mlp_norm: tensors.buffer(&names.layer(i, "post_attention_layernorm.weight"), &dim)?,
            mlp: Mlp::load(tensors, config, names, i)?,
        })
    }

    /// Columns of what each linear reads.
    pub(super) fn inputs(&self) -> [usize; Input::PER_LAYER] {
        let [first, last] = match &self.mixer {
            MixerWeights::Attention(attention) => attention.inputs(),
            MixerWeights::DeltaNet(net) => net.inputs(),
        };
        let [gate_up, down] = self.mlp.inputs();
        [first, last, gate_up, down]
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
