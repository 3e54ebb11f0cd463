//! Every small volume, read as nibabel and SimpleITK read it, and written as they can read it.

use std::collections::BTreeMap;
use std::path::Path;

use rarunet_cuda::data::{Geometry, Inspection, Volume, inspect, nifti, open, read_image, read_labels};
use serde_json::Value;

use super::{fixtures, message, volume};

fn expected() -> BTreeMap<String, Value> {
    serde_json::from_str(&std::fs::read_to_string(fixtures().join("expected.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

fn close(actual: f64, expected: f64, tolerance: f64) -> bool {
    (actual - expected).abs() <= tolerance * expected.abs().max(1.0)
}

#[test]
fn volumes_are_inspected_as_nibabel_and_simpleitk_read_them() {
    let expected = expected();
    assert!(expected.len() >= 60, "only {} volumes", expected.len());
    for (name, expected) in &expected {
        let Inspection::Volume(actual) = inspect(&fixtures().join(name)).unwrap() else { panic!("{name} is a volume") };
        let actual = serde_json::to_value(actual).unwrap();
        for field in ["format", "shape", "orientation", "dtype"] {
            assert_eq!(actual[field], expected[field], "{name}: {field}");
        }
        // A quaternion in single precision places voxels to 1e-7 of a turn; the parser of
        // expected.json may be off in the last digit; all else is exact.
        for (field, tolerance) in
            [("affine", 1e-6), ("spacing_mm", 1e-7), ("min", 1e-15), ("max", 1e-15), ("mean", 1e-12)]
        {
            let (actual, expected) = (numbers(&actual[field]), numbers(&expected[field]));
            assert!(
                actual.len() == expected.len() && actual.iter().zip(&expected).all(|(&a, &b)| close(a, b, tolerance)),
                "{name}: {field} is {actual:?}, not {expected:?}"
            );
        }
    }
}

#[test]
fn voxels_are_in_order() {
    for (name, expected) in expected() {
        let (image, _) = read_image(&fixtures().join(&name)).unwrap();
        let sum: f64 = image.voxels.iter().enumerate().map(|(i, &voxel)| f64::from(voxel) * (i + 1) as f64).sum();
        // Voxels of 64-bit floats are rounded to 32 bits.
        let scale: f64 =
            image.voxels.iter().enumerate().map(|(i, &voxel)| f64::from(voxel.abs()) * (i + 1) as f64).sum();
        let error = (sum - expected["weighted_sum"].as_f64().unwrap()).abs();
        assert!(error <= 1e-7 * scale.max(1.0), "{name}: off by {error}");
    }
}

#[test]
fn labels_are_counted_in_masks_only() {
    let labels = |name: &str| {
        let Inspection::Volume(volume) = inspect(&fixtures().join(name)).unwrap() else { panic!("{name} is a volume") };
        volume.labels
    };
    assert_eq!(labels("mask.nii.gz"), Some(BTreeMap::from([(0, 48), (1, 12)])));
    assert_eq!(labels("mask_float.nii"), Some(BTreeMap::from([(0, 48), (26, 12)])));
    assert_eq!(labels("n1_int16.nii"), None);
    assert_eq!(labels("n1_float32.nii"), None);
}

#[test]
fn a_mask_of_fractions_is_refused_with_the_voxel() {
    let text = message(read_labels(&fixtures().join("slope.nii")).map(|_| ()));
    assert!(text.contains("slope.nii") && text.contains("whole numbers") && text.contains("voxel ("), "{text}");
    let (mask, _) = read_labels(&fixtures().join("mask_float.nii")).unwrap();
    assert_eq!(mask.voxels.iter().filter(|&&label| label == 26).count(), 12);
}

/// The bytes of a NIfTI file, decompressed.
fn bytes_of(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return bytes;
    }
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&bytes[..]), &mut plain).unwrap();
    plain
}

#[test]
fn a_mask_takes_the_geometry_of_its_scan_to_the_last_bit() {
    let folder = tempfile::tempdir().unwrap();
    let mut written = 0;
    for (name, expected) in expected() {
        let Some(format) = expected["format"].as_str().unwrap().strip_prefix("NIfTI-") else { continue };
        let scan = fixtures().join(&name);
        let (image, header) = read_image(&scan).unwrap();
        let mask = volume(image.geometry.clone(), |x, y, z| ((x + 2 * y + 3 * z) % 2) as u8);
        let path = folder.path().join("mask.nii.gz");
        nifti::write(&path, &mask, Some(&header)).unwrap();

        let (own, scans) = (bytes_of(&path), bytes_of(&scan));
        let fields = if format == "1" { [76..108, 123..124, 252..328] } else { [104..168, 500..504, 344..496] };
        for field in fields {
            assert_eq!(own[field.clone()], scans[field.clone()], "{name}: bytes {field:?}");
        }
        let (read, read_header) = read_labels(&path).unwrap();
        assert_eq!(read.geometry, image.geometry, "{name}");
        assert!(read.voxels.iter().zip(&mask.voxels).all(|(&a, &b)| a == i32::from(b)), "{name}");
        assert_eq!(read_header.dtype.name(), "uint8");
        written += 1;
    }
    assert!(written >= 60, "only {written} were written");
}

#[test]
fn a_volume_without_a_header_is_written_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["axes_SRA.nii", "oblique_2.nii", "oblique_3.nii", "qform_left_handed.nii", "sheared.nii"] {
        let (image, _) = read_image(&fixtures().join(name)).unwrap();
        let path = folder.path().join("image.nii");
        nifti::write(&path, &image, None).unwrap();
        let (read, header) = read_image(&path).unwrap();
        assert_eq!(header.dtype.name(), "float32");
        assert_eq!(read.voxels, image.voxels);
        assert!(read.geometry.difference(&image.geometry, ["one", "other"]).is_none(), "{name}");

        // The same file with the sform switched off: the qform says the same, or is off as well.
        let mut bytes = bytes_of(&path);
        let qform_code = bytes[252];
        assert_eq!(qform_code, u8::from(name != "sheared.nii"));
        if qform_code == 1 {
            bytes[254] = 0;
            std::fs::write(&path, bytes).unwrap();
            let by_qform = read_image(&path).unwrap().0.geometry;
            let pairs = by_qform.affine.iter().flatten().zip(image.geometry.affine.iter().flatten());
            pairs.for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{name}: {a} {b}"));
        }
    }
}

