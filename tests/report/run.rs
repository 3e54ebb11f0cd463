//! What a run leaves for people: written while it goes, read again, set side by side.

use super::assert_well_formed;
use crate::protobuf::Message;
use crate::tensorboard::events;
use rarunet_cuda::data::{Slice, SliceSet};
use rarunet_cuda::preprocessing::HounsfieldWindow;
use rarunet_cuda::report::comparison::Comparison;
use rarunet_cuda::report::{Journal, RunFiles};
use rarunet_cuda::train::adl::Detection;
use rarunet_cuda::train::{EpochRecord, Summary};
use std::path::Path;

const SIZE: usize = 16;

/// Two cases of three slices: nothing, a square, a square.
fn set() -> SliceSet {
    let slice = |number: usize| {
        let (case, index) = (number / 3, number % 3);
        let mask: Vec<u8> = (0..SIZE * SIZE).map(|p| u8::from(index > 0 && p % SIZE < 8 && p / SIZE < 8)).collect();
        let image: Vec<f32> = mask.iter().map(|&pixel| f32::from(pixel) - 0.5).collect();
        Slice { case, index, image: image.into(), has_foreground: index > 0, mask: mask.into() }
    };
    SliceSet { size: SIZE, cases: vec!["a,1".into(), "<b>".into()], slices: (0..6).map(slice).collect() }
}

fn record(epoch: u64, val_dice: f64) -> EpochRecord {
    EpochRecord {
        epoch,
        train_loss: 0.5,
        val_dice: Some(val_dice),
        val_iou: Some(val_dice / 2.0),
        learning_rate: 1e-3,
        removed: 1,
        removed_total: epoch,
        skipped_steps: 0,
        estimated_noise: None,
        detection: Some(Detection { precision: Some(0.25), recall: None, auroc: Some(0.75) }),
        images_per_s: 10.0,
        seconds: 2.0,
    }
}

fn summary() -> Summary {
    Summary {
        device: "a device".into(),
        model: "unet".into(),
        parameters: 1234,
        train_slices: 3,
        validation_slices: 3,
        steps: 2,
        steps_done: 0,
        operations_per_step: 1,
        planned_bytes: 1,
    }
}

/// The probabilities of a slice of which the left `columns` columns are foreground.
fn probabilities(columns: usize) -> Vec<f32> {
    (0..SIZE * SIZE).map(|p| if p % SIZE < columns && p / SIZE < 8 { 0.9 } else { 0.1 }).collect()
}

/// A run of two epochs, the first of which is the best; slices 1, 2, 4 and 5 validate.
fn written(folder: &Path, model: &str) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.toml"), format!("model = \"{model}\"\nepochs = 2\nsize = 16\n")).unwrap();
    let set = set();
    let mut journal = Journal::new(folder, &set, HounsfieldWindow::default());
    journal.begin(&summary());
    for (epoch, columns) in [(1, 8), (2, 4)] {
        for slice in [5, 1, 2, 4] {
            journal.validated(slice, &probabilities(if slice < 3 { columns } else { 4 }));
        }
        let record = record(epoch, 1.0 / epoch as f64);
        record.append_to(&folder.join("log.jsonl")).unwrap();
        journal.epoch(&record, epoch == 1);
    }
    journal.finish(vec!["It went well.".into()]).unwrap();
}

#[test]
fn a_journal_leaves_what_people_read() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    written(&run, "unet");
    let html = std::fs::read_to_string(run.join("report.html")).unwrap();
    for part in [
        "It went well.",
        "Validation, case by case",
        "What denoising left out",
        "<th scope=\"row\" data-value=\"&lt;b&gt;\">&lt;b&gt;</th><td data-value=\"2\">2</td><td data-value=\"0.6666666666666666\">0.6667</td>",
        "AUROC, epoch 2: 0.7500",
    ] {
        assert!(html.contains(part), "{part}");
    }
    // Two slices of each case in pictures, and the icon.
    assert_eq!(html.matches("src=\"data:image/png").count(), 4);

    let card = std::fs::read_to_string(run.join("model-card.md")).unwrap();
    for part in [
        "# unet: vertebrae in CT",
        "1234 parameters",
        "2 scans: a,1, <b>",
        "| validation Dice | 1.000 |",
        "| a,1 | 2 | 1.0000 |",
        "no medical device",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }

    let read = RunFiles::read(&run).unwrap();
    let validation = read.validation.unwrap();
    assert_eq!(validation.epoch, 1);
    let cases: Vec<(&str, Vec<usize>, f64)> = validation
        .cases
        .iter()
        .map(|case| {
            (&case.name[..], case.slices.iter().map(|s| s.index).collect(), case.counts().dice().value().unwrap())
        })
        .collect();
    assert_eq!(cases, [("a,1", vec![1, 2], 1.0), ("<b>", vec![1, 2], 2.0 / 3.0)]);
    let pictures = validation.cases[1].pictures.as_ref().unwrap();
    assert_eq!(pictures.slices[0].0, "slice 1, Dice 0.6667");
    assert!(pictures.slices[0].1.starts_with(b"\x89PNG"));
}

