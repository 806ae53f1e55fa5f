//! The shell around [`fasq`] for JavaScript: `page/fasq.js` wraps [`Engine`] into the `FasqModel` of `page/fasq.d.ts`.
//!
//! A model, its session and its tokenizer live in one task, because they borrow from each other; requests reach it
//! through a channel, one at a time.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fasq::backend::Backend;
use fasq::backend::cpu::Cpu;
use fasq::backend::wgpu::Wgpu;
use fasq::format::Reader;
use fasq::generate::{Generator, Limits, Sampler, Sampling, Tokenizer};
use fasq::model::{Model, Source};
use fasq::{Error, Result};
use futures_channel::{mpsc, oneshot};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use wasm_bindgen::prelude::*;

/// Tokens of context at most: a browser's memory is small.
const CONTEXT: usize = 2048;

/// What the page shows about a model and where it runs.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    backend: String,
    /// Bytes of the largest buffer that the adapter binds; none on the CPU.
    max_binding: Option<u64>,
    /// The model's family.
    family: String,
    layers: usize,
    context: usize,
    parameters: u64,
    bytes: u64,
}

/// How to continue a prompt. What is missing is the model's own recommendation.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct GenerateOptions {
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    seed: Option<u32>,
    stop: Vec<String>,
}

/// What a text took.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    prompt_tokens: usize,
    prompt_seconds: f64,
    generated_tokens: usize,
    tokens_per_second: f64,
    reason: Option<&'static str>,
}

enum Event {
    Piece(String),
    End(Stats),
}

struct Request {
    prompt: String,
    options: GenerateOptions,
    events: mpsc::UnboundedSender<Result<Event>>,
    cancel: Arc<AtomicBool>,
}

/// A loaded model.
#[wasm_bindgen]
pub struct Engine {
    info: Info,
    requests: mpsc::UnboundedSender<Request>,
}

#[wasm_bindgen]
impl Engine {
    /// Loads a .fasq file on `backend`: "wgpu" or "cpu".
    pub async fn load(bytes: Vec<u8>, backend: &str) -> Result<Engine, JsError> {
        let reader = Reader::from_bytes(bytes)?;
        match backend {
            "cpu" => Ok(start(Cpu, None, reader).await?),
            "wgpu" => {
                let wgpu = Wgpu::open(0).await?;
                let binding = wgpu.weight_slice();
                Ok(start(wgpu, Some(binding), reader).await?)
            }
            _ => Err(Error::mismatch("backend", "wgpu or cpu", backend).into()),
        }
    }

    /// What was loaded, and where it runs.
    #[wasm_bindgen(getter)]
    pub fn info(&self) -> Result<JsValue, JsError> {
        Ok(serde_wasm_bindgen::to_value(&self.info)?)
    }

    /// Begins the text that follows `prompt`.
    pub fn generate(&self, prompt: String, options: JsValue) -> Result<Text, JsError> {
        let options = if options.is_undefined() { GenerateOptions::default() } else { serde_wasm_bindgen::from_value(options)? };
        let (sender, events) = mpsc::unbounded();
        let cancel = Arc::new(AtomicBool::new(false));
        let request = Request { prompt, options, events: sender, cancel: cancel.clone() };
        self.requests.unbounded_send(request).map_err(|_| JsError::new("the model has been freed"))?;
        Ok(Text { events: Cell::new(Some(events)), cancel, stats: Cell::new(None) })
    }
}

/// A text as it is written.
#[wasm_bindgen]
pub struct Text {
    /// None while a piece is awaited: nothing here is borrowed then, so that `stop` can come in between.
    events: Cell<Option<mpsc::UnboundedReceiver<Result<Event>>>>,
    cancel: Arc<AtomicBool>,
    stats: Cell<Option<Stats>>,
}

