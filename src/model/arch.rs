//! Each model family as data: the names, shapes and roles of its tensors.

use crate::config::{Family, Mixer, ModelConfig};

/// The purpose of a tensor, which decides how it may be quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The token embedding `[vocab, hidden]`; the output head as well if there is no [`Role::Head`].
    Embed,
    /// The output head `[vocab, hidden]`.
    Head,
    /// A linear layer `[out, in]`.
    Linear,
    /// Small, and never quantized: norms, biases, a delta net's convolution and gates.
    Keep,
}

/// A tensor that a model needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub shape: Vec<usize>,
    pub role: Role,
    /// What it multiplies: for the weights of a block's linear layers, not for their biases.
    pub input: Option<Input>,
}

impl TensorSpec {
    /// A tensor that is not a linear layer of a block.
    pub fn new(name: String, shape: &[usize], role: Role) -> Self {
        Self { name, shape: shape.to_vec(), role, input: None }
    }
}

/// An activation that linear layers of a block read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Input {
    /// The block.
    pub layer: usize,
    /// Which of the block's [`Input::PER_LAYER`], in the order in which they are computed.
    pub at: usize,
}

impl Input {
    pub const PER_LAYER: usize = 4;

    /// Whether it is a norm of the residual stream; else it is what the mixer or the activation made of one.
    pub const fn is_norm(self) -> bool {
        self.at.is_multiple_of(2)
    }

    /// Of the mixer's projections: the norm before the mixer.
    pub const fn mixer(layer: usize) -> Self {
        Self { layer, at: 0 }
    }

    /// Of the mixer's output projection.
    pub const fn mixer_out(layer: usize) -> Self {
        Self { layer, at: 1 }
    }

    /// Of the MLP's gate and up projections: the norm before the MLP.
    pub const fn mlp(layer: usize) -> Self {
        Self { layer, at: 2 }
    }

    /// Of the MLP's down projection.
    pub const fn mlp_down(layer: usize) -> Self {
        Self { layer, at: 3 }
    }
}

/// How a family differs from Llama.
#[derive(Clone, Copy, Debug)]
pub struct Arch {
    /// Prefixes that tensor names may have, before `layers.0.`.
    pub prefixes: &'static [&'static str],
    /// Added to the weight of every RMS norm but the delta net's: 1 where norms are stored zero-centred.
    pub norm_offset: f32,
    /// Query and key heads are normalised.
    pub qk_norm: bool,
    /// Each query head is followed by a gate, whose sigmoid multiplies the attention output.
    pub gated_attention: bool,
    /// Tensors whose name begins or ends with one of these are ignored.
    pub skip: &'static [&'static str],
}

/// A family's description.
pub const fn arch(family: Family) -> Arch {
    match family {
        Family::Llama => Arch {
            prefixes: &["model."],
            norm_offset: 0.0,
            qk_norm: false,
            gated_attention: false,
            skip: SKIP,
        },
        Family::Qwen3 => Arch {
            prefixes: &["model."],
            norm_offset: 0.0,
            qk_norm: true,
            gated_attention: false,
            skip: SKIP,
        },
        Family::Qwen35 => Arch {
            prefixes: &["model.language_model.", "model."],
            norm_offset: 1.0,
            qk_norm: true,
            gated_attention: true,
            skip: SKIP,
        },
    }
}

/// Vision tower, multi-token prediction, buffers of old checkpoints.
const SKIP: &[&str] = &["model.visual.", "visual.", "mtp.", "rotary_emb.inv_freq"];

/// Every tensor that a model of this config uses, under the names that the checkpoint gives them: the only place that
/// states shapes. Weights with the same [`Input`] are in the order in which their outputs are stacked. `has`
/// says which names are there: it decides the prefix and whether the head is tied to the embedding.
pub fn tensors(config: &ModelConfig, has: &dyn Fn(&str) -> bool) -> Vec<TensorSpec> {
    let names = Names::of(config, has);
    let table = [config.vocab, config.hidden];
    let mut list = vec![TensorSpec::new(names.embed(), &table, Role::Embed)];
    for (layer, mixer) in config.layers.iter().enumerate() {
        let mut block = Block { config, names: &names, layer, list: &mut list };
        block.keep("input_layernorm.weight", &[config.hidden]);
        match mixer {
            Mixer::Attention => block.attention(),
            Mixer::DeltaNet => block.delta_net(),
        }
        block.keep("post_attention_layernorm.weight", &[config.hidden]);
        block.mlp();
    }
    list.push(TensorSpec::new(names.norm(), &[config.hidden], Role::Keep));
    if !names.tied {
        list.push(TensorSpec::new(names.head(), &table, Role::Head));
    }
    list
}

/// Adds the tensors of one block to the list.
struct Block<'a> {
    config: &'a ModelConfig,
    names: &'a Names,
    layer: usize,
    list: &'a mut Vec<TensorSpec>,
}

