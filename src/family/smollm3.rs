//! SmolLM3: Llama without rotary embedding in every fourth layer.

use super::llama::LLAMA;
use super::{Family, Rotary, Windows};

pub const SMOLLM3: Family = Family {
    name: "SmolLM3",
    model_types: &["smollm3"],
    defaults: r#"{
        "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 2000000.0, "no_rope_layer_interval": 4,
        "max_position_embeddings": 32768
    }"#,
    windows: Windows::Unrotated,
    rotary: Rotary::Listed,
    ..LLAMA
};
