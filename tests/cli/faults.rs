//! The fault table: what can go wrong under `train` and `predict`, what they say, how they end, and that nothing is
//! lost.

use super::run;
use super::survival::{Left, again, failure, has_checkpoint, names, phantom, struck, success, train};
use std::path::{Path, PathBuf};

/// A data set, and a run on it that nothing happened to.
fn reference() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let data = phantom(folder.path(), "2");
    let out = folder.path().join("reference");
    success(&train(&data, &out, &[], ""));
    (folder, data, out)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Disk full and I/O errors, at each file that a run writes: one line says where, and the run can be taken up again
/// and comes to the same bits.
#[test]
fn a_failing_disk_stops_a_run_but_loses_nothing() {
    let (folder, data, reference) = reference();
    let expected = Left::of(&reference);
    for (number, (fault, said)) in [
        ("enospc@1:manifest.json", "manifest.json: No space left on device"),
        ("eio@1:config.toml", "config.toml: Input/output error"),
        ("enospc@2:step-00000000", "step-00000000.safetensors: No space left on device"),
        ("enospc@5:step-00000004", "step-00000004.safetensors: No space left on device"),
        ("eio@9:step-00000004", "step-00000004.safetensors: Input/output error"),
        ("eio@4:best.safetensors", "best.safetensors: Input/output error"),
        ("enospc@2:log.jsonl", "log.jsonl: No space left on device"),
        ("eio@6:log.jsonl", "log.jsonl: Input/output error"),
        ("enospc@1:report.html", "report.html: No space left on device"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(format!("run{number}"));
        let line = failure(&train(&data, &out, &[], fault));
        assert!(line.contains(said), "{fault}: {line}");
        // The report comes last: the run itself is over.
        assert_eq!(line.contains("--resume"), has_checkpoint(&out) && !fault.contains("report"), "{fault}: {line}");
        assert!(names(&out).iter().all(|name| !name.ends_with(".partial")), "{fault}: {:?}", names(&out));
        success(&again(&data, &out, &[], ""));
        assert!(Left::of(&out) == expected, "{fault}: the run went on to something else");
    }
}

/// A run only goes on as what it was, unless that is allowed.
#[test]
fn what_changed_is_said_and_refused_unless_allowed() {
    let (folder, data, out) = reference();
    let expected = Left::of(&out);
    let resume = |data: &Path, more: &[&str]| train(data, &out, &[more, &["--resume", "--threads", "2"]].concat(), "");
    let other_settings = ["--batch", "2", "--learning-rate", "1e-3"];
    let line = failure(&resume(&data, &other_settings));
    assert!(line.contains("batch is 2, was 3; learning-rate is 0.001, was 0.003"), "{line}");
    assert!(line.contains("--allow-changes"), "{line}");

    // One voxel of one mask.
    let other = folder.path().join("other");
    success(&run(["phantom", "--out", &text(&other), "--patients", "2", "--slices", "5", "--size", "32"]));
    let path = other.join("labelsTr/patient2.nii.gz");
    let (mut mask, header) = rarunet_cuda::data::read_labels(&path).unwrap();
    mask.voxels.iter_mut().for_each(|label| *label = i32::from(*label == 0));
    let voxels = mask.voxels.iter().map(|&label| label as u8).collect();
    let mask = rarunet_cuda::data::Volume::new(mask.geometry, voxels).unwrap();
    rarunet_cuda::data::nifti::write(&path, &mask, Some(&header)).unwrap();
    let line = failure(&resume(&other, &[]));
    assert!(line.contains("case patient2 has other slices or masks") && !line.contains("patient1"), "{line}");

    // Refusing changed nothing; nor does going on with a run that is over, on another number of threads.
    assert!(Left::of(&out) == expected);
    success(&resume(&data, &[]));
    assert!(Left::of(&out) == expected);
    success(&resume(&other, &[&other_settings[..], &["--allow-changes"]].concat()));
    let manifest = std::fs::read_to_string(out.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["resumed"][1]["changes"][0], "batch is 2, was 3", "{manifest:#}");
    assert_eq!(manifest["settings"]["batch"], 2, "{manifest:#}");
}

/// What is no folder of a run, or of another one.
#[test]
fn folders_that_cannot_be_used_are_left_alone() {
    let (folder, data, out) = reference();
    let expected = Left::of(&out);
    let file = folder.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let mine = folder.path().join("mine");
    std::fs::create_dir(&mine).unwrap();
    std::fs::write(mine.join("thesis.tex"), "mine").unwrap();
    for (out, more, said) in [
        (&out, "", "it holds a run: go on with that by --resume"),
        (&mine, "", "is not empty"),
        (&mine, "--resume", "holds no checkpoint to resume from"),
        (&folder.path().join("absent"), "--resume", "holds no checkpoint to resume from"),
        (&file, "", "file: is a file"),
        (&file.join("run"), "", "is a file"),
    ] {
        let more: Vec<&str> = [more].into_iter().filter(|flag| !flag.is_empty()).collect();
        let line = failure(&train(&data, out, &more, ""));
        assert!(line.contains(said), "{}: {line}", out.display());
    }
    assert_eq!(names(&mine), ["thesis.tex"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    assert!(!folder.path().join("absent").exists() && Left::of(&out) == expected);
}

/// A mask that is gone when the run is to go on; with it back, nothing is lost.
#[test]
fn deleted_input_is_named() {
    let (folder, data, reference) = reference();
    let out = folder.path().join("run");
    failure(&train(&data, &out, &[], "enospc@1:step-00000004"));
    let mask = data.join("labelsTr/patient2.nii.gz");
    let bytes = std::fs::read(&mask).unwrap();
    std::fs::remove_file(&mask).unwrap();
    let line = failure(&again(&data, &out, &[], ""));
    assert!(line.contains("labelsTr/patient2"), "{line}");
    std::fs::write(&mask, &bytes[..bytes.len() / 2]).unwrap();
    let line = failure(&again(&data, &out, &[], ""));
    assert!(line.contains("patient2.nii.gz: is damaged or truncated"), "{line}");
    std::fs::write(&mask, &bytes).unwrap();
    success(&again(&data, &out, &[], ""));
    assert!(Left::of(&out) == Left::of(&reference));
}

/// Losses that are not numbers: the files are named, and the state before does not have them.
#[test]
fn a_diverged_run_can_be_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let data = phantom(folder.path(), "2");
    let out = folder.path().join("run");
    let train = |rate, more: &[&str]| train(&data, &out, &[&["--learning-rate", rate], more].concat(), "");
    let line = failure(&train("1e30", &[]));
    assert!(line.contains("--learning-rate") && line.contains("--resume"), "{line}");
    let line = failure(&train("1e-3", &["--resume"]));
    assert!(line.contains("learning-rate is 0.001, was 1e+30"), "{line}");
    success(&train("1e-3", &["--resume", "--allow-changes"]));
    let log = rarunet_cuda::train::EpochRecord::read_all(&out.join("log.jsonl")).unwrap();
    assert!(log.len() == 3 && log.iter().all(|record| record.train_loss.is_finite()), "{log:?}");
}

/// Masks may all be left out where there are few.
#[test]
fn an_epoch_without_masks_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let data = phantom(folder.path(), "1");
    let flags = ["--epochs", "500", "--save-every", "10"];
    let line = failure(&train(&data, &folder.path().join("run"), &flags, ""));
    assert!(line.contains("--adl leaves no slice to train on in epoch 3: lower --noise-proportion"), "{line}");
}

/// A damaged checkpoint is refused by name, the one before is offered, and leads to the same bits.
#[test]
fn damaged_checkpoints_are_refused_by_name() {
    let (folder, data, reference) = reference();
    let out = folder.path().join("run");
    failure(&train(&data, &out, &[], "enospc@1:step-00000006"));
    let [newest, older] = [5, 4].map(|step| out.join(format!("last/step-{step:08}.safetensors")));
    let damage = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        let place = bytes.len() / 2;
        bytes[place] ^= 4;
        std::fs::write(path, bytes).unwrap();
    };
    damage(&newest);
    let line = failure(&again(&data, &out, &[], ""));
    assert!(line.contains("step-00000005.safetensors: is damaged"), "{line}");
    assert!(line.contains("step-00000004.safetensors, is whole"), "{line}");
    assert!(!failure(&train(&data, &out, &["--resume", "--dry-run"], "")).is_empty());
    let whole = std::fs::read(&older).unwrap();
    damage(&older);
    let line = failure(&again(&data, &out, &[], ""));
    assert!(line.contains("step-00000005.safetensors: is damaged") && line.contains("no other is whole"), "{line}");
    std::fs::write(&older, whole).unwrap();
    std::fs::remove_file(&newest).unwrap();
    success(&again(&data, &out, &[], ""));
    assert!(Left::of(&out) == Left::of(&reference));
}

