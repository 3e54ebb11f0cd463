//! Data sets: what is found in them, and a clear line for everything that would stop training.

use rarunet_cuda::preprocessing::HounsfieldWindow;
use std::path::Path;

use rarunet_cuda::data::{Dataset, Geometry, Inspection, Labels, SliceSet, inspect, nifti};
use tempfile::TempDir;

use super::{message, volume};

const JSON: &str = r#"{"channel_names": {"0": "CT"}, "labels": {"background": 0, "bone": 1, "disc": 26},
    "numTraining": 2, "file_ending": ".nii.gz"}"#;

fn grid() -> Geometry {
    Geometry::axis_aligned([6, 5, 4], [1.0, 1.0, 2.0])
}

/// An nnU-Net raw data set of two cases, a and b.
fn dataset() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("dataset.json"), JSON).unwrap();
    for name in ["b", "a"] {
        write_image(folder.path(), name, grid(), 0.0);
        write_mask(folder.path(), name, grid(), 1);
    }
    folder
}

fn write_image(folder: &Path, name: &str, grid: Geometry, corner: f32) {
    let image = volume(grid, |x, y, z| if (x, y, z) == (3, 2, 1) { corner } else { 40.0 });
    nifti::write(&folder.join(format!("imagesTr/{name}_0000.nii.gz")), &image, None).unwrap();
}

fn write_mask(folder: &Path, name: &str, grid: Geometry, label: u8) {
    let mask = volume(grid, |x, _, z| if x > 2 && z > 0 { label } else { 0 });
    nifti::write(&folder.join(format!("labelsTr/{name}.nii.gz")), &mask, None).unwrap();
}

fn load(folder: &Path, labels: &str) -> rarunet_cuda::Result<SliceSet> {
    let dataset = Dataset::open(folder)?;
    SliceSet::load(&dataset, &dataset.cases, 16, HounsfieldWindow::default(), &labels.parse()?, || {})
}

/// What loading says, after checking that `inspect` lists the same.
fn problem(folder: &TempDir) -> String {
    let text = message(load(folder.path(), ""));
    let Inspection::Dataset(inspection) = inspect(folder.path()).unwrap() else { panic!("this is a data set") };
    let listed =
        inspection.problems.iter().any(|problem| text.contains(problem.as_str()) || problem.starts_with(&text));
    assert!(listed, "inspect does not list \"{text}\" but {:?}", inspection.problems);
    text
}

#[test]
fn a_sound_data_set_is_listed_in_order_of_names() {
    let folder = dataset();
    let set = load(folder.path(), "").unwrap();
    assert_eq!(set.cases, ["a", "b"]);
    assert_eq!(set.slices.len(), 8);
    assert_eq!(set.slices.iter().map(|slice| (slice.case, slice.index)).collect::<Vec<_>>()[4..6], [(1, 0), (1, 1)]);
    let Inspection::Dataset(inspection) = inspect(folder.path()).unwrap() else { panic!("this is a data set") };
    assert_eq!(inspection.problems, Vec::<String>::new());
    assert_eq!(inspection.cases[1].foreground_slices, 3);
    assert_eq!(inspection.labels, std::collections::BTreeMap::from([(0, 150), (1, 90)]));
}

#[test]
fn progress_is_told_once_a_case() {
    let folder = dataset();
    let dataset = Dataset::open(folder.path()).unwrap();
    let done = std::sync::atomic::AtomicUsize::new(0);
    let count = || {
        done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    };
    SliceSet::load(&dataset, &dataset.cases, 16, HounsfieldWindow::default(), &Labels::default(), count).unwrap();
    assert_eq!(done.into_inner(), 2);
}

#[test]
fn labels_are_parsed_and_printed() {
    let labels: Labels = "26-33, 41".parse().unwrap();
    assert_eq!(labels.to_string(), "26-33,41");
    assert!([26, 33, 41].iter().all(|&label| labels.contains(label)));
    assert!([0, 1, 25, 34, 40, 42, -26].iter().all(|&label| !labels.contains(label)));
    assert!(Labels::default().contains(2600) && !Labels::default().contains(0) && !Labels::default().contains(-1));
    assert_eq!("".parse::<Labels>().unwrap(), Labels::default());
    for wrong in ["0", "33-26", "a", "1,,2", "-3", "1.5", "99999999999"] {
        assert!(message(wrong.parse::<Labels>()).contains("26-33,41"), "{wrong}");
    }
}

#[test]
fn labels_have_names_and_mistyped_ones_suggestions() {
    let folder = dataset();
    let dataset = Dataset::open(folder.path()).unwrap();
    let of = |list: &str| dataset.foreground(list).map(|labels| labels.to_string());
    assert_eq!(of("").unwrap(), Labels::default().to_string());
    assert_eq!(of("Disc, 1").unwrap(), "26,1");
    assert_eq!(of("20-30").unwrap(), "20-30");
    let error = |list: &str| of(list).unwrap_err().to_string();
    let text = error("dics");
    assert!(
        text.contains("--labels dics: it has no such label, did you mean disc? there are 1 (bone), 26 (disc)"),
        "{text}"
    );
    let text = error("1,27");
    assert!(text.contains("--labels 27: it has no such label"), "{text}");
    let text = error("1,-");
    assert!(text.contains("\"-\" is not a label"), "{text}");
    let text = dataset.cases_without(&["b".into(), "patient7".into()]).unwrap_err().to_string();
    assert!(text.contains("--test-cases patient7: it has no case \"patient7\"; there are a, b"), "{text}");
}