#[wasm_bindgen]
impl Text {
    /// The next piece; undefined at the end.
    pub async fn next(&self) -> Result<Option<String>, JsError> {
        let mut events = self.events.take().ok_or_else(|| JsError::new("the piece before is still awaited"))?;
        let event = events.next().await;
        self.events.set(Some(events));
        match event.transpose()? {
            Some(Event::Piece(piece)) => Ok(Some(piece)),
            Some(Event::End(stats)) => {
                self.stats.set(Some(stats));
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// Ends the text after the token in the making.
    pub fn stop(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    /// Counts and times, once the text has ended.
    #[wasm_bindgen(getter)]
    pub fn stats(&self) -> Result<JsValue, JsError> {
        Ok(serde_wasm_bindgen::to_value(&self.stats.get())?)
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts the task of a model, and waits until it is loaded.
async fn start<B: Backend + 'static>(backend: B, max_binding: Option<u64>, reader: Reader) -> Result<Engine> {
    let (requests, inbox) = mpsc::unbounded();
    let (loaded, info) = oneshot::channel();
    wasm_bindgen_futures::spawn_local(async move {
        let mut loaded = Some(loaded);
        if let Err(error) = serve(backend, max_binding, reader, inbox, &mut loaded).await
            && let Some(loaded) = loaded.take()
        {
            // Nobody waits any more only where the page has gone.
            let _ = loaded.send(Err(error));
        }
    });
    let info = info.await.map_err(|_| Error::invalid("model", "loading it was broken off"))??;
    Ok(Engine { info, requests })
}

/// Loads the model, reports it, then writes one text after the other until the engine is freed.
async fn serve<B: Backend>(
    backend: B,
    max_binding: Option<u64>,
    reader: Reader,
    mut inbox: mpsc::UnboundedReceiver<Request>,
    loaded: &mut Option<oneshot::Sender<Result<Info>>>,
) -> Result<()> {
    let parameters = parameters(&reader)?;
    let source = Source::File(reader);
    let (config, assets) = (source.config().clone(), source.assets().clone());
    let tokenizer = Tokenizer::of(&assets, config.vocab)?;
    let recommended = assets.generation_config.as_deref().map(Sampling::from_generation_config).transpose()?;
    let context = config.max_context.min(CONTEXT);
    let model = Model::load(backend, &source)?;
    let mut generator = Generator::new(&model, &tokenizer, context)?;
    // A browser reports only now which allocations failed.
    let word = model.backend().alloc(1)?;
    model.backend().read(&word, 0, 1).await?;
    let info = Info {
        backend: model.backend().describe(),
        max_binding,
        family: format!("{:?}", config.family),
        layers: config.layers.len(),
        context,
        parameters,
        bytes: source.bytes(),
    };
    drop(source);
    if let Some(loaded) = loaded.take() {
        // Nobody waits any more only where the page has gone.
        let _ = loaded.send(Ok(info));
    }
    while let Some(request) = inbox.next().await {
        let result = write(&mut generator, &tokenizer, recommended.clone().unwrap_or_default(), &request).await;
        // The reader may have lost interest.
        let _ = request.events.unbounded_send(result.map(Event::End));
    }
    Ok(())
}

/// Writes one text.
async fn write<B: Backend>(
    generator: &mut Generator<'_, B>,
    tokenizer: &Tokenizer,
    recommended: Sampling,
    request: &Request,
) -> Result<Stats> {
    let options = &request.options;
    let mut sampler = Sampler::new(Sampling {
        temperature: options.temperature.unwrap_or(recommended.temperature),
        top_p: options.top_p.unwrap_or(recommended.top_p),
        top_k: options.top_k.unwrap_or(recommended.top_k),
        seed: options.seed.unwrap_or(0).into(),
        ..recommended
    })?;
    let ids = tokenizer.encode(&request.prompt, true)?;
    let limits = Limits { tokens: Some(options.max_tokens.unwrap_or(256)), stop: options.stop.clone() };
    let mut text = generator.stream(&ids, &mut sampler, limits, Some(&request.cancel))?;
    while let Some(piece) = text.next_piece().await? {
        // The reader may have lost interest; its drop has set `cancel`.
        let _ = request.events.unbounded_send(Ok(Event::Piece(piece)));
        breathe().await;
    }
    let stats = text.stats();
    Ok(Stats {
        prompt_tokens: stats.prompt_tokens,
        prompt_seconds: stats.prompt_time.as_secs_f64(),
        generated_tokens: stats.generated_tokens,
        tokens_per_second: stats.generation_rate(),
        reason: text.reason().map(|reason| reason.describe()),
    })
}

/// Lets the event loop deliver what waits: the piece to its reader, and the user's wish to stop.
async fn breathe() {
    let promise = js_sys::Promise::new(&mut |resolve, _| {
        let global = js_sys::global();
        let timeout = js_sys::Reflect::get(&global, &"setTimeout".into()).map(JsCast::unchecked_into::<js_sys::Function>);
        if timeout.and_then(|timeout| timeout.call1(&global, &resolve)).is_err() {
            // Without timers there is no event loop to let in.
            let _ = resolve.call0(&JsValue::UNDEFINED);
        }
    });
    // This promise is only ever resolved.
    let _ = wasm_bindgen_futures::JsFuture::from(promise).await;
}

/// Weights of the model.
fn parameters(reader: &Reader) -> Result<u64> {
    let quantized: u64 = reader.plan().iter().map(|entry| entry.shape[0] as u64 * entry.shape[1] as u64).sum();
    let names = reader.names().filter(|name| !reader.plan().iter().any(|entry| entry.name == **name));
    names.map(|name| Ok(reader.tensor(name)?.shape.iter().map(|n| *n as u64).product::<u64>())).sum::<Result<u64>>().map(|dense| dense + quantized)
}