/// More than any machine has: what was planned, what is free, and which flag to change.
#[test]
fn too_little_memory_is_said_before_it_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let data = text(&phantom(folder.path(), "1"));
    let out = text(&folder.path().join("run"));
    for device in ["cpu", "emulator"] {
        // What the emulator's run takes; it has three quarters of the machine.
        let ample = rarunet_cuda::resources::free_memory().is_some_and(|free| free > 140 << 30);
        if device == "emulator" && (rarunet_cuda::device::emulator::LIBRARY.is_empty() || ample) {
            eprintln!("skipped: no CUDA emulator in this build, or room for anything");
            continue;
        }
        for more in [vec![], vec!["--dry-run"]] {
            // As large as CUDA's 32-bit counts allow.
            let size = if device == "cpu" {
                ["--size", "4096", "--batch", "1024"]
            } else {
                ["--size", "2048", "--batch", "5"]
            };
            let flags = ["train", &data, "--out", &out, "--device", device].into_iter().chain(size).chain(more);
            let line = failure(&struck("", flags));
            for part in ["MiB that were planned", "are free", "--batch", "--size", &format!("device {device}")] {
                assert!(line.contains(part), "{part}: {line}");
            }
        }
    }
}

/// A dry run checks data, memory and disk, and writes nothing.
#[test]
fn a_dry_run_checks_everything_and_writes_nothing() {
    let (folder, data, reference) = reference();
    let out = folder.path().join("run");
    let dry = train(&data, &out, &["--dry-run"], "");
    success(&dry);
    let said = String::from_utf8(dry.stdout).unwrap();
    for part in ["31461 parameters", "2 cases with 10 slices", "MiB of memory", "MiB of disk", "GFLOP", "free"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!out.exists());
    assert!(failure(&train(&data, &reference, &["--dry-run"], "")).contains("it holds a run"));
    let before = Left::of(&reference);
    success(&train(&data, &reference, &["--dry-run", "--resume"], ""));
    assert!(failure(&train(&data, &out, &["--dry-run", "--resume"], "")).contains("holds no checkpoint"));
    assert!(Left::of(&reference) == before);
    // What a run would only find once it has read all scans.
    let line = failure(&train(&data, &out, &["--dry-run", "--validation-fraction", "2"], ""));
    assert!(line.contains("validation fraction 2"), "{line}");
    let line = failure(&train(&data, &out, &["--dry-run", "--adl", "oracle"], ""));
    assert!(line.contains("needs the truth"), "{line}");
    // A mask of another grid than its image's.
    let [from, to] = ["imagesTr/patient1_0000.nii.gz", "labelsTr/patient2.nii.gz"].map(|name| data.join(name));
    let (mut image, _) = rarunet_cuda::data::read_image(&from).unwrap();
    image.geometry.affine[0][3] += 5.0;
    rarunet_cuda::data::nifti::write(&to, &image, None).unwrap();
    let line = failure(&train(&data, &out, &["--dry-run"], ""));
    assert!(line.contains("patient2.nii.gz: does not fit its image"), "{line}");
}