#[test]
fn chosen_labels_alone_are_foreground() {
    let folder = dataset();
    write_mask(folder.path(), "b", grid(), 26);
    let set = load(folder.path(), "20-30").unwrap();
    assert!(set.slices.iter().all(|slice| slice.has_foreground == (slice.case == 1 && slice.index > 0)));
    let text = message(load(folder.path(), "7"));
    assert!(text.contains("no voxel of its 2 masks has a label of 7 (they have 0-1,26)"), "{text}");
}

#[test]
fn missing_files_are_named() {
    let folder = dataset();
    std::fs::remove_file(folder.path().join("labelsTr/a.nii.gz")).unwrap();
    let text = problem(&folder);
    assert!(text.contains("imagesTr/a_0000.nii.gz has no mask labelsTr/a.nii.gz"), "{text}");

    let folder = dataset();
    std::fs::remove_file(folder.path().join("imagesTr/b_0000.nii.gz")).unwrap();
    let text = problem(&folder);
    assert!(text.contains("labelsTr/b.nii.gz has no image imagesTr/b_0000.nii.gz"), "{text}");

    let empty = tempfile::tempdir().unwrap();
    assert!(message(Dataset::open(empty.path())).contains("dataset.json"));
    assert!(message(Dataset::open(&empty.path().join("absent"))).contains("absent"));
}

#[test]
fn wrongly_named_images_are_named() {
    let folder = dataset();
    let images = folder.path().join("imagesTr");
    std::fs::copy(images.join("a_0000.nii.gz"), images.join("a_0001.nii.gz")).unwrap();
    assert!(problem(&folder).contains("is channel 0001"));

    let folder = dataset();
    let images = folder.path().join("imagesTr");
    std::fs::rename(images.join("a_0000.nii.gz"), images.join("a.nii.gz")).unwrap();
    assert!(problem(&folder).contains("name it a_0000.nii.gz"));
}

