//! [`ModelConfig`]: what a model's config.json says, parsed once and checked once.
//!
//! Key names, layouts and defaults follow transformers 5.23: both RoPE layouts (`rope_parameters`, or `rope_theta`
//! with `rope_scaling`), and the nested `text_config` of multimodal checkpoints.

mod keys;

use std::collections::BTreeSet;

use serde_json::Value;

use self::keys::Keys;
use crate::{Error, Result};

/// A model family, each described as data in [`crate::model::arch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 3, 3.1, 3.2.
    Llama,
    Qwen3,
    /// Qwen3.5 dense: gated delta net and gated attention.
    Qwen35,
}

/// The families by the `model_type` of config.json.
pub const FAMILIES: [(&str, Family); 4] = [
    ("llama", Family::Llama),
    ("qwen3", Family::Qwen3),
    ("qwen3_5", Family::Qwen35),
    ("qwen3_5_text", Family::Qwen35),
];

/// What mixes tokens in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixer {
    Attention,
    /// Gated delta net.
    DeltaNet,
}

/// The frequency scaling of Llama 3.1 and later.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeScaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_context: f64,
}

/// Rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    /// Leading elements of a head that are turned; even.
    pub rotary_dim: usize,
    pub scaling: Option<RopeScaling>,
}

impl Rope {
    /// Radians per position of each pair, `[rotary_dim / 2]`: `theta^(-2i / rotary_dim)`, with Llama 3.1's
    /// wavelength-dependent scaling.
    pub fn inv_freq(&self) -> Vec<f32> {
        (0..self.rotary_dim / 2)
            .map(|i| {
                let freq = self.theta.powf(-2.0 * i as f64 / self.rotary_dim as f64);
                self.scaling.map_or(freq, |scaling| scaling.apply(freq)) as f32
            })
            .collect()
    }
}

impl RopeScaling {
    fn apply(&self, freq: f64) -> f64 {
        let wavelength = 2.0 * std::f64::consts::PI / freq;
        let turns = self.original_context / wavelength;
        let smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
        if turns > self.high_freq_factor {
            freq
        } else if turns < self.low_freq_factor {
            freq / self.factor
        } else {
            (1.0 - smooth) * freq / self.factor + smooth * freq
        }
    }
}

/// Sizes of a gated delta net layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaNet {
    pub key_heads: usize,
    pub value_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    /// Taps of the convolution.
    pub conv_kernel: usize,
}

impl DeltaNet {
    /// Channels of the convolution: q, k and v.
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.values()
    }

    /// Elements of all value heads.
    pub fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }
}

/// A model's sizes and constants.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub family: Family,
    pub vocab: usize,
    pub hidden: usize,
    pub intermediate: usize,
    /// One entry for each layer.
    pub layers: Vec<Mixer>,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub norm_eps: f32,
    pub rope: Rope,
    /// Positions that the model was trained for.
    pub max_context: usize,
    /// Whether the embedding is the head as well; none where the configuration does not say.
    pub tied: Option<bool>,
    pub attention_bias: bool,
    pub mlp_bias: bool,
    /// Present where a layer is a delta net.
    pub delta_net: Option<DeltaNet>,
    pub bos: Option<u32>,
    /// Tokens that end a text: where the files disagree, each of them does.
    pub eos: Vec<u32>,
}

const MAX_LAYERS: usize = 1024;

