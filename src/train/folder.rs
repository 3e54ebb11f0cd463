//! The folder of a run: one run at a time in it, and where everything lies.

use crate::data::file::{PARTIAL, create_folder, remove_all};
use crate::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A run's folder, which no other run writes into while this value lives.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Held, not read. The operating system lets go of it however the process ends.
    _lock: File,
}

/// What may lie in a folder before the first checkpoint of a run.
const BEFORE_A_RUN: [&str; 4] = [LOCK, MANIFEST, CONFIG, LAST];

const LOCK: &str = ".lock";
pub(super) const MANIFEST: &str = "manifest.json";
pub(crate) const CONFIG: &str = "config.toml";
const LAST: &str = "last";

impl RunFolder {
    /// A folder for a new run: new, empty, or with nothing but the beginning of a run that never trained.
    ///
    /// # Errors
    /// If it holds something else, another run is in it, or it cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        Self::check_new(path)?;
        let folder = Self::lock(path)?;
        Self::check_new(path)?;
        Ok(folder)
    }

    /// The folder of a run that is to go on.
    ///
    /// # Errors
    /// If it has no checkpoint, or another run is in it.
    pub fn resume(path: &Path) -> Result<Self> {
        Self::check_resumable(path)?;
        Self::lock(path)
    }

    /// Says whether [`RunFolder::create`] would find the folder new. Changes nothing.
    ///
    /// # Errors
    /// If it would not.
    pub fn check_new(path: &Path) -> Result<()> {
        let entries = match std::fs::read_dir(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                return Err(Error::file(path, "is a file, or lies in one: choose a new folder for --out"));
            }
            entries => entries.map_err(Error::io(path))?,
        };
        if !checkpoints(path).is_empty() {
            let message = "is not empty, it holds a run: go on with that by --resume, or choose a new folder for --out";
            return Err(Error::file(path, message));
        }
        for entry in entries {
            let name = entry.map_err(Error::io(path))?.file_name();
            let name = name.to_string_lossy();
            if !BEFORE_A_RUN.contains(&&*name) && !name.ends_with(PARTIAL) {
                return Err(Error::file(path, "is not empty: choose a new folder for --out"));
            }
        }
        Ok(())
    }

    /// Says whether [`RunFolder::resume`] would find a checkpoint. Changes nothing.
    ///
    /// # Errors
    /// If it would not.
    pub fn check_resumable(path: &Path) -> Result<()> {
        match checkpoints(path).is_empty() {
            true => Err(Error::file(path, "holds no checkpoint to resume from: leave out --resume to begin a run")),
            false => Ok(()),
        }
    }

    fn lock(path: &Path) -> Result<Self> {
        create_folder(path)?;
        let file_path = path.join(LOCK);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&file_path);
        let mut lock = open.map_err(Error::io(&file_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(Error::io(&file_path)(error)),
            Err(TryLockError::WouldBlock) => {
                let process = std::fs::read_to_string(&file_path).unwrap_or_default();
                let message = format!(
                    "another run (process {}) is in this folder: wait for it, or choose another --out",
                    process.trim()
                );
                return Err(Error::file(path, message));
            }
        }
        // Only for the message above: nothing depends on it.
        let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        let folder = RunFolder { path: path.to_path_buf(), _lock: lock };
        create_folder(&folder.last())?;
        remove_all(path, PARTIAL)?;
        for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
            let inner = entry.map_err(Error::io(path))?.path();
            if inner.is_dir() {
                remove_all(&inner, PARTIAL)?;
            }
        }
        Ok(folder)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All settings.
    pub fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// A line for each epoch.
    pub fn log(&self) -> PathBuf {
        self.path.join("log.jsonl")
    }

    /// The best weights so far.
    pub fn best(&self) -> PathBuf {
        self.path.join("best.safetensors")
    }

    /// Pictures of the masks that are most likely wrong.
    pub fn suspects(&self) -> PathBuf {
        self.path.join("suspects")
    }

    /// The checkpoints' folder.
    pub fn last(&self) -> PathBuf {
        self.path.join(LAST)
    }

    /// The checkpoint after so many optimizer steps.
    pub fn checkpoint(&self, steps: u64) -> PathBuf {
        self.last().join(format!("step-{steps:08}.safetensors"))
    }
}

/// The checkpoints in a run's folder, the newest first.
pub fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run.join(LAST)).into_iter().flatten().flatten();
    let steps = |path: &Path| -> Option<u64> {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()
    };
    let mut found: Vec<(u64, PathBuf)> =
        entries.filter_map(|entry| Some((steps(&entry.path())?, entry.path()))).collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}
