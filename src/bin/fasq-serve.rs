//! Serves a model over HTTP.

use std::process::ExitCode;

use fasq::cli::{self, serve};

fn main() -> ExitCode {
    cli::main(|| cli::with_args(|args: serve::ServeArgs| serve::run(&args)))
}
