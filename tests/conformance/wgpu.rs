//! The wgpu backend's runners: whatever adapter is there, with all that it offers and without; and what only this
//! backend is asked.

use std::sync::OnceLock;

use fasq::backend::cpu::Cpu;
use fasq::backend::wgpu::Wgpu;
use fasq::backend::wgpu::test_support::{self, Limits};
use fasq::backend::{Backend, Dtype, WeightData};
use fasq::config::ModelConfig;
use fasq::eval::perplexity::{Protocol, perplexity};
use fasq::family::{Norms, QkNorms};
use fasq::generate::Tokenizer;
use fasq::model::random::{Random, Storage};
use fasq::model::{Batch, Model, Session, SessionOptions, Source};
use fasq::ops;
use pollster::block_on;

use crate::harness::{Checks, Device, EXACT};
use crate::skip;

/// The device opened within `limits`, one for all tests; None where there is no adapter, which is a failure unless it
/// would have to be a GPU.
fn open(device: &'static OnceLock<Option<Wgpu>>, limits: Limits) -> Option<Wgpu> {
    let tell = if limits.software { skip::cannot_run } else { skip::not_tested };
    let opened = device.get_or_init(|| {
        block_on(test_support::open(limits)).inspect_err(|e| tell("wgpu", e.to_string())).ok()
    });
    opened.clone()
}

/// Everything that the adapter offers, in f32.
pub fn full() -> Option<Wgpu> {
    static DEVICE: OnceLock<Option<Wgpu>> = OnceLock::new();
    open(&DEVICE, Limits { tensor: false, ..Limits::default() })
}

/// The same on a GPU only: a software adapter takes minutes for long texts.
pub fn gpu() -> Option<Wgpu> {
    static DEVICE: OnceLock<Option<Wgpu>> = OnceLock::new();
    open(&DEVICE, Limits { software: false, tensor: false, ..Limits::default() })
}

/// Many rows by the paper's LUT GEMM.
pub fn lut() -> Option<Wgpu> {
    static DEVICE: OnceLock<Option<Wgpu>> = OnceLock::new();
    open(&DEVICE, Limits { lut: true, tensor: false, ..Limits::default() })
}

/// What users run: many rows go through matrix units in f16, where there are any.
pub fn half() -> Option<Wgpu> {
    static DEVICE: OnceLock<Option<Wgpu>> = OnceLock::new();
    let device = open(&DEVICE, Limits::default())?;
    if !device.has_tensor() {
        skip::not_tested("wgpu's matrix units", "the adapter has none");
        return None;
    }
    Some(device)
}

/// Without subgroups, with as little workgroup memory as every adapter has, and with weights bound in small slices.
pub fn plain() -> Option<Wgpu> {
    static DEVICE: OnceLock<Option<Wgpu>> = OnceLock::new();
    let limits = Limits {
        subgroups: false,
        tensor: false,
        weight_slice: 1 << 17,
        workgroup_memory: 16 << 10,
        ..Limits::default()
    };
    open(&DEVICE, limits)
}

/// Kernels of a decoded token at most: for each layer, and for embedding, gathering, the last norm and the head.
fn most_kernels(config: &ModelConfig) -> usize {
    let norms = 2 * usize::from(config.family.norms != Norms::Before);
    let qk_norm = usize::from(config.family.qk_norms == QkNorms::Projection);
    (8 + norms + qk_norm) * config.layers.len() + 4
}

/// Each family dense and quantized; and the built-in model, of which each matrix has a spec of its own.
#[test]
fn a_token_takes_few_kernels() {
    // A device of its own: other tests count on theirs.
    static DEVICE: OnceLock<Option<Wgpu>> = OnceLock::new();
    let Some(device) = open(&DEVICE, Limits::default()) else { return };
    let random = |config: &str| {
        let spec = |text: &str| Some(text.parse().expect("a spec"));
        let storage = Storage { linear: spec("2-256@universal"), head: spec("2-256@universal") };
        Source::Random(Random::new(config, storage).expect("a configuration"))
    };
    let mut sources: Vec<Source> =
        crate::forward::fixtures().iter().map(|dir| Source::open(dir).expect("a fixture")).collect();
    sources.extend([crate::decode::LLAMA, crate::decode::QWEN3].map(random));
    // Kernels of many specs are long, and SwiftShader takes minutes to compile them.
    if !device.describe().contains("SwiftShader") {
        sources.push(random(crate::decode::QWEN35));
        sources.push(Source::open(&demo()).expect("the built-in model"));
    }
    for source in sources {
        let model = Model::load(device.clone(), &source).expect("a model");
        let mut session =
            Session::new(&model, SessionOptions { slots: 1, context: 8, max_rows: 4 }).expect("a session");
        block_on(session.prefill(0, &[1, 2, 3])).expect("prefill");
        let before = device.dispatches().expect("a count");
        block_on(session.forward(&Batch::of_slot(0, 3, &[4], true))).expect("a token");
        let kernels = device.dispatches().expect("a count") - before;
        let most = most_kernels(source.config());
        assert!(
            kernels <= most as u64,
            "{:?}: {kernels} kernels a token, not {most}",
            source.config().family
        );
    }
}

