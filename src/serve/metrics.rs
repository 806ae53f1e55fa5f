//! [`Metrics`]: counts and times for Prometheus, by the names and buckets of vLLM, and [`Record`]: those of one call.

use std::time::Instant;

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use crate::engine::{Event, Failure, Load, Outcome, Usage};
use crate::generate::StopReason;
use crate::{Error, Result};

/// Seconds to the first token.
const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// Seconds between tokens.
const NEXT_TOKEN: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];

/// Handles to what is counted; clones count together.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    running: IntGauge,
    waiting: IntGauge,
    prompt_tokens: IntCounter,
    cached_tokens: IntCounter,
    generation_tokens: IntCounter,
    success: IntCounterVec,
    first_token: Histogram,
    next_token: Histogram,
}

impl Metrics {
    pub fn new() -> Result<Self> {
        Self::registered().map_err(|e| Error::invalid("metrics", e))
    }

    fn registered() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(format!("fasq:{name}"), help)?;
            registry.register(Box::new(gauge.clone())).map(|()| gauge)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(format!("fasq:{name}"), help)?;
            registry.register(Box::new(counter.clone())).map(|()| counter)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(format!("fasq:{name}"), help).buckets(buckets.to_vec());
            let histogram = Histogram::with_opts(options)?;
            registry.register(Box::new(histogram.clone())).map(|()| histogram)
        };
        let success = IntCounterVec::new(
            Opts::new("fasq:request_success_total", "Texts that ended, by reason."),
            &["finished_reason"],
        )?;
        registry.register(Box::new(success.clone()))?;
        Ok(Self {
            running: gauge("num_requests_running", "Texts that are being read or written.")?,
            waiting: gauge("num_requests_waiting", "Texts that wait for a slot.")?,
            prompt_tokens: counter("prompt_tokens_total", "Tokens of prompts.")?,
            cached_tokens: counter("prompt_tokens_cached_total", "Tokens of prompts that a slot held.")?,
            generation_tokens: counter("generation_tokens_total", "Tokens generated.")?,
            success,
            first_token: histogram(
                "time_to_first_token_seconds",
                "From a call's arrival to a text's first token.",
                &FIRST_TOKEN,
            )?,
            next_token: histogram(
                "inter_token_latency_seconds",
                "Between two tokens of a text.",
                &NEXT_TOKEN,
            )?,
            registry,
        })
    }

    /// Everything, in Prometheus' text format.
    ///
    /// # Errors
    /// A metric cannot be written.
    pub fn text(&self, load: &Load) -> Result<String> {
        self.running.set(load.running() as i64);
        self.waiting.set(load.waiting() as i64);
        let text = TextEncoder::new().encode_to_string(&self.registry.gather());
        text.map_err(|e| Error::invalid("metrics", e))
    }

    fn end(&self, reason: &str, usage: Usage) {
        self.success.with_label_values(&[reason]).inc();
        self.prompt_tokens.inc_by(usage.prompt_tokens as u64);
        self.cached_tokens.inc_by(usage.cached_tokens as u64);
    }
}

/// What one call took: counted as it happens, and logged in a line at the end, which has none of its text.
pub struct Record {
    metrics: Metrics,
    kind: &'static str,
    began: Instant,
    /// By text: when its last token came.
    last: Vec<Option<Instant>>,
    /// Texts that have not ended.
    open: usize,
    usage: Usage,
    reason: &'static str,
}

impl Record {
    /// Of a call of some kind with `texts` texts.
    pub fn new(metrics: &Metrics, kind: &'static str, texts: usize) -> Self {
        let (metrics, began, last) = (metrics.clone(), Instant::now(), vec![None; texts]);
        Self { metrics, kind, began, last, open: texts, usage: Usage::default(), reason: "abort" }
    }

    /// Counts an event.
    pub fn see(&mut self, event: &Event) {
        match &event.outcome {
            Outcome::Text { .. } => {
                self.metrics.generation_tokens.inc();
                self.usage.generated_tokens += 1;
                let Some(last) = self.last.get_mut(event.index) else { return };
                let (histogram, since) = match last.replace(event.at) {
                    Some(last) => (&self.metrics.next_token, last),
                    None => (&self.metrics.first_token, self.began),
                };
                histogram.observe(event.at.saturating_duration_since(since).as_secs_f64());
            }
            Outcome::End { reason, usage } => {
                let reason = match reason {
                    StopReason::Tokens | StopReason::Context => "length",
                    _ => "stop",
                };
                self.end(reason, *usage);
            }
            Outcome::Failed(failure) => {
                let reason = if *failure == Failure::Shutdown { "abort" } else { "error" };
                self.end(reason, Usage::default());
            }
        }
    }

    fn end(&mut self, reason: &'static str, usage: Usage) {
        self.metrics.end(reason, usage);
        self.open = self.open.saturating_sub(1);
        self.reason = reason;
        self.usage.prompt_tokens += usage.prompt_tokens;
        self.usage.cached_tokens += usage.cached_tokens;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        for _ in 0..self.open {
            self.metrics.end("abort", Usage::default());
        }
        let reason = if self.open > 0 && self.reason != "error" { "abort" } else { self.reason };
        let Usage { prompt_tokens, cached_tokens, generated_tokens } = self.usage;
        log::info!(
            "{}: {reason}, texts {}, prompt {prompt_tokens} tokens ({cached_tokens} cached), generated {generated_tokens}, {:.2} s",
            self.kind,
            self.last.len(),
            self.began.elapsed().as_secs_f64(),
        );
    }
}
