//! The program as a user and as another program sees it: exit codes, one-line errors, JSON.

mod commands;
mod evaluate;
#[cfg(unix)]
mod faults;
#[cfg(unix)]
mod kill;
mod noisy;
#[cfg(unix)]
mod soak;
#[cfg(unix)]
mod survival;
mod training;

use assert_cmd::Command;
use serde_json::Value;
use std::ffi::OsStr;
use std::process::{Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rarunet-cuda");

/// Where the tests' runs cache their slices, instead of in the user's folder.
const CACHE: (&str, &str) = ("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));

fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    Command::new(PROGRAM).args(arguments).env(CACHE.0, CACHE.1).output().unwrap()
}

/// The one JSON document that a command that succeeds prints.
fn json<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Value {
    let output = run(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The one line that a command that fails prints, and its exit code.
#[track_caller]
fn error<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> (String, Option<i32>) {
    let output = run(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.stdout, b"", "nothing is printed but the error");
    assert_eq!(errors.matches('\n').count(), 1, "an error is one line: {errors}");
    assert!(errors.starts_with("error: ") && errors.ends_with('\n'), "{errors}");
    (errors, output.status.code())
}

#[test]
fn usage_errors_are_one_line_and_end_with_2() {
    for (arguments, expected) in [
        (vec!["inspcet"], "'inspect'"),
        (vec!["trian"], "'train'"),
        (vec!["bench", "--modle", "unet"], "'--model'"),
        (vec!["bench", "--batch", "0"], "from 1 to"),
        (vec!["bench", "--threads", "many"], "from 1 to"),
        (vec!["bench", "--widths", "8,8"], "five widths"),
        (vec!["bench", "--device", "gpu"], "cuda:N"),
        (vec!["bench", "--precision", "f16"], "fp16"),
        (vec!["phantom"], "--out"),
        (vec!["phantom", "--out", "x", "--format", "png"], "nifti, metaimage"),
        (vec!["evaluate", "--prediction", "a", "--reference", "b", "--labels", "x"], "such as 26-33"),
        (vec!["evaluate", "--reference", "b"], "--prediction"),
    ] {
        let (line, code) = error(&arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {line}");
        assert!(line.contains(expected), "{arguments:?}: {line}");
    }
}

#[test]
fn other_errors_are_one_line_and_end_with_1() {
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("damaged.nii.gz");
    std::fs::write(&damaged, "this is no scan").unwrap();
    let damaged = damaged.to_str().unwrap();
    let two_lines = folder.path().join("a\nb.nii");
    for (arguments, expected) in [
        (vec!["bench", "--size", "17"], "multiple of 16, such as 32"),
        (vec!["bench", "--model", "rar-nuet"], "did you mean rar-unet?"),
        (vec!["bench", "--model", "x"], "there are unet, "),
        (vec!["bench", "--precision", "f64", "--device", "cpu"], "f32"),
        (vec!["bench", "--device", "cuda:99"], "cuda:99"),
        (vec!["bench", "--device", "cpu", "--precision", "tf32"], "no networks in tf32"),
        (vec!["gradcheck", "--op", "convolutoin"], "did you mean convolution?"),
        (vec!["inspect", "absent.nii.gz"], "absent.nii.gz"),
        (vec!["inspect", damaged], "damaged.nii.gz"),
        (vec!["inspect", two_lines.to_str().unwrap()], "a b.nii: No such file"),
        (vec!["evaluate", "--prediction", damaged, "--reference", "absent.nii.gz"], "absent.nii.gz"),
        (vec!["evaluate", "--prediction", damaged, "--reference", damaged], "damaged.nii.gz"),
    ] {
        let (line, code) = error(&arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {line}");
        assert!(line.contains(expected), "{arguments:?}: {line}");
    }
}

#[test]
fn help_and_version_are_results() {
    let output = run(["--version"]);
    assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]));
    assert_eq!(output.stdout, format!("rarunet-cuda {}\n", env!("CARGO_PKG_VERSION")).as_bytes());
    let output = run(["bench", "--help"]);
    assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]));
    assert!(String::from_utf8(output.stdout).unwrap().contains("Example:\n  rarunet-cuda bench"));
    let output = run([""; 0]);
    assert_eq!((output.status.code(), output.stdout), (Some(2), vec![]));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Usage:"));
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut command = std::process::Command::new(PROGRAM);
    let mut child = command.arg("models").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(0), String::new()));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let full = std::fs::File::create("/dev/full").unwrap();
    let output = std::process::Command::new(PROGRAM).arg("models").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("error: standard output: "));
}
