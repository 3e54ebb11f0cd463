//! MetaImage beyond the small volumes: writing, and headers that ask for what is not done.

use std::path::Path;

use rarunet_cuda::data::{Volume, metaimage, read_image, read_labels};

use super::{fixtures, message};

#[test]
fn a_volume_is_written_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["axes_SRA.nii", "oblique_2.nii", "qform_left_handed.nii"] {
        let (image, _) = read_image(&fixtures().join(name)).unwrap();
        let path = folder.path().join("case1.mhd");
        let rounded = Volume::new(image.geometry.clone(), image.voxels.iter().map(|&v| v as i16).collect()).unwrap();
        metaimage::write(&path, &rounded).unwrap();
        let (read, header) = read_labels(&path).unwrap();
        assert_eq!(header.dtype.name(), "int16");
        assert_eq!(read.voxels, rounded.voxels.iter().map(|&v| i32::from(v)).collect::<Vec<_>>());
        let pairs = read.geometry.affine.iter().flatten().zip(image.geometry.affine.iter().flatten());
        pairs.for_each(|(a, b)| assert!((a - b).abs() < 1e-12, "{name}: {a} {b}"));
    }
    let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["case1.mhd", "case1.raw"]);
    let volume = read_labels(&folder.path().join("case1.mhd")).unwrap().0;
    assert!(message(metaimage::write(&folder.path().join("case1.nii"), &volume)).contains(".mhd"));
}

/// What reading says of a header with `line` put into it, or in place of the line of the same key.
fn with_line(folder: &Path, line: &str) -> String {
    let path = folder.join("changed.mhd");
    let header = std::fs::read_to_string(fixtures().join("mi_pair.mhd")).unwrap();
    let key = line.split(" =").next().unwrap();
    let rest = header.lines().filter(|old| old.split(" =").next() != Some(key));
    // The data file's line stays the last one.
    let (data, mut lines): (Vec<&str>, Vec<&str>) = rest.partition(|old| old.starts_with("ElementDataFile"));
    lines.push(line);
    lines.extend(data);
    std::fs::write(&path, lines.join("\n")).unwrap();
    message(read_image(&path).map(drop))
}

#[test]
fn headers_that_cannot_be_followed_say_which_line_to_change() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixtures().join("mi_pair.raw"), folder.path().join("mi_pair.raw")).unwrap();
    for (line, expected) in [
        ("ElementDataFile = ../mi_pair.raw", "own folder"),
        ("ElementDataFile = /etc/passwd", "own folder"),
        ("ElementDataFile = sub/../../mi_pair.raw", "own folder"),
        ("ElementDataFile = absent.raw", "missing"),
        ("ElementDataFile = LIST", "LOCAL or one file's name"),
        ("ElementDataFile = slice%03d.raw 1 3 1", "LOCAL or one file's name"),
        ("DimSize = 5 4", "3 voxel counts"),
        ("DimSize = 5 4 -3", "not between 1 and"),
        ("DimSize = 90000 90000 90000", "not between 1 and"),
        ("DimSize = 900 900 900", "truncated or damaged"),
        ("NDims = 7", "2, 3 or 4"),
        ("ElementType = MET_OTHER", "ElementType"),
        ("ElementNumberOfChannels = 3", "grey-scale"),
        ("BinaryData = False", "written as text"),
        ("ElementSpacing = 1 1 0", "does not place the voxels"),
        ("ElementSpacing = 1 one 1", "3 numbers"),
        ("TransformMatrix = 1 0 0 1 0 0 1 0 0", "does not place the voxels"),
        ("Offset = NaN 0 0", "does not place the voxels"),
        ("HeaderSize = 1000", "begin at byte 1000"),
        ("HeaderSize = -2", "HeaderSize"),
        ("CompressedData = True", "damaged"),
        ("CompressedData = maybe", "True or False"),
        ("ObjectType = Tube", "ObjectType"),
    ] {
        let text = with_line(folder.path(), line);
        assert!(text.contains(expected), "{line}: {text}");
    }
    std::fs::write(folder.path().join("binary.mhd"), [0xff; 300]).unwrap();
    assert!(message(read_image(&folder.path().join("binary.mhd")).map(drop)).contains("is not MetaImage"));
}
