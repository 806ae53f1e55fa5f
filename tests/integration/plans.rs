//! The plans of whole models as text, against golden files (tests/plans, one for each family and backend): a rewrite that no
//! longer happens changes them. `FASQ_UPDATE_PLANS=1` writes them anew, for a change that is meant.

use std::path::Path;

use fasq::backend::Backend;
use fasq::model::random::{Random, Storage};
use fasq::model::{Batch, Model, Row, Session, SessionOptions, Source};
use pollster::block_on;

const LLAMA: &str = r#"{
    "model_type": "llama", "vocab_size": 512, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 2,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 512, "tie_word_embeddings": false, "hidden_act": "silu"
}"#;

const QWEN3: &str = r#"{
    "model_type": "qwen3", "vocab_size": 512, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "max_position_embeddings": 512, "tie_word_embeddings": true, "attention_bias": false, "hidden_act": "silu"
}"#;

const QWEN35: &str = r#"{
    "model_type": "qwen3_5_text", "vocab_size": 512, "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": false, "attention_bias": false,
    "hidden_act": "silu", "full_attention_interval": 2, "linear_num_key_heads": 4, "linear_num_value_heads": 8,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4
}"#;

const QWEN2: &str = r#"{
    "model_type": "qwen2", "vocab_size": 512, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": true
}"#;

const MISTRAL: &str = r#"{
    "model_type": "mistral", "vocab_size": 512, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 1,
    "num_attention_heads": 8, "num_key_value_heads": 2, "sliding_window": 100
}"#;

const MINISTRAL3: &str = r#"{
    "model_type": "ministral3", "vocab_size": 512, "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 2, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 4, "original_max_position_embeddings": 128,
        "llama_4_scaling_beta": 0.1
    }
}"#;

const GEMMA3: &str = r#"{
    "model_type": "gemma3_text", "vocab_size": 512, "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 2, "sliding_window_pattern": 2, "sliding_window": 100
}"#;

const PHI3: &str = r#"{
    "model_type": "phi3", "vocab_size": 512, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 1,
    "num_attention_heads": 16, "partial_rotary_factor": 0.75
}"#;

const SMOLLM3: &str = r#"{
    "model_type": "smollm3", "vocab_size": 512, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 2,
    "num_attention_heads": 16, "no_rope_layers": [1, 0], "tie_word_embeddings": true
}"#;

const OLMO2: &str = r#"{
    "model_type": "olmo2", "vocab_size": 512, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 2,
    "num_attention_heads": 16
}"#;

/// A golden file's name, a configuration, and the specs of linear layers and embeddings (none: f16).
pub const CASES: &[(&str, &str, Option<&str>)] = &[
    ("llama", LLAMA, Some("2-256@universal")),
    ("llama-subspace", LLAMA, Some("2-256@subspace+rms")),
    ("llama-f16", LLAMA, None),
    ("qwen3", QWEN3, Some("2-64@universal")),
    ("qwen3_5", QWEN35, Some("2-256@universal")),
    ("qwen2", QWEN2, Some("2-256@universal")),
    ("mistral", MISTRAL, Some("2-256@universal")),
    ("ministral3", MINISTRAL3, Some("2-256@universal")),
    ("gemma3", GEMMA3, Some("2-256@universal")),
    ("phi3", PHI3, Some("2-256@universal")),
    ("smollm3", SMOLLM3, Some("2-256@universal")),
    ("olmo2", OLMO2, Some("2-256@universal")),
];

/// What is planned: sequences, tokens of each one's batch.
const BATCHES: &[(&str, usize, usize)] =
    &[("decode", 1, 1), ("decode, 4 sequences", 4, 1), ("prefill of 256 tokens", 1, 256)];

/// The plans of a model by a backend that keeps them; `text` takes them.
fn plans<B: Backend>(backend: B, config: &str, spec: Option<&str>, text: impl Fn() -> String) -> String {
    let spec = spec.map(|spec| spec.parse().unwrap());
    let source = Source::Random(Random::new(config, Storage { linear: spec, head: spec }).unwrap());
    let model = Model::load(backend, &source).unwrap();
    let mut all = String::new();
    for (what, slots, tokens) in BATCHES {
        let options = SessionOptions { slots: *slots, context: 300, max_rows: 256 };
        let mut session = Session::new(&model, options).unwrap();
        let row = |slot: usize, position: usize| Row {
            token: 1,
            slot: slot as u32,
            position: position as u32,
            want_logits: position + 1 == *tokens,
        };
        let rows = (0..*slots).flat_map(|slot| (0..*tokens).map(move |position| row(slot, position)));
        text();
        block_on(session.forward(&Batch { rows: rows.collect() })).unwrap();
        all += &format!("{what}\n\n{}\n", text());
    }
    all
}

/// Compares with the golden file, or writes it.
fn golden(name: &str, found: &str) -> Result<(), String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans").join(format!("{name}.txt"));
    if std::env::var_os("FASQ_UPDATE_PLANS").is_some() {
        std::fs::write(&path, found).unwrap();
        return Ok(());
    }
    let expected = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let differ = |(i, (expected, found)): (usize, (&str, &str))| {
        (expected != found)
            .then(|| format!("{name}.txt, line {}:\n  expected {expected}\n  found    {found}", i + 1))
    };
    let lines = expected.lines().chain([""]).zip(found.lines().chain([""])).enumerate();
    match lines.filter_map(differ).next() {
        Some(difference) => Err(difference),
        None if expected != found => Err(format!("{name}.txt: one is longer than the other")),
        None => Ok(()),
    }
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_plans_are_the_golden_ones() {
    use fasq::backend::cuda::support::{H200, RTX_3090, dry};
    let mut failed = Vec::new();
    for (device, capabilities) in [("cuda", H200), ("cuda-sm86", RTX_3090)] {
        for (name, config, spec) in CASES {
            let backend = dry(capabilities);
            let found = plans(&backend, config, *spec, || backend.take_text());
            failed.extend(golden(&format!("{name}.{device}"), &found).err());
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[cfg(feature = "wgpu")]
#[test]
fn wgpu_plans_are_the_golden_ones() {
    let mut failed = Vec::new();
    for (name, config, spec) in CASES {
        let backend = fasq::backend::wgpu::test_support::dry();
        let found = plans(&backend, config, *spec, || backend.take_text());
        failed.extend(golden(&format!("{name}.wgpu"), &found).err());
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
