//! Interruption: the first signal asks for an orderly end, the second ends at once.

use crate::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// What was caught: the exit code to end with, or 0.
static CAUGHT: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// Catches SIGINT and SIGTERM from now on.
///
/// # Errors
/// If the operating system refuses.
pub fn catch() -> Result<()> {
    let code = CAUGHT.get_or_init(Arc::default);
    let error = |error: std::io::Error| Error::Invalid(format!("signals cannot be caught: {error}"));
    let again = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let exit_code = 128 + signal;
        // In this order: the second signal finds what the first left.
        signal_hook::flag::register_conditional_shutdown(signal, exit_code, again.clone()).map_err(error)?;
        signal_hook::flag::register(signal, again.clone()).map_err(error)?;
        signal_hook::flag::register_usize(signal, code.clone(), exit_code as usize).map_err(error)?;
    }
    Ok(())
}

/// The exit code that a caught signal asks for.
pub fn caught() -> Option<u8> {
    let code = CAUGHT.get()?.load(Ordering::Relaxed);
    (code != 0).then_some(code as u8)
}
