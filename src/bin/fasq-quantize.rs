//! Compresses a Hugging Face checkpoint into a .fasq file.

use std::process::ExitCode;

use fasq::cli::{self, quantize};

fn main() -> ExitCode {
    cli::main(|| cli::with_args(|args: quantize::QuantizeArgs| quantize::run(args)))
}
