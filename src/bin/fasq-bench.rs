//! Measures how fast models run.

use std::process::ExitCode;

use fasq::cli::{self, bench};

fn main() -> ExitCode {
    cli::main(|| cli::with_args(|args: bench::BenchArgs| bench::run(&args)))
}
