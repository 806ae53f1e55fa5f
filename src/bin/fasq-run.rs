//! Continues a text, or chats.

use std::process::ExitCode;

use fasq::cli::{self, run};

fn main() -> ExitCode {
    cli::main(|| cli::with_args(|args: run::RunArgs| run::run(&args)))
}
