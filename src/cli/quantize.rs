//! `fasq-quantize`.

use std::convert::Infallible;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::AtomicBool;

use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pollster::block_on;
use serde_json::json;

use super::output::STDOUT;
use super::quantize_tables::{plan_json, plan_text, report_text, sizes_json, sizes_text};
use super::{interrupt_flag, note};
use crate::backend::cpu::Cpu;
use crate::backend::{self, Backend};
use crate::checkpoint::Checkpoint;
use crate::format::partial_path;
use crate::generate::Tokenizer;
use crate::model::arch::Role;
use crate::model::{Model, Source};
use crate::quantize::text::{self, TextSize};
use crate::quantize::{
    Activations, Fitted, Fitter, Inputs, Item, Moments, Options, Plan, Rules, Sensitivities, Size, Target,
    run as quantize,
};
use crate::{Error, Result, with_backend};

/// Compress a language model by product quantization.
///
/// SPEC is D-K@SCOPE: D weights share one of K codes. Scopes: @universal (one codebook for the file), @matrix,
/// @group:N, @subspace (the FASQ paper's). Options: +rms, +absmax or +noscale for the row scale, +rotate or
/// +norotate. `f16` keeps a tensor as it is, in 16 bits. Examples: 2-256, 3-4096@matrix, 2-64@universal+norotate.
#[derive(Debug, Parser)]
#[command(name = "fasq-quantize", version)]
pub struct QuantizeArgs {
    /// Hugging Face folder: config.json, safetensors, tokenizer.json
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// File to write; its name ends in .fasq
    #[arg(short, long, value_name = "OUT.fasq", required_unless_present_any = ["plan_only", "sizes"])]
    out: Option<PathBuf>,
    /// What the other options start from
    #[arg(long, value_enum, default_value_t = Preset::Default)]
    preset: Preset,
    /// Of the linear layers
    #[arg(long, value_name = "SPEC", conflicts_with_all = ["size", "bpw", "sizes"])]
    pq: Option<Target>,
    /// Make the file so large at most (31%, 5.5GB, 700MB): each matrix gets what lowers the loss most
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["bpw", "sizes"])]
    size: Option<Size>,
    /// The same in bits of the file over weights of the model
    #[arg(long, value_name = "BITS", value_parser = bits, conflicts_with = "sizes")]
    bpw: Option<f64>,
    /// Print what each of these sizes would be made of and stop; without sizes, a range of them
    #[arg(long, value_name = "SIZE,...", num_args = 0.., value_delimiter = ',')]
    sizes: Option<Vec<Size>>,
    /// One spec for all matrices, as in the FASQ paper, instead of one for each
    #[arg(long)]
    uniform: bool,
    /// How much each matrix matters for a size: `typical`, known from another model; `self`, measured on text that the
    /// model writes; FILE, which --save-sensitivity wrote
    #[arg(long, value_name = "typical|self|FILE", default_value = "typical")]
    sensitivity: Learn,
    /// Keep the sensitivities for other sizes
    #[arg(long, value_name = "FILE.json")]
    save_sensitivity: Option<PathBuf>,
    /// Of the output head, where it is not the embedding
    #[arg(long, value_name = "SPEC")]
    head: Option<Target>,
    /// Of the token embedding, which in many models is the output head as well
    #[arg(long, value_name = "SPEC")]
    embed: Option<Target>,
    /// Of the matrices whose name matches; may be repeated, the last match counts
    #[arg(long = "tensor", value_name = "PATTERN=SPEC", value_parser = tensor_rule)]
    tensors: Vec<(String, Target)>,
    /// Error feedback, which carries each weight's error into those after it: `self` learns from text that the model
    /// writes itself what matters, FILE is a text to learn from, `none` takes the nearest codes [default: self, and
    /// none for the paper preset]
    #[arg(long, value_name = "none|self|FILE")]
    feedback: Option<Feedback>,
    /// Sequences of the feedback text
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    sequences: u32,
    /// Tokens of each, at most the model's context
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..=65536))]
    length: u32,
    /// Of the text that the model writes
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where the model writes and reads the text; auto takes the best that is there
    #[arg(long, value_name = "NAME", default_value = "auto")]
    backend: String,
    /// CPU threads [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Continue where an interrupted run ended
    #[arg(long)]
    resume: bool,
    /// Print the plan and stop
    #[arg(long)]
    plan_only: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Print the report as one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Preset {
    /// 2-256@universal, embedding and head 2-1024@universal
    Default,
    /// 2-256@subspace, embedding and head f16
    Paper,
}

/// Where feedback learns.
#[derive(Clone, Debug, PartialEq)]
enum Feedback {
    None,
    Own,
    File(PathBuf),
}

