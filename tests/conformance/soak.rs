//! Thousands of decode steps: what the last of them computes is what a fresh session computes of the same tokens at
//! once, and the device's memory does not grow.

use fasq::backend::Backend;
use fasq::model::random::{Random, Storage};
use fasq::model::{Batch, Model, Session, SessionOptions, Source};
use pollster::block_on;

use crate::harness::{Checks, Device, Tolerance, f64s};

/// Other orders of summation, through all layers and thousands of positions; the logits' deviation is 1.
const DRIFT: Tolerance = Tolerance { abs: 5e-3, rel: 0.0 };

/// Tokens that begin the text.
const PROMPT: usize = 7;

const LLAMA: &str = r#"{
    "model_type": "llama", "vocab_size": 500, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 4096, "tie_word_embeddings": false, "hidden_act": "silu"
}"#;

const QWEN35: &str = r#"{
    "model_type": "qwen3_5_text", "vocab_size": 500, "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "max_position_embeddings": 4096, "tie_word_embeddings": false, "attention_bias": false,
    "hidden_act": "silu", "full_attention_interval": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 64, "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4
}"#;

pub fn cases<B: Backend + Clone>(device: &Device<B>, checks: &mut Checks) {
    // Elsewhere the steps themselves are tested, here that nothing adds up: a GPU's worth of them on a GPU only.
    let steps = if device.0.describe().starts_with("cuda") { 2000 } else { 40 };
    for (name, config) in [("llama", LLAMA), ("qwen3.5", QWEN35)] {
        for spec in [Some("2-256@universal"), Some("2-64@subspace"), None] {
            let spec = spec.map(|spec| spec.parse().expect("a spec"));
            let random = Random::new(config, Storage { linear: spec, head: spec }).expect("a model");
            let model = Model::load(device.0.clone(), &Source::Random(random)).expect("a model");
            let what = format!("{name}, {}", spec.map_or("f16".into(), |spec| spec.to_string()));
            soak(&what, &model, steps, checks);
        }
    }
}

fn soak<B: Backend>(what: &str, model: &Model<B>, steps: usize, checks: &mut Checks) {
    let options = SessionOptions { slots: 1, context: steps + PROMPT, max_rows: 256 };
    let mut session = Session::new(model, options).expect("a session");
    let mut fresh = Session::new(model, options).expect("a session");
    let mut ids: Vec<u32> = (1..=PROMPT as u32).map(|i| i * 61).collect();
    let mut logits = block_on(session.prefill(0, &ids)).expect("prefill");
    let deviation = (logits.iter().map(|l| l * l).sum::<f32>() / logits.len() as f32).sqrt();
    let mut free = None;
    for step in 1..=steps {
        let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        // What a random model likes best it would say for ever.
        ids.push(((best + 7 * step) % logits.len()) as u32);
        let batch = Batch::of_slot(0, ids.len() - 1, &ids[ids.len() - 1..], true);
        logits = block_on(session.forward(&batch)).expect("a step");
        if step % (steps / 4) > 0 {
            continue;
        }
        // Of a stretch of steps alone; a prefill may be the first of its size, and the first stretch makes a graph.
        let now = model.backend().free_memory();
        if step > steps / 4 {
            assert_eq!(now, free, "{what}: free memory after {step} steps, and a quarter of them before");
        }
        fresh.reset(0).expect("a slot");
        let scaled = |logits: Vec<f32>| logits.iter().map(|l| l / deviation).collect::<Vec<_>>();
        let expected = scaled(block_on(fresh.prefill(0, &ids)).expect("prefill"));
        let got = scaled(logits.clone());
        checks.close(
            &format!("{what}: logits after {step} steps"),
            &[got.len()],
            &f64s(&expected),
            &got,
            DRIFT,
        );
        free = model.backend().free_memory();
    }
}