impl ModelConfig {
    /// Parses config.json; generation_config.json has token ids as well, where it is given.
    pub fn parse(config: &str, generation_config: Option<&str>) -> Result<Self> {
        let root = Keys::parse("config.json", config)?;
        let text = root.object("text_config").unwrap_or_else(|| root.clone());
        let family = family(&root, &text)?;
        let hidden = text.size("hidden_size")?;
        let heads = text.size("num_attention_heads")?;
        let kv_heads = text.size_or("num_key_value_heads", heads)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(Error::mismatch(
                "config.json: num_key_value_heads",
                format!("a divisor of {heads} heads"),
                kv_heads,
            ));
        }
        let head_dim = text.size_or("head_dim", (hidden / heads).max(1))?;
        if let Some(act) = text.get("hidden_act").and_then(Value::as_str).filter(|act| *act != "silu") {
            return Err(Error::mismatch("config.json: hidden_act", "silu", act));
        }
        if text.flag("use_sliding_window") {
            return Err(Error::mismatch("config.json: use_sliding_window", false, true));
        }
        let layers = layers(&text, family)?;
        let delta_net = layers.contains(&Mixer::DeltaNet).then(|| delta_net(&text)).transpose()?;
        let max_context = text.size_or("max_position_embeddings", 2048)?;
        let norm_eps = text.number("rms_norm_eps", 1e-6)?;
        if !(norm_eps > 0.0 && norm_eps < 1.0) {
            return Err(Error::mismatch("config.json: rms_norm_eps", "a number between 0 and 1", norm_eps));
        }
        let vocab = text.size("vocab_size")?;
        let generation = generation_config.map(|g| Keys::parse("generation_config.json", g)).transpose()?;
        // Of all files, generation_config.json first.
        let token_ids = |key: &str| -> Result<Vec<u32>> {
            let mut ids = Vec::new();
            for keys in generation.iter().chain([&text, &root]) {
                ids.extend(keys.token_ids(key, vocab)?);
            }
            let mut seen = BTreeSet::new();
            ids.retain(|id| seen.insert(*id));
            Ok(ids)
        };
        Ok(Self {
            family,
            vocab,
            hidden,
            intermediate: text.size("intermediate_size")?,
            layers,
            heads,
            kv_heads,
            head_dim,
            norm_eps: norm_eps as f32,
            rope: rope(&text, family, head_dim, max_context)?,
            max_context,
            tied: text
                .get("tie_word_embeddings")
                .or(root.get("tie_word_embeddings"))
                .and_then(Value::as_bool),
            attention_bias: text.flag("attention_bias"),
            mlp_bias: text.flag("mlp_bias"),
            delta_net,
            bos: token_ids("bos_token_id")?.first().copied(),
            eos: token_ids("eos_token_id")?,
        })
    }
}

fn family(root: &Keys<'_>, text: &Keys<'_>) -> Result<Family> {
    let name =
        text.get("model_type").or_else(|| root.get("model_type")).and_then(Value::as_str).unwrap_or("");
    let known = FAMILIES.iter().find(|(model_type, _)| *model_type == name);
    known.map(|(_, family)| *family).ok_or_else(|| {
        let expected = FAMILIES.map(|(model_type, _)| model_type).join(", ");
        Error::mismatch("config.json: model_type", format!("one of {expected}"), format!("{name:?}"))
    })
}

fn layers(text: &Keys<'_>, family: Family) -> Result<Vec<Mixer>> {
    let count = text.size("num_hidden_layers")?;
    if count > MAX_LAYERS {
        return Err(Error::mismatch(
            "config.json: num_hidden_layers",
            format!("at most {MAX_LAYERS}"),
            count,
        ));
    }
    if family != Family::Qwen35 {
        return Ok(vec![Mixer::Attention; count]);
    }
    let Some(types) = text.get("layer_types").and_then(Value::as_array) else {
        let interval = text.size_or("full_attention_interval", 4)?;
        return Ok((1..=count)
            .map(|i| if i % interval == 0 { Mixer::Attention } else { Mixer::DeltaNet })
            .collect());
    };
    if types.len() != count {
        return Err(Error::mismatch("config.json: layer_types", format!("{count} entries"), types.len()));
    }
    types
        .iter()
        .map(|kind| match kind.as_str() {
            Some("linear_attention") => Ok(Mixer::DeltaNet),
            Some("full_attention") => Ok(Mixer::Attention),
            _ => Err(Error::mismatch("config.json: layer_types", "linear_attention or full_attention", kind)),
        })
        .collect()
}

fn delta_net(text: &Keys<'_>) -> Result<DeltaNet> {
    let net = DeltaNet {
        key_heads: text.size_or("linear_num_key_heads", 16)?,
        value_heads: text.size_or("linear_num_value_heads", 32)?,
        key_dim: text.size_or("linear_key_head_dim", 128)?,
        value_dim: text.size_or("linear_value_head_dim", 128)?,
        conv_kernel: text.size_or("linear_conv_kernel_dim", 4)?,
    };
    if !net.value_heads.is_multiple_of(net.key_heads) {
        let expected = format!("a multiple of {} key heads", net.key_heads);
        return Err(Error::mismatch("config.json: linear_num_value_heads", expected, net.value_heads));
    }
    if !(2..=16).contains(&net.conv_kernel) {
        return Err(Error::mismatch("config.json: linear_conv_kernel_dim", "2 to 16", net.conv_kernel));
    }
    Ok(net)
}

