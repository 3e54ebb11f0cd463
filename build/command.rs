//! Compiler runs: in parallel, and only where something has changed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

/// One run of a compiler or linker that makes `output` from `inputs`.
pub struct Job {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub inputs: Vec<PathBuf>,
    pub output: PathBuf,
}

impl Job {
    /// The command as text, kept beside the output: other flags or another compiler make the output stale.
    fn text(&self) -> String {
        format!("{} {}", self.program.display(), self.arguments.join(" "))
    }

    fn text_path(&self) -> PathBuf {
        let mut name = self.output.clone().into_os_string();
        name.push(".command");
        name.into()
    }

    fn is_fresh(&self) -> bool {
        let Some(made) = modified(&self.output) else { return false };
        std::fs::read_to_string(self.text_path()).is_ok_and(|text| text == self.text())
            && self.inputs.iter().all(|input| modified(input).is_some_and(|changed| changed <= made))
    }

    /// Runs the command unless its output is newer than all inputs.
    ///
    /// # Errors
    /// The command and what it printed, if it cannot be started or fails.
    pub fn run(&self) -> Result<(), String> {
        if self.is_fresh() {
            return Ok(());
        }
        let _ = std::fs::remove_file(self.text_path());
        let output = Command::new(&self.program)
            .args(&self.arguments)
            .output()
            .map_err(|error| format!("{}: {error}", self.program.display()))?;
        if !output.status.success() {
            let printed = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{}\n{printed}", self.text()));
        }
        std::fs::write(self.text_path(), self.text()).map_err(|error| format!("{}: {error}", self.output.display()))
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}

/// Runs all jobs, at most as many at a time as there are cores (or as Cargo was told), and stops at the first error.
///
/// # Errors
/// That of the first job that failed.
pub fn run_all(jobs: &[Job]) -> Result<(), String> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let allowed = std::env::var("NUM_JOBS").ok().and_then(|text| text.parse().ok()).unwrap_or(cores);
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(allowed).min(jobs.len()) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(message) = job.run() {
                        next.store(jobs.len(), Ordering::Relaxed);
                        failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(message);
                    }
                }
            });
        }
    });
    match failure.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        Some(message) => Err(message),
        None => Ok(()),
    }
}

/// The first of `names` that is a program: an absolute path that exists, or a name found in PATH.
pub fn find_program(names: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    let folders: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    names.into_iter().find_map(|name| {
        if name.components().count() > 1 {
            return name.is_file().then_some(name);
        }
        folders.iter().map(|folder| folder.join(&name)).find(|candidate| candidate.is_file())
    })
}

/// The files of `folder` with one of the given extensions, sorted.
pub fn files_with_extension(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.retain(|path| path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted)));
    files.sort();
    files
}
