//! One call of `fasq-quantize` at work.

use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pollster::block_on;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::tables::{plan_json, plan_text, report_text, sizes_json, sizes_text};
use super::{Learn, Preset, QuantizeArgs};
use crate::backend::{Backend, BackendTask};
use crate::checkpoint::Checkpoint;
use crate::cli::output::STDOUT;
use crate::cli::{note, write_whole};
use crate::config::ModelConfig;
use crate::format::partial_path;
use crate::generate::Tokenizer;
use crate::model::arch::{self, Role};
use crate::model::{Model, Source};
use crate::quantize::text::{self, TextSize};
use crate::quantize::{
    Activations, Fitted, Fitter, Hessian, Inputs, Item, Options, Plan, Rules, Sensitivities, Size, Target,
    run as quantize,
};
use crate::{Error, Result};

/// One call of `fasq-quantize`.
pub struct Job<'a> {
    pub args: &'a QuantizeArgs,
    pub source: &'a Source,
    pub checkpoint: &'a Checkpoint,
    pub feedback: Learn,
    pub stop: &'a AtomicBool,
    /// When the program began, which reported seconds count from.
    pub start: Instant,
}

impl BackendTask for Job<'_> {
    type Output = ();

    /// Plans and, if there is a file to write, quantizes; loads the unquantized model first if something is learnt from it.
    fn run<B: Backend + Clone>(self, backend: B) -> Result<()> {
        let learns = self.feeds() || self.args.sensitivity == Learn::Own;
        let model = if learns { Some(Model::load(backend.clone(), self.source)?) } else { None };
        let model = model.as_ref();
        let (args, talk) = (self.args, self.talks());
        let plan = Plan::new(self.checkpoint, &self.rules()?)?;
        let mut text = None;
        let mut fitted = self.fit(&plan, model, &mut text)?;
        if args.sizes.is_some() {
            return print(&if args.json { sizes_json(&fitted).to_string() } else { sizes_text(&fitted) });
        }
        let (plan, loss) = match fitted.pop() {
            Some(Fitted { plan, loss }) => (plan, Some(loss)),
            None => (plan, None),
        };
        if talk {
            print(&plan_text(&plan, loss, self.memory(&plan)))?;
        }
        let Some(out) = args.out.as_deref().filter(|_| !args.plan_only) else {
            return if args.json { print(&plan_json(&plan, loss).to_string()) } else { Ok(()) };
        };
        let text = match model.filter(|_| self.feeds() && text.is_none()) {
            Some(model) => Some(self.text(model)?),
            None => text,
        };
        let bar = progress_bar(plan.quantized_elements(), talk);
        let progress = |name: &str, weights: usize| {
            bar.set_message(name.to_owned());
            bar.inc(weights as u64);
        };
        let (quantizer, stop) = (backend.quantizer(), self.stop);
        let options = Options { quantizer, resume: args.resume, stop, progress: &progress };
        let mut inputs = match (model.filter(|_| self.feeds()), &text) {
            (Some(model), Some(text)) => Some(Activations::new(model, text, self.stop)?),
            _ => None,
        };
        let inputs = inputs.as_mut().map(|inputs| inputs as &mut dyn Inputs);
        let report = quantize(self.checkpoint, &plan, out, &options, inputs);
        bar.finish_and_clear();
        if matches!(report, Err(Error::Interrupted | Error::Io { .. })) && !args.quiet {
            note(&format!(
                "{} holds what is done: run again with --resume to continue",
                partial_path(out).display()
            ));
        }
        let report = report?;
        let seconds = self.start.elapsed().as_secs_f64();
        if args.json {
            let mut line = json!(report);
            line["seconds"] = seconds.into();
            print(&line.to_string())?;
        } else if talk {
            print(&report_text(&report, out, seconds))?;
        }
        Ok(())
    }
}

