//! Phi-3, Phi-3.5-mini, Phi-4 and Phi-4-mini: stacked projections, partial and long rotary embeddings.

use super::llama::LLAMA;
use super::{Bias, Family, Projections, Windows};

pub const PHI3: Family = Family {
    name: "Phi-3",
    model_types: &["phi3"],
    defaults: r#"{
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "original_max_position_embeddings": 4096,
        "max_position_embeddings": 4096
    }"#,
    qkv_bias: Bias::Never,
    out_bias: Bias::Never,
    mlp_bias: Bias::Never,
    projections: Projections::Stacked,
    windows: Windows::All,
    ..LLAMA
};
