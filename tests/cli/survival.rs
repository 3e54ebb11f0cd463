//! What a run leaves, for the tests that kill and damage runs: small runs, and how to compare them.

use super::{CACHE, PROGRAM, run};
use rarunet_cuda::train::EpochRecord;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A run of seconds at most in which everything takes part: masks are removed, the learning rate changes, slices turn,
/// and a checkpoint is saved after each batch.
pub const SMALL: [&str; 26] = [
    "--widths",
    "8,8,8,8,8",
    "--size",
    "16",
    "--batch",
    "3",
    "--epochs",
    "3",
    "--learning-rate",
    "3e-3",
    "--schedule",
    "cosine",
    "--adl",
    "cumulative",
    "--noise-proportion",
    "0.9",
    "--noise-overlap",
    "0.1",
    "--validation-fraction",
    "0.3",
    "--seed",
    "5",
    "--save-every",
    "0",
    "--threads",
    "1",
];

/// A data set of synthetic patients in `folder`.
pub fn phantom(folder: &Path, patients: &str) -> PathBuf {
    let data = folder.join("data");
    let text = data.display().to_string();
    let made = run(["phantom", "--out", &text, "--patients", patients, "--slices", "5", "--size", "32"]);
    assert!(made.status.success(), "{made:?}");
    data
}

/// Runs the program with a fault (nothing: none).
pub fn struck<S: AsRef<OsStr>>(fault: &str, arguments: impl IntoIterator<Item = S>) -> Output {
    let mut command = Command::new(PROGRAM);
    command.env(CACHE.0, CACHE.1);
    if !fault.is_empty() {
        command.env("RARUNET_FAULT", fault);
    }
    command.args(arguments).output().unwrap()
}

/// The flags of [`SMALL`], but for those in `more`, and these.
pub fn flags(more: &[&str]) -> Vec<String> {
    let kept = SMALL.chunks_exact(2).filter(|flag| !more.contains(&flag[0])).flatten();
    // What a run caches, a later one does not write again; here all are to do the same.
    kept.chain(more).chain(&["--no-cache"]).map(|text| text.to_string()).collect()
}

/// Trains into `out` with [`flags`] and a fault.
pub fn train(data: &Path, out: &Path, more: &[&str], fault: &str) -> Output {
    let fixed = ["train".to_owned(), data.display().to_string(), "--out".into(), out.display().to_string()];
    struck(fault, fixed.into_iter().chain(flags(more)))
}

/// The last line on standard error, which says what went wrong.
#[track_caller]
pub fn failure(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let line = errors.lines().last().unwrap_or_default().to_owned();
    assert!(line.starts_with("error: ") && errors.matches("error: ").count() == 1, "{errors}");
    line
}

#[track_caller]
pub fn success(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What a run left: the names of its files, the bytes of those that the clock does not touch, and the log.
#[derive(Debug, PartialEq)]
pub struct Left {
    names: Vec<String>,
    /// Best weights and both checkpoints: weights, moments and all that a run knows.
    bytes: Vec<Vec<u8>>,
    log: Vec<EpochRecord>,
}

impl Left {
    #[track_caller]
    pub fn of(out: &Path) -> Self {
        let names = names(out);
        let weights = names.iter().filter(|name| name.ends_with(".safetensors"));
        let bytes: Vec<Vec<u8>> = weights.map(|name| std::fs::read(out.join(name)).unwrap()).collect();
        assert_eq!(bytes.len(), 3, "the best weights and two checkpoints: {names:?}");
        let log = EpochRecord::read_all(&out.join("log.jsonl")).unwrap();
        let timeless = |record| EpochRecord { images_per_s: 0.0, seconds: 0.0, ..record };
        Left { names, bytes, log: log.into_iter().map(timeless).collect() }
    }
}

impl Left {
    /// Lines of the log.
    pub fn epochs(&self) -> usize {
        self.log.len()
    }
}

/// All files below a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        match entry.file_type().unwrap().is_dir() {
            true => names.extend(self::names(&entry.path()).into_iter().map(|inner| format!("{name}/{inner}"))),
            false => names.push(name),
        }
    }
    names.sort();
    names
}

/// Whether a run has a checkpoint to go on from.
pub fn has_checkpoint(out: &Path) -> bool {
    !rarunet_cuda::train::checkpoints(out).is_empty()
}

/// Runs again what was stopped: it goes on if there is a checkpoint, and begins where there is none.
pub fn again(data: &Path, out: &Path, more: &[&str], fault: &str) -> Output {
    match has_checkpoint(out) {
        true => train(data, out, &[more, &["--resume"]].concat(), fault),
        false => train(data, out, more, fault),
    }
}
