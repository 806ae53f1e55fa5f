//! The architectures: the family that each is, and what its tensors are called in a Hugging Face folder.
//!
//! Facts: llama.cpp's `gguf-py/gguf/constants.py` and its converters (`conversion/*.py`), which also say how a tensor
//! differs from the folder's.

use crate::{Error, Result};

/// An architecture, by `general.architecture`.
#[derive(Debug)]
pub struct Arch {
    pub name: &'static str,
    /// The `model_type` of config.json.
    pub model_type: &'static str,
    /// Whether the rows of q and k are in the order for pairs of neighbours: Hugging Face turns element i with element
    /// i + head_dim / 2.
    pub paired: bool,
    /// Names that are not those of [`PARTS`].
    own: &'static [(&'static str, &'static str)],
}

static ARCHS: [Arch; 9] = [
    Arch { name: "llama", model_type: "llama", paired: true, own: &[] },
    Arch { name: "mistral3", model_type: "ministral3", paired: true, own: &[] },
    Arch { name: "smollm3", model_type: "smollm3", paired: true, own: &[] },
    Arch { name: "qwen2", model_type: "qwen2", paired: false, own: &[] },
    Arch { name: "qwen3", model_type: "qwen3", paired: false, own: &[] },
    Arch {
        name: "qwen35",
        model_type: "qwen3_5_text",
        paired: false,
        own: &[("attn_qkv", "linear_attn.in_proj_qkv")],
    },
    Arch {
        name: "gemma3",
        model_type: "gemma3_text",
        paired: false,
        own: &[("ffn_norm", "pre_feedforward_layernorm")],
    },
    Arch { name: "phi3", model_type: "phi3", paired: false, own: &[("ffn_up", "mlp.gate_up_proj")] },
    Arch { name: "olmo2", model_type: "olmo2", paired: false, own: &[] },
];

/// Names outside of blocks.
const WHOLE: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Names within a block, before `.weight` or `.bias`.
const PARTS: [(&str, &str); 22] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
    ("attn_gate", "linear_attn.in_proj_z"),
    ("ssm_beta", "linear_attn.in_proj_b"),
    ("ssm_alpha", "linear_attn.in_proj_a"),
    ("ssm_conv1d", "linear_attn.conv1d"),
    ("ssm_dt", "linear_attn.dt"),
    ("ssm_a", "linear_attn.A_log"),
    ("ssm_norm", "linear_attn.norm"),
    ("ssm_out", "linear_attn.out_proj"),
];

/// Tables of rotary factors, which the configuration takes up.
pub const ROPE_FACTORS: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];

/// Where a tensor belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its block, if it is in one.
    pub layer: Option<usize>,
    /// What is it called there: `self_attn.q_proj.weight`; outside of blocks the whole name.
    pub part: String,
}

impl Place {
    /// Its name in a Hugging Face folder.
    pub fn name(&self) -> String {
        match self.layer {
            Some(layer) => format!("model.layers.{layer}.{}", self.part),
            None => self.part.clone(),
        }
    }
}

impl Arch {
    /// The architecture of this name.
    ///
    /// # Errors
    /// It is none of those that are known.
    pub fn new(name: &str) -> Result<&'static Self> {
        ARCHS.iter().find(|arch| arch.name == name).ok_or_else(|| {
            let known = ARCHS.each_ref().map(|arch| arch.name).join(", ");
            Error::mismatch("metadata general.architecture", format!("one of {known}"), format!("{name:?}"))
        })
    }

    /// Where a tensor belongs, by its name; none if it is no part of a model.
    ///
    /// # Errors
    /// The name has no meaning.
    pub fn place(&self, name: &str) -> Result<Option<Place>> {
        if ROPE_FACTORS.contains(&name) || name.ends_with(".attn_rot_embd.weight") {
            return Ok(None);
        }
        if let Some((_, whole)) = WHOLE.iter().find(|(own, _)| *own == name) {
            return Ok(Some(Place { layer: None, part: (*whole).into() }));
        }
        let place = || {
            let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
            let (part, end) = rest.split_once('.').map_or((rest, None), |(part, end)| (part, Some(end)));
            let (_, part) = self.own.iter().chain(&PARTS).find(|(own, _)| *own == part)?;
            let part = match end {
                None => (*part).into(),
                // The one bias that is a tensor of its own.
                Some("bias") if *part == "linear_attn.dt" => "linear_attn.dt_bias".into(),
                Some(end @ ("weight" | "bias")) => format!("{part}.{end}"),
                Some(_) => return None,
            };
            Some(Place { layer: Some(layer.parse().ok()?), part })
        };
        let unknown =
            || Error::invalid(format!("tensor {name}"), format!("unknown in architecture {}", self.name));
        place().map(Some).ok_or_else(unknown)
    }
}
