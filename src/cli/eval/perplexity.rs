//! `fasq-eval perplexity`.

use std::sync::atomic::Ordering;
use std::time::Instant;

use clap::Args;
use pollster::block_on;
use serde_json::json;

use super::{ModelArgs, Progress, TextArgs};
use crate::Result;
use crate::backend::Backend;
use crate::cli::{interrupt_flag, output::Output};
use crate::eval::perplexity::{Estimate, perplexity};
use crate::model::{Model, Source};

/// Perplexity on a text, by the protocol of llama.cpp's llama-perplexity: chunks of the context length, BOS first
/// where the tokenizer adds one, the second half of each chunk scored.
#[derive(Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    text: TextArgs,
}

pub fn run<B: Backend>(
    args: &PerplexityArgs,
    model: &Model<B>,
    source: &Source,
    start: Instant,
) -> Result<()> {
    let (tokens, protocol) = args.text.tokens(source)?;
    args.text.warn(source);
    let interrupted = interrupt_flag()?;
    let progress = Progress::new("chunks");
    let result = block_on(perplexity(model, &tokens, protocol, |done, of, estimate| {
        progress.show(done, of, describe(estimate));
        !interrupted.load(Ordering::Relaxed)
    }));
    let (chunks, time) = progress.finish();
    let estimate = result?;
    let rate = (chunks * args.text.ctx) as f64 / time.as_secs_f64();
    let seconds = start.elapsed().as_secs_f64();
    let mut output = Output::new(args.model.json, false);
    if args.model.json {
        return output.line(&json!({
            "perplexity": estimate.perplexity(),
            "error": estimate.error(),
            "ctx": args.text.ctx,
            "chunks": chunks,
            "tokens_scored": estimate.tokens(),
            "bytes": source.bytes(),
            "seconds": seconds,
            "tokens_per_second": rate,
            "backend": model.backend().describe(),
        }));
    }
    output.text(&format!("{}\n", describe(&estimate)))?;
    output.remark(&format!(
        "{chunks} chunks of {} tokens, {} scored; {rate:.0} tok/s; {seconds:.1} s in all; {}",
        args.text.ctx,
        estimate.tokens(),
        model.backend().describe(),
    ));
    Ok(())
}

fn describe(estimate: &Estimate) -> String {
    format!("perplexity {:.4} ± {:.4}", estimate.perplexity(), estimate.error())
}
