//! The command `corrupt` on data sets.

use super::PAPER;
use assert_cmd::Command;
use rarunet_cuda::data::{Geometry, Reorientation, Volume, metaimage, nifti, read_labels};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn run(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_rarunet-cuda")).args(arguments).output().unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = run(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn phantom(folder: &Path, patients: &str) {
    let arguments = ["phantom", "--out", text(folder), "--patients", patients, "--slices", "12", "--size", "64"];
    assert!(run(&arguments).status.success());
}

/// The lines of noise.csv: (case, slice) to kind and overlap.
fn noise(folder: &Path) -> BTreeMap<(String, usize), (String, f64)> {
    let table = std::fs::read_to_string(folder.join("noise.csv")).unwrap();
    let mut lines = table.lines();
    assert_eq!(lines.next(), Some("case,slice,kind,overlap"));
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let place = (fields[0].to_owned(), fields[1].parse().unwrap());
            (place, (fields[2].to_owned(), fields[3].parse().unwrap()))
        })
        .collect()
}

/// The Dice overlap of each axial slice of a case that differs between two data sets; both masks are there.
fn changed(a: &Path, b: &Path) -> BTreeMap<usize, f64> {
    let [a, b] = [a, b].map(|path| {
        let (stored, header) = read_labels(path).unwrap();
        (Reorientation::to_ras_from(&stored.geometry).to_ras(&stored).unwrap(), header)
    });
    assert_eq!(a.0.geometry, b.0.geometry, "the geometry stays");
    let mut overlaps = BTreeMap::new();
    for z in 0..a.0.geometry.shape[2] {
        let [a, b] =
            [a.0.slice(z), b.0.slice(z)].map(|slice| slice.iter().map(|&v| u8::from(v > 0)).collect::<Vec<_>>());
        if a != b {
            overlaps.insert(z, super::dice(&a, &b));
        }
    }
    overlaps
}

