//! A run that is killed at any change of a file goes on to the same bits.

use super::survival::{Left, again, failure, phantom, struck, success, train};
use super::{CACHE, PROGRAM, run};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The changes that a run makes to files, as `RARUNET_FAULT=trace` lists them.
fn changes(data: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let output = train(data, out, more, "trace");
    success(&output);
    let errors = String::from_utf8(output.stderr).unwrap();
    let kinds = ["Create ", "Write ", "Sync ", "Rename ", "Remove "];
    errors.lines().filter(|line| kinds.iter().any(|kind| line.starts_with(kind))).map(str::to_owned).collect()
}

/// Whether a program ended by SIGKILL.
fn killed(output: &Output) -> bool {
    use std::os::unix::process::ExitStatusExt;
    output.status.signal() == Some(9)
}

/// Kills a run at each of `moments`, and some of those that go on a second time, and compares what they come to.
fn kill_at(data: &Path, folder: &Path, more: &[&str], moments: &[usize], expected: &Left) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(&moment) = moments.get(next.fetch_add(1, Ordering::Relaxed)) {
            let out = folder.join(format!("killed{moment}"));
            let output = train(data, &out, more, &format!("kill@{moment}"));
            assert!(killed(&output), "at change {moment}: {output:?}");
            if moment % 4 == 0 {
                let output = again(data, &out, more, &format!("kill@{}", 1 + moment * 7 % 50));
                assert!(killed(&output) || output.status.success(), "after change {moment}: {output:?}");
            }
            success(&again(data, &out, more, ""));
            assert!(Left::of(&out) == *expected, "killed at change {moment}, it went on to something else");
            std::fs::remove_dir_all(&out).unwrap();
        }
    };
    // More than there are cores: they wait for the disk.
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(work))));
}

#[test]
fn a_run_that_is_killed_anywhere_goes_on_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let data = phantom(folder.path(), "2");
    let out = folder.path().join("run");
    let changes = changes(&data, &out, &[]);
    assert!(changes.len() >= 200, "{} moments", changes.len());
    for kind in ["Write", "Sync", "Rename"] {
        for file in ["step-00000004", "best.safetensors", "log.jsonl", "manifest.json"] {
            let appended = kind == "Rename" && file == "log.jsonl";
            let found = changes.iter().any(|change| change.starts_with(kind) && change.contains(file));
            assert!(found || appended, "no {kind} of {file} among {changes:#?}");
        }
    }
    let expected = Left::of(&out);
    let moments: Vec<usize> = (1..=changes.len()).collect();
    kill_at(&data, folder.path(), &[], &moments, &expected);
}

#[test]
fn a_killed_run_on_the_emulator_goes_on_to_the_same_bits() {
    if rarunet_cuda::device::emulator::LIBRARY.is_empty() {
        eprintln!("skipped: no CUDA emulator in this build");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = phantom(folder.path(), "1");
    let out = folder.path().join("run");
    let more = ["--device", "emulator"];
    let changes = changes(&data, &out, &more);
    let moments: Vec<usize> = (1..=8).map(|part| part * changes.len() / 8).collect();
    kill_at(&data, folder.path(), &more, &moments, &Left::of(&out));
}

/// What `predict` writes is there as a whole or not at all.
#[test]
fn a_killed_prediction_leaves_no_half_mask() {
    let folder = tempfile::tempdir().unwrap();
    let data = phantom(folder.path(), "2");
    let out = folder.path().join("run");
    success(&train(&data, &out, &[], ""));
    let (weights, scans) = (out.join("best.safetensors"), data.join("imagesTr"));
    let predict = |masks: &Path, fault: &str| {
        let [weights, scans, masks] = [&weights, &scans, masks].map(|path| path.display().to_string());
        struck(fault, ["predict", "--weights", &weights, &scans, "--out", &masks, "--overwrite"])
    };
    let masks = folder.path().join("masks");
    success(&predict(&masks, ""));
    let names = ["patient1.nii.gz", "patient2.nii.gz"];
    let expected = names.map(|name| std::fs::read(masks.join(name)).unwrap());
    let other = folder.path().join("other");
    let mut moment = 1;
    loop {
        let output = predict(&other, &format!("kill@{moment}"));
        for (name, expected) in names.iter().zip(&expected) {
            if let Ok(found) = std::fs::read(other.join(name)) {
                assert!(found == *expected, "{name} after change {moment}");
            }
        }
        if output.status.success() {
            break;
        }
        assert!(killed(&output), "{output:?}");
        moment += 1;
    }
    assert!(moment > 10, "{moment} moments");
}

/// Starts a run that does not end, and waits until it trains.
fn endless(data: &Path, out: &Path, more: &[&str]) -> std::process::Child {
    let mut command = Command::new(PROGRAM);
    command.env(CACHE.0, CACHE.1).arg("train").arg(data).arg("--out").arg(out).args(more).args(["--epochs", "100000"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while !super::survival::has_checkpoint(out) {
        assert!(started.elapsed() < Duration::from_secs(120), "the run does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

fn send(signal: &str, child: &std::process::Child) {
    let sent = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

const TINY: [&str; 8] = ["--widths", "8,8,8,8,8", "--size", "16", "--batch", "3", "--threads", "1"];

/// One run at a time; what a killed one leaves does not stop the next.
#[test]
fn a_folder_is_one_runs_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let data = phantom(folder.path(), "1");
    let out = folder.path().join("run");
    let mut child = endless(&data, &out, &TINY);
    let resume = |epochs: &str| {
        let [data, out] = [&data, &out].map(|path| path.display().to_string());
        let flags = ["train", &data, "--out", &out, "--epochs", epochs, "--resume", "--allow-changes"];
        run(flags.iter().chain(&TINY))
    };
    let line = failure(&resume("1"));
    assert!(line.contains(&format!("another run (process {}) is in this folder", child.id())), "{line}");
    send("KILL", &child);
    child.wait().unwrap();
    success(&resume("1"));
}

/// A first signal saves and reports; a second one does not wait for that.
#[test]
fn signals_save_and_a_second_one_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let data = phantom(folder.path(), "2");
    for (signal, exit_code) in [("INT", 130), ("TERM", 143)] {
        let out = folder.path().join(signal);
        let mut child = endless(&data, &out, &TINY);
        send(signal, &child);
        assert_eq!(child.wait().unwrap().code(), Some(exit_code), "after SIG{signal}");
        let report = std::fs::read_to_string(out.join("report.html")).unwrap();
        assert!(report.contains("interrupted") && out.join("best.safetensors").exists());

        // An orderly end goes through eight batches of this, which takes seconds, and leaves weights.
        let slow = folder.path().join(format!("{signal}-slow"));
        let flags = ["--size", "256", "--batch", "16", "--threads", "1", "--widths", "16,16,16,16,16"];
        let mut child = endless(&data, &slow, &flags);
        send(signal, &child);
        std::thread::sleep(Duration::from_millis(300));
        send(signal, &child);
        assert_eq!(child.wait().unwrap().code(), Some(exit_code), "after a second SIG{signal}");
        assert!(!slow.join("best.safetensors").exists());
    }
}
