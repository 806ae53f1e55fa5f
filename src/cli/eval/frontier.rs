//! `fasq-eval frontier`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use clap::{Args, Parser};
use pollster::block_on;
use serde::{Deserialize, Serialize};

use super::plot::{self, Mark, Series};
use super::{ModelArgs, Progress, TextArgs};
use crate::backend::Backend;
use crate::cli::quantize::{self, QuantizeArgs};
use crate::cli::{interrupt_flag, note, output::Output, write_whole};
use crate::eval::divergence::divergence;
use crate::format::fnv1a;
use crate::model::{Model, Source};
use crate::{Error, Result};

/// The sizes that are tried by default, in percent of FP16.
const SIZES: [&str; 8] = ["20%", "22.5%", "25%", "27%", "30%", "33%", "37%", "42%"];

/// Quantizes a checkpoint with several sets of options and measures each: a table and a plot of divergence and perplexity
/// against bytes. Results are kept in DIR; an interrupted sweep continues there.
#[derive(Args)]
pub struct FrontierArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Folder for the files, frontier.csv and the plots
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Options of fasq-quantize for one file; may be repeated [default: --size 20% to 42%]
    #[arg(long = "with", value_name = "OPTIONS", allow_hyphen_values = true)]
    ways: Vec<String>,
    /// Name of these files in the table and in the plot's legend
    #[arg(long, value_name = "NAME", default_value = "FASQ")]
    series: String,
    /// Points of other quantizers: a CSV file with the columns series, name, bytes, kl, perplexity
    #[arg(long, value_name = "FILE.csv")]
    peers: Option<PathBuf>,
    #[command(flatten)]
    text: TextArgs,
}

/// A measured file.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Point {
    series: String,
    /// The checkpoint's [`Source::fingerprint`].
    model: String,
    /// Of fasq-quantize.
    options: String,
    bytes: u64,
    kl: f64,
    kl_error: f64,
    kl_99: f64,
    same_top: f64,
    perplexity: f64,
    ratio: f64,
    ratio_error: f64,
    /// Of the text and how it was cut.
    ctx: usize,
    tokens: usize,
    text: String,
    backend: String,
}

/// A point of another quantizer.
#[derive(Clone, Debug, Deserialize)]
struct Peer {
    series: String,
    name: String,
    bytes: u64,
    kl: f64,
    perplexity: f64,
}

pub fn run<B: Backend + Clone>(args: &FrontierArgs, backend: B, source: &Source) -> Result<()> {
    let peers: Vec<Peer> = args.peers.as_deref().map(read_csv).transpose()?.unwrap_or_default();
    fs::create_dir_all(&args.dir).map_err(Error::io(&args.dir))?;
    let table = args.dir.join("frontier.csv");
    let mut points: Vec<Point> = if table.exists() { read_csv(&table)? } else { vec![] };
    let (tokens, protocol) = args.text.tokens(source)?;
    args.text.warn(source);
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    let text = format!("{:016x}", fnv1a(&bytes, 0));
    let checkpoint = source.fingerprint();
    let base = Model::load(backend.clone(), source)?;
    let stop = interrupt_flag()?;
    let sizes = || SIZES.iter().map(|size| format!("--size {size}")).collect();
    let ways = if args.ways.is_empty() { sizes() } else { args.ways.clone() };
    let chunks = protocol.chunks(&tokens)?.len();
    for options in &ways {
        let is = |point: &&Point| {
            (&point.series, &point.options) == (&args.series, options)
                && (&point.model, &point.text) == (&checkpoint, &text)
                && (point.ctx, point.tokens) == (args.text.ctx, chunks * args.text.ctx)
        };
        if let Some(point) = points.iter().find(is) {
            note(&format!("{options}: {} (known)", point.summary()));
            continue;
        }
        let file = quantized(args, &checkpoint, options)?;
        let source = Source::open(&file)?;
        let model = Model::load(backend.clone(), &source)?;
        let progress = Progress::new("chunks");
        let result = block_on(divergence(&base, &model, &tokens, protocol, |done, of, so_far| {
            progress.show(done, of, format!("KL {:.5}", so_far.kl.value()));
            !stop.load(Ordering::Relaxed)
        }));
        progress.finish();
        let result = result?;
        let point = Point {
            series: args.series.clone(),
            model: checkpoint.clone(),
            options: options.clone(),
            bytes: source.bytes(),
            kl: result.kl.value(),
            kl_error: result.kl.error(),
            kl_99: result.quantiles::<1>([0.99])[0],
            same_top: result.agreement.value(),
            perplexity: result.model.perplexity(),
            ratio: result.ratio(),
            ratio_error: result.ratio_error(),
            ctx: args.text.ctx,
            tokens: chunks * args.text.ctx,
            text: text.clone(),
            backend: backend.describe(),
        };
        note(&format!("{options}: {}", point.summary()));
        points.push(point);
        write_csv(&table, &points)?;
    }
    points.retain(|p| (&p.model, &p.text, p.ctx) == (&checkpoint, &text, args.text.ctx));
    for path in plot::draw(&args.dir, &series(&points, &peers), (source.bytes(), &source_name(args)))? {
        note(&path.display().to_string());
    }
    let mut output = Output::new(args.model.json, false);
    if args.model.json {
        return points.iter().try_for_each(|point| output.line(&serde_json::json!(point)));
    }
    Ok(())
}

