//! Configurations of real models, as config.json texts.

/// The shapes that [`config`] knows.
pub const NAMES: [&str; 3] = ["llama3-8b", "qwen3-8b", "qwen3.5-9b"];

/// The config.json of a shape.
pub fn config(name: &str) -> Option<&'static str> {
    match name {
        "llama3-8b" => Some(LLAMA3_8B),
        "qwen3-8b" => Some(QWEN3_8B),
        "qwen3.5-9b" => Some(QWEN35_9B),
        _ => None,
    }
}

const LLAMA3_8B: &str = r#"{
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "max_position_embeddings": 131072, "tie_word_embeddings": false, "hidden_act": "silu"
}"#;

const QWEN3_8B: &str = r#"{
    "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 40960, "tie_word_embeddings": false,
    "attention_bias": false, "hidden_act": "silu"
}"#;

const QWEN35_9B: &str = r#"{
    "model_type": "qwen3_5_text", "vocab_size": 248320, "hidden_size": 4096, "intermediate_size": 12288,
    "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256,
    "rms_norm_eps": 1e-6, "rope_theta": 10000000.0, "max_position_embeddings": 262144, "tie_word_embeddings": false,
    "attention_bias": false, "hidden_act": "silu", "full_attention_interval": 4, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4
}"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;

    #[test]
    fn every_shape_is_a_model() {
        for name in NAMES {
            let config = ModelConfig::parse(config(name).unwrap(), None).unwrap();
            assert_eq!(config.hidden, 4096, "{name}");
        }
    }
}
