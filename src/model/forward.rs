//! [`Layer`]: a transformer block, whose forward pass is the same for every family and backend.

use super::arch::{self, Input};
use super::attention::Attention;
use super::delta_net::DeltaNet;
use super::mlp::Mlp;
use super::pass::{AroundNorms, Pass};
use super::source::Tensors;
use super::state::LayerState;
use crate::backend::Backend;
use crate::config::{Mixer, ModelConfig};
use crate::{Error, Result};

/// A transformer block.
pub struct Layer<B: Backend> {
    mixer_norms: AroundNorms<B>,
    mixer: MixerWeights<B>,
    mlp_norms: AroundNorms<B>,
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
        let [mixer_norms, mlp_norms] = arch::norms(config.family.norms);
        Ok(Self {
            mixer_norms: AroundNorms::load(tensors, i, mixer_norms)?,
            mixer: match config.layers[i].mixer {
                Mixer::Attention => MixerWeights::Attention(Attention::load(tensors, config, i)?),
                Mixer::DeltaNet => MixerWeights::DeltaNet(DeltaNet::load(tensors, config, i)?),
            },
            mlp_norms: AroundNorms::load(tensors, i, mlp_norms)?,
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
                attention.record(pass, &self.mixer_norms, cache);
            }
            (MixerWeights::DeltaNet(net), LayerState::DeltaNet(state)) => {
                net.record(pass, &self.mixer_norms, state);
            }
            (MixerWeights::Attention(_), LayerState::DeltaNet(_))
            | (MixerWeights::DeltaNet(_), LayerState::Attention(_)) => {
                return Err(Error::invalid("a layer's state", "it is that of a layer of another kind"));
            }
        }
        self.mlp.record(pass, &self.mlp_norms);
        Ok(())
    }
}
