//! OLMo 2: norms after mixer and MLP instead of before, and over whole projections.

use super::llama::LLAMA;
use super::{Bias, Family, Norms, QkNorms};

pub const OLMO2: Family = Family {
    name: "OLMo 2",
    model_types: &["olmo2"],
    defaults: r#"{ "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048 }"#,
    norms: Norms::After,
    qk_norms: QkNorms::Projection,
    mlp_bias: Bias::Never,
    ..LLAMA
};
