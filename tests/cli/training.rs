//! `train`, `predict` and `evaluate` one after the other, as a user types them.

use super::{CACHE, PROGRAM, error, json, run};
use rarunet_cuda::data::read_labels;
use rarunet_cuda::train::EpochRecord;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TINY: [&str; 10] =
    ["--widths", "8,8,8,8,8", "--size", "32", "--batch", "4", "--learning-rate", "3e-3", "--threads", "1"];

fn phantom(folder: &Path, patients: &str) -> String {
    let data = folder.join("data").display().to_string();
    let made = run(["phantom", "--out", &data, "--patients", patients, "--slices", "6", "--size", "32"]);
    assert!(made.status.success(), "{made:?}");
    data
}

fn here_new(folder: &Path) -> String {
    folder.join("new").display().to_string()
}

#[test]
fn train_predict_evaluate() {
    let folder = tempfile::tempdir().unwrap();
    let data = phantom(folder.path(), "3");
    let out = folder.path().join("run");
    let out_text = out.display().to_string();
    let train = [
        "train",
        &data,
        "--out",
        &out_text,
        "--epochs",
        "2",
        "--test-cases",
        "patient3",
        "--validation-fraction",
        "0.3",
    ];

    let dry = run(train.iter().chain(&TINY).chain(&["--dry-run"]));
    assert!(dry.status.success() && !out.exists(), "{dry:?}");
    let text = String::from_utf8(dry.stdout).unwrap();
    assert!(text.contains("parameters") && text.contains("GFLOP") && text.contains("MiB"), "{text}");

    let trained = run(train.iter().chain(&TINY));
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    assert_eq!(EpochRecord::read_all(&out.join("log.jsonl")).unwrap().len(), 2);
    assert!(std::fs::read_to_string(out.join("report.html")).unwrap().contains("</html>"));
    let (line, code) = error(train.iter().chain(&TINY));
    assert!(code == Some(1) && line.contains("not empty"), "{line}");

    // The settings that were saved are settings to start from, and a flag overrides them.
    let config = out.join("config.toml").display().to_string();
    let other = folder.path().join("other").display().to_string();
    let again = run(["train", &data, "--out", &other, "--config", &config, "--epochs", "1"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(EpochRecord::read_all(&Path::new(&other).join("log.jsonl")).unwrap().len(), 1);

    let wrong = folder.path().join("wrong.toml").display().to_string();
    std::fs::write(&wrong, "batch = 2\nepochs = \"x\"\n").unwrap();
    let (line, code) = error(["train", &data, "--out", &other, "--config", &wrong]);
    assert!(code == Some(1) && line.contains("wrong.toml: line 2: "), "{line}");

    // What people read: a card, event files, pictures of the validation slices, and pages made again.
    let card = std::fs::read_to_string(out.join("model-card.md")).unwrap();
    assert!(card.contains("2 scans: patient1, patient2") && card.contains("| validation Dice |"), "{card}");
    assert_eq!(std::fs::read_dir(out.join("tensorboard")).unwrap().count(), 1);
    assert!(out.join("validation/slices.csv").exists());
    let before = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(before.contains("Validation, case by case"));
    assert!(run(["report", &out_text]).status.success());
    let again = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert_eq!(before.split_once("<dl").unwrap().1, again.split_once("<dl").unwrap().1, "but for the note");
    let page = folder.path().join("comparison.html").display().to_string();
    assert!(run(["report", &out_text, &other, "--out", &page]).status.success());
    assert!(std::fs::read_to_string(&page).unwrap().contains("2 training runs"));
    let (line, code) = error(["report", &out_text, &other]);
    assert!(code == Some(1) && line.contains("--out"), "{line}");

    let weights = out.join("best.safetensors").display().to_string();
    let scan = format!("{data}/imagesTr/patient3_0000.nii.gz");
    let masks = folder.path().join("masks").display().to_string();
    let predicted = run(["predict", "--weights", &weights, &scan, "--out", &masks, "--overlay", "--probabilities"]);
    assert!(predicted.status.success(), "{}", String::from_utf8_lossy(&predicted.stderr));
    for name in ["patient3.nii.gz", "patient3_probability.nii.gz", "patient3.png"] {
        assert!(Path::new(&masks).join(name).is_file(), "{name}");
    }
    let mask = Path::new(&masks).join("patient3.nii.gz");
    let reference = format!("{data}/labelsTr/patient3.nii.gz");
    let (found, _) = read_labels(&mask).unwrap();
    let (expected, _) = read_labels(Path::new(&reference)).unwrap();
    assert_eq!(found.geometry, expected.geometry);

    let count = |voxels: &[i32]| voxels.iter().filter(|&&label| label > 0).count() as f64;
    let both = found.voxels.iter().zip(&expected.voxels).filter(|(a, b)| **a > 0 && **b > 0).count() as f64;
    let dice = 2.0 * both / (count(&found.voxels) + count(&expected.voxels));
    let mask = mask.display().to_string();
    let evaluation = json(["evaluate", "--prediction", &mask, "--reference", &reference, "--json"]);
    let reported = evaluation["cases"][0]["volume"]["dice"].as_f64().unwrap();
    assert!((reported - dice).abs() < 1e-12, "{reported} is not {dice}");

    // What is there is not replaced unasked, and a scan never is.
    let (line, code) = error(["predict", "--weights", &weights, &scan, "--out", &masks]);
    assert!(code == Some(1) && line.contains("--overwrite"), "{line}");
    assert!(run(["predict", "--weights", &weights, &scan, "--out", &masks, "--overwrite"]).status.success());
    let copy = folder.path().join("copy.nii.gz").display().to_string();
    std::fs::copy(&scan, &copy).unwrap();
    let here = folder.path().display().to_string();
    let (line, code) = error(["predict", "--weights", &weights, &copy, "--out", &here, "--overwrite"]);
    assert!(code == Some(1) && line.contains("one of the scans"), "{line}");
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(&scan).unwrap());
    let (line, code) = error(["evaluate", "--prediction", &mask, "--reference", &reference, "--csv", &copy]);
    assert!(code == Some(1) && line.contains("not overwritten"), "{line}");
    let (line, code) = error(["evaluate", "--prediction", &mask, "--reference", &scan]);
    assert!(code == Some(1) && line.contains("is it an image?"), "{line}");

    // A pattern stands for what it matches; what is finished is left out, what is not is done.
    let pattern = format!("{data}/imagesTr/patient[12]_0000.*");
    let several = folder.path().join("several");
    let several_text = several.display().to_string();
    let predict = ["predict", "--weights", &weights, &pattern, "--out", &several_text];
    let first = run(predict.iter().chain(&["--largest-component", "--fill-holes"]));
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let names = ["patient1.nii.gz", "patient2.nii.gz"].map(|name| several.join(name));
    assert!(names.iter().all(|name| name.is_file()));
    let (line, code) = error(predict);
    assert!(code == Some(1) && line.contains("--skip-finished"), "{line}");
    let before = std::fs::read(&names[0]).unwrap();
    std::fs::write(&names[0], "as it was").unwrap();
    std::fs::remove_file(&names[1]).unwrap();
    let second = run(predict.iter().chain(&["--skip-finished"]));
    assert!(second.status.success() && names[1].is_file());
    assert!(String::from_utf8_lossy(&second.stderr).contains("1 of 2 scans are finished"), "{second:?}");
    assert_eq!(std::fs::read(&names[0]).unwrap(), b"as it was");
    // With probabilities asked for it is not finished.
    let third = run(predict.iter().chain(&["--skip-finished", "--probabilities"]));
    assert!(third.status.success(), "{}", String::from_utf8_lossy(&third.stderr));
    let (one, other) = (
        read_labels(&names[0]).unwrap().0,
        rarunet_cuda::data::read_image(&several.join("patient1_probability.nii.gz")).unwrap().0,
    );
    assert!(one.voxels.iter().zip(&other.voxels).all(|(&label, &probability)| (label == 1) == (probability >= 0.5)));
    assert!(!before.is_empty());
    let (line, code) = error(["predict", "--weights", &weights, &format!("{data}/x*"), "--out", &several_text]);
    assert!(code == Some(1) && line.contains("matches no file"), "{line}");
    let (line, _) =
        error(["predict", "--weights", &weights, &scan, "--series", "1.2", "--out", &here_new(folder.path())]);
    assert!(line.contains("is not DICOM"), "{line}");

    let other = folder.path().join("other-masks").display().to_string();
    let (line, code) = error(["predict", "--weights", &scan, &scan, "--out", &other]);
    assert!(code == Some(1) && line.contains("weights file"), "{line}");
}

/// A signal ends a run with its exit code, and what was reached can be used.
#[cfg(unix)]
#[test]
fn interrupted_training_leaves_weights() {
    let folder = tempfile::tempdir().unwrap();
    let data = phantom(folder.path(), "2");
    for (signal, exit_code) in [("INT", 130), ("TERM", 143)] {
        let out = folder.path().join(signal);
        let mut command = Command::new(PROGRAM);
        command.env(CACHE.0, CACHE.1);
        command.args(["train", &data, "--out"]).arg(&out).args(TINY).args(["--epochs", "100000"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        while !out.join("log.jsonl").exists() {
            assert!(started.elapsed() < Duration::from_secs(120), "the run does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(exit_code), "after SIG{signal}");
        let weights = out.join("best.safetensors").display().to_string();
        let masks = out.join("masks").display().to_string();
        let predicted = run(["predict", "--weights", &weights, &format!("{data}/imagesTr"), "--out", &masks]);
        assert!(predicted.status.success(), "{}", String::from_utf8_lossy(&predicted.stderr));
    }
}
