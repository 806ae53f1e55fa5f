//! `fasq-quantize`.

mod job;
mod tables;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Parser, ValueEnum};

use self::job::Job;
use super::{DeviceArgs, hub, interrupt_flag};
use crate::model::Source;
use crate::quantize::{Size, Target};
use crate::{Error, Result};

/// Compress a language model by product quantization.
///
/// SPEC is D-K@SCOPE: D weights share one of K codes. Scopes: @universal (one codebook for the file), @matrix,
/// @group:N, @subspace (the FASQ paper's). Options: +rms, +absmax or +noscale for the row scale, +rotate or
/// +norotate. `f16` keeps a tensor as it is, in 16 bits. Examples: 2-256, 3-4096@matrix, 2-64@universal+norotate.
#[derive(Debug, Parser)]
#[command(name = "fasq-quantize", version)]
pub struct QuantizeArgs {
    /// Hugging Face folder (config.json, safetensors, tokenizer.json) or GGUF file; hf:ORG/NAME[@REVISION] is downloaded from the
    /// Hugging Face hub first
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// File to write; its name ends in .fasq
    #[arg(short, long, value_name = "OUT.fasq", required_unless_present_any = ["plan_only", "sizes"])]
    out: Option<PathBuf>,
    /// Specs where the other options name none
    #[arg(long, value_enum, default_value_t = Preset::Default)]
    preset: Preset,
    /// Spec of the linear layers
    #[arg(long, value_name = "SPEC", conflicts_with = "target")]
    pq: Option<Target>,
    /// Largest size of the file (31% of FP16, 5.5GB, 700MB): each matrix gets the spec that lowers the estimated loss most
    #[arg(long, value_name = "SIZE", group = "target")]
    size: Option<Size>,
    /// The same in bits of the file for each weight of the model
    #[arg(long, value_name = "BITS", value_parser = bits, group = "target")]
    bpw: Option<f64>,
    /// Print the composition of a file of each of these sizes and stop; without values, of a range of sizes
    #[arg(long, value_name = "SIZE,...", num_args = 0.., value_delimiter = ',', group = "target", conflicts_with = "out")]
    sizes: Option<Vec<Size>>,
    /// One spec for all matrices, as in the FASQ paper, instead of one for each
    #[arg(long, requires = "target")]
    uniform: bool,
    /// Sensitivity of the loss to each matrix's error: `typical`, known from another model; `self`, measured on text that
    /// the model writes; FILE, which --save-sensitivity wrote
    #[arg(long, value_name = "typical|self|FILE", default_value = "typical", value_parser = learn("typical"), requires = "target")]
    sensitivity: Learn,
    /// Write the sensitivities to this file, for other sizes
    #[arg(long, value_name = "FILE.json", requires = "target")]
    save_sensitivity: Option<PathBuf>,
    /// Spec of the output head, where it is not the embedding
    #[arg(long, value_name = "SPEC")]
    head: Option<Target>,
    /// Spec of the token embedding, which in many models is the output head as well
    #[arg(long, value_name = "SPEC")]
    embed: Option<Target>,
    /// Spec of the matrices whose name matches; may be repeated, the last match counts
    #[arg(long = "tensor", value_name = "PATTERN=SPEC", value_parser = tensor_rule)]
    tensors: Vec<(String, Target)>,
    /// Error feedback, which carries each weight's error into those after it: `self` learns from text that the model
    /// writes itself what matters, FILE is a text to learn from, `none` takes the nearest codes [default: self, and
    /// none for the paper preset]
    #[arg(long, value_name = "none|self|FILE", value_parser = learn("none"))]
    feedback: Option<Learn>,
    /// Sequences of the feedback text
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    sequences: u32,
    /// Tokens of each sequence, at most the model's context
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..=65536))]
    length: u32,
    /// Seed of the text that the model writes
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Write the text that the model writes to this file, or read it from there if the file exists
    #[arg(long, value_name = "FILE.json")]
    written: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
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

/// What error feedback or sensitivities are learnt from.
#[derive(Clone, Debug, PartialEq)]
enum Learn {
    Nothing,
    /// Text that the model writes itself.
    Own,
    File(PathBuf),
}

/// Parses a [`Learn`], where `nothing` is the option's word for [`Learn::Nothing`].
fn learn(nothing: &'static str) -> impl Fn(&str) -> Result<Learn, Infallible> + Clone {
    move |text| {
        Ok(match text {
            "self" => Learn::Own,
            text if text == nothing => Learn::Nothing,
            path => Learn::File(path.into()),
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

/// Runs the command.
pub fn run(args: QuantizeArgs) -> Result<()> {
    let start = Instant::now();
    if let Some(out) = &args.out {
        check_out(out)?;
    }
    super::set_threads(args.threads)?;
    let source = Source::unquantized(&hub::local(&args.source, args.quiet || args.json)?)?;
    let Source::Checkpoint(checkpoint) = &source else {
        return Err(Error::mismatch(
            args.source.display().to_string(),
            "a model folder or a GGUF file",
            "a file",
        ));
    };
    let feedback = args.feedback.clone().unwrap_or(match args.preset {
        Preset::Default => Learn::Own,
        Preset::Paper => Learn::Nothing,
    });
    let job = Job { args: &args, source: &source, checkpoint, feedback, stop: interrupt_flag()?, start };
    args.device.choose()?.run(job)
}

/// Checks before the work that the output file can be created.
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
