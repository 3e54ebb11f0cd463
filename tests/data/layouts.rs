//! Data sets in the layouts besides nnU-Net's, and what a folder of scans stands for.

use rarunet_cuda::preprocessing::HounsfieldWindow;
use std::path::Path;

use rarunet_cuda::data::{
    Dataset, Geometry, Labels, SliceSet, list_scans, metaimage, nifti, scan_name, volume::Volume,
};
use tempfile::TempDir;

use super::{fixtures, message, volume};

fn grid() -> Geometry {
    Geometry::axis_aligned([5, 4, 3], [1.0, 1.0, 2.0])
}

fn image() -> Volume<i16> {
    volume(grid(), |x, y, z| (x + y + z) as i16)
}

fn mask(label: i16) -> Volume<i16> {
    volume(grid(), |x, _, z| if x > 1 && z == 1 { label } else { 0 })
}

fn case_names(dataset: &Dataset) -> Vec<&str> {
    dataset.cases.iter().map(|case| case.name.as_str()).collect()
}

fn foreground(dataset: &Dataset, labels: &str) -> Vec<bool> {
    let labels: Labels = labels.parse().unwrap();
    let set = SliceSet::load(dataset, &dataset.cases, 16, HounsfieldWindow::default(), &labels, || {}).unwrap();
    set.slices.iter().map(|slice| slice.has_foreground).collect()
}

#[test]
fn csi_2014_pairs_cases_with_their_labels() {
    let folder = tempfile::tempdir().unwrap();
    for case in ["case1", "case2"] {
        metaimage::write(&folder.path().join(format!("{case}.mhd")), &image()).unwrap();
        metaimage::write(&folder.path().join(format!("{case}_label.mhd")), &mask(100 * 20)).unwrap();
    }
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!((dataset.layout.name(), case_names(&dataset)), ("CSI 2014", vec!["case1", "case2"]));
    assert_eq!(foreground(&dataset, ""), [false, true, false, false, true, false]);
    assert_eq!(foreground(&dataset, "2000"), [false, true, false, false, true, false]);
    // In vertebrae: the file has 100 times their number.
    assert_eq!(foreground(&dataset, "19-20"), [false, true, false, false, true, false]);
    metaimage::write(&folder.path().join("case2_label.mhd"), &mask(100 * 21)).unwrap();
    assert_eq!(foreground(&dataset, "20"), [false, true, false, false, false, false]);

    std::fs::remove_file(folder.path().join("case2_label.mhd")).unwrap();
    assert!(message(Dataset::open(folder.path())).contains("case2.mhd has no mask case2_label"));
    std::fs::remove_file(folder.path().join("case2.mhd")).unwrap();
    std::fs::remove_file(folder.path().join("case1.mhd")).unwrap();
    assert!(message(Dataset::open(folder.path())).contains("case1_label.mhd has no image case1"));
}

/// A Decathlon data set that lists one case by these paths.
fn decathlon(image_path: &str, mask_path: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    nifti::write(&folder.path().join("imagesTr/spine_07.nii.gz"), &image(), None).unwrap();
    nifti::write(&folder.path().join("labelsTr/spine_07.nii.gz"), &mask(1), None).unwrap();
    let json = format!(
        r#"{{"name": "Spine", "modality": {{"0": "CT"}}, "labels": {{"0": "background", "1": "spine"}}, "numTraining": 1,
            "training": [{{"image": "{image_path}", "label": "{mask_path}"}}], "test": ["./imagesTs/spine_01.nii.gz"]}}"#
    );
    std::fs::write(folder.path().join("dataset.json"), json).unwrap();
    folder
}

#[test]
fn the_decathlons_list_is_followed() {
    let folder = decathlon("./imagesTr/spine_07.nii.gz", "./labelsTr/spine_07.nii.gz");
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!((dataset.layout.name(), case_names(&dataset)), ("Medical Segmentation Decathlon", vec!["spine_07"]));
    assert_eq!(dataset.cases[0].image, folder.path().join("imagesTr/spine_07.nii.gz"));
    assert_eq!(foreground(&dataset, ""), [false, true, false]);

    let folder = decathlon("./imagesTr/spine_07.nii.gz", "./labelsTr/spine_08.nii.gz");
    let text = message(Dataset::open(folder.path()));
    assert!(text.contains("the mask of case spine_07") && text.contains("is missing"), "{text}");
    let folder = decathlon("../elsewhere.nii.gz", "./labelsTr/spine_07.nii.gz");
    assert!(message(Dataset::open(folder.path())).contains("elsewhere"));
}

