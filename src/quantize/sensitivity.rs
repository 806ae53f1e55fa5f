//! [`Sensitivities`]: how much a model's predictions suffer from the error of each of its matrices.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use half::f16;
use pollster::block_on;
use rayon::prelude::*;

use super::activations::Inputs;
use super::hessian::Hessian;
use super::plan::{Item, Plan};
use crate::backend::{Backend, Quantizer, Rows};
use crate::checkpoint::Checkpoint;
use crate::eval::divergence::kl;
use crate::eval::perplexity::{Step, session, steps};
use crate::model::arch::{Input, Role};
use crate::model::{Model, Source};
use crate::pq::{PqSpec, RowScale, Scope};
use crate::{Error, Result};

/// The (d, K) that the solver chooses among, from 1.5 to 8 bits a weight, and their distortions. For each number of bits
/// it is the one of least distortion among those whose codebook fits into a GPU's shared memory. The distortion is the
/// mean squared error of a unit Gaussian by the universal codebook, which is the relative error of a rotated matrix; a
/// test computes the smaller ones anew.
pub(super) const DISTORTIONS: [((usize, usize), f64); 16] = [
    ((4, 64), 1.845e-1),
    ((4, 128), 1.343e-1),
    ((4, 256), 9.724e-2),
    ((4, 512), 7.027e-2),
    ((4, 1024), 5.042e-2),
    ((4, 2048), 3.612e-2),
    ((4, 4096), 2.579e-2),
    ((3, 1024), 1.756e-2),
    ((3, 2048), 1.112e-2),
    ((3, 4096), 7.079e-3),
    ((2, 512), 3.972e-3),
    ((2, 1024), 2.012e-3),
    ((2, 2048), 1.005e-3),
    ((2, 4096), 5.022e-4),
    ((1, 128), 1.705e-4),
    ((1, 256), 4.371e-5),
];

/// The relative error that a spec leaves: for a (d, K) that is not in the table by the high-resolution law K^(-2/d)
/// (P. Zador, 1982) from its neighbour of the same d.
pub fn distortion(spec: &PqSpec) -> f64 {
    let law = |k: usize| (k as f64).powf(-2.0 / spec.d as f64);
    let known = DISTORTIONS.iter().filter(|((d, _), _)| *d == spec.d);
    let nearest = known.min_by_key(|((_, k), _)| k.ilog2().abs_diff(spec.k.ilog2()));
    nearest.map_or_else(|| 1.5 * law(spec.k), |((_, k), error)| error * law(spec.k) / law(*k))
}

/// For each matrix the KL divergence of the model's predictions, in nats a token, over the matrix's relative error, if
/// all others stay as they are. Losses of several matrices add up while they are small.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivities(BTreeMap<String, f64>);

/// Layers of the model that the typical sensitivities are of; a layer of more layers matters less.
const TYPICAL_LAYERS: f64 = 10.0;
/// By part of a block: in the first layer, and on average in the others. What stands first serves for parts that are not
/// in the table. wiki-32m has no delta nets: theirs are those of the attention's parts that do the same work.
const TYPICAL: [(&str, [f64; 2]); 10] = [
    ("up_proj", [0.176, 0.055]),
    ("gate_proj", [0.156, 0.081]),
    ("down_proj", [0.299, 0.097]),
    ("q_proj", [0.004, 0.010]),
    ("k_proj", [0.006, 0.013]),
    ("v_proj", [0.096, 0.026]),
    ("o_proj", [0.070, 0.019]),
    ("in_proj_qkv", [0.096, 0.049]),
    ("in_proj_z", [0.035, 0.019]),
    ("out_proj", [0.070, 0.019]),
];
/// Of an embedding that is the head as well, and of those that are one of both.
const TIED: f64 = 1.6;
const EMBED: f64 = 0.4;
const HEAD: f64 = 1.2;

/// What [`Sensitivities::measure`] quantizes each matrix to.
const PROBE: PqSpec = PqSpec { d: 2, k: 64, scope: Scope::Universal, scale: RowScale::Rms, rotate: true };

/// Tokens of each sequence that the divergence is measured on.
const LENGTH: usize = 256;