#[test]
fn dataset_json_is_checked() {
    let cases = [
        (r#""0": "CT""#, r#""0": "CT", "1": "MR""#, "2 channels"),
        (r#""channel_names""#, r#""channels""#, "lacks channel_names"),
        (r#""background": 0, "#, "", "background"),
        (r#""bone": 1"#, r#""bone": "one""#, "label \"bone\""),
        (".nii.gz", ".nrrd", "file_ending \".nrrd\""),
        (r#""numTraining": 2"#, r#""numTraining": 12"#, "numTraining 12, but there are 2 cases"),
    ];
    for (from, to, expected) in cases {
        let folder = dataset();
        assert!(JSON.contains(from));
        std::fs::write(folder.path().join("dataset.json"), JSON.replacen(from, to, 1)).unwrap();
        let text = problem(&folder);
        assert!(text.contains(expected), "{text}");
    }
    let folder = dataset();
    std::fs::write(folder.path().join("dataset.json"), &JSON[..40]).unwrap();
    assert!(message(Dataset::open(folder.path())).contains("dataset.json"));
}

#[test]
fn image_and_mask_on_different_grids_are_refused_with_both_numbers() {
    let folder = dataset();
    write_mask(folder.path(), "b", Geometry::axis_aligned([6, 5, 3], [1.0, 1.0, 2.0]), 1);
    let text = problem(&folder);
    assert!(text.contains("b.nii.gz") && text.contains("6 x 5 x 4") && text.contains("6 x 5 x 3"), "{text}");

    let folder = dataset();
    let mut moved = grid();
    moved.affine[1][3] = 12.5;
    write_mask(folder.path(), "a", moved, 1);
    let text = problem(&folder);
    assert!(text.contains("12.500 mm apart") && text.contains("0 1 0 12.5"), "{text}");
}

#[test]
fn bad_voxels_are_named_with_their_place() {
    let folder = dataset();
    write_image(folder.path(), "a", grid(), f32::NAN);
    let text = problem(&folder);
    assert!(text.contains("a_0000.nii.gz") && text.contains("voxel (3, 2, 1) is NaN"), "{text}");

    let folder = dataset();
    write_mask(folder.path(), "a", grid(), 3);
    let text = problem(&folder);
    assert!(text.contains("voxel (3, 0, 1) has label 3") && text.contains("(0, 1, 26)"), "{text}");

    let folder = dataset();
    let mask = volume(grid(), |x, _, _| x as f32 / 5.0);
    nifti::write(&folder.path().join("labelsTr/a.nii.gz"), &mask, None).unwrap();
    let text = problem(&folder);
    assert!(text.contains("voxel (1, 0, 0) is 0.2"), "{text}");
}

#[test]
fn masks_without_any_foreground_are_refused() {
    let folder = dataset();
    write_mask(folder.path(), "a", grid(), 0);
    assert!(load(folder.path(), "").is_ok(), "one empty mask does no harm");
    write_mask(folder.path(), "b", grid(), 0);
    let text = message(load(folder.path(), ""));
    assert!(text.contains("no voxel of its 2 masks has a label above 0 (they have 0)"), "{text}");
    let Inspection::Dataset(inspection) = inspect(folder.path()).unwrap() else { panic!("this is a data set") };
    assert_eq!(inspection.problems, ["no mask has a label above 0 (they have 0): there is nothing to learn"]);
}

#[test]
fn test_cases_can_be_left_out() {
    let folder = dataset();
    let dataset = Dataset::open(folder.path()).unwrap();
    let rest = dataset.cases_without(&["a".to_owned()]).unwrap();
    assert_eq!(rest.iter().map(|case| case.name.as_str()).collect::<Vec<_>>(), ["b"]);
    assert!(message(dataset.cases_without(&["x".to_owned()])).contains("no case \"x\""));
    assert!(message(dataset.cases_without(&["a".to_owned(), "b".to_owned()])).contains("no case left"));
}

/// One data set with everything wrong: each of it is in the list, with its file's name.
#[test]
fn everything_wrong_is_listed_at_once() {
    let folder = dataset();
    let mut json = std::fs::read_to_string(folder.path().join("dataset.json")).unwrap();
    json = json.replace("\"numTraining\": 2, ", "");
    std::fs::write(folder.path().join("dataset.json"), json).unwrap();
    let hounsfield = |case: &str| {
        let image = volume(grid(), |x, y, z| (x + y + z) as f32 * 150.0 - 1000.0);
        nifti::write(&folder.path().join(format!("imagesTr/{case}_0000.nii.gz")), &image, None).unwrap();
    };
    // a is sound; b is normalised and has undeclared labels; c lacks its mask; d does not fit; e is empty and has NaN.
    ["a", "c", "d"].into_iter().for_each(hounsfield);
    let labels = volume(grid(), |x, y, _| [0u8, 7, 7, 9, 1, 0][if y == 0 { x } else { 0 }]);
    nifti::write(&folder.path().join("labelsTr/b.nii.gz"), &labels, None).unwrap();
    let mut moved = grid();
    moved.affine[2][3] = 3.0;
    write_mask(folder.path(), "d", moved, 1);
    let undefined = volume(grid(), |x, y, _| if (x, y) == (3, 2) { f32::INFINITY } else { x as f32 * 300.0 - 900.0 });
    nifti::write(&folder.path().join("imagesTr/e_0000.nii.gz"), &undefined, None).unwrap();
    write_mask(folder.path(), "e", grid(), 0);

    let Inspection::Dataset(found) = inspect(folder.path()).unwrap() else { panic!("this is a data set") };
    for expected in [
        "c_0000.nii.gz has no mask labelsTr/c.nii.gz",
        "labelsTr/b.nii.gz: voxel (1, 0, 0) has label 7, which dataset.json does not list (0, 1, 26) (8 such voxels)",
        "labelsTr/b.nii.gz: voxel (3, 0, 0) has label 9, which dataset.json does not list (0, 1, 26) (4 such voxels)",
        "labelsTr/d.nii.gz: does not fit its image: the image and the mask lie up to 3.000 mm apart",
        "imagesTr/e_0000.nii.gz: voxel (3, 2, 0) is inf: replace undefined voxels by air (-1024) (4 such voxels)",
    ] {
        assert!(found.problems.iter().any(|problem| problem.contains(expected)), "{expected}: {:#?}", found.problems);
    }
    assert_eq!(found.problems.len(), 5, "{:#?}", found.problems);
    for expected in [
        "imagesTr/b_0000.nii.gz: holds values from 0 to 40, which are no Hounsfield units",
        "labelsTr/e.nii.gz: is empty: no voxel has a label above 0",
    ] {
        assert!(found.warnings.iter().any(|warning| warning.contains(expected)), "{expected}: {:#?}", found.warnings);
    }
    assert_eq!(found.warnings.len(), 2, "{:#?}", found.warnings);
    let names: Vec<&str> = found.cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "d", "e"], "what can be read is described");
    assert_eq!(found.cases[0].foreground_slices, 3);
}

/// Slices are counted along the patient's axis, however they are stored.
#[test]
fn foreground_slices_are_axial() {
    let folder = dataset();
    let mut stored = Geometry::axis_aligned([4, 6, 5], [1.0; 3]);
    stored.affine = [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [-2.0, 0.0, 0.0, 6.0], [0.0, 0.0, 0.0, 1.0]];
    nifti::write(&folder.path().join("imagesTr/a_0000.nii.gz"), &volume(stored.clone(), |_, _, _| 40.0f32), None)
        .unwrap();
    nifti::write(&folder.path().join("labelsTr/a.nii.gz"), &volume(stored, |z, x, y| u8::from(z == 1 && x > y)), None)
        .unwrap();
    let Inspection::Dataset(found) = inspect(folder.path()).unwrap() else { panic!("this is a data set") };
    assert_eq!((found.cases[0].slices, found.cases[0].foreground_slices), (4, 1));
}
