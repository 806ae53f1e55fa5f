//! Streams a checkpoint through the quantizer into a .fasq file.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use half::f16;

use super::activations::Inputs;
use super::hessian::{DAMPING, Hessian};
use super::plan::{Item, Plan};
use super::report::{Report, TensorReport};
use crate::backend::{Quantizer, Rows};
use crate::checkpoint::Checkpoint;
use crate::format::{Progress, Writer, fnv1a};
use crate::model::arch::Input;
use crate::pq::{Feedback, PqSpec, Rotation, Scope, SquaredError};
use crate::tensor::{Dtype, Stored, TensorView};
use crate::{Error, Result};

/// Elements of a dense tensor that are converted at a time.
const BLOCK: usize = 1 << 22;

/// How to run.
pub struct Options<'a> {
    /// What quantizes the matrices.
    pub quantizer: &'a dyn Quantizer,
    /// Continue a partial file if there is one.
    pub resume: bool,
    /// Set by another thread to end the run soon.
    pub stop: &'a AtomicBool,
    /// Told how many weights of which tensor are done, those of an earlier run included.
    pub progress: &'a dyn Fn(&str, usize),
}

/// Quantizes the checkpoint as planned and writes `out`, which appears when it is whole. With `inputs`, the linear
/// layers and the output head are quantized with error feedback; an embedding that is not the head is not.
///
/// # Errors
/// [`Error::Interrupted`] when told to stop; weights that are not finite; what the file system refuses. All leave a
/// partial file that a run with `resume` continues, to the same bytes.
pub fn run(
    checkpoint: &Checkpoint,
    plan: &Plan,
    out: &Path,
    options: &Options<'_>,
    inputs: Option<&mut dyn Inputs>,
) -> Result<Report> {
    let start = Instant::now();
    let text = inputs.as_ref().map_or(0, |inputs| inputs.fingerprint());
    let fingerprint = fingerprint(checkpoint, plan, text)?;
    let (writer, done) = Writer::create(out, plan.layout.clone(), fingerprint, options.resume)?;
    let mut run = Run { checkpoint, options, writer, done, weights: 0, remarks: vec![] };
    let result = run.tensors(plan, inputs);
    if result.is_err() {
        run.writer.flush_journal()?;
    }
    result?;
    let Run { writer, done, weights, remarks, .. } = run;
    let mut tensors = vec![];
    for item in &plan.items {
        if let Stored::Pq(spec) = item.stored {
            let error = done.get(&item.name).copied();
            let error =
                error.ok_or_else(|| Error::invalid(&item.name, "it was planned but not quantized"))?;
            tensors.push(TensorReport { name: item.name.clone(), spec, error });
        }
    }
    let bytes = writer.finish()?;
    let fp16_bytes = plan.fp16_bytes() as u64;
    let quantizing_seconds = start.elapsed().as_secs_f64();
    Ok(Report { tensors, bytes, fp16_bytes, quantizing_seconds, weights, remarks })
}

/// A run at work.
struct Run<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a Options<'a>,
    writer: Writer,
    /// Matrices that are in the file, with their relative errors.
    done: Progress,
    /// Weights that this run quantized.
    weights: usize,
    remarks: Vec<String>,
}