impl Sensitivities {
    /// What a model like any other has: those of wiki-32m, as [`Sensitivities::measure`] found them, by what a matrix
    /// does in its block.
    pub fn typical(plan: &Plan) -> Self {
        let layers = plan.items.iter().filter_map(|item| item.input).map(|input| input.layer + 1).max();
        let share = TYPICAL_LAYERS / layers.unwrap_or(1) as f64;
        let of = |item: &Item| match item.role {
            Role::Keep => None,
            Role::Embed if plan.head().is_some_and(|head| head.name == item.name) => Some(TIED),
            Role::Embed => Some(EMBED),
            Role::Head => Some(HEAD),
            Role::Linear => {
                let part = item.name.strip_suffix(".weight").and_then(|name| name.rsplit('.').next());
                let (_, [first, rest]) =
                    TYPICAL.iter().find(|(name, _)| Some(*name) == part).unwrap_or(&TYPICAL[0]);
                let first_layer = item.input.is_some_and(|input| input.layer == 0);
                Some(if first_layer { *first } else { rest * share })
            }
        };
        Self(plan.items.iter().filter_map(|item| Some((item.name.clone(), of(item)?))).collect())
    }

    /// Of a matrix; an error where it is not known: these are another model's.
    pub fn of(&self, item: &Item) -> Result<f64> {
        let known = self.0.get(&item.name).copied();
        known.ok_or_else(|| Error::invalid("sensitivities", format!("there is none of {}", item.name)))
    }

    /// Measures them on text, which the model best writes itself: quantizes one matrix after the other to 3 bits, with
    /// error feedback by `inputs` if there are any, and compares the model's predictions with those before.
    ///
    /// Takes a pass over the text and the time to load the model for each matrix.
    pub fn measure<B: Backend + Clone>(
        model: &Model<B>,
        checkpoint: &Checkpoint,
        plan: &Plan,
        text: &[Vec<u32>],
        mut inputs: Option<&mut dyn Inputs>,
        stop: &AtomicBool,
        progress: &dyn Fn(&str, usize),
    ) -> Result<Self> {
        if text.iter().all(|tokens| tokens.len() < 2) {
            return Err(Error::invalid("sensitivities", "there is no text to measure them on"));
        }
        let text: Vec<&[u32]> = text.iter().map(|tokens| &tokens[..tokens.len().min(LENGTH)]).collect();
        let vocab = model.config().vocab;
        let base = logits(model, &text)?;
        let mut by_name = BTreeMap::new();
        let mut probe = |item: &Item, hessian: Option<&Hessian>| -> Result<()> {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let mut changed = checkpoint.clone();
            let error = quantize(model.backend().quantizer(), &mut changed, item, hessian)?;
            let changed = Model::load(model.backend().clone(), &Source::Checkpoint(changed))?;
            let logits = logits(&changed, &text)?;
            let pairs = base.par_chunks_exact(vocab).zip(logits.par_chunks_exact(vocab));
            let divergences: Vec<f64> = pairs.map(|(base, changed)| kl(base, changed)).collect();
            let mean = divergences.iter().sum::<f64>() / divergences.len() as f64;
            by_name.insert(item.name.clone(), if error > 0.0 { mean / error } else { 0.0 });
            progress(&item.name, item.elements());
            Ok(())
        };
        for layer in 0..model.config().layers.len() {
            let hessians = match &mut inputs {
                Some(inputs) => inputs.next_block([true; Input::PER_LAYER])?,
                None => [const { None }; Input::PER_LAYER],
            };
            for (at, hessian) in hessians.iter().enumerate() {
                for item in plan.items.iter().filter(|item| item.input == Some(Input { layer, at })) {
                    probe(item, hessian.as_ref())?;
                }
            }
        }
        let head = inputs.map(|inputs| inputs.head()).transpose()?;
        for item in plan.items.iter().filter(|item| matches!(item.role, Role::Embed | Role::Head)) {
            let is_head = plan.head().is_some_and(|head| head.name == item.name);
            probe(item, head.as_ref().filter(|_| is_head))?;
        }
        Ok(Self(by_name))
    }

