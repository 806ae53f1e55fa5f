//! fasq-bench: how fast models of real shapes run, without a model file.

use clap::{Args, Parser, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use pollster::block_on;

use super::DeviceArgs;
use super::output::STDOUT;
use crate::backend::{Backend, BackendTask, Bandwidth, Quantizer};
#[cfg(feature = "cuda")]
use crate::backend::{
    Choice,
    cuda::{Cuda, MatmulAlgorithm},
};
use crate::bench::quantize::quantize;
use crate::bench::{kernels, operations, shapes, speed};
use crate::config::ModelConfig;
use crate::model::random::{Random, Storage};
use crate::model::{Model, Source, memory};
use crate::pq::PqSpec;
use crate::{Error, Result};

/// Measure prefill and decode speed of a random model of a real shape, of single kernels, or of quantizing.
#[derive(Parser)]
#[command(name = "fasq-bench", version)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: Option<Command>,
    /// The model's shape
    #[arg(long, value_name = "NAME", default_value = "llama3-8b", value_parser = clap::builder::PossibleValuesParser::new(shapes::NAMES))]
    shape: String,
    #[command(flatten)]
    storage: StorageArgs,
    /// Run dense f16 as well, and print the ratio
    #[arg(long)]
    compare: bool,
    /// Prompt lengths
    #[arg(short, long, value_name = "N,...", default_value = "128", value_delimiter = ',')]
    prompt: Vec<usize>,
    /// Tokens to decode after each prompt
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    tokens: usize,
    /// Sequences side by side
    #[arg(long, value_name = "N,...", default_value = "1", value_delimiter = ',')]
    batch: Vec<usize>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Args)]
struct StorageArgs {
    /// How every matrix is quantized, embedding and head too [default: 2-256@universal]
    #[arg(long, value_name = "SPEC")]
    pq: Option<PqSpec>,
    /// paper: 2-256@subspace, embedding and head in f16
    #[arg(long, value_name = "NAME", value_parser = ["paper"], conflicts_with = "pq")]
    preset: Option<String>,
    /// Every matrix unquantized
    #[arg(long, value_name = "TYPE", value_parser = ["f16"], conflicts_with_all = ["pq", "preset"])]
    dense: Option<String>,
}

#[derive(Args)]
struct CommonArgs {
    /// Runs that count; the median is printed
    #[arg(long, value_name = "N", default_value_t = 5, global = true)]
    repeat: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Time linear layers cold, each launch on another weight
    Kernels {
        /// How the weights are stored: specs, or f16
        #[arg(
            long,
            value_name = "SPEC,...",
            value_delimiter = ',',
            default_value = "2-256@universal,2-64@universal,2-256@subspace,f16"
        )]
        specs: Vec<String>,
        /// Shapes, OUTxIN
        #[arg(
            long,
            value_name = "OxI,...",
            value_delimiter = ',',
            default_value = "6144x4096,4096x4096,28672x4096,4096x14336"
        )]
        shapes: Vec<String>,
        /// Rows of x
        #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1")]
        rows: Vec<usize>,
        /// How CUDA multiplies several rows [default: the fastest]
        #[cfg(feature = "cuda")]
        #[arg(long, value_name = "NAME", value_parser = algorithm)]
        algorithm: Option<MatmulAlgorithm>,
    },
    /// Time quantizing all matrices of a random model, from f16 in host memory to codes in host memory
    Quantize {
        /// The model's shape
        #[arg(long, value_name = "NAME", default_value = "llama3-8b", value_parser = clap::builder::PossibleValuesParser::new(shapes::NAMES))]
        shape: String,
        /// How every matrix is quantized, embedding and head too
        #[arg(
            long,
            value_name = "SPEC,...",
            value_delimiter = ',',
            default_value = "2-256@universal,2-256@subspace"
        )]
        pq: Vec<PqSpec>,
    },
    /// Time the other operations of a forward pass cold, each alone
    Operations {
        /// The model's shape
        #[arg(long, value_name = "NAME", default_value = "llama3-8b", value_parser = clap::builder::PossibleValuesParser::new(shapes::NAMES))]
        shape: String,
        /// Rows of one sequence: 1 for decode, more for prefill
        #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,512")]
        rows: Vec<usize>,
        /// Positions that the last row sees
        #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "512,4096")]
        positions: Vec<usize>,
    },
}

const DENSE: Storage = Storage { linear: None, head: None };

impl StorageArgs {
    fn storage(&self) -> Result<Storage> {
        if self.dense.is_some() {
            return Ok(DENSE);
        }
        if self.preset.is_some() {
            return Ok(Storage { linear: Some("2-256@subspace".parse()?), head: None });
        }
        let spec = match self.pq {
            Some(spec) => spec,
            None => "2-256@universal".parse()?,
        };
        Ok(Storage { linear: Some(spec), head: Some(spec) })
    }
}

