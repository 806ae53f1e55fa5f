//! [`ModelConfig`]: what a model's config.json says, parsed once and checked once.
//!
//! Key names, layouts and defaults follow transformers 5.24: both RoPE layouts (`rope_parameters`, or `rope_theta`
//! with `rope_scaling`), and the nested `text_config` of multimodal checkpoints. What a family makes of the keys is data
//! ([`crate::family`]).

mod keys;
mod layers;
mod rope;

use std::collections::BTreeSet;

use self::keys::Keys;
pub use self::layers::{DeltaNet, Layer, Mixer};
use self::rope::RopeKeys;
pub use self::rope::{Rope, Scaling};
use crate::family::{Bias, FAMILIES, Family, Rotary, UNSUPPORTED, family};
use crate::{Error, Result};

/// Which linear layers of a block have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    pub qkv: bool,
    /// The mixer's output projection.
    pub out: bool,
    pub mlp: bool,
}

/// Queries at position p are multiplied by `1 + beta ln(1 + floor(p / context))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryScaling {
    pub beta: f32,
    pub context: f32,
}

/// A model's sizes and constants.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub family: &'static Family,
    pub vocab: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: Vec<Layer>,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub norm_eps: f32,
    /// Multiplies the scores of attention.
    pub score_scale: f32,
    /// Multiplies the embeddings.
    pub embed_scale: f32,
    /// The rotary embeddings that [`Layer::rope`] counts; at least one.
    pub ropes: Vec<Rope>,
    pub query_scaling: Option<QueryScaling>,
    /// Positions that the model was trained for.
    pub max_context: usize,
    /// Whether the embedding is the head as well; none where the configuration does not say.
    pub tied: Option<bool>,
    pub biases: Biases,
    /// Present where a layer is a delta net.
    pub delta_net: Option<DeltaNet>,
    pub bos: Option<u32>,
    /// Tokens that end a text: where the files disagree, each of them does.
    pub eos: Vec<u32>,
}

impl ModelConfig {
    /// Parses config.json; generation_config.json has token ids as well, where it is given.
    pub fn parse(config: &str, generation_config: Option<&str>) -> Result<Self> {
        let root = Keys::parse("config.json", config)?;
        let text = root.object("text_config").unwrap_or_else(|| root.clone());
        let family = family_of(&root, &text)?;
        let text = text.or_defaults(family.defaults)?;
        refuse_unknown(&text, family)?;
        let hidden = text.size("hidden_size")?;
        let heads = text.size("num_attention_heads")?;
        let kv_heads = text.size_or("num_key_value_heads", heads)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(text.mismatch("num_key_value_heads", format!("a divisor of {heads} heads")));
        }
        let head_dim = text.size_or("head_dim", (hidden / heads).max(1))?;
        let layers = layers::parse(&text, family)?;
        let delta_net = layers.iter().any(|layer| layer.mixer == Mixer::DeltaNet);
        let norm_eps = text.positive("rms_norm_eps")?;
        if norm_eps >= 1.0 {
            return Err(text.mismatch("rms_norm_eps", "a number between 0 and 1"));
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
        let has = |bias: Bias| match bias {
            Bias::Never => false,
            Bias::Always => true,
            Bias::Key(key) => text.flag(key),
        };
        let query_scale = match text.get("query_pre_attn_scalar") {
            Some(_) => text.positive("query_pre_attn_scalar")?,
            None => head_dim as f64,
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
            score_scale: query_scale.sqrt().recip() as f32,
            embed_scale: if family.scaled_embedding { (hidden as f32).sqrt() } else { 1.0 },
            ropes: ropes(&text, family, head_dim)?,
            query_scaling: family.position_scaling.then(|| query_scaling(&text, head_dim)).transpose()?,
            max_context: text.size("max_position_embeddings")?,
            tied: [&text, &root].iter().find_map(|keys| keys.get("tie_word_embeddings")?.as_bool()),
            biases: Biases {
                qkv: has(family.qkv_bias),
                out: has(family.out_bias),
                mlp: has(family.mlp_bias),
            },
            delta_net: delta_net.then(|| DeltaNet::parse(&text)).transpose()?,
            bos: token_ids("bos_token_id")?.first().copied(),
            eos: token_ids("eos_token_id")?,
        })
    }
}

fn family_of(root: &Keys<'_>, text: &Keys<'_>) -> Result<&'static Family> {
    let name = text.text("model_type").or_else(|| root.text("model_type")).unwrap_or("");
    family(name).ok_or_else(|| match UNSUPPORTED.iter().find(|(model_type, _)| *model_type == name) {
        Some((_, why)) => Error::invalid(format!("config.json: model_type {name:?}"), *why),
        None => {
            let known: Vec<&str> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
            let expected = format!("one of {}", known.join(", "));
            Error::mismatch("config.json: model_type", expected, format!("{name:?}"))
        }
    })
}

/// Fails where a key asks for mathematics that this family does not have here.
fn refuse_unknown(text: &Keys<'_>, family: &Family) -> Result<()> {
    let activation = family.activation.name();
    for key in ["hidden_activation", "hidden_act"] {
        match text.text(key) {
            Some(found) if found == activation => break,
            Some(_) => return Err(text.mismatch(key, activation)),
            None => {}
        }
    }
    if text.get("final_logit_softcapping").is_some() {
        return Err(text.mismatch("final_logit_softcapping", "null"));
    }
    if text.flag("use_bidirectional_attention") {
        return Err(text.mismatch("use_bidirectional_attention", false));
    }
    Ok(())
}

/// The rotary embeddings of a family's layers, in the order that [`layers::parse`] counts.
fn ropes(text: &Keys<'_>, family: &Family, head_dim: usize) -> Result<Vec<Rope>> {
    let all = RopeKeys::new(text, head_dim).parse("rope_theta")?;
    let windowed = match family.rotary {
        Rotary::ByWindow => Some(RopeKeys::windowed(text, head_dim).parse("rope_local_base_freq")?),
        Rotary::All | Rotary::Listed => None,
    };
    Ok([all].into_iter().chain(windowed).collect())
}

fn query_scaling(text: &Keys<'_>, head_dim: usize) -> Result<QueryScaling> {
    let keys = RopeKeys::new(text, head_dim);
    let number = |key: &str| Ok(keys.of(key).positive(key)? as f32);
    Ok(QueryScaling {
        beta: number("llama_4_scaling_beta")?,
        context: number("original_max_position_embeddings")?,
    })
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
        assert_eq!(old.ropes[0].theta, 5e5);
        assert_eq!(old.head_dim, 16);
        assert_eq!((old.bos, &old.eos[..]), (Some(1), &[2, 3][..]));
        assert_ne!(old.ropes[0].inv_freq(64), llama(r#","rope_theta":5e5"#).unwrap().ropes[0].inv_freq(64));
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
            (r#","model_type":"qwen3_moe""#, "mixture of experts"),
            (r#","rope_scaling":{"rope_type":"dynamic"}"#, "rope_type"),
            (r#","rope_scaling":{"rope_type":"linear","factor":0}"#, "factor"),
            (r#","rope_scaling":{"rope_type":"longrope","short_factor":[1]}"#, "short_factor"),
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
