//! DICOM series beyond the small volumes: folders that make no even grid, or more than one.

use std::path::Path;

use rarunet_cuda::data::read_image;
use tempfile::TempDir;

use super::{fixtures, message};

/// A copy of a series.
fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixtures().join(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// Replaces text in a file by text of the same length.
fn replace(path: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(path).unwrap();
    let places: Vec<usize> =
        (0..=bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from.as_bytes())).collect();
    assert!(!places.is_empty(), "{from} is not in {}", path.display());
    places.into_iter().for_each(|at| bytes[at..at + to.len()].copy_from_slice(to.as_bytes()));
    std::fs::write(path, bytes).unwrap();
}

fn problem(folder: &TempDir) -> String {
    message(read_image(folder.path()).map(drop))
}

// The series' slices by height: IM3 at -400, IM0 at -397.5, IM7 at -395.

#[test]
fn other_files_in_the_folder_do_no_harm() {
    let folder = copy("dicom_explicit");
    std::fs::write(folder.path().join("README"), "slices").unwrap();
    std::fs::write(folder.path().join(".hidden"), "").unwrap();
    std::fs::create_dir(folder.path().join("more")).unwrap();
    let (image, _) = read_image(folder.path()).unwrap();
    assert_eq!(image, read_image(&fixtures().join("dicom_explicit")).unwrap().0);
}

#[test]
fn several_series_are_listed() {
    let folder = copy("dicom_explicit");
    replace(&folder.path().join("IM7"), "1143.2000", "1143.2001");
    let text = problem(&folder);
    assert!(text.contains("holds 2 series") && text.contains("1143.2000 (2 files of 5 x 4, \"small\")"), "{text}");
    assert!(text.contains("1143.2001 (1 files of 5 x 4") && text.contains("--series UID"), "{text}");
}

#[test]
fn one_of_several_series_can_be_asked_for() {
    let folder = copy("dicom_explicit");
    replace(&folder.path().join("IM7"), "1143.2000", "1143.2001");
    let uids = [2000, 2001].map(|end| {
        let text = problem(&folder);
        let at = text.find(&format!(".{end} (")).unwrap();
        let start = text[..at].rfind([' ', ':']).unwrap() + 1;
        format!("{}.{end}", &text[start..at])
    });
    for (uid, slices) in uids.iter().zip([2, 1]) {
        let source = rarunet_cuda::data::open_series(folder.path(), Some(uid)).unwrap();
        assert_eq!(source.geometry().shape, [5, 4, slices]);
    }
    let text = message(rarunet_cuda::data::open_series(folder.path(), Some("1.2.3")).map(drop));
    assert!(text.contains("holds no series 1.2.3; it holds") && text.contains(&uids[0]), "{text}");
    let other = fixtures().join("n1_int16.nii");
    assert!(message(rarunet_cuda::data::open_series(&other, Some("1.2.3")).map(drop)).contains("is not DICOM"));
}

#[test]
fn gaps_are_said() {
    let folder = copy("dicom_explicit");
    replace(&folder.path().join("IM7"), "-395.0", "-392.5");
    let text = problem(&folder);
    assert!(text.contains("3.750 mm apart on average, but IM3 and IM0 are 2.500 mm apart"), "{text}");
}

#[test]
fn slices_at_one_place_are_said() {
    let folder = copy("dicom_explicit");
    std::fs::copy(folder.path().join("IM7"), folder.path().join("copy")).unwrap();
    let text = problem(&folder);
    assert!(text.contains("the slices IM7 and copy are at the same place"), "{text}");
}

#[test]
fn a_tilted_gantry_is_said() {
    let folder = copy("dicom_explicit");
    replace(&folder.path().join("IM0"), "20.25", "21.25");
    let text = problem(&folder);
    // 1 mm sideways in 2.5 mm
    assert!(text.contains("tilted 21.8 degrees"), "{text}");
}

#[test]
fn slices_that_differ_are_said() {
    let folder = copy("dicom_explicit");
    replace(&folder.path().join("IM0"), "0.75\\0.5", "0.75\\0.6");
    assert!(problem(&folder).contains("PixelSpacing"));

    let folder = copy("dicom_explicit");
    std::fs::copy(fixtures().join("dicom_rle/IM0"), folder.path().join("IM0")).unwrap();
    let text = problem(&folder);
    assert!(text.contains("16 x 12") && text.contains("5 x 4"), "{text}");

    let folder = copy("dicom_explicit");
    replace(&folder.path().join("IM0"), "1.0\\0.0\\0.0\\0.0\\1.0\\0.0", "0.8\\0.6\\0.0\\-.6\\0.8\\0.0");
    assert!(problem(&folder).contains("orientation"));
}

#[test]
fn what_is_no_slice_is_said() {
    let folder = copy("dicom_explicit");
    replace(&folder.path().join("IM0"), "MONOCHROME2", "RGB        ");
    assert!(problem(&folder).contains("RGB"));

    let folder = copy("dicom_explicit");
    replace(&folder.path().join("IM0"), "1.0\\0.0\\0.0\\0.0\\1.0\\0.0", "1.0\\0.0\\0.0\\0.0\\1.0    ");
    assert!(problem(&folder).contains("lacks a usable ImageOrientationPatient"));

    let folder = copy("dicom_explicit");
    replace(&folder.path().join("IM0"), "0.75\\0.5", "0.00\\0.5");
    assert!(problem(&folder).contains("PixelSpacing"));
}

#[test]
fn near_lossless_pixels_are_within_their_bound() {
    let voxels = |name: &str| read_image(&fixtures().join(name)).unwrap().0.voxels;
    let (exact, near) = (voxels("dicom_jpeg_ls"), voxels("dicom_jpeg_ls_near"));
    let most = exact.iter().zip(&near).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert_eq!(most, 5.0);
}

#[test]
fn a_picture_of_another_size_than_the_header_says_is_refused() {
    for (name, marker, offset, size) in [
        ("dicom_jpeg2000", &[0xff, 0x4f, 0xff, 0x51][..], 8, "16 x 12"),
        ("dicom_jpeg", &[0xff, 0xc3][..], 5, "16 x 12"),
        ("dicom_jpeg_ls", &[0xff, 0xf7][..], 5, "40 x 30"),
    ] {
        let folder = copy(name);
        let path = folder.path().join("IM0");
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(marker.len()).position(|window| window == marker).unwrap() + offset;
        bytes[at] = 0x7f;
        std::fs::write(&path, bytes).unwrap();
        let text = problem(&folder);
        let said = format!("its header says {size} pixels, its compressed picture");
        assert!(text.contains(&said), "{name}: {text}");
    }
}