pub fn run(args: &BenchArgs) -> Result<()> {
    super::set_threads(None)?;
    let choice = args.common.device.choose()?;
    #[cfg(feature = "cuda")]
    if let Some(Command::Kernels { specs, shapes, rows, algorithm: Some(algorithm) }) = &args.command {
        let Choice::Cuda(index) = choice else {
            return Err(Error::invalid("--algorithm", "only --device cuda has algorithms to choose from"));
        };
        let cuda = Cuda::open(index)?.with_algorithm(*algorithm);
        return block_on(single(&cuda, specs, shapes, rows, args.common.repeat));
    }
    choice.run(args)
}

impl BackendTask for &BenchArgs {
    type Output = ();

    fn run<B: Backend + Clone>(self, backend: B) -> Result<()> {
        let repeat = self.common.repeat;
        match &self.command {
            None => block_on(model(backend, self)),
            Some(Command::Kernels { specs, shapes, rows, .. }) => {
                block_on(single(&backend, specs, shapes, rows, repeat))
            }
            Some(Command::Quantize { shape, pq }) => quantizing(backend.quantizer(), shape, pq, repeat),
            Some(Command::Operations { shape, rows, positions }) => {
                let config = shapes::config(shape).ok_or_else(|| Error::invalid("shape", shape))?;
                let config = ModelConfig::parse(config, None)?;
                let cases = positions.iter().flat_map(|seen| {
                    let position = seen.saturating_sub(1);
                    rows.iter().map(move |rows| operations::Case { rows: *rows, position })
                });
                block_on(each(&backend, &config, &cases.collect::<Vec<_>>(), repeat))
            }
        }
    }
}

#[cfg(feature = "cuda")]
fn algorithm(name: &str) -> std::result::Result<MatmulAlgorithm, String> {
    let names = || MatmulAlgorithm::PQ.map(|algorithm| algorithm.to_string()).join(", ");
    MatmulAlgorithm::parse(name).ok_or_else(|| format!("one of {} was expected", names()))
}

async fn model<B: Backend + Clone>(backend: B, args: &BenchArgs) -> Result<()> {
    if args.prompt.contains(&0) || args.batch.contains(&0) || args.common.repeat == 0 {
        return Err(Error::invalid("fasq-bench", "prompts, batches and repetitions are at least 1"));
    }
    let storage = args.storage.storage()?;
    let plan = speed::Plan {
        prompts: args.prompt.clone(),
        tokens: args.tokens,
        batches: args.batch.clone(),
        repeat: args.common.repeat,
        max_rows: 2048,
    };
    let bandwidth = backend.bandwidth()?;
    print(&format!("{}, {}{}", args.shape, backend.describe(), bandwidth.map_or(String::new(), describe)))?;
    let first = measure(&backend, args, storage, &plan, bandwidth, None).await?;
    if args.compare && storage != DENSE {
        measure(&backend, args, DENSE, &plan, bandwidth, Some(&first)).await?;
    }
    Ok(())
}

fn describe(bandwidth: Bandwidth) -> String {
    let [peak, measured] = [bandwidth.peak, bandwidth.measured].map(|b| b / 1e9);
    format!(": {peak:.0} GB/s peak, {measured:.0} GB/s in a streaming read")
}

fn name(storage: Storage) -> String {
    let spec = |spec: Option<PqSpec>| spec.map_or("f16".to_owned(), |spec| spec.to_string());
    match storage.linear == storage.head {
        true => spec(storage.linear),
        false => format!("{}, embedding and head {}", spec(storage.linear), spec(storage.head)),
    }
}

async fn measure<B: Backend + Clone>(
    backend: &B,
    args: &BenchArgs,
    storage: Storage,
    plan: &speed::Plan,
    bandwidth: Option<Bandwidth>,
    other: Option<&[speed::Measured]>,
) -> Result<Vec<speed::Measured>> {
    let config = shapes::config(&args.shape).ok_or_else(|| Error::invalid("shape", &args.shape))?;
    let source = Source::Random(Random::new(config, storage)?);
    let largest = plan.largest();
    memory::check(backend, &source, &largest)?;
    let planned = memory::total(backend, &source, &largest)?;
    let free = backend.free_memory();
    let model = Model::load(backend.clone(), &source)?;
    drop(source);
    let bytes = model.weight_bytes() as f64;
    let all = speed::measure(&model, plan).await?;
    let taken = free.zip(backend.free_memory()).map(|(before, after)| before.saturating_sub(after));
    let mut table =
        table(&["test", "tok/s", "+-", "ms/step", "kernels", "GB/step", "GB/s", "% peak", "% read", "ratio"]);
    for (i, measured) in all.iter().enumerate() {
        let what = match measured.what {
            speed::What::Prefill { prompt } => format!("prefill {prompt}"),
            speed::What::Decode { prompt, tokens, batch } => {
                format!("decode {tokens} after {prompt}, batch {batch}")
            }
        };
        let rate = bytes / measured.seconds_per_step();
        let share = |of: fn(Bandwidth) -> f64| {
            bandwidth.map_or(String::new(), |b| format!("{:.1}", 100.0 * rate / of(b)))
        };
        let ratio = other.and_then(|other| other.get(i));
        table.add_row([
            what,
            format!("{:.1}", measured.tokens_per_second()),
            format!("{:.1} %", 100.0 * measured.samples.spread()),
            format!("{:.3}", 1e3 * measured.seconds_per_step()),
            measured.dispatches.map_or(String::new(), |count| count.to_string()),
            format!("{:.3}", bytes / 1e9),
            format!("{:.0}", rate / 1e9),
            share(|b| b.peak),
            share(|b| b.measured),
            ratio.map_or(String::new(), |o| {
                format!("{:.2}", o.tokens_per_second() / measured.tokens_per_second())
            }),
        ]);
    }
    let memory = |bytes: u64| format!("{:.2} GB", bytes as f64 / 1e9);
    let taken = taken.map_or(String::new(), |taken| format!(", {} taken", memory(taken)));
    print(&format!("{}: {} of memory planned{taken}\n{table}", name(storage), memory(planned)))?;
    Ok(all)
}