impl Block<'_> {
    fn attention(&mut self) {
        let (config, arch) = (self.config, arch(self.config.family));
        let ModelConfig { hidden, head_dim, attention_bias: bias, .. } = *config;
        let (q, kv) = (config.heads * head_dim, config.kv_heads * head_dim);
        let q_rows = if arch.gated_attention { 2 * q } else { q };
        self.linear("self_attn.q_proj", [q_rows, hidden], bias, Input::mixer);
        self.linear("self_attn.k_proj", [kv, hidden], bias, Input::mixer);
        self.linear("self_attn.v_proj", [kv, hidden], bias, Input::mixer);
        self.linear("self_attn.o_proj", [hidden, q], bias, Input::mixer_out);
        if arch.qk_norm {
            self.keep("self_attn.q_norm.weight", &[head_dim]);
            self.keep("self_attn.k_norm.weight", &[head_dim]);
        }
    }

    fn delta_net(&mut self) {
        // Loading refuses a configuration that has such a layer but not its sizes.
        let Some(net) = self.config.delta_net else { return };
        let (hidden, heads) = (self.config.hidden, net.value_heads);
        self.linear("linear_attn.in_proj_qkv", [net.channels(), hidden], false, Input::mixer);
        self.linear("linear_attn.in_proj_z", [net.values(), hidden], false, Input::mixer);
        // Not quantized: a thousandth of the layer, and it feeds the exponent of a recurrence.
        self.push("linear_attn.in_proj_b.weight", &[heads, hidden], Role::Keep, Some(Input::mixer));
        self.push("linear_attn.in_proj_a.weight", &[heads, hidden], Role::Keep, Some(Input::mixer));
        self.keep("linear_attn.conv1d.weight", &[net.channels(), 1, net.conv_kernel]);
        self.keep("linear_attn.A_log", &[heads]);
        self.keep("linear_attn.dt_bias", &[heads]);
        self.keep("linear_attn.norm.weight", &[net.value_dim]);
        self.linear("linear_attn.out_proj", [hidden, net.values()], false, Input::mixer_out);
    }

    fn mlp(&mut self) {
        let ModelConfig { hidden, intermediate, mlp_bias: bias, .. } = *self.config;
        self.linear("mlp.gate_proj", [intermediate, hidden], bias, Input::mlp);
        self.linear("mlp.up_proj", [intermediate, hidden], bias, Input::mlp);
        self.linear("mlp.down_proj", [hidden, intermediate], bias, Input::mlp_down);
    }

    /// `PART.weight` `[out, in]` and, with `bias`, `PART.bias` `[out]`.
    fn linear(&mut self, part: &str, shape: [usize; 2], bias: bool, input: fn(usize) -> Input) {
        self.push(&format!("{part}.weight"), &shape, Role::Linear, Some(input));
        if bias {
            self.keep(&format!("{part}.bias"), &shape[..1]);
        }
    }

    fn keep(&mut self, part: &str, shape: &[usize]) {
        self.push(part, shape, Role::Keep, None);
    }

    fn push(&mut self, part: &str, shape: &[usize], role: Role, input: Option<fn(usize) -> Input>) {
        let name = self.names.layer(self.layer, part);
        let input = input.map(|input| input(self.layer));
        self.list.push(TensorSpec { name, shape: shape.to_vec(), role, input });
    }
}

/// The output head of its own.
const HEAD: &str = "lm_head.weight";

/// How a checkpoint names the tensors of a model.
#[derive(Clone, Debug)]
pub struct Names {
    prefix: &'static str,
    /// The embedding is the output head as well.
    pub tied: bool,
}

impl Names {
    /// The naming of a checkpoint; `has` says which names it has.
    pub fn of(config: &ModelConfig, has: &dyn Fn(&str) -> bool) -> Self {
        let prefixes = arch(config.family).prefixes;
        let found = prefixes.iter().find(|prefix| has(&format!("{prefix}embed_tokens.weight")));
        Self { prefix: found.unwrap_or(&prefixes[0]), tied: config.tied == Some(true) || !has(HEAD) }
    }

    pub fn embed(&self) -> String {
        format!("{}embed_tokens.weight", self.prefix)
    }

    /// The final norm.
    pub fn norm(&self) -> String {
        format!("{}norm.weight", self.prefix)
    }

    pub fn head(&self) -> String {
        if self.tied { self.embed() } else { HEAD.into() }
    }

    pub fn layer(&self, i: usize, part: &str) -> String {
        format!("{}layers.{i}.{part}", self.prefix)
    }
}

/// Whether a checkpoint may have this tensor although the model does not use it: a tied head that is stored twice is one.
pub fn may_skip(config: &ModelConfig, name: &str) -> bool {
    if name == HEAD && config.tied == Some(true) {
        return true;
    }
    arch(config.family).skip.iter().any(|part| name.starts_with(part) || name.ends_with(part))
}