impl Job<'_> {
    /// Whether a file is written with feedback.
    fn feeds(&self) -> bool {
        self.feedback != Learn::Nothing && self.args.out.is_some() && !self.args.plan_only
    }

    /// Whether plans, progress and reports are printed for a person.
    fn talks(&self) -> bool {
        !self.args.quiet && !self.args.json
    }

    /// Bytes of memory that feedback takes: the unquantized model, the text's residual streams, the Hessian of the
    /// widest input with their factorization.
    fn memory(&self, plan: &Plan) -> Option<usize> {
        let config = self.checkpoint.config();
        let streams = self.text_size().tokens(config) * config.hidden * size_of::<f32>();
        let widest = plan.items.iter().filter(|item| item.input.is_some()).map(|item| item.shape[1]).max()?;
        let bytes = plan.fp16_bytes() + streams + Hessian::bytes(widest);
        (self.feedback != Learn::Nothing).then_some(bytes)
    }

    fn text_size(&self) -> TextSize {
        let args = self.args;
        TextSize { sequences: args.sequences as usize, length: args.length as usize, seed: args.seed }
    }

    /// The sizes that are asked for.
    fn sizes(&self) -> Vec<Size> {
        let one = self.args.size.or(self.args.bpw.map(Size::BitsPerWeight));
        match &self.args.sizes {
            Some(sizes) if sizes.is_empty() => TABLE.map(Size::Percent).to_vec(),
            Some(sizes) => sizes.clone(),
            None => one.into_iter().collect(),
        }
    }

    /// The plan that meets each size that is asked for. Leaves the text that sensitivities were measured on in `text`.
    fn fit<B: Backend + Clone>(
        &self,
        plan: &Plan,
        model: Option<&Model<B>>,
        text: &mut Option<Vec<Vec<u32>>>,
    ) -> Result<Vec<Fitted>> {
        let (args, sizes) = (self.args, self.sizes());
        if sizes.is_empty() {
            return Ok(vec![]);
        }
        let sensitivities = match (&args.sensitivity, model) {
            (Learn::Nothing, _) => Sensitivities::typical(plan),
            (Learn::File(path), _) => {
                let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
                Sensitivities::from_json(&text).map_err(|e| Error::invalid(path.display().to_string(), e))?
            }
            (Learn::Own, Some(model)) => {
                // Before the model writes for minutes.
                self.enough_sequences(self.text_size().sequences)?;
                self.measure(plan, model, text.insert(self.text(model)?))?
            }
            (Learn::Own, None) => {
                return Err(Error::invalid("--sensitivity self", "the model is not loaded"));
            }
        };
        if let Some(path) = &args.save_sensitivity {
            write_whole(path, sensitivities.to_json().as_bytes())?;
        }
        let fitter = Fitter::new(self.checkpoint, plan, &sensitivities, args.uniform);
        let fitter = fitter.map_err(|e| match &args.sensitivity {
            Learn::File(path) => Error::invalid(format!("--sensitivity {}", path.display()), e),
            _ => e,
        });
        fitter?.fit(&sizes)
    }

    /// Fails if sensitivities take all sequences and error feedback has none to learn from.
    fn enough_sequences(&self, count: usize) -> Result<()> {
        if self.feedback == Learn::Nothing || count > PROBE_SEQUENCES {
            return Ok(());
        }
        let expected = format!("over {PROBE_SEQUENCES}: sensitivities take the first of them");
        Err(Error::mismatch("sequences of the feedback text", expected, count))
    }

    fn measure<B: Backend + Clone>(
        &self,
        plan: &Plan,
        model: &Model<B>,
        text: &[Vec<u32>],
    ) -> Result<Sensitivities> {
        // A text of the user's may be short.
        self.enough_sequences(text.len())?;
        let matrices = plan.items.iter().filter(|item| item.role != Role::Keep);
        let bar = progress_bar(matrices.map(Item::elements).sum(), self.talks());
        let progress = |name: &str, weights: usize| {
            bar.set_message(format!("sensitivity of {name}"));
            bar.inc(weights as u64);
        };
        let (probe, rest) = text.split_at(text.len().min(PROBE_SEQUENCES));
        let mut inputs = match self.feedback {
            Learn::Nothing => None,
            _ => Some(Activations::new(model, &rest[..rest.len().min(2 * PROBE_SEQUENCES)], self.stop)?),
        };
        let inputs = inputs.as_mut().map(|inputs| inputs as &mut dyn Inputs);
        let measured =
            Sensitivities::measure(model, self.checkpoint, plan, probe, inputs, self.stop, &progress);
        bar.finish_and_clear();
        measured
    }

    /// The text that the model writes, or that the user gives.
    fn text<B: Backend>(&self, model: &Model<B>) -> Result<Vec<Vec<u32>>> {
        let args = self.args;
        let size = self.text_size();
        if let Learn::File(path) = &self.feedback {
            let tokenizer = Tokenizer::of(self.source.assets(), model.config().vocab)?;
            let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
            let tokens = tokenizer.encode(&text, false)?;
            return text::cut(&tokens, model.config(), size);
        }
        if let Some(path) = args.written.as_deref().filter(|path| path.exists()) {
            let text = std::fs::read(path).map_err(Error::io(path))?;
            let written: Written =
                serde_json::from_slice(&text).map_err(|e| Error::invalid(path.display().to_string(), e))?;
            return written.checked(path, self.writer(size), model.config());
        }
        let bar = progress_bar(size.tokens(model.config()), self.talks());
        bar.set_message("the model writes text");
        let text = block_on(text::write(model, size, self.stop, &|tokens| bar.inc(tokens as u64)));
        bar.finish_and_clear();
        let written = Written { writer: self.writer(size), sequences: text? };
        if let Some(path) = &args.written {
            write_whole(path, json!(written).to_string().as_bytes())?;
        }
        Ok(written.sequences)
    }

    /// Whose text it is.
    fn writer(&self, size: TextSize) -> String {
        let model = self.source.fingerprint();
        format!("model {model}, {} x {} tokens, seed {}", size.sequences, size.length, size.seed)
    }

    fn rules(&self) -> Result<Rules> {
        let (args, checkpoint) = (self.args, self.checkpoint);
        let preset = match args.preset {
            Preset::Default => Rules::universal(),
            Preset::Paper => Rules::paper(),
        };
        if args.head.is_some() && !checkpoint.contains("lm_head.weight") {
            return Err(Error::invalid("--head", "this model's output head is its embedding: use --embed"));
        }
        let mut rules = Rules {
            linear: args.pq.unwrap_or(preset.linear),
            embed: args.embed.unwrap_or(preset.embed),
            head: args.head.unwrap_or(preset.head),
            tensors: args.tensors.clone(),
        };
        if !self.sizes().is_empty() {
            // What the user has decided is not the solver's to choose.
            let tensors = arch::tensors(checkpoint.config(), &|name| checkpoint.contains(name));
            let decided = |role, target: Option<Target>| {
                let tensor = tensors.iter().find(|tensor| tensor.role == role)?;
                Some((tensor.name.clone(), target?))
            };
            let decided = [decided(Role::Embed, args.embed), decided(Role::Head, args.head)];
            rules.tensors = decided.into_iter().flatten().chain(rules.tensors).collect();
        }
        Ok(rules)
    }
}

