//! `fasq-eval logits`.

use std::path::PathBuf;

use clap::Args;
use pollster::block_on;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::ModelArgs;
use crate::backend::Backend;
use crate::cli::output::Output;
use crate::cli::write_whole;
use crate::eval::logits::logits;
use crate::model::Model;
use crate::{Error, Result};

/// Write the logits of some tokens to a safetensors file: `logits` [tokens, vocab] in f32.
#[derive(Args)]
pub struct LogitsArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Token ids, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', required = true)]
    ids: Vec<u32>,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Tokens fed at a time; 1: token by token, as in decoding
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// Also hidden.embed, hidden.layer_I (the residual stream after block I) and hidden.norm [tokens, hidden]
    #[arg(long)]
    hidden: bool,
}

pub fn run<B: Backend>(args: &LogitsArgs, model: &Model<B>) -> Result<()> {
    let all = block_on(logits(model, &args.ids, args.chunk as usize, args.hidden))?;
    let rows = args.ids.len();
    let views = all.iter().map(|(name, (dim, values))| {
        let view = TensorView::new(safetensors::Dtype::F32, vec![rows, *dim], bytemuck::cast_slice(values));
        Ok((name, view.map_err(|e| Error::invalid(name, e))?))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    let bytes = safetensors::serialize(views, None).map_err(|e| Error::invalid("the logits", e))?;
    write_whole(&args.out, &bytes)?;
    let mut output = Output::new(args.model.json, false);
    let names: Vec<&String> = all.keys().collect();
    if args.model.json {
        return output.line(&json!({"out": args.out, "tokens": rows, "tensors": names, "backend": model.backend().describe()}));
    }
    output.remark(&format!(
        "{}: {} tensors of {rows} tokens; {}",
        args.out.display(),
        names.len(),
        model.backend().describe()
    ));
    Ok(())
}
