//! Decode steps of quantized models against the CPU backend: many small operations in a row, where a backend may join
//! them, for one sequence and for several, up to positions that take attention over several stretches.

use fasq::backend::Backend;
use fasq::backend::cpu::Cpu;
use fasq::model::random::{Random, Storage};
use fasq::model::{Batch, Model, Row, Session, SessionOptions, Source};
use pollster::block_on;

use crate::harness::{Checks, Device, Tolerance, f64s};

/// f32 sums in another order, through some layers.
const LOGITS: Tolerance = Tolerance { abs: 2e-3, rel: 1e-3 };

pub const LLAMA: &str = r#"{
    "model_type": "llama", "vocab_size": 311, "hidden_size": 256, "intermediate_size": 736, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 1024, "tie_word_embeddings": false, "hidden_act": "silu"
}"#;

/// Heads as large models have them.
const WIDE: &str = r#"{
    "model_type": "llama", "vocab_size": 311, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "max_position_embeddings": 1024, "tie_word_embeddings": false, "hidden_act": "silu"
}"#;

/// Sizes that nothing divides well.
pub const QWEN3: &str = r#"{
    "model_type": "qwen3", "vocab_size": 257, "hidden_size": 132, "intermediate_size": 250, "num_hidden_layers": 2,
    "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 80, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "max_position_embeddings": 1024, "tie_word_embeddings": true, "attention_bias": false, "hidden_act": "silu"
}"#;

pub const QWEN35: &str = r#"{
    "model_type": "qwen3_5_text", "vocab_size": 300, "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 256, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "max_position_embeddings": 1024, "tie_word_embeddings": false, "attention_bias": false,
    "hidden_act": "silu", "full_attention_interval": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4
}"#;

/// Few key heads, no block of a rotation that is whole heads, taps of another number.
const NET: &str = r#"{
    "model_type": "qwen3_5_text", "vocab_size": 300, "hidden_size": 96, "intermediate_size": 192,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 48, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "max_position_embeddings": 1024, "tie_word_embeddings": false, "attention_bias": false,
    "hidden_act": "silu", "full_attention_interval": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 6,
    "linear_key_head_dim": 40, "linear_value_head_dim": 24, "linear_conv_kernel_dim": 3
}"#;

/// Norms after as well, windows in every other layer.
const GEMMA3: &str = r#"{
    "model_type": "gemma3_text", "vocab_size": 311, "hidden_size": 256, "intermediate_size": 544, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "query_pre_attn_scalar": 80,
    "sliding_window": 100, "sliding_window_pattern": 2, "max_position_embeddings": 1024
}"#;

/// Norms after only, and over whole projections.
const OLMO2: &str = r#"{
    "model_type": "olmo2", "vocab_size": 311, "hidden_size": 192, "intermediate_size": 320, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 1024
}"#;

/// Queries that grow, scaled angles.
const MINISTRAL3: &str = r#"{
    "model_type": "ministral3", "vocab_size": 311, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 128, "sliding_window": 300, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 4, "original_max_position_embeddings": 64,
        "llama_4_scaling_beta": 0.1
    }
}"#;

