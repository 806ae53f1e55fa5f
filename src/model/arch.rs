//! The tensors of a model: names, shapes and roles.

use crate::config::{Mixer, ModelConfig};
use crate::family::{Norms, Projections, QkNorms};

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

/// Every tensor that a model of this config uses, under the names that the checkpoint gives them: the only place that
/// states shapes. Weights with the same [`Input`] are in the order in which their outputs are stacked. `has`
/// says which names are there: it decides the prefix and whether the head is tied to the embedding.
pub fn tensors(config: &ModelConfig, has: &dyn Fn(&str) -> bool) -> Vec<TensorSpec> {
    let names = Names::of(has);
    let table = [config.vocab, config.hidden];
    let mut list = vec![TensorSpec::new(names.embed(), &table, Role::Embed)];
    for (layer, kind) in config.layers.iter().enumerate() {
        let mut block = Block { config, names: &names, layer, list: &mut list };
        let [mixer, mlp] = norms(config.family.norms);
        block.norm(mixer.before);
        match kind.mixer {
            Mixer::Attention => block.attention(),
            Mixer::DeltaNet => block.delta_net(),
        }
        block.norm(mixer.after);
        block.norm(mlp.before);
        block.mlp();
        block.norm(mlp.after);
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
    /// A norm of the residual stream or of what is added to it.
    fn norm(&mut self, name: Option<&str>) {
        if let Some(name) = name {
            self.keep(name, &[self.config.hidden]);
        }
    }

    fn attention(&mut self) {
        let ModelConfig { family, hidden, head_dim, biases, .. } = *self.config;
        let (q, kv) = (self.config.heads * head_dim, self.config.kv_heads * head_dim);
        let q_rows = if family.gated_attention { 2 * q } else { q };
        match family.projections {
            Projections::Apart => {
                self.linear("self_attn.q_proj", [q_rows, hidden], biases.qkv, Input::mixer);
                self.linear("self_attn.k_proj", [kv, hidden], biases.qkv, Input::mixer);
                self.linear("self_attn.v_proj", [kv, hidden], biases.qkv, Input::mixer);
            }
            Projections::Stacked => {
                self.linear("self_attn.qkv_proj", [q_rows + 2 * kv, hidden], biases.qkv, Input::mixer);
            }
        }
        self.linear("self_attn.o_proj", [hidden, q], biases.out, Input::mixer_out);
        let [q_norm, k_norm] = match family.qk_norms {
            QkNorms::None => return,
            QkNorms::Heads => [head_dim; 2],
            QkNorms::Projection => [q, kv],
        };
        self.keep("self_attn.q_norm.weight", &[q_norm]);
        self.keep("self_attn.k_norm.weight", &[k_norm]);
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
        let ModelConfig { family, hidden, intermediate, biases, .. } = *self.config;
        match family.projections {
            Projections::Apart => {
                self.linear("mlp.gate_proj", [intermediate, hidden], biases.mlp, Input::mlp);
                self.linear("mlp.up_proj", [intermediate, hidden], biases.mlp, Input::mlp);
            }
            Projections::Stacked => {
                self.linear("mlp.gate_up_proj", [2 * intermediate, hidden], biases.mlp, Input::mlp);
            }
        }
        self.linear("mlp.down_proj", [hidden, intermediate], biases.mlp, Input::mlp_down);
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

/// The names of the norms around a mixer or an MLP.
#[derive(Clone, Copy)]
pub struct NormNames {
    /// Of its input.
    pub before: Option<&'static str>,
    /// Of its output.
    pub after: Option<&'static str>,
}

/// Those around a block's mixer and around its MLP.
pub const fn norms(norms: Norms) -> [NormNames; 2] {
    const INPUT: &str = "input_layernorm.weight";
    const AFTER_MIXER: &str = "post_attention_layernorm.weight";
    const BEFORE_MLP: &str = "pre_feedforward_layernorm.weight";
    const AFTER_MLP: &str = "post_feedforward_layernorm.weight";
    match norms {
        // The norm of the MLP's input bears the name of what comes before it.
        Norms::Before => [
            NormNames { before: Some(INPUT), after: None },
            NormNames { before: Some(AFTER_MIXER), after: None },
        ],
        Norms::After => [
            NormNames { before: None, after: Some(AFTER_MIXER) },
            NormNames { before: None, after: Some(AFTER_MLP) },
        ],
        Norms::BeforeAndAfter => [
            NormNames { before: Some(INPUT), after: Some(AFTER_MIXER) },
            NormNames { before: Some(BEFORE_MLP), after: Some(AFTER_MLP) },
        ],
    }
}

/// The name of a checkpoint's output head by the prefix of its other tensors: text models, and text models within
/// multimodal ones as transformers has written them.
const LAYOUTS: [(&str, &str); 3] = [
    ("model.", "lm_head.weight"),
    ("model.language_model.", "lm_head.weight"),
    ("language_model.model.", "language_model.lm_head.weight"),
];

/// Tensors whose name begins or ends so are ignored: vision towers, multi-token prediction, buffers of old checkpoints.
const SKIP: [&str; 7] = [
    "model.visual.",
    "visual.",
    "vision_tower.",
    "model.vision_tower.",
    "multi_modal_projector.",
    "model.multi_modal_projector.",
    "mtp.",
];
const SKIP_ENDS: [&str; 1] = ["rotary_emb.inv_freq"];

/// How a checkpoint names the tensors of a model.
#[derive(Clone, Debug)]
pub struct Names {
    prefix: &'static str,
    head: &'static str,
    /// The embedding is the output head as well.
    pub tied: bool,
}

impl Names {
    /// The naming of a checkpoint; `has` says which names it has.
    pub fn of(has: &dyn Fn(&str) -> bool) -> Self {
        let found = LAYOUTS.iter().find(|(prefix, _)| has(&format!("{prefix}embed_tokens.weight")));
        let (prefix, head) = *found.unwrap_or(&LAYOUTS[0]);
        Self { prefix, head, tied: !has(head) }
    }

    pub fn embed(&self) -> String {
        format!("{}embed_tokens.weight", self.prefix)
    }

    /// The final norm.
    pub fn norm(&self) -> String {
        format!("{}norm.weight", self.prefix)
    }

    pub fn head(&self) -> String {
        if self.tied { self.embed() } else { self.head.into() }
    }

    pub fn layer(&self, i: usize, part: &str) -> String {
        format!("{}layers.{i}.{part}", self.prefix)
    }
}

/// Whether a checkpoint may have this tensor although the model does not use it.
pub fn may_skip(name: &str) -> bool {
    SKIP.iter().any(|start| name.starts_with(start)) || SKIP_ENDS.iter().any(|end| name.ends_with(end))
}
