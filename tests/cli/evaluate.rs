//! `evaluate`: the right masks are compared, in the right grid, and the figures are those of the masks.

use super::{error, json, run};
use crate::data::volume;
use rarunet_cuda::data::{Geometry, Reorientation, Volume, nifti};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const SHAPE: [usize; 3] = [12, 10, 6];

fn grid() -> Geometry {
    Geometry::axis_aligned(SHAPE, [1.0, 1.5, 3.0])
}

/// A box of label 1, moved by `shift` along x.
fn block(geometry: Geometry, shift: usize) -> Volume<u8> {
    volume(geometry, |x, y, z| {
        u8::from((3 + shift..7 + shift).contains(&x) && (2..8).contains(&y) && (1..5).contains(&z))
    })
}

fn write(path: PathBuf, mask: &Volume<u8>) -> String {
    nifti::write(&path, mask, None).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A folder `prediction` and a folder `reference` with these cases: name, shift of the prediction.
fn folders(cases: &[(&str, usize)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for &(name, shift) in cases {
        write(folder.path().join(format!("prediction/{name}.nii.gz")), &block(grid(), shift));
        write(folder.path().join(format!("reference/{name}.nii.gz")), &block(grid(), 0));
    }
    folder
}

fn arguments(folder: &TempDir) -> Vec<String> {
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    ["evaluate", "--prediction", &path("prediction"), "--reference", &path("reference")].map(str::to_owned).to_vec()
}

fn with(arguments: &[String], more: &[&str]) -> Vec<String> {
    arguments.iter().cloned().chain(more.iter().map(|&flag| flag.to_owned())).collect()
}

/// 2 |A and B| / (|A| + |B|)
fn dice(a: &[u8], b: &[u8]) -> f64 {
    let both = a.iter().zip(b).filter(|&(&a, &b)| a > 0 && b > 0).count();
    let sizes = a.iter().chain(b).filter(|&&label| label > 0).count();
    2.0 * both as f64 / sizes as f64
}

#[track_caller]
fn assert_near(value: &Value, expected: f64) {
    let value = value.as_f64().unwrap_or_else(|| panic!("{value} is no number"));
    assert!((value - expected).abs() < 1e-9, "{value}, expected {expected}");
}

#[test]
fn figures_are_those_of_the_masks() {
    let folder = folders(&[("a", 0), ("b", 1), ("c", 3)]);
    let csv = folder.path().join("figures/metrics.csv");
    let report = json(with(&arguments(&folder), &["--json", "--csv", csv.to_str().unwrap()]));
    for (index, (name, shift)) in [("a", 0), ("b", 1), ("c", 3)].into_iter().enumerate() {
        let (prediction, reference) = (block(grid(), shift), block(grid(), 0));
        let case = &report["cases"][index];
        assert_eq!(case["name"], name);
        assert_near(&case["volume"]["dice"], dice(&prediction.voxels, &reference.voxels));
        // Of six slices four have a mask; in the others nothing can be measured.
        assert_near(&case["slices"]["dice"], dice(prediction.slice(2), reference.slice(2)));
        assert_eq!(case["slices"]["undefined"]["dice"]["both masks are empty"], 2);
        // The box moved by `shift` voxels of 1 mm.
        assert_near(&case["volume"]["hd"], shift as f64);
        assert_near(&case["volume"]["rvd"], 0.0);
    }
    assert_near(&report["summary"]["volume"]["dice"]["mean"], (1.0 + 0.75 + 0.25) / 3.0);
    let csv = std::fs::read_to_string(csv).unwrap();
    assert!(csv.starts_with("case,scope,dice,iou,") && csv.contains("\nb,volume,0.75,0.6,"), "{csv}");
    let text = String::from_utf8(run(arguments(&folder)).stdout).unwrap();
    assert!(text.contains("\nb ") && text.contains("0.7500"), "{text}");
}

#[test]
fn slices_are_axial_however_voxels_are_stored() {
    let folder = folders(&[("a", 2)]);
    let plain = json(with(&arguments(&folder), &["--json"]));
    // x is stored as slices, from left to right; y as rows from front to back.
    let mut stored = Geometry { shape: [SHAPE[2], SHAPE[1], SHAPE[0]], affine: [[0.0; 4]; 4] };
    stored.affine[2][0] = 3.0;
    stored.affine[1][1] = -1.5;
    stored.affine[1][3] = 1.5 * (SHAPE[1] - 1) as f64;
    stored.affine[0][2] = 1.0;
    stored.affine[3][3] = 1.0;
    let reorientation = Reorientation::to_ras_from(&stored);
    for (name, shift) in [("prediction", 2), ("reference", 0)] {
        let mask = reorientation.to_stored(&block(grid(), shift)).unwrap();
        assert_eq!(mask.geometry.orientation(), "SPR");
        write(folder.path().join(name).join("a.nii.gz"), &mask);
    }
    assert_eq!(json(with(&arguments(&folder), &["--json"])), plain);
}

#[test]
fn files_are_matched_by_name() {
    let folder = folders(&[("a", 0), ("b", 1)]);
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let names = |prediction: &str, reference: &str| {
        let report = json(["evaluate", "--json", "--prediction", &path(prediction), "--reference", &path(reference)]);
        let cases = report["cases"].as_array().unwrap().clone();
        cases.iter().map(|case| case["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    std::fs::rename(path("prediction/b.nii.gz"), path("prediction/b_0000.nii.gz")).unwrap();
    std::fs::write(path("prediction/notes.txt"), "not a mask").unwrap();
    assert_eq!(names("prediction", "reference"), ["a", "b"]);
    assert_eq!(names("prediction/b_0000.nii.gz", "reference"), ["b"]);
    assert_eq!(names("prediction", "reference/a.nii.gz").as_slice(), ["a"]);
    assert_eq!(names("prediction/b_0000.nii.gz", "reference/a.nii.gz"), ["a"]);
}

#[test]
fn masks_without_a_counterpart_are_named() {
    for (gone, holder) in [("reference/b.nii.gz", "reference"), ("prediction/b.nii.gz", "prediction")] {
        let folder = folders(&[("a", 0), ("b", 1)]);
        std::fs::remove_file(folder.path().join(gone)).unwrap();
        let (line, code) = error(arguments(&folder));
        assert_eq!(code, Some(1));
        assert!(line.contains(&format!("{holder}: holds no mask named b ")), "{line}");
    }
    let folder = folders(&[("a", 0)]);
    write(folder.path().join("prediction/a.nii"), &block(grid(), 0));
    assert!(error(arguments(&folder)).0.contains("keep one of them"));
    std::fs::remove_dir_all(folder.path().join("prediction")).unwrap();
    std::fs::create_dir(folder.path().join("prediction")).unwrap();
    assert!(error(arguments(&folder)).0.contains("holds no masks"));
}

#[test]
fn masks_on_other_grids_are_refused_with_both_numbers_unless_resampled() {
    let folder = folders(&[("a", 0)]);
    let prediction = folder.path().join("prediction/a.nii.gz");
    let refused = |geometry: Geometry, expected: [&str; 2]| {
        write(prediction.clone(), &block(geometry, 0));
        let (line, code) = error(arguments(&folder));
        assert!(code == Some(1) && expected.iter().all(|text| line.contains(text)), "{line}");
    };
    refused(Geometry { shape: [12, 10, 7], ..grid() }, ["12 x 10 x 7", "12 x 10 x 6"]);
    let mut moved = grid();
    moved.affine[0][3] = 1.0;
    refused(moved, ["[1 0 0 1; 0 1.5 0 0; 0 0 3 0]", "[1 0 0 0; 0 1.5 0 0; 0 0 3 0]"]);
    // The mask was moved by 1 mm with its grid: one voxel of the reference's.
    let report = json(with(&arguments(&folder), &["--json", "--resample"]));
    assert_near(&report["cases"][0]["volume"]["dice"], 0.75);
}

#[test]
fn resampling_to_the_references_grid_finds_each_voxel() {
    let folder = folders(&[("a", 0)]);
    // Half the spacing along x, mirrored along y, cropped along z: the same box in the patient.
    let mut geometry = Geometry { shape: [24, 10, 4], ..grid() };
    (geometry.affine[0][0], geometry.affine[0][3]) = (0.5, -0.25);
    (geometry.affine[1][1], geometry.affine[1][3]) = (-1.5, 1.5 * 9.0);
    geometry.affine[2][3] = 3.0;
    let mask = volume(geometry, |x, y, z| u8::from((6..14).contains(&x) && (2..8).contains(&y) && z < 4));
    write(folder.path().join("prediction/a.nii.gz"), &mask);
    let report = json(with(&arguments(&folder), &["--json", "--resample"]));
    assert_near(&report["cases"][0]["volume"]["dice"], 1.0);
}

#[test]
fn labels_choose_the_foreground() {
    let folder = folders(&[("a", 0)]);
    let two_labels = |folder: &Path| {
        let mask = volume(grid(), |x, y, _| if y < 5 { 0 } else { [1, 26][usize::from(x > 5)] });
        write(folder.join("a.nii.gz"), &mask);
    };
    two_labels(&folder.path().join("reference"));
    let dice = |labels: &str| {
        let report = json(with(&arguments(&folder), &["--json", "--labels", labels]));
        report["cases"][0]["volume"]["dice"].clone()
    };
    // A prediction of 0 and 1 is the foreground, whichever labels that stands for.
    write(folder.path().join("prediction/a.nii.gz"), &volume(grid(), |x, y, _| u8::from(y >= 5 && x > 5)));
    assert_near(&dice("26"), 1.0);
    assert_near(&dice("1"), 0.0);
    assert_near(&dice("1,20-30"), 2.0 / 3.0);
    // One with more labels is read as the reference is.
    two_labels(&folder.path().join("prediction"));
    assert_near(&dice("1"), 1.0);
    let (line, code) = error(with(&arguments(&folder), &["--labels", "7"]));
    assert!(code == Some(1) && line.contains("a label of 7") && line.contains("(0, 1, 26)"), "{line}");
}

#[test]
fn two_methods_are_compared_case_by_case() {
    let folder = folders(&[("a", 0), ("b", 1), ("c", 2)]);
    for (name, shift) in [("a", 1), ("b", 2), ("c", 3)] {
        write(folder.path().join(format!("worse/{name}.nii.gz")), &block(grid(), shift));
    }
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let compare = ["evaluate", "--compare", &path("prediction"), &path("worse"), "--reference", &path("reference")]
        .map(str::to_owned);
    let report = json(with(&compare, &["--json"]));
    assert_eq!(report["methods"][1]["name"], path("worse"));
    assert_eq!(report["methods"][0]["evaluation"]["cases"][2]["name"], "c");
    let test = &report["tests"]["volume"]["dice"];
    assert_eq!(test["cases"], 3);
    assert_near(&test["means"][0], 0.75);
    assert_near(&test["means"][1], 0.5);
    // All three differ in one direction: 2 of the 8 choices of signs are as uneven.
    assert_near(&test["wilcoxon"]["p_value"], 0.25);
    assert_eq!(report["tests"]["slices"]["rvd"]["wilcoxon"], Value::Null, "no volume differs");
    let text = String::from_utf8(run(compare).stdout).unwrap();
    assert!(text.contains("dice") && text.contains("-0.2500"), "{text}");
}
