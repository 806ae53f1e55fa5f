//! The configuration: what config.json would say, from the metadata.
//!
//! Keys: llama.cpp's `gguf-py/gguf/constants.py`; what a key means: its `src/models/*.cpp`.

use serde_json::{Value, json};

use super::arch::Arch;
use super::metadata::Metadata;
use crate::{Error, Result};

/// What the tensors say beside the metadata.
pub struct Tensors<'a> {
    /// Whether there is one of this name.
    pub has: &'a dyn Fn(&str) -> bool,
    /// Rows of the embedding.
    pub vocab: usize,
    /// The values of a table of rotary factors, if there is one of this name.
    pub factors: &'a dyn Fn(&str) -> Option<Vec<f32>>,
}

/// The text of config.json.
///
/// # Errors
/// A key that is missing, of another type, or asks for what FASQ does not compute.
pub fn config(arch: &Arch, metadata: &Metadata<'_>, tensors: &Tensors<'_>) -> Result<String> {
    let keys = Keys { arch, metadata };
    if keys.count("expert_count")?.is_some_and(|count| count > 0) {
        return Err(Error::invalid(keys.name("expert_count"), "mixtures of experts are not supported yet"));
    }
    let heads = keys.required("attention.head_count")?;
    let hidden = keys.required("embedding_length")?;
    let head_dim = match keys.count("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => hidden.checked_div(heads).unwrap_or_default(),
    };
    let layers = keys.required("block_count")?;
    let mut config = json!({
        "model_type": arch.model_type,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": keys.required("feed_forward_length")?,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.count("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon")?,
        "max_position_embeddings": keys.required("context_length")?,
        "rope_theta": keys.number("rope.freq_base")?.unwrap_or(10000.0),
        "vocab_size": tensors.vocab,
        "tie_word_embeddings": !(tensors.has)("output.weight"),
        "attention_bias": (tensors.has)("blk.0.attn_q.bias"),
        "mlp_bias": (tensors.has)("blk.0.ffn_gate.bias"),
        "bos_token_id": metadata.count("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": ends(metadata)?,
        "rope_scaling": rope_scaling(&keys, tensors)?,
    });
    if let Some(turned) = keys.count("rope.dimension_count")?.filter(|turned| *turned != head_dim) {
        // Rounded down, its product with `head_dim` is `turned`.
        config["partial_rotary_factor"] = json!((turned as f64 + 0.5) / head_dim as f64);
    }
    match arch.name {
        "mistral3" => mistral3(&keys, &mut config)?,
        "gemma3" => gemma3(&keys, &mut config, layers, hidden.checked_div(heads).unwrap_or_default())?,
        "phi3" => phi3(&keys, &mut config)?,
        "qwen35" => qwen35(&keys, &mut config, layers)?,
        "olmo2" if keys.contains("attention.sliding_window") => {
            return Err(Error::invalid(keys.name("attention.sliding_window"), "OLMo 3 is not supported yet"));
        }
        _ => {}
    }
    Ok(config.to_string())
}

/// Every token that ends a text or a turn.
fn ends(metadata: &Metadata<'_>) -> Result<Vec<u64>> {
    let ids = ["eos", "eot", "eom"].map(|end| metadata.count(&format!("tokenizer.ggml.{end}_token_id")));
    let ids: Vec<Option<u64>> = ids.into_iter().collect::<Result<_>>()?;
    Ok(ids.into_iter().flatten().collect())
}

/// The metadata under the architecture's name.
struct Keys<'a> {
    arch: &'a Arch,
    metadata: &'a Metadata<'a>,
}

impl Keys<'_> {
    fn key(&self, end: &str) -> String {
        format!("{}.{end}", self.arch.name)
    }

    /// For messages.
    fn name(&self, end: &str) -> String {
        format!("metadata {}", self.key(end))
    }

    fn contains(&self, end: &str) -> bool {
        self.metadata.contains(&self.key(end))
    }

    fn count(&self, end: &str) -> Result<Option<u64>> {
        self.metadata.count(&self.key(end))
    }

    fn number(&self, end: &str) -> Result<Option<f64>> {
        self.metadata.number(&self.key(end))
    }

    fn required(&self, end: &str) -> Result<u64> {
        Metadata::required(&self.key(end), self.count(end)?)
    }
}

