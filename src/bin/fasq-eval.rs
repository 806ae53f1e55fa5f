//! Measures a model.

use std::process::ExitCode;

use fasq::cli::{self, eval};

fn main() -> ExitCode {
    cli::main(|| cli::with_args(|args: eval::EvalArgs| eval::run(&args)))
}