impl Point {
    fn summary(&self) -> String {
        let Self { bytes, kl, kl_error, perplexity, .. } = self;
        format!("{:.3} MB, KL {kl:.5} ± {kl_error:.5}, perplexity {perplexity:.3}", *bytes as f64 / 1e6)
    }
}

fn source_name(args: &FrontierArgs) -> String {
    let path = fs::canonicalize(&args.model.model).unwrap_or_else(|_| args.model.model.clone());
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The file that these options make, unless it is there.
fn quantized(args: &FrontierArgs, checkpoint: &str, options: &str) -> Result<PathBuf> {
    let name: String =
        options.chars().map(|c| if c.is_alphanumeric() || "-.@+".contains(c) { c } else { '_' }).collect();
    let file = args.dir.join(format!("{checkpoint}-{}.fasq", name.trim_matches(['-', '_'])));
    if file.exists() {
        return Ok(file);
    }
    let written = args.dir.join(format!("{checkpoint}-written.json"));
    let fixed = ["fasq-quantize".as_ref(), args.model.model.as_os_str(), "-o".as_ref(), file.as_os_str()];
    let more = ["--resume", "--quiet", "--device", args.model.device.name(), "--written"];
    let words = fixed.into_iter().chain(more.map(AsRef::as_ref)).chain([written.as_os_str()]);
    let words = words.chain(options.split_whitespace().map(AsRef::as_ref));
    let parsed = QuantizeArgs::try_parse_from(words).map_err(|e| {
        let why = e.to_string();
        Error::invalid(format!("--with {options:?}"), why.lines().next().unwrap_or_default().to_owned())
    })?;
    note(&format!("{options}: quantizing"));
    quantize::run(parsed)?;
    Ok(file)
}

/// The curves of the plot: ours, with each way as a mark, and the peers'.
fn series(points: &[Point], peers: &[Peer]) -> Vec<Series> {
    let ours = points.iter().map(|p| (p.series.as_str(), mark(String::new(), p.bytes, p.kl, p.perplexity)));
    let theirs = peers.iter().map(|p| (p.series.as_str(), mark(p.name.clone(), p.bytes, p.kl, p.perplexity)));
    let mut all: Vec<Series> = vec![];
    for (name, mark) in ours.chain(theirs) {
        match all.iter_mut().find(|series| series.name == name) {
            Some(series) => series.marks.push(mark),
            None => all.push(Series { name: name.to_owned(), marks: vec![mark] }),
        }
    }
    for series in &mut all {
        series.marks.sort_by(|a, b| a.megabytes.total_cmp(&b.megabytes));
    }
    all
}

fn mark(name: String, bytes: u64, kl: f64, perplexity: f64) -> Mark {
    Mark { name, megabytes: bytes as f64 / 1e6, kl, perplexity }
}

fn read_csv<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Vec<T>> {
    let named = |e: csv::Error| Error::invalid(path.display().to_string(), e);
    csv::Reader::from_path(path).map_err(named)?.into_deserialize().map(|row| row.map_err(named)).collect()
}

/// In one piece: an interrupted sweep leaves the table as it was.
fn write_csv(path: &Path, points: &[Point]) -> Result<()> {
    let mut writer = csv::Writer::from_writer(vec![]);
    let named = |e: csv::Error| Error::invalid(path.display().to_string(), e);
    points.iter().try_for_each(|point| writer.serialize(point)).map_err(named)?;
    let bytes = writer.into_inner().map_err(|e| Error::invalid(path.display().to_string(), e))?;
    write_whole(path, &bytes)
}