/// The sizes that `--sizes` shows by default, in percent of FP16.
const TABLE: [f64; 9] = [18.0, 20.0, 22.5, 25.0, 27.5, 30.0, 35.0, 40.0, 50.0];
/// Sequences that sensitivities are measured on; twice as many more make the Hessians.
const PROBE_SEQUENCES: usize = 8;

/// A text that the model wrote, in a file for other runs.
#[derive(Serialize, Deserialize)]
struct Written {
    writer: String,
    sequences: Vec<Vec<u32>>,
}

impl Written {
    /// The sequences, if they are what this writer would write.
    fn checked(self, path: &Path, writer: String, config: &ModelConfig) -> Result<Vec<Vec<u32>>> {
        let what = || format!("--written {}", path.display());
        if self.writer != writer {
            return Err(Error::mismatch(what(), writer, self.writer));
        }
        let fits = |tokens: &Vec<u32>| {
            !tokens.is_empty()
                && tokens.len() <= config.max_context
                && tokens.iter().all(|token| (*token as usize) < config.vocab)
        };
        match self.sequences.iter().position(|tokens| !fits(tokens)) {
            Some(i) => Err(Error::invalid(what(), format!("sequence {i} is not this model's"))),
            None => Ok(self.sequences),
        }
    }
}

/// A line or more on stdout.
fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").map_err(Error::io(STDOUT))
}

fn progress_bar(weights: usize, show: bool) -> ProgressBar {
    let bar = ProgressBar::new(weights as u64);
    if !show || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3} % {eta} left  {wide_msg}") {
        bar.set_style(style);
    }
    bar
}
