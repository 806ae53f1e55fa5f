//! What a test does that cannot run.

use std::fmt::Display;
use std::io::Write;

/// Fails, unless the environment's `FASQ_ALLOW_SKIP` is 1: then it only says that `what` is not tested, and `why`.
pub fn cannot_run(what: &str, why: impl Display) {
    let allowed = std::env::var_os("FASQ_ALLOW_SKIP").is_some_and(|value| value == "1");
    assert!(allowed, "{what}: {why}; FASQ_ALLOW_SKIP=1 goes on without");
    not_tested(what, why);
}

/// Says that `what` is not tested, on stderr itself: what tests print that pass is kept from the reader.
pub fn not_tested(what: &str, why: impl Display) {
    let _ = writeln!(std::io::stderr(), "NOT TESTED: {what}: {why}");
}