/// A value inside `rope_scaling` (if it has any) or `rope_parameters` wins over a top-level one.
fn rope(text: &Keys<'_>, family: Family, head_dim: usize, max_context: usize) -> Result<Rope> {
    let filled = |key| text.object(key).filter(|keys| !keys.is_empty());
    let scaling = filled("rope_scaling").or_else(|| filled("rope_parameters"));
    let number = |key: &str, default: f64| match &scaling {
        Some(inner) if inner.get(key).is_some() => inner.number(key, default),
        _ => text.number(key, default),
    };
    let partial = number("partial_rotary_factor", if family == Family::Qwen35 { 0.25 } else { 1.0 })?;
    let rotary_dim = (head_dim as f64 * partial) as usize;
    if !(partial > 0.0 && partial <= 1.0) || rotary_dim < 2 || !rotary_dim.is_multiple_of(2) {
        let expected = format!("a part of head_dim {head_dim} that is an even number of elements");
        return Err(Error::mismatch("config.json: partial_rotary_factor", expected, partial));
    }
    let theta = number("rope_theta", 10000.0)?;
    if !(theta.is_finite() && theta > 0.0) {
        return Err(Error::mismatch("config.json: rope_theta", "a positive number", theta));
    }
    let kind =
        scaling.as_ref().and_then(|s| s.get("rope_type").or_else(|| s.get("type"))).and_then(Value::as_str);
    let scaling = match (kind.unwrap_or("default"), &scaling) {
        ("llama3", Some(keys)) => {
            let scaling = RopeScaling {
                factor: keys.number("factor", 8.0)?,
                low_freq_factor: keys.number("low_freq_factor", 1.0)?,
                high_freq_factor: keys.number("high_freq_factor", 4.0)?,
                original_context: keys.number("original_max_position_embeddings", max_context as f64)?,
            };
            let positive = [scaling.factor, scaling.low_freq_factor, scaling.original_context]
                .iter()
                .all(|v| v.is_finite() && *v > 0.0);
            let ordered = scaling.high_freq_factor > scaling.low_freq_factor;
            if !(positive && ordered) {
                let expected = "positive factors with high_freq_factor above low_freq_factor";
                return Err(Error::mismatch("config.json: rope_scaling", expected, format!("{scaling:?}")));
            }
            Some(scaling)
        }
        ("default", _) => None,
        (other, _) => {
            return Err(Error::mismatch("config.json: rope_type", "default or llama3", format!("{other:?}")));
        }
    };
    Ok(Rope { theta, rotary_dim, scaling })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = r#"{"model_type":"llama","hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,
        "num_attention_heads":4,"num_key_value_heads":2,"vocab_size":100,"rms_norm_eps":1e-5,"bos_token_id":1,"eos_token_id":[2,3]"#;

    fn llama(more: &str) -> Result<ModelConfig> {
        ModelConfig::parse(&format!("{LLAMA}{more}}}"), None)
    }

    #[test]
    fn both_rope_layouts_give_the_same_model() {
        let old = llama(r#","rope_theta":5e5,"rope_scaling":{"type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":64}"#).unwrap();
        let new = llama(r#","rope_parameters":{"rope_type":"llama3","rope_theta":5e5,"factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":64}"#).unwrap();
        assert_eq!(old, new);
        assert_eq!(old.rope.theta, 5e5);
        assert_eq!(old.head_dim, 16);
        assert_eq!((old.bos, &old.eos[..]), (Some(1), &[2, 3][..]));
        assert_ne!(old.rope.inv_freq(), llama(r#","rope_theta":5e5"#).unwrap().rope.inv_freq());
    }

    #[test]
    fn every_file_may_end_a_text() {
        let more = Some(r#"{"eos_token_id": [9, 2], "bos_token_id": 7}"#);
        let config = ModelConfig::parse(&format!("{LLAMA}}}"), more).unwrap();
        assert_eq!((config.bos, &config.eos[..]), (Some(7), &[9, 2, 3][..]));
    }

    #[test]
    fn bad_values_are_named() {
        for (more, key) in [
            (r#","hidden_size":0"#, "hidden_size"),
            (r#","hidden_size":18446744073709551615"#, "hidden_size"),
            (r#","num_key_value_heads":3"#, "num_key_value_heads"),
            (r#","model_type":"gpt2""#, "model_type"),
            (r#","rope_scaling":{"rope_type":"yarn"}"#, "rope_type"),
            (r#","rope_scaling":{"rope_type":"llama3","factor":0}"#, "rope_scaling"),
            (r#","partial_rotary_factor":0.01"#, "partial_rotary_factor"),
            (r#","rms_norm_eps":-1"#, "rms_norm_eps"),
            (r#","vocab_size":"many""#, "vocab_size"),
            (r#","eos_token_id":100"#, "eos_token_id"),
            (r#","hidden_act":"gelu""#, "hidden_act"),
            (r#","num_hidden_layers":100000"#, "num_hidden_layers"),
        ] {
            let text = llama(more).expect_err(more).to_string();
            assert!(text.contains(key), "{more}: {text}");
        }
        assert!(ModelConfig::parse("[]", None).is_err());
        assert!(ModelConfig::parse("{", None).is_err());
    }
}
