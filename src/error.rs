//! The crate's one error type. Every message is a single line for a person:
//! what failed, where, and what to change.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong. Internal bugs panic; everything a user can cause is one of these.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused to read or write a path.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },

    /// A file was read, but what it holds cannot be used.
    #[error("{}: {message}", path.display())]
    File { path: PathBuf, message: String },

    /// An op was given shapes it cannot work on.
    #[error("{op}: {message}")]
    Shape { op: &'static str, message: String },

    /// A setting, or a combination of settings, that cannot work.
    #[error("{0}")]
    Invalid(String),

    /// A device is missing or failed.
    #[error("device {device}: {message}")]
    Device { device: String, message: String },

    /// A signal asked the program to stop; what was reached is saved.
    #[error("interrupted")]
    Interrupted { exit_code: u8 },
}

/// The result of everything that can fail in this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error about the contents of `path`.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// An operating system error on `path`; made to be used with `map_err`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, source }
    }

    /// An error about the shapes given to `op`.
    pub fn shape(op: &'static str, message: impl Into<String>) -> Self {
        Error::Shape { op, message: message.into() }
    }
}
