//! Whole models against transformers: logits, hidden states, delta net states and greedy tokens of the fixtures, in
//! one prefill, in pieces and token by token.

use std::fs;
use std::path::{Path, PathBuf};

use fasq::backend::Backend;
use fasq::model::{Batch, Model, Session, SessionOptions, Source};
use pollster::block_on;
use safetensors::SafeTensors;

use crate::harness::{Checks, Device, Tolerance, f64s};

/// float32 engines with other orders of summation; one wrong formula moves some logit by 0.85 or more.
const LOGITS: Tolerance = Tolerance { abs: 5e-4, rel: 0.0 };
const HIDDEN: Tolerance = Tolerance { abs: 5e-4, rel: 1e-4 };

/// The fixtures of this project, and what the larger shared set has besides, where it lies beside it.
pub fn fixtures() -> Vec<PathBuf> {
    let root = crate::root();
    let sets = [root.join("tests/fixtures"), root.join("../shared/fixtures")];
    let folders = sets
        .iter()
        .filter_map(|set| fs::read_dir(set).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()));
    let mut list: Vec<PathBuf> = folders.filter(|path| path.join("reference.safetensors").exists()).collect();
    list.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    list.dedup_by_key(|path| path.file_name().map(ToOwned::to_owned));
    assert!(list.len() >= 4, "fixtures are missing");
    list
}

struct Reference(Vec<u8>);

impl Reference {
    fn open(dir: &Path) -> Self {
        Self(fs::read(dir.join("reference.safetensors")).expect("reference.safetensors"))
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).expect("a valid reference")
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).expect(name);
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).expect(name);
        tensor
            .data()
            .chunks_exact(8)
            .map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes")) as u32)
            .collect()
    }

    fn has(&self, name: &str) -> bool {
        self.tensors().tensor(name).is_ok()
    }
}

pub fn cases<B: Backend + Clone>(device: &Device<B>, checks: &mut Checks) {
    for dir in fixtures() {
        let source = Source::open(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let model =
            Model::load(device.0.clone(), &source).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let reference = Reference::open(&dir);
        let name = dir.file_name().expect("a name").to_string_lossy().into_owned();
        let alone = if device.is_played() { 17 } else { usize::MAX };
        logits(&name, &model, &reference, alone, checks);
        hidden(&name, &model, &reference, checks);
        greedy(&name, &model, &reference, checks);
    }
}

fn session<B: Backend>(model: &Model<B>) -> Session<'_, B> {
    Session::new(model, SessionOptions { slots: 2, context: 160, max_rows: 144 }).expect("a session")
}

/// Feeds `ids` to slot 1 in pieces of these lengths (the last repeats) and returns all logits.
fn feed<B: Backend>(session: &mut Session<'_, B>, ids: &[u32], pieces: &[usize]) -> Vec<f32> {
    let mut logits = Vec::new();
    let mut left = ids;
    let mut pieces = pieces.iter().chain(std::iter::repeat(pieces.last().expect("a length")));
    while !left.is_empty() {
        let (now, rest) = left.split_at(left.len().min(*pieces.next().expect("endless")));
        let batch = Batch::of_slot(1, session.position(1).expect("a slot"), now, true);
        logits.extend(block_on(session.forward(&batch)).expect("forward"));
        left = rest;
    }
    logits
}

/// Texts of up to `alone` tokens go token by token too.
fn logits<B: Backend>(
    name: &str,
    model: &Model<B>,
    reference: &Reference,
    alone: usize,
    checks: &mut Checks,
) {
    let vocab = model.config().vocab;
    let mut session = session(model);
    for n in [1, 17, 64, 130] {
        if !reference.has(&format!("input_ids_{n}")) {
            continue;
        }
        let ids = reference.ids(&format!("input_ids_{n}"));
        let expected = f64s(&reference.floats(&format!("logits_{n}")));
        for (how, pieces) in
            [("in one", &[n][..]), ("in three pieces", &[n / 3 + 1, n / 4 + 1, n]), ("token by token", &[1])]
        {
            if pieces == [1] && n > alone {
                continue;
            }
            session.reset(1).expect("a slot");
            let got = feed(&mut session, &ids, pieces);
            checks.close(
                &format!("{name}: logits of {n} tokens {how}"),
                &[n, vocab],
                &expected,
                &got,
                LOGITS,
            );
        }
    }
}

fn hidden<B: Backend>(name: &str, model: &Model<B>, reference: &Reference, checks: &mut Checks) {
    let mut session = session(model);
    let batch = Batch::of_slot(0, 0, &reference.ids("input_ids_17"), true);
    let dim = model.config().hidden;
    let mut seen = 0;
    let mut tap = |at: &str, got: &[f32]| {
        let tensor = format!("hidden_17.{at}");
        if reference.has(&tensor) {
            seen += 1;
            checks.close(
                &format!("{name}: {tensor}"),
                &[17, dim],
                &f64s(&reference.floats(&tensor)),
                got,
                HIDDEN,
            );
        }
    };
    block_on(session.forward_tapped(&batch, &mut tap)).expect("forward");
    assert_eq!(seen, model.config().layers.len() + 2, "{name}: hidden states that were compared");
    for layer in 0..model.config().layers.len() {
        let Some((conv, recurrent)) = block_on(session.delta_state(layer, 0)).expect("state") else {
            continue;
        };
        for (part, got) in [("conv", conv), ("recurrent", recurrent)] {
            let tensor = format!("state_17.layer_{layer}.{part}");
            checks.close(
                &format!("{name}: {tensor}"),
                &[got.len()],
                &f64s(&reference.floats(&tensor)),
                &got,
                HIDDEN,
            );
        }
    }
}

fn greedy<B: Backend>(name: &str, model: &Model<B>, reference: &Reference, checks: &mut Checks) {
    let mut session = session(model);
    let vocab = model.config().vocab;
    let mut logits = block_on(session.prefill(0, &reference.ids("input_ids_17"))).expect("prefill");
    let (mut tokens, mut all) = (Vec::new(), Vec::new());
    for _ in 0..32 {
        let best = (0..vocab).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        tokens.push(best as u32);
        all.extend_from_slice(&logits);
        logits = block_on(session.prefill(0, &[best as u32])).expect("a step");
    }
    assert_eq!(tokens, reference.ids("greedy_17"), "{name}: greedy tokens");
    checks.close(
        &format!("{name}: greedy logits"),
        &[32, vocab],
        &f64s(&reference.floats("greedy_17_logits")),
        &all,
        LOGITS,
    );
}