async fn single<B: Backend>(
    backend: &B,
    specs: &[String],
    shapes: &[String],
    rows: &[usize],
    repeat: usize,
) -> Result<()> {
    let bandwidth = backend.bandwidth()?;
    print(&format!("{}{}", backend.describe(), bandwidth.map_or(String::new(), describe)))?;
    let mut table = table(&["weight", "out x in", "rows", "us", "+-", "GB/s", "% peak", "% read"]);
    for spec in specs {
        for shape in shapes {
            let bad = || Error::mismatch("--shapes", "OUTxIN, like 4096x4096", shape);
            let (out, cols) = shape.split_once('x').ok_or_else(bad)?;
            let (out, cols) = (out.parse().map_err(|_| bad())?, cols.parse().map_err(|_| bad())?);
            let parsed = if spec == "f16" { None } else { Some(spec.parse()?) };
            for &rows in rows {
                let case = kernels::Case { out, cols, spec: parsed, rows };
                let timing = kernels::linear(backend, &case, repeat.max(1)).await?;
                let rate = timing.bytes as f64 / timing.samples.median();
                let share = |of: fn(Bandwidth) -> f64| {
                    bandwidth.map_or(String::new(), |b| format!("{:.1}", 100.0 * rate / of(b)))
                };
                table.add_row([
                    spec.clone(),
                    format!("{out} x {cols}"),
                    rows.to_string(),
                    format!("{:.2}", 1e6 * timing.samples.median()),
                    format!("{:.1} %", 100.0 * timing.samples.spread()),
                    format!("{:.0}", rate / 1e9),
                    share(|b| b.peak),
                    share(|b| b.measured),
                ]);
            }
        }
    }
    print(&table.to_string())
}

fn quantizing(quantizer: &dyn Quantizer, shape: &str, specs: &[PqSpec], repeat: usize) -> Result<()> {
    let config = shapes::config(shape).ok_or_else(|| Error::invalid("shape", shape))?;
    let model = Random::new(config, DENSE)?;
    print(&format!("{shape}, {}", quantizer.describe()))?;
    let mut table = table(&["quantized to", "s", "+-", "M weights", "M weights/s", "relative error"]);
    for spec in specs {
        let measured = quantize(quantizer, &model, *spec, repeat.max(1))?;
        let (seconds, millions) = (measured.samples.median(), measured.weights as f64 / 1e6);
        table.add_row([
            spec.to_string(),
            format!("{seconds:.2}"),
            format!("{:.1} %", 100.0 * measured.samples.spread()),
            format!("{millions:.0}"),
            format!("{:.0}", millions / seconds),
            format!("{:.6}", measured.error.relative()),
        ]);
    }
    print(&table.to_string())
}

async fn each<B: Backend>(
    backend: &B,
    config: &ModelConfig,
    cases: &[operations::Case],
    repeat: usize,
) -> Result<()> {
    let bandwidth = backend.bandwidth()?;
    print(&format!("{}{}", backend.describe(), bandwidth.map_or(String::new(), describe)))?;
    let mut table = table(&["operation", "rows", "positions", "us", "+-", "GB/s", "% peak"]);
    for case in cases {
        for timing in operations::operations(backend, config, *case, repeat).await? {
            let rate = timing.bytes as f64 / timing.samples.median();
            table.add_row([
                timing.name.to_owned(),
                case.rows.to_string(),
                (case.position + 1).to_string(),
                format!("{:.2}", 1e6 * timing.samples.median()),
                format!("{:.1} %", 100.0 * timing.samples.spread()),
                format!("{:.1}", rate / 1e9),
                bandwidth.map_or(String::new(), |b| format!("{:.1}", 100.0 * rate / b.peak)),
            ]);
        }
    }
    print(&table.to_string())
}

/// A table with these headers, numbers to the right.
fn table(headers: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(headers.iter().copied());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn print(text: &str) -> Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{text}").map_err(Error::io(STDOUT))
}
