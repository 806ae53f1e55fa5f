//! What each layer is: its mixer, its window, and its rotary embedding.

use serde_json::Value;

use super::keys::Keys;
use crate::family::{Family, Mixers, Rotary, Windows};
use crate::{Error, Result};

/// What mixes tokens in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixer {
    Attention,
    /// Gated delta net.
    DeltaNet,
}

/// A layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    pub mixer: Mixer,
    /// Positions that attention sees, its own among them; none: all.
    pub window: Option<usize>,
    /// Which of the model's rotary embeddings; none: queries and keys are not turned.
    pub rope: Option<usize>,
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
    pub(super) fn parse(text: &Keys<'_>) -> Result<Self> {
        let net = Self {
            key_heads: text.size("linear_num_key_heads")?,
            value_heads: text.size("linear_num_value_heads")?,
            key_dim: text.size("linear_key_head_dim")?,
            value_dim: text.size("linear_value_head_dim")?,
            conv_kernel: text.size("linear_conv_kernel_dim")?,
        };
        if !net.value_heads.is_multiple_of(net.key_heads) {
            let expected = format!("a multiple of {} key heads", net.key_heads);
            return Err(text.mismatch("linear_num_value_heads", expected));
        }
        if !(2..=16).contains(&net.conv_kernel) {
            return Err(text.mismatch("linear_conv_kernel_dim", "2 to 16"));
        }
        Ok(net)
    }

    /// Channels of the convolution: q, k and v.
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.values()
    }

    /// Elements of all value heads.
    pub fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }
}

const MAX_LAYERS: usize = 1024;

/// The layers of a configuration.
pub(super) fn parse(text: &Keys<'_>, family: &Family) -> Result<Vec<Layer>> {
    let count = text.size("num_hidden_layers")?;
    if count > MAX_LAYERS {
        return Err(text.mismatch("num_hidden_layers", format!("at most {MAX_LAYERS}")));
    }
    let turned = turned(text, family, count)?;
    let window = window(text, family)?;
    let types = match (family.mixers, family.windows, window) {
        (Mixers::DeltaNets, _, _) => layer_types(text, count, Kind::DeltaNet)?,
        (Mixers::Attention, Windows::None | Windows::All, _) | (Mixers::Attention, _, None) => None,
        (Mixers::Attention, Windows::Listed | Windows::Upper | Windows::Unrotated | Windows::Pattern, _) => {
            layer_types(text, count, Kind::Windowed)?
        }
    };
    let kinds = match types {
        Some(types) => types,
        None => (0..count).map(|i| unlisted(text, family, i, turned[i])).collect::<Result<_>>()?,
    };
    let layer = |(kind, turned): (Kind, bool)| {
        let window = window.filter(|_| kind == Kind::Windowed);
        let rope = match family.rotary {
            Rotary::ByWindow => usize::from(kind == Kind::Windowed),
            Rotary::All | Rotary::Listed => 0,
        };
        let mixer = if kind == Kind::DeltaNet { Mixer::DeltaNet } else { Mixer::Attention };
        Layer { mixer, window, rope: turned.then_some(rope) }
    };
    Ok(kinds.into_iter().zip(turned).map(layer).collect())
}

/// A layer as `layer_types` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Full,
    Windowed,
    DeltaNet,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Full => "full_attention",
            Self::Windowed => "sliding_attention",
            Self::DeltaNet => "linear_attention",
        }
    }
}

/// What `layer_types` says, if it is there: full attention or the family's `other` kind.
fn layer_types(text: &Keys<'_>, count: usize, other: Kind) -> Result<Option<Vec<Kind>>> {
    let Some(types) = text.get("layer_types").and_then(Value::as_array) else { return Ok(None) };
    if types.len() != count {
        return Err(Error::mismatch("config.json: layer_types", format!("{count} entries"), types.len()));
    }
    let kinds = [Kind::Full, other];
    let kind = |found: &Value| {
        let kind = kinds.into_iter().find(|kind| found.as_str() == Some(kind.name()));
        let expected = || format!("{} or {}", kinds[0].name(), kinds[1].name());
        kind.ok_or_else(|| Error::mismatch("config.json: layer_types", expected(), found))
    };
    types.iter().map(kind).collect::<Result<_>>().map(Some)
}

/// The kind of layer `i` where no list says it.
fn unlisted(text: &Keys<'_>, family: &Family, i: usize, turned: bool) -> Result<Kind> {
    if family.mixers == Mixers::DeltaNets {
        let attention = (i + 1).is_multiple_of(text.size("full_attention_interval")?);
        return Ok(if attention { Kind::Full } else { Kind::DeltaNet });
    }
    let windowed = match family.windows {
        Windows::None => false,
        Windows::All | Windows::Listed => true,
        Windows::Upper => i as u64 >= text.count("max_window_layers")?,
        Windows::Unrotated => !turned,
        Windows::Pattern => !(i + 1).is_multiple_of(text.size("sliding_window_pattern")?),
    };
    Ok(if windowed { Kind::Windowed } else { Kind::Full })
}