#[test]
fn a_better_epoch_replaces_the_pictures() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path(), "unet");
    std::fs::write(folder.path().join("validation/stale_0001.png"), "").unwrap();
    let set = set();
    let mut journal = Journal::new(folder.path(), &set, HounsfieldWindow::default());
    journal.begin(&summary());
    journal.validated(1, &probabilities(7));
    journal.epoch(&record(3, 1.0), true);
    journal.finish(Vec::new()).unwrap();
    let mut files: Vec<_> =
        std::fs::read_dir(folder.path().join("validation")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["a,1_0001.png", "slices.csv"]);
    assert_eq!(RunFiles::read(folder.path()).unwrap().validation.unwrap().epoch, 3);
}

#[test]
fn tensorboard_gets_the_numbers_and_pictures_of_every_epoch() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path(), "unet");
    let file = std::fs::read_dir(folder.path().join("tensorboard")).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(file).unwrap();
    let mut tags: Vec<(i64, String)> = Vec::new();
    for event in events(&bytes).into_iter().map(Message).skip(2) {
        let value = event.message(5).message(1);
        if value.text(1) == "validation/dice" {
            assert_eq!(value.floats(2), [1.0 / event.ints(2)[0] as f32]);
        }
        tags.push((event.ints(2)[0], value.text(1)));
    }
    for epoch in [1, 2] {
        let of_epoch = tags.iter().filter(|(step, _)| *step == epoch);
        // Nine numbers (no recall, no estimate) and two pictures.
        assert_eq!(of_epoch.clone().count(), 11, "{tags:?}");
        for tag in ["loss/train", "learning_rate", "images_per_s", "denoising/auroc", "validation/a,1 slice 1"] {
            assert!(of_epoch.clone().any(|(_, known)| known == tag), "{tag}");
        }
    }
}

#[test]
fn several_runs_stand_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let runs: Vec<RunFiles> = ["unet", "rar-unet", "<i>"]
        .map(|model| {
            let run = folder.path().join(model);
            written(&run, model);
            RunFiles::read(&run).unwrap()
        })
        .to_vec();
    let html = Comparison::new(runs).html();
    assert!(!html.contains("<i>") && !html.contains("http:") && !html.contains("https:") && !html.contains("src="));
    for part in [
        "3 training runs",
        "Settings that differ",
        "data-value=\"rar-unet\"",
        "data-value=\"&lt;i&gt;\"",
        "C, epoch 2: 0.5000",
    ] {
        assert!(html.contains(part), "{part}");
    }
    // Only the model differs.
    assert!(!html.contains("<button type=\"button\" title=\"\">size</button>"));
    let body = html.split_once("<main>").unwrap().1.split_once("</main>").unwrap().0;
    let names = assert_well_formed(body);
    assert_eq!(names.iter().filter(|name| *name == "table").count(), 2);
    // Dice, IoU, loss, rate, speed, masks left out, and three samples of lines.
    assert_eq!(names.iter().filter(|name| *name == "svg").count(), 9);
}

#[test]
fn suspects_are_listed_with_what_is_seen_of_them() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path(), "unet");
    let columns = "case,slice,score,dice,pixels,predicted_pixels,times_left_out";
    let masks = format!("{columns}\n\"a,1\",2,0.9,0.5,3,4,5\n<b>,1,0.5,0.25,1,2,0\n");
    std::fs::write(folder.path().join("suspects.csv"), masks).unwrap();
    std::fs::create_dir(folder.path().join("suspects")).unwrap();
    std::fs::write(folder.path().join("suspects/001-a,1-2.png"), b"\x89PNG").unwrap();
    std::fs::write(folder.path().join("manifest.json"), r#"{"device": {"name": "cpu"}, "seeds": [1, 2]}"#).unwrap();
    let html = RunFiles::read(folder.path()).unwrap().into_report(Vec::new()).html();
    for part in [
        "Masks to look at",
        "<figcaption>1. a,1, slice 2</figcaption>",
        "<td data-value=\"0.9\">0.90</td>",
        "&lt;b&gt;",
        "<th scope=\"row\">device.name</th><td>cpu</td>",
        "<th scope=\"row\">seeds</th><td>[1,2]</td>",
    ] {
        assert!(html.contains(part), "{part}");
    }
    std::fs::write(folder.path().join("suspects.csv"), format!("{columns}\na,1\n")).unwrap();
    let message = RunFiles::read(folder.path()).unwrap_err().to_string();
    assert!(message.contains("suspects.csv") && message.contains("line: 2"), "{message}");
    let message = RunFiles::read(&folder.path().join("validation")).unwrap_err().to_string();
    assert!(message.contains("no config.toml"), "{message}");
}