impl Run<'_> {
    fn tensors(&mut self, plan: &Plan, inputs: Option<&mut dyn Inputs>) -> Result<()> {
        let head = plan.head().filter(|_| inputs.is_some());
        for item in &plan.items {
            let fed =
                inputs.is_some() && item.input.is_some() || head.is_some_and(|head| head.name == item.name);
            match item.stored {
                Stored::Dense(dtype) => dense(self.checkpoint, item, dtype, &mut self.writer)?,
                Stored::Pq(spec) if !fed => self.matrix(item, spec, None)?,
                Stored::Pq(_) => {}
            }
        }
        let Some(inputs) = inputs else { return Ok(()) };
        for layer in 0..self.checkpoint.config().layers.len() {
            let fed: Vec<&Item> = plan
                .items
                .iter()
                .filter(|item| item.input.is_some_and(|input| input.layer == layer))
                .collect();
            let of =
                |at: usize| fed.iter().copied().filter(move |item| item.input == Some(Input { layer, at }));
            let hessians =
                inputs.next_block(std::array::from_fn(|at| of(at).any(|item| self.is_left(item))))?;
            for (at, hessian) in hessians.into_iter().enumerate() {
                if let Some(hessian) = hessian {
                    self.matrices(of(at), &hessian)?;
                }
            }
        }
        match head.filter(|item| self.is_left(item)) {
            Some(head) => self.matrices(std::iter::once(head), &inputs.head()?),
            None => Ok(()),
        }
    }

    fn is_left(&self, item: &Item) -> bool {
        matches!(item.stored, Stored::Pq(_)) && !self.done.contains_key(&item.name)
    }

    /// Quantizes matrices that share their input.
    fn matrices<'i>(&mut self, items: impl Iterator<Item = &'i Item>, hessian: &Hessian) -> Result<()> {
        let mut last: Option<(Option<Rotation>, Feedback)> = None;
        for item in items {
            let Stored::Pq(spec) = item.stored else { continue };
            let (cols, rotation) = (item.shape[1], spec.rotation(item.shape[1]));
            let feedback = match last.take() {
                Some((of, feedback)) if of == rotation && feedback.shape() == (cols, spec.d) => feedback,
                _ if self.done.contains_key(&item.name) => continue,
                _ => {
                    let (feedback, damping) = hessian.feedback(&item.name, rotation, spec.d)?;
                    if damping > DAMPING[0] {
                        self.remarks
                            .push(format!("{}: damped by {damping} of its inputs' mean square", item.name));
                    }
                    feedback
                }
            };
            self.matrix(item, spec, Some(&feedback))?;
            last = Some((rotation, feedback));
        }
        Ok(())
    }

    /// Quantizes one matrix unless that is done, by blocks of rows where its codebook is known beforehand.
    fn matrix(&mut self, item: &Item, spec: PqSpec, feedback: Option<&Feedback>) -> Result<()> {
        let Item { name, shape, .. } = item;
        if self.done.contains_key(name) {
            (self.options.progress)(name, item.elements());
            return Ok(());
        }
        let view = self.checkpoint.tensor(name)?;
        let (rows, cols) = (shape[0], shape[1]);
        let quantizer = self.options.quantizer;
        let step =
            if spec.scope == Scope::Universal { (quantizer.block() / cols).clamp(1, rows) } else { rows };
        let row_bytes = cols * view.dtype.size();
        let mut error = SquaredError::default();
        for first in (0..rows).step_by(step) {
            if self.options.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let count = step.min(rows - first);
            let bytes = &view.bytes[first * row_bytes..][..count * row_bytes];
            let weights = TensorView { dtype: view.dtype, shape: vec![count, cols], bytes };
            let quantized = quantizer.quantize(&Rows { name, first, weights }, spec, feedback)?;
            self.writer.rows(name, first, &quantized.matrix.codes, &quantized.matrix.scales)?;
            if spec.scope != Scope::Universal {
                self.writer.codebooks(name, &quantized.matrix.codebooks)?;
            }
            error += quantized.error;
            (self.options.progress)(name, count * cols);
        }
        self.checkpoint.release(name);
        self.weights += item.elements();
        self.done.insert(name.clone(), error.relative());
        self.writer.done(name, error.relative())
    }
}

/// Copies one tensor, from F32 to F16 where the plan says so. What is no number is refused by name.
fn dense(checkpoint: &Checkpoint, item: &Item, dtype: Dtype, writer: &mut Writer) -> Result<()> {
    let view = checkpoint.tensor(&item.name)?;
    for (n, bytes) in view.bytes.chunks(BLOCK * view.dtype.size()).enumerate() {
        let block = TensorView { dtype: view.dtype, shape: vec![], bytes }.to_f32();
        let same = view.dtype == dtype;
        let stored = |w: &f32| if same { *w } else { f16::from_f32(*w).to_f32() };
        if let Some(at) = block.iter().position(|w| !stored(w).is_finite()) {
            let what = format!("tensor {}, element {}", item.name, n * BLOCK + at);
            let expected = if same { "a finite number" } else { "a number that fits into f16" };
            return Err(Error::mismatch(what, expected, block[at]));
        }
        if same {
            writer.dense(&item.name, n * BLOCK * dtype.size(), bytes)?;
        } else {
            let bytes: Vec<u8> = block.iter().flat_map(|w| f16::from_f32(*w).to_le_bytes()).collect();
            writer.dense(&item.name, n * BLOCK * dtype.size(), &bytes)?;
        }
    }
    checkpoint.release(&item.name);
    Ok(())
}

/// A number that differs, most likely, if any source tensor differs: of a few bytes of each, since reading them all
/// would take as long as the work.
fn fingerprint(checkpoint: &Checkpoint, plan: &Plan, text: u64) -> Result<u64> {
    const SPOTS: usize = 64;
    const SPOT: usize = 64;
    let mut hash = fnv1a(env!("CARGO_PKG_VERSION").as_bytes(), 0xcbf2_9ce4_8422_2325 ^ text);
    for item in &plan.items {
        let bytes = checkpoint.tensor(&item.name)?.bytes;
        hash = fnv1a(format!("{} {:?} {:?}", item.name, item.source, item.shape).as_bytes(), hash);
        let spots = bytes.chunks(bytes.len().div_ceil(SPOTS).max(1));
        hash = spots.fold(hash, |hash, part| fnv1a(&part[..part.len().min(SPOT)], hash));
    }
    Ok(hash)
}
