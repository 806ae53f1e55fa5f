//! Configurations of real models, as config.json texts.

/// The shapes that [`config`] knows.
pub const NAMES: [&str; 10] = [
    "llama3-8b",
    "qwen3-8b",
    "qwen3.5-9b",
    "gemma3-4b",
    "mistral-7b",
    "ministral3-8b",
    "qwen2.5-7b",
    "phi4",
    "smollm3-3b",
    "olmo2-7b",
];

/// The config.json of a shape.
pub fn config(name: &str) -> Option<&'static str> {
    match name {
        "llama3-8b" => Some(LLAMA3_8B),
        "qwen3-8b" => Some(QWEN3_8B),
        "qwen3.5-9b" => Some(QWEN35_9B),
        "gemma3-4b" => Some(GEMMA3_4B),
        "mistral-7b" => Some(MISTRAL_7B),
        "ministral3-8b" => Some(MINISTRAL3_8B),
        "qwen2.5-7b" => Some(QWEN25_7B),
        "phi4" => Some(PHI4),
        "smollm3-3b" => Some(SMOLLM3_3B),
        "olmo2-7b" => Some(OLMO2_7B),
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

const GEMMA3_4B: &str = r#"{
    "model_type": "gemma3_text", "vocab_size": 262208, "hidden_size": 2560, "intermediate_size": 10240,
    "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
    "rope_scaling": { "rope_type": "linear", "factor": 8.0 }, "sliding_window": 1024, "sliding_window_pattern": 6,
    "max_position_embeddings": 131072, "tie_word_embeddings": true
}"#;

const MISTRAL_7B: &str = r#"{
    "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "sliding_window": 4096, "max_position_embeddings": 32768, "tie_word_embeddings": false
}"#;

const MINISTRAL3_8B: &str = r#"{
    "model_type": "ministral3", "vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 34, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "rms_norm_eps": 1e-5, "sliding_window": null, "max_position_embeddings": 262144, "tie_word_embeddings": false,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1
    }
}"#;

const QWEN25_7B: &str = r#"{
    "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "max_position_embeddings": 32768, "tie_word_embeddings": false,
    "use_sliding_window": false
}"#;

const PHI4: &str = r#"{
    "model_type": "phi3", "vocab_size": 100352, "hidden_size": 5120, "intermediate_size": 17920,
    "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 10, "rms_norm_eps": 1e-5,
    "rope_theta": 250000.0, "max_position_embeddings": 16384, "original_max_position_embeddings": 16384,
    "sliding_window": null, "tie_word_embeddings": false
}"#;

const SMOLLM3_3B: &str = r#"{
    "model_type": "smollm3", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008,
    "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4, "rms_norm_eps": 1e-6,
    "rope_theta": 5000000.0, "no_rope_layer_interval": 4, "max_position_embeddings": 65536,
    "tie_word_embeddings": true
}"#;

const OLMO2_7B: &str = r#"{
    "model_type": "olmo2", "vocab_size": 100352, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0, "max_position_embeddings": 4096, "tie_word_embeddings": false
}"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;

    #[test]
    fn every_shape_is_a_model() {
        for name in NAMES {
            let config = ModelConfig::parse(config(name).unwrap(), None).unwrap();
            assert!(config.hidden >= 2048, "{name}");
        }
    }
}
