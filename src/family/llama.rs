//! Llama 1, 2, 3, 3.1 and 3.2, and what most families vary.

use super::{Activation, Bias, Family, Mixers, Norms, Projections, QkNorms, Rotary, Windows};

pub const LLAMA: Family = Family {
    name: "Llama",
    model_types: &["llama"],
    defaults: r#"{ "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048 }"#,
    mixers: Mixers::Attention,
    norms: Norms::Before,
    norm_offset: 0.0,
    qk_norms: QkNorms::None,
    gated_attention: false,
    qkv_bias: Bias::Key("attention_bias"),
    out_bias: Bias::Key("attention_bias"),
    mlp_bias: Bias::Key("mlp_bias"),
    projections: Projections::Apart,
    activation: Activation::Silu,
    windows: Windows::None,
    rotary: Rotary::All,
    position_scaling: false,
    scaled_embedding: false,
};