impl FromStr for Feedback {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "none" => Self::None,
            "self" => Self::Own,
            path => Self::File(path.into()),
        })
    }
}

fn bits(text: &str) -> Result<f64> {
    let bits = text.parse().ok().filter(|bits| (0.1..=32.0).contains(bits));
    bits.ok_or_else(|| Error::mismatch("--bpw", "bits a weight, from 0.1 to 32", format!("{text:?}")))
}

fn tensor_rule(text: &str) -> Result<(String, Target)> {
    let (pattern, spec) = text
        .rsplit_once('=')
        .ok_or_else(|| Error::mismatch("--tensor", "PATTERN=SPEC", format!("{text:?}")))?;
    Ok((pattern.to_owned(), spec.parse()?))
}

/// Where the solver learns what matters.
#[derive(Clone, Debug, PartialEq)]
enum Learn {
    Typical,
    Own,
    File(PathBuf),
}

impl FromStr for Learn {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "typical" => Self::Typical,
            "self" => Self::Own,
            path => Self::File(path.into()),
        })
    }
}

/// Runs the command.
pub fn run(args: QuantizeArgs) -> Result<()> {
    if let Some(out) = &args.out {
        check_out(out)?;
    }
    super::set_threads(args.threads)?;
    let source = Source::Checkpoint(Checkpoint::open(&args.source)?);
    let Source::Checkpoint(checkpoint) = &source else {
        return Err(Error::mismatch(args.source.display().to_string(), "a model folder", "a file"));
    };
    let feedback = args.feedback.clone().unwrap_or(match args.preset {
        Preset::Default => Feedback::Own,
        Preset::Paper => Feedback::None,
    });
    let feedback = if args.out.is_none() || args.plan_only { Feedback::None } else { feedback };
    let job = Job { args: &args, source: &source, checkpoint, feedback, stop: interrupt_flag()? };
    if job.feedback == Feedback::None && args.sensitivity != Learn::Own {
        return job.run::<Cpu>(None);
    }
    with_backend!(backend::choose(&args.backend)?, |backend| job.run(Some(&Model::load(backend, &source)?)))
}

/// What one call does.
struct Job<'a> {
    args: &'a QuantizeArgs,
    source: &'a Source,
    checkpoint: &'a Checkpoint,
    feedback: Feedback,
    stop: &'a AtomicBool,
}

