//! fasq-run: continues a text, or chats.

use std::io::{IsTerminal, Read, stdin};
use std::path::{Path, PathBuf};

use clap::{Args, Parser};
use indicatif::DecimalBytes;

use super::chat::{TemplateArgs, chat};
use super::output::Output;
use super::writer::Writer;
use super::{DeviceArgs, hub};
use crate::backend::{Backend, BackendTask};
use crate::baseline::Rtn;
use crate::generate::{Generator, Limits, Sampler, Sampling, StopReason, Tokenizer};
use crate::model::{Model, Source, memory};
use crate::{Error, Result};

/// Tokens of context unless `--ctx` says otherwise: a large model's whole context would take gigabytes.
const CONTEXT: usize = 4096;
/// Tokens to continue a prompt by, unless `-n` says otherwise.
const TOKENS: usize = 256;
/// The prompt at a terminal, by default.
const PROMPT: &str = "Once upon a time";

const NOTES: &str = "\
Without -p the prompt is read from stdin (a final newline is dropped), or with --chat one message from each line. \
Where stdin is a terminal and neither -p nor --chat is given, a model with a chat template chats, and any other \
continues \"Once upon a time\".

The text goes to stdout, everything else to stderr. On a terminal the prompt is shown dim before the text; in a pipe \
there is the text alone. Ctrl-C ends the text, keeps the statistics and exits with 130; errors exit with 2.

Sampling defaults come from the model's generation_config.json, else they are temperature 0.8 and top-p 0.95.";

/// Run a language model: continue a text, or chat
#[derive(Parser)]
#[command(name = "fasq-run", version, after_help = NOTES)]
pub struct RunArgs {
    /// A .fasq file, or a Hugging Face folder or GGUF file to run as it is; hf:ORG/NAME[@REVISION] is downloaded from the
    /// Hugging Face hub first
    #[cfg_attr(feature = "demo", doc = "[default: the built-in demo model]")]
    model: Option<PathBuf>,
    /// Round the linear layers of an unquantized model to the nearest step: rtn-BITS-gGROUP, like rtn-4-g128
    #[arg(long, value_name = "NAME")]
    baseline: Option<Rtn>,
    /// The text to continue; with --chat, the one message to answer
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Chat, using the model's own template: line by line until Ctrl-D
    #[arg(long)]
    chat: bool,
    /// What a chat's system message says; implies --chat
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens to generate at most [default: 256; in a chat, until the model ends its turn]
    #[arg(short = 'n', long, value_name = "N")]
    tokens: Option<usize>,
    /// Tokens of context, prompt included [default: what the model was trained for, at most 4096]
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    /// End the text before this one; may be given more than once
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// A token that ends the text as well, by its text or id; may be given more than once
    #[arg(long, value_name = "TOKEN")]
    eos: Vec<String>,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// CPU threads [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// JSON lines on stdout: {"text": ...} for each piece, then an object with the statistics
    #[arg(long)]
    json: bool,
    /// Only errors on stderr
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

#[derive(Args)]
#[command(next_help_heading = "Sampling, in this order (defaults: the model's own)")]
struct SamplingArgs {
    /// Divide the logits of tokens that are in the text already; 1: off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Divide the logits; 0: greedy
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Keep the K likeliest tokens; 0: off
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Keep the likeliest tokens that reach this probability together; 1: off
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Keep tokens this fraction as probable as the likeliest; 0: off
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// The same seed gives the same text [default: another each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Always take the likeliest token
    #[arg(long, conflicts_with = "temperature")]
    greedy: bool,
}

impl SamplingArgs {
    /// The flags over the model's recommendations.
    fn over(&self, generation_config: Option<&str>) -> Result<Sampling> {
        let model = generation_config.map(Sampling::from_generation_config).transpose()?.unwrap_or_default();
        Ok(Sampling {
            repetition_penalty: self.repetition_penalty.unwrap_or(model.repetition_penalty),
            temperature: if self.greedy { 0.0 } else { self.temperature.unwrap_or(model.temperature) },
            top_k: self.top_k.unwrap_or(model.top_k),
            top_p: self.top_p.unwrap_or(model.top_p),
            min_p: self.min_p.unwrap_or(model.min_p),
            seed: self.seed.unwrap_or_else(|| fastrand::u32(..).into()),
        })
    }
}

/// Runs fasq-run.
pub fn run(args: &RunArgs) -> Result<()> {
    super::set_threads(args.threads)?;
    let choice = args.device.choose()?;
    let (mut source, name) = open(args.model.as_deref(), args.quiet)?;
    if let Some(rtn) = args.baseline {
        source.round(rtn)?;
    }
    choice.run(Run { args, source: &source, name: &name })
}

/// A run on its model.
struct Run<'a> {
    args: &'a RunArgs,
    source: &'a Source,
    name: &'a str,
}

