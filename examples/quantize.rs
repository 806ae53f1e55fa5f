//! Compresses a Hugging Face folder to 4 bits a weight, without data:
//! `cargo run --release --example quantize -- path/to/model model.fasq`.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use fasq::Result;
use fasq::backend::cpu::Cpu;
use fasq::checkpoint::Checkpoint;
use fasq::quantize::{Options, Plan, Report, Rules, run};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let source = args.next().unwrap_or("tests/fixtures/llama32-tiny-tied".into());
    let out = args.next().unwrap_or("tiny.fasq".into());
    let report = quantize(source.as_ref(), out.as_ref())?;
    println!("{out}: {} bytes, {:.1} % of FP16", report.bytes, report.percent());
    Ok(())
}

/// Writes the file `out`; what was lost.
pub fn quantize(source: &Path, out: &Path) -> Result<Report> {
    let checkpoint = Checkpoint::open(source)?;
    let plan = Plan::new(&checkpoint, &Rules::universal())?;
    let options = Options {
        quantizer: &Cpu,
        resume: false,
        stop: &AtomicBool::new(false),
        progress: &|tensor, weights| eprintln!("{tensor}: {weights} weights"),
    };
    run(&checkpoint, &plan, out, &options, None)
}