/// A configuration, the specs of its linear layers and of its head, sequences, steps, and tokens of the first's prompt.
type Case = (&'static str, &'static str, &'static str, usize, usize, usize);

/// More positions than any kernel takes at once.
const FAR: Case = (WIDE, "2-256@universal", "2-256@universal", 1, 4, 600);

const CASES: &[Case] = &[
    (LLAMA, "2-256@universal", "2-256@universal", 1, 20, 310),
    (LLAMA, "2-256@universal", "2-256@universal", 1, 8, 124), // from few positions to many
    (WIDE, "2-256@universal", "2-256@universal", 1, 8, 60),
    FAR,
    (WIDE, "2-256@universal", "2-64@universal", 1, 4, 3),
    (LLAMA, "2-64@universal", "3-4096@universal", 1, 6, 310),
    (LLAMA, "2-256@matrix", "2-256@matrix", 3, 5, 310),
    (LLAMA, "2-256@universal", "2-256@universal", 12, 4, 310),
    (LLAMA, "2-256@subspace", "2-16@universal", 1, 4, 310),
    (LLAMA, "2-64@subspace+rms+rotate", "2-256@subspace", 1, 4, 310),
    (QWEN3, "3-128@subspace", "2-256@universal", 1, 6, 310),
    (QWEN3, "2-256@subspace", "2-256@universal", 5, 3, 310),
    (QWEN35, "2-256@subspace", "2-256@universal", 1, 4, 310),
    (QWEN3, "2-256@universal", "2-256@universal", 1, 6, 253),
    (QWEN3, "4-256@universal+norotate", "2-512@universal", 7, 4, 310),
    (QWEN35, "2-256@universal", "2-256@universal", 1, 12, 310),
    (QWEN35, "3-512@universal", "2-256@universal", 4, 6, 310),
    (NET, "2-256@subspace", "2-16@universal", 1, 6, 40),
    (NET, "2-256@universal", "2-16@universal", 3, 6, 40),
    (GEMMA3, "2-256@universal", "2-256@universal", 1, 6, 310),
    (GEMMA3, "2-256@universal", "2-256@universal", 1, 6, 98), // into the window
    (GEMMA3, "2-256@subspace", "2-256@universal", 3, 4, 310),
    (OLMO2, "2-256@universal", "2-256@universal", 1, 6, 253),
    (OLMO2, "2-64@universal+norotate", "2-256@universal", 6, 4, 310),
    (MINISTRAL3, "2-256@universal", "2-256@universal", 1, 4, 310),
];

pub fn cases<B: Backend + Clone>(device: &Device<B>, checks: &mut Checks) {
    run(device, checks, CASES);
}

/// Two steps of each kind of product behind a short prompt, for adapters that take minutes for a long one, and one case
/// behind such.
#[cfg(feature = "wgpu")]
pub fn near<B: Backend + Clone>(device: &Device<B>, checks: &mut Checks) {
    let cases = [
        (LLAMA, "2-256@universal", "2-256@universal", 12, 2, 20),
        (LLAMA, "2-64@universal", "3-4096@universal", 1, 2, 20),
        (LLAMA, "2-256@matrix", "2-256@matrix", 3, 2, 20),
        (LLAMA, "2-64@subspace+rms+rotate", "2-256@subspace", 1, 2, 20),
        (QWEN3, "3-128@subspace", "2-256@universal", 1, 2, 20),
        (QWEN3, "4-256@universal+norotate", "2-512@universal", 7, 2, 20),
        (QWEN35, "3-512@universal", "2-256@universal", 4, 2, 20),
        (NET, "2-256@universal", "2-16@universal", 3, 2, 20),
        (GEMMA3, "2-256@universal", "2-256@universal", 1, 2, 120),
        (OLMO2, "2-256@universal", "2-256@universal", 1, 2, 20),
        FAR,
    ];
    run(device, checks, &cases);
}

/// Two steps of each kind: of few positions, of many, with a delta net, with a table per subspace.
#[cfg(feature = "cuda")]
pub fn few<B: Backend + Clone>(device: &Device<B>, checks: &mut Checks) {
    let cases = [
        (LLAMA, "2-256@universal", "2-256@universal", 1, 2, 20),
        (LLAMA, "2-64@universal", "2-64@universal", 1, 2, 511),
        (QWEN3, "2-256@subspace", "2-256@universal", 2, 2, 20),
        (QWEN35, "2-256@universal", "2-256@universal", 1, 2, 40),
        (GEMMA3, "2-256@universal", "2-256@universal", 1, 2, 300),
        (OLMO2, "2-256@universal", "2-256@universal", 1, 2, 20),
    ];
    run(device, checks, &cases);
}

fn run<B: Backend + Clone>(device: &Device<B>, checks: &mut Checks, cases: &[Case]) {
    for &(config, linear, head, slots, steps, prompt) in cases {
        let storage = Storage {
            linear: Some(linear.parse().expect("a spec")),
            head: Some(head.parse().expect("a spec")),
        };
        let source = Source::Random(Random::new(config, storage).expect("a configuration"));
        let expected = decode(&Model::load(Cpu, &source).expect("a model"), slots, steps, prompt);
        let model = Model::load(device.0.clone(), &source).expect("a model");
        let got = decode(&model, slots, steps, prompt);
        let shape = [steps, slots, model.config().vocab];
        let name = format!("{:?} {linear}, head {head}, {slots} sequences", model.config().family);
        checks.close(&name, &shape, &f64s(&expected), &got, LOGITS);
    }
}

/// Logits of `steps` steps of `slots` sequences, each behind a prompt of its own length; the same tokens everywhere.
fn decode<B: Backend>(model: &Model<B>, slots: usize, steps: usize, prompt: usize) -> Vec<f32> {
    let options = SessionOptions { slots, context: 640, max_rows: 640 };
    let mut session = Session::new(model, options).expect("a session");
    let token = |n: usize| (n * 7919 % model.config().vocab) as u32;
    for slot in 0..slots {
        let prompt: Vec<u32> = (0..(prompt >> slot).max(3)).map(|i| token(i + slot)).collect();
        block_on(session.forward(&Batch::of_slot(slot, 0, &prompt, false))).expect("a prompt");
    }
    let mut all = Vec::new();
    for step in 0..steps {
        let row = |slot: usize| Row {
            token: token(step * slots + slot + 5),
            slot: slot as u32,
            position: session.position(slot).expect("a slot") as u32,
            want_logits: true,
        };
        let batch = Batch { rows: (0..slots).map(row).collect() };
        all.extend(block_on(session.forward(&batch)).expect("a step"));
    }
    all
}
