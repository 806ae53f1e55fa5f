//! Qwen2, Qwen2.5, Qwen3, and Qwen3.5 dense.

use super::llama::LLAMA;
use super::{Bias, Family, Mixers, QkNorms, Windows};

pub const QWEN2: Family = Family {
    name: "Qwen2",
    model_types: &["qwen2"],
    defaults: r#"{
        "num_key_value_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096,
        "max_window_layers": 28, "max_position_embeddings": 32768
    }"#,
    qkv_bias: Bias::Always,
    out_bias: Bias::Never,
    mlp_bias: Bias::Never,
    windows: Windows::Upper,
    ..LLAMA
};

pub const QWEN3: Family = Family {
    name: "Qwen3",
    model_types: &["qwen3"],
    defaults: r#"{
        "num_key_value_heads": 32, "head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096,
        "max_window_layers": 28, "max_position_embeddings": 32768
    }"#,
    qk_norms: QkNorms::Heads,
    qkv_bias: Bias::Key("attention_bias"),
    out_bias: Bias::Key("attention_bias"),
    ..QWEN2
};

/// Gated delta nets between gated attention.
pub const QWEN35: Family = Family {
    name: "Qwen3.5",
    model_types: &["qwen3_5", "qwen3_5_text"],
    defaults: r#"{
        "num_key_value_heads": 4, "head_dim": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25, "full_attention_interval": 4, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4, "max_position_embeddings": 32768
    }"#,
    mixers: Mixers::DeltaNets,
    norm_offset: 1.0,
    gated_attention: true,
    windows: Windows::None,
    ..QWEN3
};
