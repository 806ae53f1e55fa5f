//! Gemma 3: norms before and after, GELU, windows in all but every sixth layer, and a rotary embedding for each kind of layer.

use super::llama::LLAMA;
use super::{Activation, Bias, Family, Norms, QkNorms, Rotary, Windows};

pub const GEMMA3: Family = Family {
    name: "Gemma 3",
    model_types: &["gemma3", "gemma3_text"],
    defaults: r#"{
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window": 4096,
        "sliding_window_pattern": 6, "max_position_embeddings": 131072, "bos_token_id": 2, "eos_token_id": 1
    }"#,
    norms: Norms::BeforeAndAfter,
    norm_offset: 1.0,
    qk_norms: QkNorms::Heads,
    mlp_bias: Bias::Never,
    activation: Activation::GeluTanh,
    windows: Windows::Pattern,
    rotary: Rotary::ByWindow,
    scaled_embedding: true,
    ..LLAMA
};
