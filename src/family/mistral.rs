//! Mistral, Ministral (2024), Ministral 3, and the text models of Mistral 3: Llama with windows, and later queries that grow
//! with their position.

use super::llama::LLAMA;
use super::{Bias, Family, Windows};

pub const MISTRAL: Family = Family {
    name: "Mistral",
    model_types: &["mistral", "mistral3"],
    defaults: r#"{
        "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096,
        "max_position_embeddings": 131072
    }"#,
    qkv_bias: Bias::Never,
    out_bias: Bias::Never,
    mlp_bias: Bias::Never,
    windows: Windows::All,
    ..LLAMA
};

pub const MINISTRAL: Family =
    Family { name: "Ministral", model_types: &["ministral"], windows: Windows::Listed, ..MISTRAL };

pub const MINISTRAL3: Family = Family {
    name: "Ministral 3",
    model_types: &["ministral3"],
    defaults: r#"{
        "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
        "max_position_embeddings": 262144
    }"#,
    position_scaling: true,
    ..MISTRAL
};
