//! Noisy masks as a user meets them: `corrupt`, `train --adl`, `suspects` and `reproduce`.

use super::{error, json, run};
use rarunet_cuda::train::EpochRecord;
use std::path::Path;

const TINY: [&str; 8] = ["--widths", "8,8,8,8,8", "--size", "32", "--learning-rate", "3e-3", "--threads", "1"];

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_run_on_noisy_masks_lists_its_suspects() {
    let folder = tempfile::tempdir().unwrap();
    let [clean, noisy, out] = ["clean", "noisy", "run"].map(|name| text(&folder.path().join(name)));
    assert!(run(["phantom", "--out", &clean, "--patients", "3", "--slices", "8", "--size", "32"]).status.success());
    let noise = ["--noise-proportion", "0.5", "--noise-overlap", "0.6"];
    assert!(run(["corrupt", &clean, "--out", &noisy].iter().chain(&noise)).status.success());
    let train = ["train", &noisy, "--out", &out, "--epochs", "4", "--batch", "4", "--adl", "cumulative"];
    let trained = run(train.iter().chain(&noise).chain(&TINY));
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));

    let records = EpochRecord::read_all(&Path::new(&out).join("log.jsonl")).unwrap();
    assert_eq!(records.len(), 4);
    assert_eq!(records[0].removed, 0);
    assert!(records[3].removed_total > 0);
    assert_eq!(records.iter().map(|record| record.removed).sum::<u64>(), records[3].removed_total);
    let detection = records[3].detection.expect("noise.csv says which masks are noisy");
    assert!(detection.precision.is_some() && detection.recall.is_some() && detection.auroc.is_some());

    let suspects = json(["suspects", &out, "--count", "3", "--against", &format!("{noisy}/noise.csv"), "--json"]);
    let list = suspects["suspects"].as_array().unwrap();
    assert_eq!(list.len(), 3);
    let scores: Vec<f64> = list.iter().map(|suspect| suspect["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    assert!((0.0..=1.0).contains(&suspects["detection"]["auroc"].as_f64().unwrap()));
    let (case, slice) = (list[0]["case"].as_str().unwrap(), list[0]["slice"].as_u64().unwrap());
    let picture = Path::new(&out).join(format!("suspects/001-{case}-{slice}.png"));
    assert!(std::fs::read(picture).unwrap().starts_with(b"\x89PNG"));
    assert!(Path::new(&out).join("unmarked.csv").exists());
    let printed = run(["suspects", &out]);
    assert!(String::from_utf8(printed.stdout).unwrap().contains(case));

    let wrong = text(&folder.path().join("wrong.csv"));
    std::fs::write(&wrong, "hi\n").unwrap();
    let (line, code) = error(["suspects", &out, "--against", &wrong]);
    assert!(code == Some(1) && line.contains("wrong.csv") && line.contains("no column \"case\""), "{line}");
    let (line, code) = error(["suspects", &clean]);
    assert!(code == Some(1) && line.contains("suspects.csv"), "{line}");
    let missing = ["train", &noisy, "--out", &text(&folder.path().join("other")), "--adl", "paper"];
    let (line, _) = error(missing.iter().chain(&TINY));
    assert!(line.contains("--noise-proportion"), "{line}");
    let oracle = ["train", &clean, "--out", &text(&folder.path().join("other")), "--adl", "oracle", "--no-cache"];
    let untold = run(oracle.iter().chain(&TINY));
    assert!(String::from_utf8(untold.stderr).unwrap().contains("corrupt"));
}

/// What `reproduce` prints of one row, as a result and else.
fn reproduce(out: &str, epochs: &str) -> (String, String) {
    let command = ["reproduce", "strategies", "--out", out, "--only", ROW, "--epochs", epochs];
    let small = ["--patients", "4", "--slices", "6", "--batch", "4", "--validation-fraction", "0.3"];
    let output = run(command.iter().chain(&small).chain(&TINY));
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

const ROW: &str = "unet-50-0.77-per-epoch";

#[test]
fn reproduce_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let out = text(&folder.path().join("table"));
    let (whole, told) = reproduce(&out, "3");
    assert!(whole.contains("| unet | 50% at 0.77 | per-epoch |"), "{whole}{told}");
    let row = Path::new(&out).join(ROW).join("seed-1");
    let [trial, log] = ["trial.json", "log.jsonl"].map(|name| row.join(name));
    // Both have times in them, which would be others if it were trained again.
    let before = [&trial, &log].map(|path| std::fs::read(path).unwrap());

    let (again, _) = reproduce(&out, "3");
    assert_eq!(again, whole);
    assert_eq!([&trial, &log].map(|path| std::fs::read(path).unwrap()), before, "what is done is not done again");

    // One that was stopped before its end goes on at its last checkpoint: all epochs are done here.
    std::fs::remove_file(&trial).unwrap();
    let (again, _) = reproduce(&out, "3");
    assert_eq!(again, whole);
    assert_eq!(std::fs::read(&log).unwrap(), before[1]);

    let (_, told) = reproduce(&out, "4");
    assert!(told.contains("other settings"), "{told}");
    let (line, code) = error(["reproduce", "table4", "--out", &out, "--only", "vnet"]);
    assert!(code == Some(1) && line.contains("--only"), "{line}");
}
