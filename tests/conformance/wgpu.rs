//! The wgpu backend's runners: whatever adapter is there, with all that it offers and without.

use std::sync::OnceLock;

use fasq::backend::Backend;
use fasq::backend::wgpu::{Options, Wgpu};
use fasq::config::{Mixer, ModelConfig};
use fasq::model::{Batch, Model, Session, SessionOptions, Source};
use pollster::block_on;

/// The device opened with `options`, one for all tests; None, and a line that says so, where there is no adapter.
fn open(device: &'static OnceLock<Option<Wgpu>>, options: Options) -> Option<Wgpu> {
    let opened = device
        .get_or_init(|| block_on(Wgpu::open(options)).inspect_err(|e| eprintln!("NOT TESTED: {e}")).ok());
    opened.clone()
}

/// Everything that the adapter offers.
pub fn full() -> Option<Wgpu> {
    static DEVICE: OnceLock<Option<Wgpu>> = OnceLock::new();
    open(&DEVICE, Options::default())
}

/// Without subgroups, and with weights bound in small slices.
pub fn plain() -> Option<Wgpu> {
    static DEVICE: OnceLock<Option<Wgpu>> = OnceLock::new();
    open(&DEVICE, Options { subgroups: false, weight_slice: 1 << 17, ..Options::default() })
}

/// Kernels of a decoded token at most: for each layer, and for embedding, gathering, the last norm and the head.
fn most_kernels(config: &ModelConfig) -> usize {
    let layer = |mixer: &Mixer| if *mixer == Mixer::Attention { 8 } else { 10 };
    config.layers.iter().map(layer).sum::<usize>() + 4
}

#[test]
fn a_token_takes_few_kernels() {
    // A device of its own: other tests count on theirs.
    static DEVICE: OnceLock<Option<Wgpu>> = OnceLock::new();
    let Some(device) = open(&DEVICE, Options::default()) else { return };
    for dir in crate::forward::fixtures() {
        let source = Source::open(&dir).expect("a fixture");
        let model = Model::load(device.clone(), &source).expect("a model");
        let mut session =
            Session::new(&model, SessionOptions { slots: 1, context: 8, max_rows: 4 }).expect("a session");
        block_on(session.prefill(0, &[1, 2, 3])).expect("prefill");
        let before = device.dispatches().expect("a count");
        block_on(session.forward(&Batch::of_slot(0, 3, &[4], true))).expect("a token");
        let kernels = device.dispatches().expect("a count") - before;
        let most = most_kernels(source.config());
        assert!(kernels <= most as u64, "{}: {kernels} kernels a token, not {most}", dir.display());
    }
}