    /// As [`Sensitivities::to_json`] wrote them.
    pub fn from_json(text: &str) -> Result<Self> {
        let bad = |why: &dyn ToString| Error::invalid("sensitivities", why.to_string());
        let by_name: BTreeMap<String, f64> = serde_json::from_str(text).map_err(|e| bad(&e))?;
        match by_name.iter().find(|(_, value)| !value.is_finite() || **value < 0.0) {
            Some((name, value)) => Err(Error::mismatch(name, "a sensitivity of at least 0", value)),
            None => Ok(Self(by_name)),
        }
    }

    /// An object of tensor names and numbers.
    pub fn to_json(&self) -> String {
        serde_json::json!(self.0).to_string()
    }
}

/// The logits `[rows, vocab]` after every token of each sequence but its last.
fn logits<B: Backend>(model: &Model<B>, text: &[&[u32]]) -> Result<Vec<f32>> {
    let mut session = session(model, text.iter().map(|tokens| tokens.len()).max().unwrap_or(1))?;
    let rows = session.options().max_rows;
    let mut all = vec![];
    for tokens in text {
        session.reset(0)?;
        for Step { batch, .. } in steps(tokens, 0, rows) {
            all.extend(block_on(session.forward(&batch))?);
        }
    }
    Ok(all)
}

/// Puts the matrix as it is after quantization in its place; its relative error, without what feedback adds to it.
fn quantize(
    quantizer: &dyn Quantizer,
    checkpoint: &mut Checkpoint,
    item: &Item,
    hessian: Option<&Hessian>,
) -> Result<f64> {
    let (rows, cols) = (item.shape[0], item.shape[1]);
    let spec = PROBE.for_cols(cols);
    let feedback = hessian.map(|h| h.feedback(&item.name, spec.rotation(cols), spec.d)).transpose()?;
    let weights = checkpoint.tensor(&item.name)?;
    let feedback = feedback.as_ref().map(|(feedback, _)| feedback);
    let matrix = quantizer.quantize(&Rows { name: &item.name, first: 0, weights }, spec, feedback)?.matrix;
    let mut decoded = vec![0f32; rows * cols];
    decoded.par_chunks_exact_mut(cols).enumerate().for_each(|(n, row)| {
        matrix.decode_row(n, row);
        if let Some(rotation) = matrix.rotation() {
            rotation.invert(row);
        }
    });
    let values: Vec<f16> = decoded.into_iter().map(f16::from_f32).collect();
    checkpoint.replace(std::slice::from_ref(&item.name), item.name.clone(), [rows, cols], &values, None);
    Ok(distortion(&spec))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pq;

    /// Of a matrix of Gaussian numbers (G. Box, M. Muller) that is quantized so.
    fn measured(d: usize, k: usize) -> f64 {
        let (rows, cols) = (1024, 480);
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        };
        let mut gaussian =
            || ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32;
        let weights = (0..rows * cols).map(|_| gaussian()).collect();
        let spec = PqSpec::new(d, k, Scope::Universal).unwrap();
        pq::quantize("gaussian", 0, weights, cols, spec, None).unwrap().error.relative()
    }

    #[test]
    fn distortions_are_those_of_the_tables() {
        // Larger tables take longer to build than a test should.
        for ((d, k), expected) in DISTORTIONS.into_iter().filter(|((_, k), _)| *k <= 1024) {
            let found = measured(d, k);

            assert!((found / expected - 1.0).abs() < 0.02, "{d}-{k}: {found:.3e}, not {expected:.3e}");
        }
    }

    #[test]
    fn other_codes_follow_from_their_neighbours() {
        let of = |d, k| distortion(&PqSpec { d, k, ..PROBE });
        assert!(of(2, 8192) < of(2, 4096) && of(2, 256) > of(2, 512));
        assert!((of(2, 64) / measured(2, 64) - 1.0).abs() < 0.1);
        assert!(of(8, 65536) > 0.0);
    }

    #[test]
    fn sensitivities_survive_json() {
        let some = Sensitivities(BTreeMap::from([("a.weight".into(), 1.5), ("b".into(), 0.0)]));
        assert_eq!(Sensitivities::from_json(&some.to_json()).unwrap(), some);
        for text in ["", "[]", "{\"a\": -1}", "{\"a\": \"x\"}"] {
            assert!(Sensitivities::from_json(text).is_err(), "{text}");
        }
    }
}
