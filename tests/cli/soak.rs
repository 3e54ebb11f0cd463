//! Long and repeated runs, as processes of their own.

use super::PROGRAM;
use super::survival::{Left, flags, names, phantom, success};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Five runs at one seed on the emulator, its blocks on one, two and four threads.
#[test]
fn five_runs_on_the_emulator_are_bit_equal() {
    if rarunet_cuda::device::emulator::LIBRARY.is_empty() {
        eprintln!("skipped: no CUDA emulator in this build");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = phantom(folder.path(), "1");
    let run = |number: usize, threads: &str| {
        let out = folder.path().join(format!("run{number}"));
        let mut command = Command::new(PROGRAM);
        command.env("RARUNET_EMULATOR_THREADS", threads).arg("train").arg(&data).arg("--out").arg(&out);
        command.args(flags(&["--device", "emulator", "--epochs", "2"]));
        success(&command.output().unwrap());
        Left::of(&out)
    };
    let expected = run(0, "1");
    for (number, threads) in [(1, "1"), (2, "2"), (3, "2"), (4, "4")] {
        assert!(run(number, threads) == expected, "{threads} threads");
    }
}

/// Resident memory of a process in KiB.
#[cfg(target_os = "linux")]
fn memory(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Memory may grow by this much between the first fifth of a run and its end: 10 bytes an epoch and weight would be
/// more.
#[cfg(target_os = "linux")]
const GROWTH_KIB: u64 = 2048;

#[cfg(target_os = "linux")]
#[test]
fn five_hundred_epochs_hold_memory_and_files_flat() {
    let folder = tempfile::tempdir().unwrap();
    let data = phantom(folder.path(), "2");
    let out = folder.path().join("run");
    let mut command = Command::new(PROGRAM);
    command.arg("train").arg(&data).arg("--out").arg(&out);
    command.args(flags(&["--epochs", "500", "--save-every", "10", "--batch", "4"]));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // By the epochs that are done: memory, open files, files in the run's folder.
    let mut samples: Vec<(usize, u64, usize, usize)> = Vec::new();
    while child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(20));
        let epochs = std::fs::read_to_string(out.join("log.jsonl")).map_or(0, |log| log.lines().count());
        let open = std::fs::read_dir(format!("/proc/{}/fd", child.id())).map(Iterator::count);
        let (Some(memory), Ok(open)) = (memory(child.id()), open) else { continue };
        if (100..500).contains(&epochs) {
            samples.push((epochs, memory, open, count(&out)));
        }
    }
    assert!(child.wait().unwrap().success());
    let early = samples.iter().filter(|sample| sample.0 < 200).max_by_key(|sample| sample.1).expect("sampled early");
    let late = samples.iter().filter(|sample| sample.0 >= 400).max_by_key(|sample| sample.1).expect("sampled late");
    println!("{} samples, {early:?} to {late:?}", samples.len());
    assert!(late.1 <= early.1 + GROWTH_KIB, "KiB of memory: {early:?} to {late:?}");
    let most = |range: std::ops::Range<usize>, what: fn(&(usize, u64, usize, usize)) -> usize| {
        samples.iter().filter(|sample| range.contains(&sample.0)).map(what).max()
    };
    assert!(most(400..500, |sample| sample.2) <= most(100..300, |sample| sample.2), "open files: {samples:?}");
    assert!(most(400..500, |sample| sample.3) <= most(100..300, |sample| sample.3), "files: {samples:?}");
    assert!(names(&out).iter().all(|name| !name.ends_with(".partial")), "{:?}", names(&out));
    assert_eq!(Left::of(&out).epochs(), 500);
}

/// Files in a run's folder and its checkpoints', while it writes there.
#[cfg(target_os = "linux")]
fn count(out: &Path) -> usize {
    [out.to_path_buf(), out.join("last")].iter().map(|folder| std::fs::read_dir(folder).unwrap().count()).sum()
}
