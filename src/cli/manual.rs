//! What every program tells of its options besides `--help`: completions for shells, and man pages.

use std::io::Write;
use std::path::PathBuf;

use clap::{Arg, Command, Parser, value_parser};
use clap_complete::Shell;

use super::output::STDOUT;
use crate::{Error, Result};

const COMPLETIONS: &str = "completions";
const MAN_PAGES: &str = "man-pages";

/// Runs a program on its arguments, or writes the completions or man pages that they ask for. Ends the process on a usage
/// error, `--help` and `--version`, as clap does.
pub fn with_args<A: Parser>(run: impl FnOnce(A) -> Result<()>) -> Result<()> {
    let mut command = with_manual(A::command());
    let mut matches = command.get_matches_mut();
    if let Some(shell) = matches.get_one::<Shell>(COMPLETIONS) {
        let (name, mut script) = (command.get_name().to_owned(), Vec::new());
        clap_complete::generate(*shell, &mut command, name, &mut script);
        std::io::stdout().write_all(&script).map_err(Error::io(STDOUT))?;
        return Ok(());
    }
    if let Some(folder) = matches.get_one::<PathBuf>(MAN_PAGES) {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        clap_mangen::generate_to(command, folder).map_err(Error::io(folder))?;
        return Ok(());
    }
    run(A::from_arg_matches_mut(&mut matches).unwrap_or_else(|e| e.format(&mut command).exit()))
}

/// A program's command with the two options, which stand alone.
fn with_manual(command: Command) -> Command {
    let option = |name: &'static str| Arg::new(name).long(name).exclusive(true).help_heading("Manual");
    command
        .subcommand_required(false)
        .arg(
            option(COMPLETIONS)
                .value_name("SHELL")
                .value_parser(value_parser!(Shell))
                .help("Print what completes this program's options in a shell"),
        )
        .arg(
            option(MAN_PAGES)
                .value_name("FOLDER")
                .value_parser(value_parser!(PathBuf))
                .help("Write this program's man pages into a folder"),
        )
}
