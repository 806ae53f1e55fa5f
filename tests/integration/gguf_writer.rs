//! Writes GGUF files for tests: of any metadata and tensors, and of a fixture as llama.cpp's `convert_hf_to_gguf.py` writes
//! its folder.

use std::collections::BTreeMap;

use fasq::checkpoint::Checkpoint;
use fasq::config::{DeltaNet, Scaling};
use fasq::generate::Tokenizer;
use fasq::model::arch;
use fasq::tensor::Dtype;
use half::{bf16, f16};
use serde_json::Value;

/// Numbers of element types in a file.
pub const F32: u32 = 0;
const F16: u32 = 1;
const BF16: u32 = 30;
pub const Q8_0: u32 = 8;

/// A file to be.
#[derive(Clone, Default)]
pub struct Gguf {
    /// Keys and their values, with the values' types.
    pub metadata: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// Rows first.
    pub shape: Vec<usize>,
    pub kind: u32,
    pub bytes: Vec<u8>,
}

fn text_bytes(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Gguf {
    fn put(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.metadata.push((key.into(), [&kind.to_le_bytes()[..], value].concat()));
    }

    pub fn u32(&mut self, key: &str, value: usize) {
        self.put(key, 4, &(value as u32).to_le_bytes());
    }

    pub fn f32(&mut self, key: &str, value: f32) {
        self.put(key, 6, &value.to_le_bytes());
    }

    pub fn flag(&mut self, key: &str, value: bool) {
        self.put(key, 7, &[u8::from(value)]);
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.put(key, 8, &text_bytes(value));
    }

    fn list(&mut self, key: &str, kind: u32, count: usize, values: &[u8]) {
        let head = [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
        self.put(key, 9, &[&head, values].concat());
    }

    pub fn texts(&mut self, key: &str, values: &[String]) {
        let bytes: Vec<u8> = values.iter().flat_map(|text| text_bytes(text)).collect();
        self.list(key, 8, values.len(), &bytes);
    }

    pub fn i32s(&mut self, key: &str, values: &[i32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.list(key, 5, values.len(), &bytes);
    }

    pub fn f32s(&mut self, key: &str, values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.list(key, 6, values.len(), &bytes);
    }

    /// A tensor in F32, or in another dense type that holds its values.
    pub fn values(&mut self, name: &str, shape: &[usize], kind: u32, values: &[f32]) {
        let bytes = values.iter().flat_map(|x| match kind {
            F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
            BF16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
            _ => x.to_le_bytes().to_vec(),
        });
        self.tensors.push(Tensor { name: name.into(), shape: shape.to_vec(), kind, bytes: bytes.collect() });
    }

    /// The file's bytes, with 32 for alignment.
    pub fn bytes(&self) -> Vec<u8> {
        let mut file = [&b"GGUF"[..], &3_u32.to_le_bytes()].concat();
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            file.extend(text_bytes(key));
            file.extend(value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            file.extend(text_bytes(&tensor.name));
            file.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|n| file.extend((*n as u64).to_le_bytes()));
            file.extend(tensor.kind.to_le_bytes());
            file.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes.len().next_multiple_of(32);
        }
        for tensor in &self.tensors {
            file.resize(file.len().next_multiple_of(32), 0);
            file.extend(&tensor.bytes);
        }
        file
    }
}

/// The names of tensors in a folder's blocks, and in a file's.
const NAMES: [(&str, &str); 27] = [
    ("input_layernorm.weight", "attn_norm.weight"),
    ("self_attn.q_proj.weight", "attn_q.weight"),
    ("self_attn.q_proj.bias", "attn_q.bias"),
    ("self_attn.k_proj.weight", "attn_k.weight"),
    ("self_attn.k_proj.bias", "attn_k.bias"),
    ("self_attn.v_proj.weight", "attn_v.weight"),
    ("self_attn.v_proj.bias", "attn_v.bias"),
    ("self_attn.qkv_proj.weight", "attn_qkv.weight"),
    ("self_attn.o_proj.weight", "attn_output.weight"),
    ("self_attn.q_norm.weight", "attn_q_norm.weight"),
    ("self_attn.k_norm.weight", "attn_k_norm.weight"),
    ("pre_feedforward_layernorm.weight", "ffn_norm.weight"),
    ("post_feedforward_layernorm.weight", "post_ffw_norm.weight"),
    ("mlp.gate_proj.weight", "ffn_gate.weight"),
    ("mlp.up_proj.weight", "ffn_up.weight"),
    ("mlp.gate_up_proj.weight", "ffn_up.weight"),
    ("mlp.down_proj.weight", "ffn_down.weight"),
    ("linear_attn.in_proj_qkv.weight", "attn_qkv.weight"),
    ("linear_attn.in_proj_z.weight", "attn_gate.weight"),
    ("linear_attn.in_proj_a.weight", "ssm_alpha.weight"),
    ("linear_attn.in_proj_b.weight", "ssm_beta.weight"),
    ("linear_attn.conv1d.weight", "ssm_conv1d.weight"),
    ("linear_attn.A_log", "ssm_a"),
    ("linear_attn.dt_bias", "ssm_dt.bias"),
    ("linear_attn.norm.weight", "ssm_norm.weight"),
    ("linear_attn.out_proj.weight", "ssm_out.weight"),
    // Where it is the norm of the MLP's input; else it is the one after the mixer.
    ("post_attention_layernorm.weight", "ffn_norm.weight"),
];

/// A folder's model as a file of this architecture.
pub fn export(checkpoint: &Checkpoint, arch: &str, pre: &str) -> Gguf {
    let mut file = Gguf::default();
    metadata(&mut file, checkpoint, arch);
    tokenizer(&mut file, checkpoint, pre);
    let config = checkpoint.config();
    for spec in arch::tensors(config, &|name| checkpoint.contains(name)) {
        let tensor = checkpoint.tensor(&spec.name).unwrap();
        let kind = match tensor.dtype {
            Dtype::F16 => F16,
            Dtype::BF16 => BF16,
            Dtype::F32 => F32,
        };
        let mut values = tensor.to_f32();
        let mut shape = tensor.shape.clone();
        let width = values.len() / shape[0];
        let Some((_, rest)) = spec.name.split_once("layers.") else {
            let name = match spec.name.rsplit('.').nth(1).unwrap() {
                "embed_tokens" => "token_embd.weight",
                "norm" => "output_norm.weight",
                _ => "output.weight",
            };
            if name == "output_norm.weight" {
                values.iter_mut().for_each(|x| *x += config.family.norm_offset);
            }
            file.values(name, &shape, if shape.len() == 1 { F32 } else { kind }, &values);
            continue;
        };
        let (layer, part) = rest.split_once('.').unwrap();
        if ["llama", "mistral3", "smollm3"].contains(&arch) {
            let heads = [("self_attn.q_proj.", config.heads), ("self_attn.k_proj.", config.kv_heads)];
            if let Some((_, heads)) = heads.iter().find(|(start, _)| part.starts_with(start)) {
                values = paired(&values, *heads, shape[0] / heads, width);
            }
        }
        if part.ends_with("norm.weight") && part != "linear_attn.norm.weight" {
            values.iter_mut().for_each(|x| *x += config.family.norm_offset);
        }
        if let Some(net) = &config.delta_net {
            delta_net(net, part, &mut values, width);
        }
        shape.retain(|n| *n > 1);
        let is_small = shape.len() == 1 || part == "linear_attn.conv1d.weight";
        let named = NAMES.iter().find(|(name, _)| *name == part).unwrap().1;
        let after_mixer = ["gemma3", "qwen35", "olmo2"].contains(&arch);
        let named = match part {
            "post_attention_layernorm.weight" if after_mixer => "post_attention_norm.weight",
            _ => named,
        };
        file.values(&format!("blk.{layer}.{named}"), &shape, if is_small { F32 } else { kind }, &values);
    }
    file
}

/// The rows of each head with the two that are turned together side by side.
fn paired(values: &[f32], heads: usize, head_dim: usize, width: usize) -> Vec<f32> {
    let row = |row: usize| &values[row * width..][..width];
    let pairs = (0..heads).flat_map(|head| (0..head_dim / 2).map(move |i| head * head_dim + i));
    pairs.flat_map(|first| [row(first), row(first + head_dim / 2)].concat()).collect()
}

/// What a converter does to a delta net: value heads in the order of their number among those of a key head, and the decay
/// as it is multiplied.
fn delta_net(net: &DeltaNet, part: &str, values: &mut Vec<f32>, width: usize) {
    let tiled = |values: &[f32], size: usize| -> Vec<f32> {
        let (keys, group) = (net.key_heads, net.value_heads / net.key_heads);
        let heads = (0..group).flat_map(|v| (0..keys).map(move |k| k * group + v));
        heads.flat_map(|head| values[head * size..][..size].to_vec()).collect()
    };
    let queries_and_keys = 2 * net.key_heads * net.key_dim * width;
    *values = match part.strip_prefix("linear_attn.") {
        Some("in_proj_qkv.weight" | "conv1d.weight") => {
            let (before, heads) = values.split_at(queries_and_keys);
            [before, &tiled(heads, net.value_dim * width)].concat()
        }
        Some("in_proj_z.weight") => tiled(values, net.value_dim * width),
        Some("in_proj_a.weight" | "in_proj_b.weight" | "dt_bias") => tiled(values, width),
        Some("A_log") => tiled(values, 1).iter().map(|x| -x.exp()).collect(),
        Some("out_proj.weight") => values.chunks(width).flat_map(|row| tiled(row, net.value_dim)).collect(),
        _ => return,
    };
}

fn metadata(file: &mut Gguf, checkpoint: &Checkpoint, arch: &str) {
    let config = checkpoint.config();
    let key = |end: &str| format!("{arch}.{end}");
    file.text("general.architecture", arch);
    for (end, value) in [
        ("block_count", config.layers.len()),
        ("context_length", config.max_context),
        ("embedding_length", config.hidden),
        ("feed_forward_length", config.intermediate),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("rope.dimension_count", config.ropes[0].rotary_dim),
    ] {
        file.u32(&key(end), value);
    }
    file.f32(&key("attention.layer_norm_rms_epsilon"), config.norm_eps);
    let rope = &config.ropes[0];
    file.f32(&key("rope.freq_base"), rope.theta as f32);
    if let Some(window) = config.layers.iter().find_map(|layer| layer.window) {
        file.u32(&key("attention.sliding_window"), window);
    }
    if arch == "gemma3" {
        let period = config.layers.iter().position(|layer| layer.window.is_none()).unwrap() + 1;
        file.u32(&key("attention.sliding_window_pattern"), period);
        file.f32(&key("rope.freq_base_swa"), config.ropes[1].theta as f32);
    }
    if let Some(net) = &config.delta_net {
        for (end, value) in [
            ("ssm.conv_kernel", net.conv_kernel),
            ("ssm.state_size", net.key_dim),
            ("ssm.group_count", net.key_heads),
            ("ssm.time_step_rank", net.value_heads),
            ("ssm.inner_size", net.values()),
        ] {
            file.u32(&key(end), value);
        }
    }
    let plain = fasq::config::Rope { scaling: Scaling::None, ..rope.clone() };
    match &rope.scaling {
        Scaling::None => {}
        Scaling::Linear { factor } => {
            file.text(&key("rope.scaling.type"), "linear");
            file.f32(&key("rope.scaling.factor"), *factor as f32);
        }
        Scaling::Llama3 { .. } => {
            let divided = plain.inv_freq(1).into_iter().zip(rope.inv_freq(1));
            let factors: Vec<f32> = divided.map(|(plain, scaled)| plain / scaled).collect();
            file.values("rope_freqs.weight", &[factors.len()], F32, &factors);
        }
        Scaling::Yarn { factor, original_context, beta_fast, beta_slow, .. } => {
            file.text(&key("rope.scaling.type"), "yarn");
            file.f32(&key("rope.scaling.factor"), *factor as f32);
            file.u32(&key("rope.scaling.original_context_length"), *original_context as usize);
            file.f32(&key("rope.scaling.yarn_beta_fast"), *beta_fast as f32);
            file.f32(&key("rope.scaling.yarn_beta_slow"), *beta_slow as f32);
        }
        Scaling::Long { short, long, original_context, amplitude } => {
            file.u32(&key("rope.scaling.original_context_length"), *original_context);
            file.f32(&key("rope.scaling.attn_factor"), *amplitude as f32);
            for (name, factors) in [("short", short), ("long", long)] {
                let factors: Vec<f32> = factors.iter().map(|factor| *factor as f32).collect();
                file.values(&format!("rope_factors_{name}.weight"), &[factors.len()], F32, &factors);
            }
        }
    }
    if let Some(scaling) = config.query_scaling {
        file.f32(&key("attention.temperature_scale"), scaling.beta);
    }
}

/// The tokenizer: of bytes with merges, or, where tokens of bytes stand for what is missing, with scores.
fn tokenizer(file: &mut Gguf, checkpoint: &Checkpoint, pre: &str) {
    let (config, assets) = (checkpoint.config(), checkpoint.assets());
    let text = assets.tokenizer.as_ref().unwrap();
    let json: Value = serde_json::from_str(text).unwrap();
    let model = &json["model"];
    let is_scored = model["byte_fallback"] == true;
    let mut tokens: Vec<String> = (0..config.vocab).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![5; config.vocab];
    for (token, id) in model["vocab"].as_object().unwrap() {
        let id = id.as_u64().unwrap() as usize;
        let is_byte = is_scored && token.starts_with("<0x") && token.len() == 6;
        (tokens[id], kinds[id]) = (token.clone(), if is_byte { 6 } else { 1 });
    }
    for added in json["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap() as usize;
        let is_unknown = model["unk_token"] == added["content"];
        tokens[id] = added["content"].as_str().unwrap().into();
        kinds[id] = if is_unknown { 2 } else { 4 - i32::from(added["special"] == true) };
    }
    let merges: Vec<(String, String)> = model["merges"].as_array().unwrap().iter().map(merge).collect();
    file.text("tokenizer.ggml.model", if is_scored { "llama" } else { "gpt2" });
    file.text("tokenizer.ggml.pre", pre);
    if is_scored {
        let ranks: BTreeMap<String, usize> =
            merges.iter().enumerate().rev().map(|(rank, (a, b))| (format!("{a}{b}"), rank)).collect();
        let score = |token: &String| ranks.get(token).map_or(-1e6, |rank| -(*rank as f32));
        file.f32s("tokenizer.ggml.scores", &tokens.iter().map(score).collect::<Vec<_>>());
        let has_prefix = json["normalizer"].to_string().contains("Prepend");
        file.flag("tokenizer.ggml.add_space_prefix", has_prefix);
    } else {
        let merges: Vec<String> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
        file.texts("tokenizer.ggml.merges", &merges);
    }
    file.texts("tokenizer.ggml.tokens", &tokens);
    file.i32s("tokenizer.ggml.token_type", &kinds);
    let adds_bos = Tokenizer::new(text, config.vocab).unwrap().adds_bos();
    file.flag("tokenizer.ggml.add_bos_token", adds_bos);
    if let Some(bos) = config.bos {
        file.u32("tokenizer.ggml.bos_token_id", bos as usize);
    }
    for (end, id) in ["eos", "eot", "eom"].iter().zip(&config.eos) {
        file.u32(&format!("tokenizer.ggml.{end}_token_id"), *id as usize);
    }
    if let Some(template) = &assets.chat_template {
        file.text("tokenizer.chat_template", template);
    }
}

/// A merge, in either of the two ways of writing one.
fn merge(value: &Value) -> (String, String) {
    let (a, b) = match value {
        Value::String(pair) => pair.split_once(' ').unwrap(),
        pair => (pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
    };
    (a.into(), b.into())
}
