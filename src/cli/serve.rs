//! fasq-serve: opens a model to clients of OpenAI's API.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;

use super::{DeviceArgs, note};
use crate::backend::{Backend, BackendTask, Choice};
use crate::engine::{Engine, Requests, queue};
use crate::generate::{ChatTemplate, Sampling, Tokenizer};
use crate::model::{Model, SessionOptions, Source, memory};
use crate::serve::{Access, App, Metrics, Server, now};
use crate::{Error, Result};

/// What clients call the built-in model.
const DEMO: &str = "wiki-32m";
/// The variable that may hold the API key, which the arguments of a process would show.
const API_KEY: &str = "FASQ_API_KEY";

const NOTES: &str = "\
Endpoints: /v1/chat/completions, /v1/completions, /v1/models, /tokenize, /detokenize, /apply-template, /health, /live, \
/metrics. Point a client of OpenAI's API to http://HOST:PORT/v1.

Ctrl-C or SIGTERM ends the server: no new requests, and those that run may end within the timeout; a second signal ends \
them at once.

Sampling defaults come from the model's generation_config.json, else they are temperature 0.8 and top-p 0.95.";

/// Serve a language model over HTTP: OpenAI's API
#[derive(Parser)]
#[command(name = "fasq-serve", version, after_help = NOTES)]
pub struct ServeArgs {
    /// A .fasq file, or a Hugging Face folder to run unquantized; hf:ORG/NAME[@REVISION] is downloaded from the
    /// Hugging Face hub first
    #[cfg_attr(feature = "demo", doc = "[default: the built-in demo model]")]
    model: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// CPU threads [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Tokens of context of each text, prompt included [default: what the model was trained for, at most 4096]
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    /// Texts side by side [default: 4 on the CPU, 8 on a GPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    max_seqs: Option<u16>,
    /// Requests that may wait for a place; further ones get status 429
    #[arg(long, value_name = "N", default_value_t = 64)]
    queue: u32,
    /// Address to listen on; 0.0.0.0 for every one that this machine has
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 for any that is free
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Key that clients must send; FASQ_API_KEY may hold it, where other users cannot see it
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Origin of web pages that may ask, scheme and port included; * for any; may be given more than once
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// Seconds that running requests have to end after Ctrl-C or SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    shutdown_timeout: u32,
}

/// Runs fasq-serve.
pub fn run(args: &ServeArgs) -> Result<()> {
    super::set_threads(args.threads)?;
    let choice = args.device.choose()?;
    let address = format!("{}:{}", args.host, args.port);
    let listener = TcpListener::bind((args.host.as_str(), args.port)).map_err(Error::io(&address))?;
    let address = listener.local_addr().map_err(Error::io(&address))?;
    let api_key = args.api_key()?;
    if api_key.is_none() && !address.ip().is_loopback() {
        log::warn!("{address} may be reached from other machines, and no --api-key is set");
    }
    let (source, _) = super::run::open(args.model.as_deref(), false)?;
    let (config, assets) = (source.config(), source.assets());
    let tokenizer = Arc::new(Tokenizer::of(assets, config.vocab)?);
    let options = SessionOptions {
        slots: args.max_seqs.map_or(if choice == Choice::Cpu { 4 } else { 8 }, usize::from),
        context: super::run::context(args.ctx, config.max_context)?,
        ..SessionOptions::default()
    };
    let (submitter, requests) = queue(options.slots, args.queue as usize);
    let template = assets.chat_template.as_ref().map(|_| {
        let template = ChatTemplate::new(assets, config, &tokenizer);
        template.map_err(|error| error.to_string())
    });
    let generation_config = assets.generation_config.as_deref();
    let name = args.model_name();
    let server = Server {
        listener,
        app: Arc::new(App {
            model: name.clone(),
            context: options.context,
            tokenizer: tokenizer.clone(),
            template,
            sampling: generation_config
                .map(Sampling::from_generation_config)
                .transpose()?
                .unwrap_or_default(),
            submitter,
            metrics: Metrics::new()?,
            created: now(),
        }),
        access: Access { api_key, cors_origins: args.cors_origin.clone() },
        shutdown_timeout: Duration::from_secs(args.shutdown_timeout.into()),
    };
    let started = format!("http://{address}/v1: {name}");
    // Backends stay in the thread that made them, which is this one; its pool of threads counts on it too.
    let http = std::thread::Builder::new().name("http".into()).spawn(move || server.run());
    let http = http.map_err(Error::io("the server's thread"))?;
    choice.run(Serve { source: &source, tokenizer: &tokenizer, options, requests: &requests, started })?;
    http.join().unwrap_or_else(|_| Err(Error::invalid("server", "its thread panicked")))
}

impl ServeArgs {
    /// What clients call the model: the name of its file or folder, or that on the hub.
    fn model_name(&self) -> String {
        let Some(path) = &self.model else { return DEMO.into() };
        let text = path.to_string_lossy();
        if let Some(name) = text.strip_prefix("hf:").filter(|_| !path.exists()) {
            return name.into();
        }
        let path = path.canonicalize().unwrap_or_else(|_| path.clone());
        let name = path.file_name().map_or(text, |name| name.to_string_lossy());
        let file = Path::new(name.as_ref());
        let is_fasq = file.extension().is_some_and(|extension| extension == "fasq");
        file.file_stem()
            .filter(|_| is_fasq)
            .map_or(name.as_ref().into(), |stem| stem.to_string_lossy().into())
    }

    fn api_key(&self) -> Result<Option<String>> {
        let key = self.api_key.clone().or_else(|| std::env::var(API_KEY).ok());
        match key {
            Some(key) if key.is_empty() => Err(Error::mismatch("API key", "some text", "an empty one")),
            key => Ok(key),
        }
    }
}

/// The engine of a server, on its model.
struct Serve<'a> {
    source: &'a Source,
    tokenizer: &'a Tokenizer,
    options: SessionOptions,
    requests: &'a Requests,
    /// What is served where.
    started: String,
}

impl BackendTask for Serve<'_> {
    type Output = ();

    fn run<B: Backend + Clone>(self, backend: B) -> Result<()> {
        let Self { source, tokenizer, options, requests, started } = self;
        memory::check(&backend, source, &options)?;
        let model = Model::load(backend, source)?;
        let mut engine = Engine::new(&model, tokenizer, options)?;
        pollster::block_on(engine.warm_up())?;
        let SessionOptions { slots, context, .. } = options;
        note(&format!("{started}; {}; {slots} texts x {context} tokens", model.backend().describe()));
        engine.run(requests);
        Ok(())
    }
}