/// The model, and what to call it.
pub(super) fn open(model: Option<&Path>, quiet: bool) -> Result<(Source, String)> {
    match model {
        Some(path) => Ok((Source::open(&hub::local(path, quiet)?)?, path.display().to_string())),
        None => demo(),
    }
}

#[cfg(feature = "demo")]
fn demo() -> Result<(Source, String)> {
    const MODEL: &[u8] = include_bytes!("../../models/wiki-32m.fasq");
    let reader = crate::format::Reader::from_bytes(MODEL)?;
    Ok((Source::File(reader), "wiki-32m.fasq (built in)".into()))
}

#[cfg(not(feature = "demo"))]
fn demo() -> Result<(Source, String)> {
    Err(Error::invalid("MODEL", "no demo model is built into this program: give a .fasq file or a folder"))
}

impl BackendTask for Run<'_> {
    type Output = ();

    fn run<B: Backend + Clone>(self, backend: B) -> Result<()> {
        let Self { args, source, name } = self;
        let (config, assets) = (source.config(), source.assets());
        let mut tokenizer = Tokenizer::of(assets, config.vocab)?;
        args.eos.iter().try_for_each(|token| tokenizer.end_with(token))?;
        let sampling = args.sampling.over(assets.generation_config.as_deref())?;
        let seed = sampling.seed;
        let sampler = Sampler::new(sampling)?;
        let context = context(args.ctx, config.max_context)?;

        let at_terminal = stdin().is_terminal();
        let asked = args.chat || args.system.is_some();
        let chats = asked || (args.prompt.is_none() && at_terminal && assets.chat_template.is_some());
        let template = chats.then(|| args.template.open(assets, config, &tokenizer)).transpose()?;
        let tokens = args.tokens.or((!chats).then_some(TOKENS));

        memory::check(&backend, source, &Generator::<B>::options(context))?;
        let model = Model::load(backend, source)?;
        let output = Output::new(args.json, args.quiet);
        output.remark(&format!(
            "{name}: {:?}, {} layers, {}; {}{}; context {context}, seed {seed}",
            config.family,
            config.layers.len(),
            DecimalBytes(source.bytes()),
            model.backend().describe(),
            if args.device.is_auto() { " (auto)" } else { "" },
        ));
        let mut writer = Writer {
            generator: Generator::new(&model, &tokenizer, context)?,
            tokenizer: &tokenizer,
            sampler,
            limits: Limits { tokens, stop: args.stop.clone() },
            output,
            interrupted: super::interrupt_flag()?,
            weight_bytes: model.weight_bytes(),
        };
        match template {
            Some(template) => chat(&mut writer, &template, args.system.as_deref(), args.prompt.as_deref()),
            None => complete(&mut writer, args.prompt.clone(), at_terminal),
        }
    }
}

/// The context to allocate: what was asked for, else the trained one up to [`CONTEXT`].
pub(super) fn context(asked: Option<usize>, trained: usize) -> Result<usize> {
    match asked {
        None => Ok(trained.min(CONTEXT)),
        Some(context) if (1..=trained).contains(&context) => Ok(context),
        Some(context) => {
            Err(Error::mismatch("--ctx", format!("1 to {trained}, which the model was trained for"), context))
        }
    }
}

/// Continues one prompt.
fn complete<B: Backend>(writer: &mut Writer<'_, B>, prompt: Option<String>, at_terminal: bool) -> Result<()> {
    let prompt = match prompt {
        Some(prompt) => prompt,
        None if at_terminal => {
            writer.output.remark(&format!("no prompt (-p TEXT): continuing {PROMPT:?}"));
            PROMPT.into()
        }
        None => read_stdin()?,
    };
    let ids = writer.tokenizer.encode(&prompt, true)?;
    writer.output.prompt(&prompt)?;
    match writer.write(&ids)? {
        (_, Some(StopReason::Cancelled)) => Err(Error::Interrupted),
        _ => Ok(()),
    }
}

/// The whole of stdin, without the newline that ends its last line.
fn read_stdin() -> Result<String> {
    let mut text = String::new();
    stdin().read_to_string(&mut text).map_err(Error::io("stdin"))?;
    let line = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    Ok(line.unwrap_or(&text).to_string())
}
