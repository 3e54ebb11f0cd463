//! Damaged and hostile files: always an error of one line, never a panic, never memory that the file does not fill.

use std::io::Write;
use std::path::Path;

use rarunet_cuda::data::{inspect, read_image, read_labels};

use super::{fixtures, message};

/// Reads a file in every way; whether it worked is up to the file, but nothing may panic.
fn read_all_ways(path: &Path) -> bool {
    let image = read_image(path).map(drop);
    let worked = image.is_ok();
    // What cannot be read as an image cannot be opened, or breaks off, otherwise too.
    let others = if worked { vec![read_labels(path).map(drop), inspect(path).map(drop)] } else { Vec::new() };
    for result in others.into_iter().chain([image]) {
        if let Err(error) = result {
            let text = error.to_string();
            assert!(!text.contains('\n') && text.contains(path.file_stem().unwrap().to_str().unwrap()), "{text}");
        }
    }
    worked
}

#[test]
fn a_file_cut_short_anywhere_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "n1_int16.nii",
        "n1_int16_big.nii.gz",
        "n2_float32.nii.gz",
        "mi_uint8.mha",
        "mi_int16.mha",
        "dicom_one_slice/IM3",
        "dicom_implicit/IM3",
        "dicom_rle/IM3",
    ] {
        let bytes = std::fs::read(fixtures().join(name)).unwrap();
        let path = folder.path().join(name.replace('/', "_"));
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(!read_all_ways(&path), "{name} of {length} bytes was read");
        }
    }
}

#[test]
fn a_file_with_any_byte_changed_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    for (name, header) in [
        ("n1_uint8.nii", 352),
        ("pair_two.hdr", 540),
        ("mi_uint8.mha", 400),
        ("dicom_sequences/IM3", 2000),
        ("dicom_implicit/IM3", 2000),
        ("dicom_rle/IM3", 2000),
        ("dicom_jpeg/IM3", 2000),
        ("dicom_jpeg2000/IM3", 2000),
        ("dicom_jpeg_ls/IM3", 2000),
    ] {
        let bytes = std::fs::read(fixtures().join(name)).unwrap();
        let path = folder.path().join(name.replace('/', "_"));
        std::fs::copy(fixtures().join("pair_two.img"), folder.path().join("pair_two.img")).unwrap();
        let mut refused = 0;
        for at in 0..header.min(bytes.len()) {
            for value in [0xff, bytes[at] ^ 0x01] {
                let mut changed = bytes.clone();
                changed[at] = value;
                std::fs::write(&path, changed).unwrap();
                refused += u32::from(!read_all_ways(&path));
            }
        }
        assert!(refused > 30, "only {refused} changes of {name} were noticed");
    }
}

#[test]
fn a_compressed_file_with_a_changed_byte_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(fixtures().join("n1_float32_big.nii.gz")).unwrap();
    let path = folder.path().join("changed.nii.gz");
    let whole = read_image(&fixtures().join("n1_float32_big.nii.gz")).unwrap().0;
    let mut refused = 0;
    // Behind the gzip header, whose time stamp and system are nobody's business.
    for at in 10..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        std::fs::write(&path, changed).unwrap();
        match read_all_ways(&path) {
            false => refused += 1,
            // A few bits of the code table stand for symbols that do not occur.
            true => assert_eq!(read_image(&path).unwrap().0, whole, "byte {at} was changed and nobody noticed"),
        }
    }
    assert!(refused > bytes.len() * 9 / 10, "only {refused} changes were noticed");
}

fn gzip(path: &Path, chunks: impl Iterator<Item = Vec<u8>>) {
    let file = std::fs::File::create(path).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::best());
    chunks.for_each(|chunk| encoder.write_all(&chunk).unwrap());
    encoder.finish().unwrap();
}

/// A NIfTI-1 header that claims `shape` voxels of bytes.
fn claiming(shape: [i16; 3]) -> Vec<u8> {
    let mut header = std::fs::read(fixtures().join("n1_uint8.nii")).unwrap()[..352].to_vec();
    for (axis, n) in shape.into_iter().enumerate() {
        header[42 + 2 * axis..44 + 2 * axis].copy_from_slice(&n.to_le_bytes());
    }
    header
}