/// Decode steps on any adapter; see `wgpu_decode`.
#[test]
fn steps_near_the_beginning() {
    let Some(device) = full() else { return };
    let mut checks = Checks::with_floor(EXACT);
    crate::decode::near(&Device(device), &mut checks);
    checks.finish();
}

fn demo() -> std::path::PathBuf {
    crate::root().join("models/wiki-32m.fasq")
}

const TEXT: &str = "The river rises in the hills above the town and flows to the sea. In the winter of that year the ice \
    was so thick that people walked across it, and a market was held between the two bridges. The mayor wrote in a \
    letter that nobody could remember such a cold winter. When the spring came the water rose and the old bridge fell.";

/// The built-in model's perplexity on [`TEXT`].
fn demo_perplexity<B: Backend>(backend: B) -> f64 {
    let source = Source::open(&demo()).expect("a model");
    let json = source.assets().tokenizer.as_ref().expect("a tokenizer");
    let tokenizer = Tokenizer::new(json, source.config().vocab).expect("a tokenizer");
    let tokens = tokenizer.encode(TEXT, false).expect("tokens");
    let model = Model::load(backend, &source).expect("the model");
    let protocol = Protocol { context: 32, chunks: Some(2), bos: None };
    block_on(perplexity(&model, &tokens, protocol, |_, _, _| true)).expect("a perplexity").perplexity()
}

#[test]
fn the_demo_model_has_the_perplexity_of_the_cpu() {
    let Some(device) = full() else { return };
    let (expected, found) = (demo_perplexity(Cpu), demo_perplexity(device));
    assert!((found / expected - 1.0).abs() < 1e-3, "cpu: {expected}, wgpu: {found}");
}

#[test]
fn a_model_larger_than_the_memory_is_an_error() {
    static DEVICE: OnceLock<Option<Wgpu>> = OnceLock::new();
    let Some(device) = open(&DEVICE, Limits { memory: Some(100 << 20), ..Limits::default() }) else { return };
    assert!(device.check_memory(30 << 20).is_ok());
    let error = device.check_memory(5 << 30).expect_err("an error").to_string();
    assert!(error.contains("needs 5.00 GiB") && error.contains("has 0.10 GiB of memory"), "{error}");
    // What the adapter itself has is finite, where it tells.
    let Some(device) = full() else { return };
    assert!(device.check_memory(1 << 20).is_ok());
    if cfg!(not(target_vendor = "apple")) {
        assert!(device.check_memory(1 << 50).is_err());
    }
}

#[test]
fn what_an_adapter_cannot_bind_is_an_error() {
    static DEVICE: OnceLock<Option<Wgpu>> = OnceLock::new();
    let Some(device) = open(&DEVICE, Limits { weight_slice: 1 << 16, ..Limits::default() }) else { return };
    let bytes = vec![0; 64 * 4096];
    let wide = WeightData::Dense { dtype: Dtype::F32, rows: 64, cols: 1024, bytes: &bytes };
    let error = device.weight(&[wide]).err().expect("an error").to_string();
    assert!(error.contains("expected rows under 1024 bytes") && error.contains("4096"), "{error}");
    let error = device.alloc(1 << 40).err().expect("an error").to_string();
    assert!(error.contains("takes buffers of up to"), "{error}");
    // Nothing of it stays behind.
    let buffer = device.upload(&[1, 2, 3]).expect("a small buffer");
    assert_eq!(block_on(device.read(&buffer, 1, 2)).expect("its words"), [2, 3]);
}

/// NaN of either sign is larger than everything; of equals, and of the two zeros, the lowest position wins.
#[test]
fn argmax_orders_as_top_k_does() {
    let Some(device) = full() else { return };
    let dim = 5000;
    let row = |fill: f32, values: &[(usize, f32)]| {
        let mut row = vec![fill; dim];
        values.iter().for_each(|(i, v)| row[*i] = *v);
        row
    };
    let rows = [
        (0, row(f32::NAN, &[])),
        (0, row(f32::NEG_INFINITY, &[])),
        (0, row(-1.0, &[])),
        (4999, row(-1.0, &[(4999, -0.5)])),
        (10, row(0.0, &[(3, f32::INFINITY), (10, f32::NAN), (4321, f32::NAN)])),
        (4000, row(0.0, &[(4000, -f32::NAN), (17, f32::INFINITY)])),
        (70, row(-1.0, &[(70, -0.0), (71, 0.0)])),
        (256, row(f32::MIN, &[(256, 1e-40), (257, 1e-41), (300, -1e-40)])),
        (2048, row(1.0, &[(2048, 1e30), (2049, 1e30), (12, -1e30)])),
    ];
    let values: Vec<f32> = rows.iter().flat_map(|(_, row)| row.iter().copied()).collect();
    let x = device.upload(bytemuck::cast_slice(&values)).expect("rows");
    let found = block_on(device.argmax(&x, rows.len(), dim)).expect("positions");
    for ((position, row), found) in rows.iter().zip(found) {
        let first = ops::top_k(row, 1)[0];
        assert_eq!((found.0, first.0), (*position, *position));
        assert!(found.1 == first.1 || found.1.is_nan() && first.1.is_nan(), "{found:?}, not {first:?}");
    }
}
