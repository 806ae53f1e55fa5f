//! fasq-eval: measures a model.

mod choices;
mod divergence;
mod frontier;
mod logits;
mod perplexity;
mod plot;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::backend::{Backend, BackendTask};
use crate::baseline::Rtn;
use crate::cli::{DeviceArgs, hub, note};
use crate::eval::perplexity::Protocol;
use crate::generate::Tokenizer;
use crate::model::{Model, Source};
use crate::{Error, Result};

/// Measure a language model: a .fasq file, or a Hugging Face folder or GGUF file to measure as it is.
#[derive(Parser)]
#[command(name = "fasq-eval", version)]
pub struct EvalArgs {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Logits(logits::LogitsArgs),
    Perplexity(perplexity::PerplexityArgs),
    Divergence(divergence::DivergenceArgs),
    Choices(choices::ChoicesArgs),
    Frontier(frontier::FrontierArgs),
}

/// What every task takes.
#[derive(Args)]
struct ModelArgs {
    /// A .fasq file, a Hugging Face folder or a GGUF file; hf:ORG/NAME[@REVISION] is downloaded from the Hugging Face hub first
    model: PathBuf,
    /// Round the linear layers of an unquantized model to the nearest step: rtn-BITS-gGROUP, like rtn-4-g128
    #[arg(long, value_name = "NAME")]
    baseline: Option<Rtn>,
    #[command(flatten)]
    device: DeviceArgs,
    /// CPU threads [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// The result as one JSON object on stdout
    #[arg(long)]
    json: bool,
}

impl ModelArgs {
    fn open(&self) -> Result<Source> {
        let mut source = Source::open(&hub::local(&self.model, false)?)?;
        if let Some(rtn) = self.baseline {
            source.round(rtn)?;
        }
        Ok(source)
    }
}

/// A text, and how it is cut.
#[derive(Args)]
struct TextArgs {
    /// The text, a UTF-8 file
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens of a chunk
    #[arg(long, value_name = "N", default_value_t = 1024)]
    ctx: usize,
    /// Chunks at most [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
}

impl TextArgs {
    /// Warns where a chunk is longer than the texts that the model was trained on.
    fn warn(&self, source: &Source) {
        let trained = source.config().max_context;
        if self.ctx > trained {
            note(&format!(
                "warning: --ctx {} is beyond the {trained} tokens that the model was trained for",
                self.ctx
            ));
        }
    }

    /// The text's tokens by the model's own tokenizer.
    fn tokens(&self, source: &Source) -> Result<(Vec<u32>, Protocol)> {
        let tokenizer = tokenizer(source)?;
        let text = std::fs::read_to_string(&self.text).map_err(Error::io(&self.text))?;
        let tokens = tokenizer.encode(&text, true)?;
        let bos = tokenizer.adds_bos().then(|| tokens[0]);
        let protocol = Protocol { context: self.ctx, chunks: self.chunks.map(|n| n as usize), bos };
        protocol.check(&tokens)?;
        Ok((tokens, protocol))
    }
}

/// Runs fasq-eval.
pub fn run(args: &EvalArgs) -> Result<()> {
    let common = match &args.task {
        Task::Logits(args) => &args.model,
        Task::Perplexity(args) => &args.model,
        Task::Divergence(args) => &args.model,
        Task::Choices(args) => &args.model,
        Task::Frontier(args) => &args.model,
    };
    let start = Instant::now();
    super::set_threads(common.threads)?;
    let choice = common.device.choose()?;
    let source = common.open()?;
    choice.run(Evaluation { task: &args.task, source: &source, start })
}

/// A task on its model.
struct Evaluation<'a> {
    task: &'a Task,
    source: &'a Source,
    /// When the program began, which reported seconds count from.
    start: Instant,
}

impl BackendTask for Evaluation<'_> {
    type Output = ();

    fn run<B: Backend + Clone>(self, backend: B) -> Result<()> {
        let Self { task, source, start } = self;
        match task {
            Task::Logits(args) => logits::run(args, &Model::load(backend, source)?),
            Task::Perplexity(args) => perplexity::run(args, &Model::load(backend, source)?, source, start),
            Task::Divergence(args) => divergence::run(args, backend, source, start),
            Task::Choices(args) => choices::run(args, &Model::load(backend, source)?, source, start),
            Task::Frontier(args) => frontier::run(args, backend, source),
        }
    }
}

fn tokenizer(source: &Source) -> Result<Tokenizer> {
    Tokenizer::of(source.assets(), source.config().vocab)
}

/// A progress bar over chunks of a text that shows the result so far.
struct Progress {
    bar: ProgressBar,
    start: Instant,
}

impl Progress {
    fn new(unit: &str) -> Self {
        let template = format!("{{pos}}/{{len}} {unit} {{wide_bar}} {{msg}}, {{eta}} left");
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self { bar: ProgressBar::new(0).with_style(style), start: Instant::now() }
    }

    fn show(&self, done: usize, of: usize, message: String) {
        self.bar.set_length(of as u64);
        self.bar.set_position(done as u64);
        self.bar.set_message(message);
    }

    /// Clears the bar; how many were done, and the time since [`Progress::new`].
    fn finish(self) -> (usize, Duration) {
        let done = self.bar.position() as usize;
        self.bar.finish_and_clear();
        (done, self.start.elapsed())
    }
}