#[test]
fn the_papers_noise_on_a_data_set() {
    let folder = tempfile::tempdir().unwrap();
    let truth = folder.path().join("truth");
    phantom(&truth, "5");
    let slices = 4 * 12;
    for (i, (proportion, overlap)) in PAPER.into_iter().enumerate() {
        let noisy = folder.path().join(format!("noisy{i}"));
        let (share, level) = (proportion.to_string(), overlap.to_string());
        let arguments = ["corrupt", text(&truth), "--out", text(&noisy), "--noise-proportion", &share];
        let more = ["--noise-overlap", &level, "--test-cases", "patient2", "--json"];
        let summary = json(&[&arguments[..], &more].concat());
        let wanted = (proportion * slices as f64).round() as usize;
        let said = noise(&noisy);
        assert_eq!((said.len(), summary["corrupted"].as_u64()), (wanted, Some(wanted as u64)));
        assert_eq!(summary["masks"], slices);
        let mut found = BTreeMap::new();
        for patient in 1..=5 {
            let name = format!("labelsTr/patient{patient}.nii.gz");
            for (slice, overlap) in changed(&truth.join(&name), &noisy.join(&name)) {
                found.insert((format!("patient{patient}"), slice), overlap);
            }
            let image = format!("imagesTr/patient{patient}_0000.nii.gz");
            assert_eq!(std::fs::read(truth.join(&image)).unwrap(), std::fs::read(noisy.join(&image)).unwrap());
        }
        assert_eq!(found.keys().collect::<Vec<_>>(), said.keys().collect::<Vec<_>>());
        assert!(found.iter().all(|(place, overlap)| (said[place].1 - overlap).abs() < 1e-6));
        assert!(said.keys().all(|(case, _)| case != "patient2"), "test cases are untouched");
        let mean = found.values().sum::<f64>() / found.len() as f64;
        assert!((mean - overlap).abs() <= 0.01, "{mean} instead of {overlap}");
        assert!((summary["mean_overlap"].as_f64().unwrap() - mean).abs() < 1e-9);
        assert_eq!(
            std::fs::read(truth.join("dataset.json")).unwrap(),
            std::fs::read(noisy.join("dataset.json")).unwrap()
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let truth = folder.path().join("truth");
    phantom(&truth, "3");
    let bytes = |name: &str, more: &[&str]| {
        let noisy = folder.path().join(name);
        let arguments = ["corrupt", text(&truth), "--out", text(&noisy), "--noise-proportion", "0.5"];
        json(&[&arguments[..], &["--noise-overlap", "0.77", "--json"], more].concat());
        let masks = [1, 2, 3].map(|patient| noisy.join(format!("labelsTr/patient{patient}.nii.gz")));
        masks
            .into_iter()
            .chain([noisy.join("noise.csv"), noisy.join("noise.json")])
            .map(|p| std::fs::read(p).unwrap())
            .collect::<Vec<_>>()
    };
    let first = bytes("first", &[]);
    assert_eq!(first, bytes("again", &[]));
    assert_ne!(first, bytes("other", &["--seed", "2"]));
}

#[test]
fn volumes_are_corrupted_as_wholes_if_asked() {
    let folder = tempfile::tempdir().unwrap();
    let (truth, noisy) = (folder.path().join("truth"), folder.path().join("noisy"));
    phantom(&truth, "4");
    let arguments = ["corrupt", text(&truth), "--out", text(&noisy), "--noise-proportion", "0.5"];
    let summary = json(&[&arguments[..], &["--noise-overlap", "0.7", "--per-volume", "--json"]].concat());
    assert_eq!((&summary["masks"], &summary["corrupted"]), (&4.into(), &2.into()));
    let said = noise(&noisy);
    assert_eq!(said.keys().map(|(case, _)| case).collect::<BTreeSet<_>>().len(), 2);
    for patient in 1..=4 {
        let name = format!("labelsTr/patient{patient}.nii.gz");
        let found = changed(&truth.join(&name), &noisy.join(&name));
        let of_case = said.range((format!("patient{patient}"), 0)..=(format!("patient{patient}"), usize::MAX));
        assert_eq!(found.len(), of_case.clone().count());
        assert!(
            of_case.zip(&found).all(|((place, said), found)| place.1 == *found.0 && (said.1 - found.1).abs() < 1e-6)
        );
    }
}

/// Two stacks of discs, labelled 21 and 22, and a third thing labelled 5, stored as LPS's mirror image with z first.
fn stored(labels: [i32; 3]) -> Volume<i32> {
    let mut geometry = Geometry::axis_aligned([10, 40, 40], [3.0, 0.8, 0.8]);
    geometry.affine = [[0.0, 0.0, -0.8, 16.0], [0.0, 0.8, 0.0, -16.0], [3.0, 0.0, 0.0, 100.0], [0.0, 0.0, 0.0, 1.0]];
    let disc = |a: f64, b: f64, a0: f64, b0: f64| (a - a0).powi(2) + (b - b0).powi(2) < 49.0;
    let voxel = |voxel: usize| {
        let (y, z) = ((voxel / 10 % 40) as f64, (voxel / 400) as f64);
        match () {
            () if disc(y, z, 12.0, 20.0) => labels[0],
            () if disc(y, z, 27.0, 20.0) => labels[1],
            () if z < 4.0 => labels[2],
            () => 0,
        }
    };
    let voxels = (0..geometry.voxel_count()).map(voxel).collect();
    Volume::new(geometry, voxels).unwrap()
}

#[test]
fn labels_are_kept_and_any_layout_and_orientation_will_do() {
    let folder = tempfile::tempdir().unwrap();
    let (truth, noisy) = (folder.path().join("truth"), folder.path().join("noisy"));
    let mask = stored([300, 310, 50]);
    let image = Volume::new(mask.geometry.clone(), vec![7i16; mask.voxels.len()]).unwrap();
    for case in ["case1", "case2"] {
        metaimage::write(&truth.join(format!("{case}.mhd")), &image).unwrap();
        metaimage::write(&truth.join(format!("{case}_label.mhd")), &mask).unwrap();
    }
    let arguments =
        ["corrupt", text(&truth), "--out", text(&noisy), "--noise-proportion", "1", "--noise-overlap", "0.8"];
    let more = ["--test-cases", "case2", "--labels", "300-310", "--kinds", "dilation,erosion", "--json"];
    let summary = json(&[&arguments[..], &more].concat());
    assert_eq!((&summary["corrupted"], &summary["of_kinds"][0]["corrupted"]), (&10.into(), &5.into()));
    let (after, _) = read_labels(&noisy.join("case1_label.nii.gz")).unwrap();
    assert_eq!(after.geometry.difference(&mask.geometry, ["new", "old"]), None);
    assert!(!noisy.join("case1_label.mhd").exists());
    let labels: BTreeSet<i32> = after.voxels.iter().copied().collect();
    assert_eq!(labels, BTreeSet::from([0, 50, 300, 310]));
    for (before, after) in mask.voxels.iter().zip(&after.voxels) {
        let is_allowed = match before {
            300 | 310 => after == before || *after == 0,
            _ => after == before || [300, 310].contains(after),
        };
        assert!(is_allowed, "{before} became {after}");
    }
    assert_eq!(
        std::fs::read(truth.join("case2_label.raw")).unwrap(),
        std::fs::read(noisy.join("case2_label.raw")).unwrap()
    );
    let inspection = json(&["inspect", text(&noisy), "--json"]);
    assert_eq!(inspection["problems"], serde_json::json!([]), "{inspection}");
}

#[test]
fn masks_beside_a_dataset_json_that_are_not_nifti_are_refused_and_so_is_a_full_folder() {
    let folder = tempfile::tempdir().unwrap();
    let truth = folder.path().join("truth");
    let mask = stored([1, 1, 1]);
    metaimage::write(&truth.join("imagesTr/a_0000.mhd"), &mask).unwrap();
    metaimage::write(&truth.join("labelsTr/a.mhd"), &mask).unwrap();
    let description = r#"{"channel_names": {"0": "CT"}, "labels": {"background": 0, "vertebra": 1}, "numTraining": 1, "file_ending": ".mhd"}"#;
    std::fs::write(truth.join("dataset.json"), description).unwrap();
    let out = folder.path().join("out");
    let arguments = |data: &Path, out: &Path| {
        ["corrupt", text(data), "--out", text(out), "--noise-proportion", "0.5", "--noise-overlap", "0.8"]
            .map(str::to_owned)
    };
    let refused = |arguments: &[String]| {
        let output = run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&arguments(&truth, &out)).contains(".nii.gz"));
    assert!(!out.exists());
    nifti::write(&folder.path().join("other/a_label.nii.gz"), &mask, None).unwrap();
    nifti::write(&folder.path().join("other/a.nii.gz"), &mask, None).unwrap();
    assert!(refused(&arguments(&folder.path().join("other"), &folder.path().join("other"))).contains("not empty"));
}