#[test]
fn sizes_that_the_bytes_do_not_bear_out_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("claims.nii.gz");
    for (shape, expected) in [
        ([2600, 2600, 300], "can hold at most"),
        ([i16::MAX; 3], "not between 1 and"),
        ([0, 5, 5], "not between 1 and"),
        ([-4, -5, 1], "not between 1 and"),
    ] {
        gzip(&path, std::iter::once(claiming(shape)));
        assert!(std::fs::metadata(&path).unwrap().len() < 200);
        let text = message(read_image(&path).map(drop));
        assert!(text.contains(expected), "{text}");
        assert!(!read_all_ways(&path));
    }
}

/// Memory is that of a whole process, in which other tests run too: so this one runs itself alone in a process of its own.
#[test]
#[cfg(target_os = "linux")]
fn memory_follows_the_bytes_there_are_not_those_claimed() {
    const ALONE: &str = "RARUNET_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return bombs();
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "data::damage::memory_follows_the_bytes_there_are_not_those_claimed"])
        .env(ALONE, "1")
        .status();
    assert!(status.unwrap().success());
}

fn bombs() {
    let folder = tempfile::tempdir().unwrap();
    // A small volume followed by 300 MB of zeros: only the volume is read.
    let path = folder.path().join("bomb.nii.gz");
    let volume = std::fs::read(fixtures().join("n1_uint8.nii")).unwrap();
    gzip(&path, std::iter::once(volume).chain((0..300).map(|_| vec![0; 1 << 20])));
    let before = peak_memory();
    assert!(before > 0);
    assert!(read_all_ways(&path));
    // Claims more than is there, but not more than could be: refused once the bytes run out.
    let path = folder.path().join("hollow.nii.gz");
    gzip(&path, std::iter::once(claiming([1000, 1000, 250])).chain((0..100).map(|_| vec![0; 1 << 20])));
    let text = message(inspect(&path).map(drop));
    assert!(text.contains("truncated"), "{text}");
    // Claims 17 GB.
    let path = folder.path().join("claims.nii.gz");
    gzip(&path, std::iter::once(claiming([3000, 3000, 1900])));
    assert!(!read_all_ways(&path));
    // A DICOM element that claims 4 GB.
    let path = folder.path().join("claims.dcm");
    let mut bytes = std::fs::read(fixtures().join("dicom_explicit/IM3")).unwrap();
    let at = bytes.windows(6).position(|window| window == [0xe0, 0x7f, 0x10, 0x00, b'O', b'W']).unwrap();
    bytes[at + 8..at + 12].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    assert!(message(read_image(&path).map(drop)).contains("the length of an element cannot be right"));

    let grown = peak_memory() - before;
    assert!(grown < 32 << 20, "memory grew by {grown} bytes");
}

/// The most memory this process has held, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")).map_or(0, |kilobytes| kilobytes.parse::<u64>().unwrap() << 10)
}

#[test]
fn what_is_no_scan_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in
        [("notes.txt", &b"Dear diary"[..]), ("empty", b""), ("short.nii", b"\x5c\x01"), ("zip.nii.gz", b"PK\x03\x04")]
    {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        assert!(!read_all_ways(&path));
    }
    let text = message(read_image(&folder.path().join("absent.nii")).map(drop));
    assert!(text.contains("absent.nii"), "{text}");
    // The voxels of a pair are missing.
    std::fs::copy(fixtures().join("pair_little.hdr"), folder.path().join("alone.hdr")).unwrap();
    let text = message(read_image(&folder.path().join("alone.hdr")).map(drop));
    assert!(text.contains("alone.img is missing"), "{text}");
    // Either name of a pair will do.
    let by_voxels = read_image(&fixtures().join("pair_little.img")).unwrap();
    assert_eq!(by_voxels.0, read_image(&fixtures().join("pair_little.hdr")).unwrap().0);
}
