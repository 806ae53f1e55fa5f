//! `fasq-eval divergence`.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use clap::Args;
use comfy_table::{Table, presets};
use pollster::block_on;
use serde_json::{Value, json};

use super::{ModelArgs, Progress, TextArgs};
use crate::backend::Backend;
use crate::cli::{hub, interrupt_flag, output::Output};
use crate::eval::divergence::{Divergence, divergence};
use crate::model::{Model, Source};
use crate::{Error, Result};

/// How far a model's predictions are from those of the model that it was made of: the Kullback-Leibler divergence of
/// each token, by the protocol of `perplexity`. Both run side by side.
#[derive(Args)]
pub struct DivergenceArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// What to compare with: the unquantized model's folder or name on the hub, or another .fasq file
    #[arg(long, value_name = "CHECKPOINT")]
    base: PathBuf,
    #[command(flatten)]
    text: TextArgs,
}

pub fn run<B: Backend + Clone>(
    args: &DivergenceArgs,
    backend: B,
    source: &Source,
    start: Instant,
) -> Result<()> {
    let base_source = Source::open(&hub::local(&args.base, false)?)?;
    let (vocab, base_vocab) = (source.config().vocab, base_source.config().vocab);
    if vocab != base_vocab {
        let expected = format!("the base model's {base_vocab} tokens");
        return Err(Error::mismatch("the model's vocabulary", expected, vocab));
    }
    let (tokens, protocol) = args.text.tokens(&base_source)?;
    if source.assets().tokenizer.is_some() && args.text.tokens(source)?.0 != tokens {
        return Err(Error::invalid("tokenizer.json", "the two models cut the text into different tokens"));
    }
    args.text.warn(source);
    let base = Model::load(backend.clone(), &base_source)?;
    let model = Model::load(backend, source)?;
    let interrupted = interrupt_flag()?;
    let progress = Progress::new("chunks");
    let result = block_on(divergence(&base, &model, &tokens, protocol, |done, of, so_far| {
        let (mean, error) = (so_far.kl.value(), so_far.kl.error());
        progress.show(done, of, format!("KL {mean:.5} ± {error:.5}"));
        !interrupted.load(Ordering::Relaxed)
    }));
    let (chunks, _) = progress.finish();
    let (result, seconds) = (result?, start.elapsed().as_secs_f64());
    let mut output = Output::new(args.model.json, false);
    if args.model.json {
        let mut line = as_json(&result);
        line["ctx"] = args.text.ctx.into();
        line["chunks"] = chunks.into();
        line["bytes"] = source.bytes().into();
        line["base_bytes"] = base_source.bytes().into();
        line["seconds"] = seconds.into();
        line["backend"] = model.backend().describe().into();
        return output.line(&line);
    }
    output.text(&as_table(&result))?;
    output.remark(&format!(
        "{chunks} chunks of {} tokens, {} scored; {} of {} bytes; {seconds:.1} s in all; {}",
        args.text.ctx,
        result.kl.count(),
        source.bytes(),
        base_source.bytes(),
        model.backend().describe(),
    ));
    Ok(())
}

fn as_json(result: &Divergence) -> Value {
    let [median, p99, p999, max] = result.quantiles([0.5, 0.99, 0.999, 1.0]);
    json!({
        "kl_mean": result.kl.value(),
        "kl_error": result.kl.error(),
        "kl_median": median,
        "kl_99": p99,
        "kl_99_9": p999,
        "kl_max": max,
        "top1_agreement": result.agreement.value(),
        "top1_error": result.agreement.error(),
        "perplexity": result.model.perplexity(),
        "perplexity_error": result.model.error(),
        "base_perplexity": result.base.perplexity(),
        "base_perplexity_error": result.base.error(),
        "ln_ratio": result.ln_ratio.value(),
        "ln_ratio_error": result.ln_ratio.error(),
        "ratio": result.ratio(),
        "ratio_error": result.ratio_error(),
        "tokens_scored": result.kl.count(),
    })
}

fn as_table(result: &Divergence) -> String {
    let [median, p99, p999, max] = result.quantiles([0.5, 0.99, 0.999, 1.0]);
    let with_error = |value: f64, error: f64, digits: usize| format!("{value:.digits$} ± {error:.digits$}");
    let percent = |value: f64| 100.0 * value;
    let agreement = &result.agreement;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (name, value) in [
        ("mean KL", with_error(result.kl.value(), result.kl.error(), 6)),
        ("median KL", format!("{median:.6}")),
        ("99 % KL", format!("{p99:.6}")),
        ("99.9 % KL", format!("{p999:.6}")),
        ("largest KL", format!("{max:.6}")),
        ("same top token", with_error(percent(agreement.value()), percent(agreement.error()), 3) + " %"),
        ("perplexity", with_error(result.model.perplexity(), result.model.error(), 4)),
        ("base perplexity", with_error(result.base.perplexity(), result.base.error(), 4)),
        ("ratio", with_error(result.ratio(), result.ratio_error(), 5)),
        ("ln ratio", with_error(result.ln_ratio.value(), result.ln_ratio.error(), 6)),
    ] {
        table.add_row([name, &value]);
    }
    format!("{}\n", table.trim_fmt())
}
