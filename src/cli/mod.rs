//! What the programs share: entry and exit codes, Ctrl-C, threads, messages.

pub mod bench;
pub mod chat;
pub mod eval;
mod hub;
mod manual;
pub mod output;
pub mod quantize;
pub mod run;
#[cfg(feature = "serve")]
pub mod serve;
mod writer;

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;

pub use self::manual::with_args;

use crate::backend::{self, Choice};
use crate::{Error, Result};

/// Where a program computes.
#[derive(Args, Debug)]
pub struct DeviceArgs {
    /// Where to compute: cpu, cuda, wgpu, auto (the best that is there), or one of several GPUs by its number, from 0:
    /// cuda:N, wgpu:N, or N alone
    #[arg(long, visible_alias = "backend", value_name = "NAME", default_value = AUTO, global = true)]
    device: String,
}

const AUTO: &str = "auto";

impl DeviceArgs {
    pub fn choose(&self) -> Result<Choice> {
        backend::choose(&self.device)
    }

    /// What the user wrote.
    pub fn name(&self) -> &str {
        &self.device
    }

    /// Whether the device is chosen automatically.
    pub fn is_auto(&self) -> bool {
        self.device == AUTO
    }
}

/// Exit code of a user's mistake, a damaged file or a missing backend, as of clap's usage errors.
const FAILED: u8 = 2;
/// Exit code after Ctrl-C: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Log messages without RUST_LOG: warnings, what is measured once on a device, and a line for each request served.
const LOG: &str = "warn,fasq::backend::cuda=info,fasq::serve=info";

/// Runs a program: log messages as RUST_LOG says (default: warnings, and what is measured once on a device), an error as
/// one line on stderr and an exit code. A closed stdout, as by `| head`, is no failure.
pub fn main(run: impl FnOnce() -> Result<()>) -> ExitCode {
    silence_mesa();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(LOG))
        .format_timestamp(None)
        .format_target(false)
        .init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(Error::Io { path, source })
            if path.as_os_str() == output::STDOUT && source.kind() == ErrorKind::BrokenPipe =>
        {
            ExitCode::SUCCESS
        }
        Err(error) => {
            note(&format!("error: {}", one_line(&error)));
            ExitCode::from(FAILED)
        }
    }
}

/// Mesa's Vulkan drivers complain on stderr where XDG_RUNTIME_DIR is not set, as for root without a login session: names
/// a folder that does not exist, so that they look for no display server either. Does nothing where other threads might
/// read the environment.
fn silence_mesa() {
    const VARIABLE: &str = "XDG_RUNTIME_DIR";
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    if alone && std::env::var_os(VARIABLE).is_none() {
        // SAFETY: this thread is the process's only one.
        unsafe { std::env::set_var(VARIABLE, "/nonexistent") };
    }
}

/// An error in one line.
fn one_line(error: &Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A line on stderr; a closed stderr is no failure.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The flag that Ctrl-C sets from now on; while it is set, another Ctrl-C ends the program at once.
pub fn interrupt_flag() -> Result<&'static AtomicBool> {
    static FLAG: AtomicBool = AtomicBool::new(false);
    let handle = || {
        if FLAG.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
    };
    static SET: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let set = SET.get_or_init(|| ctrlc::set_handler(handle).map_err(|e| e.to_string()));
    set.as_ref().map(|()| &FLAG).map_err(|e| Error::invalid("Ctrl-C", e))
}

/// Writes a file under another name and renames it, so that nobody sees half of it.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = crate::format::partial_path(path);
    std::fs::write(&partial, bytes).map_err(Error::io(path))?;
    std::fs::rename(&partial, path).map_err(Error::io(path))
}

/// Sets rayon's global pool to that many threads, or one for each core; call it before rayon is used. The calling thread
/// is one of them: waking another would cost more than a kernel of a few microseconds.
pub fn set_threads(threads: Option<usize>) -> Result<()> {
    if threads.is_some_and(|threads| !(1..=1024).contains(&threads)) {
        return Err(Error::mismatch("--threads", "1 to 1024", threads.unwrap_or(0)));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).use_current_thread();
    match pool.build_global() {
        // `fasq-eval frontier` runs the command of fasq-quantize in the pool that it has.
        Err(_) if threads.is_none() => Ok(()),
        built => built.map_err(|e| Error::invalid("--threads", e)),
    }
}
