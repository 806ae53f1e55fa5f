//! The model families, each as data in a file of its own: what a layer does, and what the keys of config.json are where they
//! are absent. The forward pass is one for all.

mod gemma3;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen;
mod smollm3;

use std::fmt;

/// What a family's models differ in.
#[derive(PartialEq)]
pub struct Family {
    /// For people.
    pub name: &'static str,
    /// Its `model_type`s in config.json, of whole models or of their text part.
    pub model_types: &'static [&'static str],
    /// A JSON object: the values of keys that may be absent, as transformers has them.
    pub defaults: &'static str,
    /// What mixes tokens.
    pub mixers: Mixers,
    pub norms: Norms,
    /// Added to the weight of every RMS norm but the delta net's: 1 where norms are stored zero-centred.
    pub norm_offset: f32,
    pub qk_norms: QkNorms,
    /// Each query head is followed by a gate, whose sigmoid multiplies the attention's output.
    pub gated_attention: bool,
    pub qkv_bias: Bias,
    pub out_bias: Bias,
    pub mlp_bias: Bias,
    pub projections: Projections,
    pub activation: Activation,
    pub windows: Windows,
    pub rotary: Rotary,
    /// Queries grow with their position, by `llama_4_scaling_beta` and `original_max_position_embeddings`.
    pub position_scaling: bool,
    /// Embeddings are multiplied by the root of the hidden size.
    pub scaled_embedding: bool,
}

/// What mixes tokens in the layers of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixers {
    Attention,
    /// Gated delta nets and attention: `layer_types`, or attention in every `full_attention_interval`th layer.
    DeltaNets,
}

/// Where a layer's norms stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Of the inputs of mixer and MLP.
    Before,
    /// Of their outputs, before these are added to the residual stream.
    After,
    /// Of both.
    BeforeAndAfter,
}

/// The norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorms {
    None,
    /// Each head's own.
    Heads,
    /// One over all heads of a row.
    Projection,
}

/// Whether linear layers have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    Never,
    Always,
    /// As this key of config.json says.
    Key(&'static str),
}

/// How the matrices that read the same input are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projections {
    /// `q_proj`, `k_proj` and `v_proj`; `gate_proj` and `up_proj`.
    Apart,
    /// `qkv_proj` and `gate_up_proj`, stacked in that order.
    Stacked,
}

/// The function of the gate in an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// GELU as approximated by tanh.
    GeluTanh,
}

impl Activation {
    /// Its name in config.json.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::GeluTanh => "gelu_pytorch_tanh",
        }
    }
}

/// Which layers see only the last `sliding_window` positions, if that is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// No layer: the key has no meaning.
    None,
    /// Every layer.
    All,
    /// As `layer_types` says; without it every layer.
    Listed,
    /// With `use_sliding_window` only: as `layer_types` says; without it the layers from `max_window_layers` on.
    Upper,
    /// With `use_sliding_window` only: as `layer_types` says; without it the layers without rotary embedding.
    Unrotated,
    /// As `layer_types` says; without it all but every `sliding_window_pattern`th layer.
    Pattern,
}

/// Which layers have which rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotary {
    /// All the same.
    All,
    /// Those with a window have one of their own, with `rope_local_base_freq`.
    ByWindow,
    /// None where `no_rope_layers` has a 0; without it, none in every `no_rope_layer_interval`th layer.
    Listed,
}

/// Every family.
pub static FAMILIES: [&Family; 11] = [
    &llama::LLAMA,
    &mistral::MISTRAL,
    &mistral::MINISTRAL,
    &mistral::MINISTRAL3,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &qwen::QWEN35,
    &gemma3::GEMMA3,
    &phi3::PHI3,
    &smollm3::SMOLLM3,
    &olmo2::OLMO2,
];

/// Families that are known but not supported, by `model_type`, and why.
pub const UNSUPPORTED: [(&str, &str); 10] = [
    ("qwen3_moe", MIXTURE),
    ("qwen3_5_moe", MIXTURE),
    ("qwen3_5_moe_text", MIXTURE),
    ("qwen2_moe", MIXTURE),
    ("qwen3_next", MIXTURE),
    ("mixtral", MIXTURE),
    ("phimoe", MIXTURE),
    ("gpt_oss", MIXTURE),
    ("gemma2", "its attention caps scores, which is not supported yet"),
    ("gemma3n", "its layers have inputs of their own, which is not supported yet"),
];

const MIXTURE: &str = "a mixture of experts, which is not supported yet";

/// The family with this `model_type`.
pub fn family(model_type: &str) -> Option<&'static Family> {
    FAMILIES.into_iter().find(|family| family.model_types.contains(&model_type))
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