#[test]
fn the_same_volume_gives_the_same_bytes_and_leaves_nothing_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let scan = volume(Geometry::axis_aligned([4, 4, 2], [1.0; 3]), |x, y, z| (x * y * z) as i16 - 1024);
    let [one, two] = ["one.nii.gz", "two.nii.gz"].map(|name| folder.path().join("made/on/the/way").join(name));
    nifti::write(&one, &scan, None).unwrap();
    nifti::write(&two, &scan, None).unwrap();
    assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
    assert_eq!(std::fs::read_dir(one.parent().unwrap()).unwrap().count(), 2);
    assert_eq!(read_labels(&one).unwrap().0.voxels[0], -1024);
}

#[test]
fn what_cannot_be_written_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let small: Volume<u8> = volume(Geometry::axis_aligned([2, 2, 2], [1.0; 3]), |_, _, _| 0);
    assert!(message(nifti::write(&folder.path().join("mask.png"), &small, None)).contains(".nii.gz"));
    let (_, header) = read_image(&fixtures().join("n1_int16.nii")).unwrap();
    let text = message(nifti::write(&folder.path().join("mask.nii"), &small, Some(&header)));
    assert!(text.contains("2 x 2 x 2") && text.contains("5 x 4 x 3"), "{text}");
}

/// What a person should know of a scan's place is said, and nothing of one that lies as usual.
#[test]
fn odd_geometries_are_noted() {
    let note = |name: &str| open(&fixtures().join(name)).unwrap().header().notes.join("; ");
    assert!(note("no_form.nii").contains("neither sform nor qform"), "{}", note("no_form.nii"));
    assert!(note("sheared.nii").contains("sheared"), "{}", note("sheared.nii"));
    assert!(note("oblique_3.nii").contains("oblique"), "{}", note("oblique_3.nii"));
    assert!(note("qform_alone.nii").contains("oblique"), "{}", note("qform_alone.nii"));
    for name in ["n1_int16.nii", "axes_SRA.nii", "mi_no_direction.mhd", "dicom_explicit"] {
        assert_eq!(note(name), "", "{name}");
    }
}