/// How the rotary frequencies differ from those of `rope_theta`.
fn rope_scaling(keys: &Keys<'_>, tensors: &Tensors<'_>) -> Result<Option<Value>> {
    // What each frequency is divided by, computed by the converter: of Llama 3.1 one table, of Phi-3 two.
    if let Some(factors) = (tensors.factors)("rope_freqs.weight") {
        let factors = json!(factors);
        return Ok(Some(json!({ "rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0,
            "short_factor": factors, "long_factor": factors })));
    }
    let short = (tensors.factors)("rope_factors_short.weight");
    if let Some((short, long)) = short.zip((tensors.factors)("rope_factors_long.weight")) {
        return Ok(Some(json!({ "rope_type": "longrope", "short_factor": short, "long_factor": long,
            "factor": 1.0, "attention_factor": keys.number("rope.scaling.attn_factor")?.unwrap_or(1.0) })));
    }
    let kind = keys.metadata.text(&keys.key("rope.scaling.type"))?.unwrap_or("none");
    let factor = keys.number("rope.scaling.factor")?;
    match (kind, factor) {
        ("none", _) | ("linear" | "yarn", None) => Ok(None),
        ("linear", Some(factor)) => Ok(Some(json!({ "rope_type": "linear", "factor": factor }))),
        ("yarn", Some(factor)) => {
            let mut scaling = json!({ "rope_type": "yarn", "factor": factor });
            for (key, end) in [
                ("original_max_position_embeddings", "rope.scaling.original_context_length"),
                ("beta_fast", "rope.scaling.yarn_beta_fast"),
                ("beta_slow", "rope.scaling.yarn_beta_slow"),
            ] {
                if let Some(value) = keys.number(end)? {
                    scaling[key] = json!(value);
                }
            }
            Ok(Some(scaling))
        }
        (other, _) => {
            let expected = "none, linear or yarn";
            Err(Error::mismatch(keys.name("rope.scaling.type"), expected, format!("{other:?}")))
        }
    }
}

/// Ministral 3, or Mistral, which does not scale its queries.
fn mistral3(keys: &Keys<'_>, config: &mut Value) -> Result<()> {
    config["sliding_window"] = Value::Null;
    if !config["rope_scaling"].is_null() {
        // Sines and cosines stay as they are: `mscale` is `mscale_all_dim`.
        config["rope_scaling"]["attention_factor"] = json!(1.0);
    }
    match keys.number("attention.temperature_scale")?.filter(|beta| *beta > 0.0) {
        Some(beta) => config["rope_scaling"]["llama_4_scaling_beta"] = json!(beta),
        None => config["model_type"] = json!("mistral"),
    }
    Ok(())
}

fn gemma3(keys: &Keys<'_>, config: &mut Value, layers: u64, width: u64) -> Result<()> {
    config["sliding_window"] = json!(keys.count("attention.sliding_window")?);
    if let Some(pattern) = keys.count("attention.sliding_window_pattern")? {
        config["sliding_window_pattern"] = json!(pattern);
    }
    if let Some(theta) = keys.number("rope.freq_base_swa")? {
        config["rope_local_base_freq"] = json!(theta);
    }
    if let Some(softcap) = keys.number("final_logit_softcapping")? {
        config["final_logit_softcapping"] = json!(softcap);
    }
    // Every size scales scores by its heads' width but 27B, by hidden size over heads: no key says so.
    let scalar = if layers == LAYERS_OF_GEMMA_27B { json!(width) } else { config["head_dim"].clone() };
    config["query_pre_attn_scalar"] = scalar;
    Ok(())
}

const LAYERS_OF_GEMMA_27B: u64 = 62;

fn phi3(keys: &Keys<'_>, config: &mut Value) -> Result<()> {
    let original = keys.count("rope.scaling.original_context_length")?;
    config["original_max_position_embeddings"] = json!(original);
    // 0: none.
    let window = keys.count("attention.sliding_window")?.filter(|window| *window > 0);
    config["sliding_window"] = json!(window);
    Ok(())
}

fn qwen35(keys: &Keys<'_>, config: &mut Value, layers: u64) -> Result<()> {
    let ahead = keys.count("nextn_predict_layers")?.unwrap_or_default();
    config["num_hidden_layers"] = json!(layers.saturating_sub(ahead));
    let value_heads = keys.required("ssm.time_step_rank")?;
    let values = keys.required("ssm.inner_size")?;
    for (key, value) in [
        ("full_attention_interval", keys.count("full_attention_interval")?.unwrap_or(4)),
        ("linear_num_key_heads", keys.required("ssm.group_count")?),
        ("linear_num_value_heads", value_heads),
        ("linear_key_head_dim", keys.required("ssm.state_size")?),
        ("linear_value_head_dim", values.checked_div(value_heads).unwrap_or_default()),
        ("linear_conv_kernel_dim", keys.required("ssm.conv_kernel")?),
    ] {
        config[key] = json!(value);
    }
    Ok(())
}