/// The width of the windows, if there are any.
fn window(text: &Keys<'_>, family: &Family) -> Result<Option<usize>> {
    match family.windows {
        Windows::None => Ok(None),
        Windows::Upper | Windows::Unrotated if !text.flag("use_sliding_window") => Ok(None),
        Windows::All | Windows::Listed | Windows::Upper | Windows::Unrotated | Windows::Pattern => {
            text.size_if("sliding_window")
        }
    }
}

/// Whether each layer turns its queries and keys.
fn turned(text: &Keys<'_>, family: &Family, count: usize) -> Result<Vec<bool>> {
    match family.rotary {
        Rotary::All | Rotary::ByWindow => Ok(vec![true; count]),
        Rotary::Listed => match text.get("no_rope_layers").and_then(Value::as_array) {
            Some(list) if !list.is_empty() => {
                let flags: Option<Vec<bool>> =
                    list.iter().take(count).map(|flag| Some(flag.as_u64()? == 1)).collect();
                let flags = flags.filter(|flags| flags.len() == count);
                flags.ok_or_else(|| {
                    text.mismatch("no_rope_layers", format!("0 or 1 for each of {count} layers"))
                })
            }
            _ => {
                let interval = text.size("no_rope_layer_interval")?;
                Ok((1..=count).map(|i| !i.is_multiple_of(interval)).collect())
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Layer, ModelConfig};

    /// The four layers of a family's model.
    fn layers(model_type: &str, more: &str) -> Result<Vec<Layer>, String> {
        let config = format!(
            r#"{{"model_type":"{model_type}","hidden_size":64,"intermediate_size":64,"num_hidden_layers":4,
            "num_attention_heads":32,"vocab_size":100{more}}}"#
        );
        ModelConfig::parse(&config, None).map(|config| config.layers).map_err(|e| e.to_string())
    }

    #[test]
    fn windows_are_where_transformers_has_them() {
        const TYPES: &str =
            r#","layer_types":["sliding_attention","full_attention","full_attention","sliding_attention"]"#;
        let windows = |model_type: &str, more: &str| -> Vec<Option<usize>> {
            layers(model_type, more).unwrap().into_iter().map(|layer| layer.window).collect()
        };
        let (all, none, listed) = ([Some(8); 4], [None; 4], [Some(8), None, None, Some(8)]);
        assert_eq!(windows("llama", r#","sliding_window":8"#), none);
        assert_eq!(windows("mistral", r#","sliding_window":8"#), all);
        assert_eq!(windows("mistral", ""), [Some(4096); 4]);
        assert_eq!(windows("mistral", r#","sliding_window":null"#), none);
        assert_eq!(windows("mistral", &format!(r#","sliding_window":8{TYPES}"#)), all);
        assert_eq!(windows("ministral", &format!(r#","sliding_window":8{TYPES}"#)), listed);
        assert_eq!(windows("qwen2", r#","sliding_window":8,"max_window_layers":2"#), none);
        let used = r#","sliding_window":8,"use_sliding_window":true"#;
        let upper = [None, None, Some(8), Some(8)];
        assert_eq!(windows("qwen2", &format!(r#"{used},"max_window_layers":2"#)), upper);
        assert_eq!(windows("qwen2", &format!("{used}{TYPES}")), listed);
        assert_eq!(windows("qwen3", used), none);
        assert_eq!(windows("gemma3_text", r#","sliding_window":8"#), all);
        let third = [Some(8), Some(8), None, Some(8)];
        assert_eq!(windows("gemma3", r#","sliding_window":8,"sliding_window_pattern":3"#), third);
        assert_eq!(windows("smollm3", used), [None, None, None, Some(8)]);
        assert_eq!(windows("phi3", ""), none);
        assert_eq!(windows("olmo2", used), none);
    }

    #[test]
    fn rotary_embeddings_are_where_transformers_has_them() {
        let ropes = |model_type: &str, more: &str| -> Vec<Option<usize>> {
            layers(model_type, more).unwrap().into_iter().map(|layer| layer.rope).collect()
        };
        assert_eq!(ropes("smollm3", ""), [Some(0), Some(0), Some(0), None]);
        let listed = r#","no_rope_layers":[0,1,1,0,1]"#;
        assert_eq!(ropes("smollm3", listed), [None, Some(0), Some(0), None]);
        assert_eq!(
            ropes("gemma3_text", r#","sliding_window_pattern":2"#),
            [Some(1), Some(0), Some(1), Some(0)]
        );
    }

    #[test]
    fn bad_lists_are_named() {
        for (model_type, more, key) in [
            ("ministral", r#","layer_types":["full_attention"]"#, "layer_types"),
            ("ministral", r#","layer_types":["full_attention",1,2,3]"#, "layer_types"),
            ("qwen3_5_text", r#","layer_types":["sliding_attention","","",""]"#, "linear_attention"),
            ("smollm3", r#","no_rope_layers":[1,0]"#, "no_rope_layers"),
            ("mistral", r#","sliding_window":0"#, "sliding_window"),
            ("gemma3_text", r#","final_logit_softcapping":30.0"#, "final_logit_softcapping"),
            ("gemma3_text", r#","hidden_activation":"gelu""#, "gelu_pytorch_tanh"),
            ("ministral3", "", "llama_4_scaling_beta"),
        ] {
            let why = layers(model_type, more).expect_err(more);
            assert!(why.contains(key), "{model_type}{more}: {why}");
        }
    }
}