#[test]
fn an_older_nnunet_list_does_not_make_a_decathlon() {
    let folder = decathlon("./imagesTr/spine_07.nii.gz", "./labelsTr/spine_07.nii.gz");
    let images = folder.path().join("imagesTr");
    std::fs::rename(images.join("spine_07.nii.gz"), images.join("spine_07_0000.nii.gz")).unwrap();
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!((dataset.layout.name(), case_names(&dataset)), ("nnU-Net raw", vec!["spine_07"]));
}

#[test]
fn verse_folders_are_paired() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, volume: &Volume<i16>| nifti::write(&folder.path().join(path), volume, None).unwrap();
    for subject in ["sub-verse004", "sub-verse500"] {
        let case = if subject.ends_with('4') { subject.to_owned() } else { format!("{subject}_dir-ax") };
        write(&format!("rawdata/{subject}/{case}_ct.nii.gz"), &image());
        write(&format!("derivatives/{subject}/{case}_seg-vert_msk.nii.gz"), &mask(20));
    }
    let dataset = Dataset::open(folder.path()).unwrap();
    assert_eq!((dataset.layout.name(), case_names(&dataset)), ("VerSe", vec!["sub-verse004", "sub-verse500_dir-ax"]));
    assert_eq!(foreground(&dataset, "20-24"), [false, true, false, false, true, false]);

    write("rawdata/sub-verse600/sub-verse600_ct.nii.gz", &image());
    write("derivatives/sub-verse700/sub-verse700_seg-vert_msk.nii.gz", &mask(1));
    let (_, problems) = Dataset::survey(folder.path()).unwrap();
    assert!(
        problems.len() == 2 && problems[0].contains("sub-verse600") && problems[1].contains("sub-verse700"),
        "{problems:?}"
    );
    let text = message(Dataset::open(folder.path()));
    assert!(text.contains("and 1 more"), "{text}");
}

#[test]
fn a_folder_stands_for_the_scans_in_it() {
    let folder = tempfile::tempdir().unwrap();
    metaimage::write(&folder.path().join("b.mhd"), &image()).unwrap();
    nifti::write(&folder.path().join("a_0000.nii.gz"), &image(), None).unwrap();
    std::fs::write(folder.path().join("notes.txt"), "not a scan").unwrap();
    std::fs::write(folder.path().join("._a_0000.nii.gz"), "not a scan either").unwrap();
    std::fs::create_dir(folder.path().join("c")).unwrap();
    std::fs::copy(fixtures().join("dicom_explicit/IM3"), folder.path().join("c/1.dcm")).unwrap();
    let names = |path: &Path| list_scans(path).unwrap().iter().map(|scan| scan_name(scan)).collect::<Vec<_>>();
    assert_eq!(names(folder.path()), ["a", "b", "c"]);
    assert_eq!(names(&folder.path().join("c")), ["c"]);
    assert_eq!(names(&folder.path().join("a_0000.nii.gz")), ["a"]);
    assert_eq!(names(&folder.path().join("c/1.dcm")), ["1"]);
    assert_eq!(scan_name(Path::new("x/lumbar.NII.GZ")), "lumbar");
    assert_eq!(scan_name(Path::new("x/lumbar.v2.mha")), "lumbar.v2");
    let empty = tempfile::tempdir().unwrap();
    assert!(message(list_scans(empty.path())).contains("no NIfTI or MetaImage files and no DICOM series"));
    assert!(message(list_scans(&empty.path().join("absent"))).contains("absent"));
}

/// Of two files that would be the same scan none is chosen silently.
#[test]
fn two_files_of_one_name_are_said() {
    let folder = tempfile::tempdir().unwrap();
    nifti::write(&folder.path().join("a.nii"), &image(), None).unwrap();
    assert_eq!(list_scans(folder.path()).unwrap().len(), 1);
    nifti::write(&folder.path().join("a.nii.gz"), &image(), None).unwrap();
    let text = message(list_scans(folder.path()));
    assert!(text.contains("a.nii and ") && text.contains("a.nii.gz are both named a: keep one"), "{text}");

    let folder = tempfile::tempdir().unwrap();
    for name in ["case1", "case1_label"] {
        metaimage::write(&folder.path().join(format!("{name}.mhd")), &mask(100)).unwrap();
    }
    assert!(Dataset::open(folder.path()).is_ok());
    nifti::write(&folder.path().join("case1_label.nii.gz"), &mask(200), None).unwrap();
    let text = message(Dataset::open(folder.path()));
    assert!(text.contains("are both named case1_label: keep one"), "{text}");
}