/// The same for `predict`.
#[test]
fn a_failing_prediction_says_why_and_leaves_what_was_there() {
    let (folder, data, reference) = reference();
    let weights = folder.path().join("weights.safetensors");
    std::fs::copy(reference.join("best.safetensors"), &weights).unwrap();
    let scan = data.join("imagesTr/patient1_0000.nii.gz");
    let second = data.join("imagesTr/patient2_0000.nii.gz");
    let masks = folder.path().join("masks");
    let predict = |fault: &str, out: &Path| {
        let [weights, scan, second, out] = [&weights, &scan, &second, out].map(text);
        struck(fault, ["predict", "--weights", &weights, &scan, &second, "--out", &out, "--overlay", "--overwrite"])
    };
    success(&predict("", &masks));
    let before: Vec<(String, Vec<u8>)> =
        names(&masks).into_iter().map(|name| (name.clone(), std::fs::read(masks.join(name)).unwrap())).collect();
    let unchanged = || before.iter().all(|(name, bytes)| std::fs::read(masks.join(name)).unwrap() == *bytes);

    for (fault, said) in [
        ("enospc@2:patient1.nii.gz", "patient1.nii.gz: No space left on device"),
        ("eio@3:patient2.nii.gz", "patient2.nii.gz: Input/output error"),
        ("eio@4:patient2.png", "patient2.png: Input/output error"),
    ] {
        let line = failure(&predict(fault, &masks));
        assert!(line.contains(said), "{fault}: {line}");
        assert!(unchanged() && names(&masks).len() == before.len(), "{fault}: {:?}", names(&masks));
    }
    let line = failure(&predict("", &weights));
    assert!(line.contains("weights.safetensors: a folder is needed here"), "{line}");

    let damage = |path: &Path, bytes: &[u8], said: &str| {
        let whole = std::fs::read(path).unwrap();
        std::fs::write(path, bytes).unwrap();
        let line = failure(&predict("", &masks));
        assert!(line.contains(said), "{line}");
        std::fs::remove_file(path).unwrap();
        let line = failure(&predict("", &masks));
        assert!(line.contains("No such file") && line.contains(&text(path)), "{line}");
        std::fs::write(path, whole).unwrap();
        assert!(unchanged());
    };
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    damage(&weights, &bytes, "weights.safetensors: is damaged");
    damage(&weights, &bytes[..1000], "weights.safetensors: not a weights file (safetensors), or damaged");
    let bytes = std::fs::read(&second).unwrap();
    damage(&second, &bytes[..bytes.len() - 100], "patient2_0000.nii.gz: is damaged or truncated");
    success(&predict("", &masks));
    assert!(unchanged());
}
