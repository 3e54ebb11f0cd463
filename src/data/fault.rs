//! Faults on demand, for tests: what a full disk, a failing one or a sudden end do to the program.
//!
//! Every change that the program makes to a file passes here first. `RARUNET_FAULT=WHAT@N[:PART]` strikes at the
//! N-th change (from 1) of a path that contains PART: `kill` ends the process as SIGKILL does, `enospc` and `eio` are
//! the operating system's errors, for this change and all later ones. Half of a write that is struck reaches the
//! file. `RARUNET_FAULT=trace` lists all changes on standard error instead.

use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A change to a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Create,
    Write,
    Sync,
    Rename,
    Remove,
}

/// What strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Kill,
    /// The operating system's error of this number.
    Error(i32),
}

impl Fault {
    /// The error; or the end of the process.
    pub fn strike(self) -> io::Error {
        match self {
            Fault::Error(code) => io::Error::from_raw_os_error(code),
            Fault::Kill => {
                #[cfg(unix)]
                let _ = signal_hook::low_level::raise(signal_hook::consts::SIGKILL);
                std::process::abort()
            }
        }
    }
}

/// What `RARUNET_FAULT` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Order {
    Trace,
    Strike { fault: Fault, at: u64, part: String },
}

/// ENOSPC and EIO, on every system that has them.
const NO_SPACE: i32 = 28;
const IO_ERROR: i32 = 5;

fn parse(text: &str) -> Option<Order> {
    if text == "trace" {
        return Some(Order::Trace);
    }
    let (what, place) = text.split_once('@')?;
    let (at, part) = place.split_once(':').unwrap_or((place, ""));
    let fault = match what {
        "kill" => Fault::Kill,
        "enospc" => Fault::Error(NO_SPACE),
        "eio" => Fault::Error(IO_ERROR),
        _ => return None,
    };
    Some(Order::Strike { fault, at: at.parse().ok()?, part: part.to_owned() })
}

/// What strikes at this change of `path`, if anything does.
pub fn before(change: Change, path: &Path) -> Option<Fault> {
    static ORDER: OnceLock<Option<Order>> = OnceLock::new();
    static CHANGES: AtomicU64 = AtomicU64::new(0);
    let order = ORDER.get_or_init(|| {
        let text = std::env::var("RARUNET_FAULT").ok()?;
        Some(parse(&text).unwrap_or_else(|| panic!("RARUNET_FAULT is {text:?}: see src/data/fault.rs")))
    });
    match order.as_ref()? {
        Order::Trace => {
            eprintln!("{change:?} {}", path.display());
            None
        }
        Order::Strike { fault, at, part } => {
            let struck = path.to_string_lossy().contains(part.as_str())
                && CHANGES.fetch_add(1, Ordering::Relaxed) + 1 >= *at
                // What is full or fails can still be tidied up.
                && (change != Change::Remove || *fault == Fault::Kill);
            struck.then_some(*fault)
        }
    }
}

/// Strikes at this change of `path`, if anything is to.
///
/// # Errors
/// The fault's.
pub fn check(change: Change, path: &Path) -> io::Result<()> {
    before(change, path).map_or(Ok(()), |fault| Err(fault.strike()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read() {
        let strike = |fault, at, part: &str| Some(Order::Strike { fault, at, part: part.into() });
        assert_eq!(parse("kill@3"), strike(Fault::Kill, 3, ""));
        assert_eq!(parse("enospc@1:last/"), strike(Fault::Error(NO_SPACE), 1, "last/"));
        assert_eq!(parse("trace"), Some(Order::Trace));
        assert!(["", "kill", "kill@", "kill@x", "burn@1"].iter().all(|text| parse(text).is_none()));
        assert_eq!(Fault::Error(NO_SPACE).strike().kind(), io::ErrorKind::StorageFull);
    }
}