impl Job<'_> {
    /// Plans and, if there is a file to write, quantizes; `model` is the unquantized one, where it is needed.
    fn run<B: Backend + Clone>(&self, model: Option<&Model<B>>) -> Result<()> {
        let (args, talk) = (self.args, self.talks());
        let text = model.map(|model| self.text(model)).transpose()?;
        let known = model.zip(text.as_deref());
        let rules = self.rules()?;
        let fitted = if self.sizes().is_empty() { None } else { Some(self.fit(&rules, known)?) };
        if args.sizes.is_some() {
            return match fitted {
                Some(fitted) if args.json => print(&sizes_json(&fitted).to_string()),
                fitted => print(&sizes_text(&fitted.unwrap_or_default())),
            };
        }
        let fitted = fitted.and_then(|mut fitted| fitted.pop());
        let loss = fitted.as_ref().map(|fitted| fitted.loss);
        let plan = match fitted {
            Some(fitted) => fitted.plan,
            None => Plan::new(self.checkpoint, &rules)?,
        };
        if talk {
            print(&plan_text(&plan, loss, self.memory(&plan)))?;
        }
        let Some(out) = args.out.as_deref().filter(|_| !args.plan_only) else {
            return if args.json { print(&plan_json(&plan, loss).to_string()) } else { Ok(()) };
        };
        let bar = progress_bar(plan.quantized_elements(), talk);
        let progress = |name: &str, weights: usize| {
            bar.set_message(name.to_owned());
            bar.inc(weights as u64);
        };
        let options = Options { resume: args.resume, stop: self.stop, progress: &progress };
        let mut inputs = match known.filter(|_| self.feedback != Feedback::None) {
            Some((model, text)) => Some(Activations::new(model, text, self.stop)?),
            None => None,
        };
        let inputs = inputs.as_mut().map(|inputs| inputs as &mut dyn Inputs);
        let report = quantize(self.checkpoint, &plan, out, &options, inputs);
        bar.finish_and_clear();
        if matches!(report, Err(Error::Interrupted | Error::Io { .. })) && !args.quiet {
            note(&format!("{} keeps what is done: --resume continues it", partial_path(out).display()));
        }
        let report = report?;
        if args.json {
            print(&json!(report).to_string())?;
        } else if talk {
            print(&report_text(&report, out))?;
        }
        Ok(())
    }

    /// Whether a person reads along.
    fn talks(&self) -> bool {
        !self.args.quiet && !self.args.json
    }

    /// Bytes of memory that feedback takes for the widest input's moments.
    fn memory(&self, plan: &Plan) -> Option<usize> {
        let widest = plan.items.iter().filter(|item| item.input.is_some()).map(|item| item.shape[1]).max();
        widest.filter(|_| self.feedback != Feedback::None).map(Moments::bytes)
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

    /// The rules for each size.
    fn fit<B: Backend + Clone>(
        &self,
        rules: &Rules,
        known: Option<(&Model<B>, &[Vec<u32>])>,
    ) -> Result<Vec<Fitted>> {
        let args = self.args;
        let plan = Plan::new(self.checkpoint, rules)?;
        let sensitivities = match (&args.sensitivity, known) {
            (Learn::File(path), _) => {
                let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
                Sensitivities::from_json(&text).map_err(|e| Error::invalid(path.display().to_string(), e))?
            }
            (Learn::Own, Some((model, text))) => self.measure(&plan, model, text)?,
            _ => Sensitivities::typical(&plan),
        };
        if let Some(path) = &args.save_sensitivity {
            std::fs::write(path, sensitivities.to_json()).map_err(Error::io(path))?;
        }
        Fitter::new(self.checkpoint, rules.clone(), &sensitivities, args.uniform)?.fit(&self.sizes())
    }

    fn measure<B: Backend + Clone>(
        &self,
        plan: &Plan,
        model: &Model<B>,
        text: &[Vec<u32>],
    ) -> Result<Sensitivities> {
        let matrices = plan.items.iter().filter(|item| item.role != Role::Keep);
        let bar = progress_bar(matrices.map(Item::elements).sum(), self.talks());
        let progress = |name: &str, weights: usize| {
            bar.set_message(format!("sensitivity of {name}"));
            bar.inc(weights as u64);
        };
        let (probe, rest) = text.split_at(text.len().min(PROBE_SEQUENCES));
        let mut inputs = match self.args.feedback {
            Some(Feedback::None) => None,
            _ => Some(Activations::new(model, &rest[..rest.len().min(2 * PROBE_SEQUENCES)], self.stop)?),
        };
        let inputs = inputs.as_mut().map(|inputs| inputs as &mut dyn Inputs);
        let open = || Checkpoint::open(&self.args.source);
        let measured = Sensitivities::measure(model, &open, plan, probe, inputs, self.stop, &progress);
        bar.finish_and_clear();
        measured
    }

    /// The text that the model writes, or that the user gives.
    fn text<B: Backend>(&self, model: &Model<B>) -> Result<Vec<Vec<u32>>> {
        let args = self.args;
        let size =
            TextSize { sequences: args.sequences as usize, length: args.length as usize, seed: args.seed };
        if let Feedback::File(path) = &self.feedback {
            let tokenizer = self.source.assets().tokenizer.as_ref();
            let tokenizer =
                tokenizer.ok_or_else(|| Error::invalid("tokenizer.json", "the model has none"))?;
            let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
            let tokens = Tokenizer::new(tokenizer, model.config().vocab)?.encode(&text, false)?;
            return text::cut(&tokens, model.config(), size);
        }
        let bar = progress_bar(size.tokens(model.config()), self.talks());
        bar.set_message("the model writes text");
        let text = block_on(text::write(model, size, self.stop, &|tokens| bar.inc(tokens as u64)));
        bar.finish_and_clear();
        text
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
            let plan = Plan::new(checkpoint, &rules)?;
            let decided = |role, target: Option<Target>| {
                let item = plan.items.iter().find(|item| item.role == role)?;
                Some((item.name.clone(), target?))
            };
            let decided = [decided(Role::Embed, args.embed), decided(Role::Head, args.head)];
            rules.tensors = decided.into_iter().flatten().chain(rules.tensors).collect();
        }
        Ok(rules)
    }
}

/// In percent of FP16, what `--sizes` shows unless told otherwise.
const TABLE: [f64; 9] = [18.0, 20.0, 22.5, 25.0, 27.5, 30.0, 35.0, 40.0, 50.0];
/// Sequences that sensitivities are measured on; twice as many more make the moments.
const PROBE_SEQUENCES: usize = 8;

/// Finds out before the work whether the file can take its name.
fn check_out(out: &Path) -> Result<()> {
    let what = format!("--out {}", out.display());
    if out.extension().is_none_or(|extension| extension != "fasq") {
        return Err(Error::invalid(what, "its name must end in .fasq"));
    }
    if out.is_dir() {
        return Err(Error::invalid(what, "this is a folder"));
    }
    match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            Err(Error::invalid(what, format!("there is no folder {}", folder.display())))
        }
        _ => Ok(()),
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
