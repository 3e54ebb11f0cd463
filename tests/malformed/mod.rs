//! Files with every kind of damage: an error of one line or a valid reading, in under a second, and in no more memory
//! than 64 MiB and twice the file's size.

#[path = "../../fuzz/src/readers.rs"]
mod readers;

use super::{alone, measured};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rarunet_cuda::data::{inspect, read_image, read_labels};
use rarunet_cuda::device::cpu::CpuDevice;
use rarunet_cuda::predict::Predictor;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Damaged files of each format, at least.
const FILES: usize = 1000;

const MEMORY: usize = 64 << 20;
const TIME: Duration = Duration::from_secs(1);

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/volumes")
}

/// Does `read` and checks its time and memory; a failure says which file it was.
fn within_limits(file: &str, size: usize, read: impl Fn()) {
    let started = Instant::now();
    let ((), most, _) = measured(&read);
    let mut time = started.elapsed();
    // Another program may have had the processor.
    for _ in 0..3 {
        if time < TIME {
            break;
        }
        let started = Instant::now();
        read();
        time = started.elapsed();
    }
    assert!(most <= MEMORY + 2 * size, "{file}: {most} bytes of memory for {size}");
    assert!(time < TIME, "{file}: {time:?}");
}

/// Whether a scan can be read in one of the ways; an error is a line that names the file.
fn read_scan(path: &Path) -> bool {
    let stem = path.file_stem().unwrap().to_str().unwrap();
    let told = |result: rarunet_cuda::Result<()>| match result {
        Ok(()) => true,
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n') && text.contains(stem), "{text}");
            false
        }
    };
    let inspected = told(inspect(path).map(drop));
    assert_eq!(told(read_image(path).map(drop)), inspected, "{}", path.display());
    told(read_labels(path).map(drop));
    inspected
}

/// Some of what can happen to `bytes`, most of it to the first `header` of them.
fn damaged(bytes: &[u8], header: usize, random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut below = |n: usize| random.next_u64() as usize % n.max(1);
    let mut changed = bytes.to_vec();
    let header = header.min(bytes.len());
    let kind = below(8);
    for _ in 0..1 + below(4) {
        let at = if below(8) == 0 { below(bytes.len()) } else { below(header) };
        let width = [1, 2, 4, 8][below(4)];
        let field = at..(at + width).min(changed.len());
        match kind {
            // A bit, some bytes, or a number that is too large, negative or nothing.
            0 | 1 => changed[at] ^= 1 << below(8),
            2 => changed[field].iter_mut().for_each(|byte| *byte = below(256) as u8),
            3 => changed[field].fill(0xff),
            4 => changed[field].fill([0x00, 0x7f, 0x80][below(3)]),
            // A digit, as text has it.
            5 => {
                let digits: Vec<usize> = (0..header).filter(|&at| changed[at].is_ascii_digit()).collect();
                if let Some(&at) = digits.get(below(digits.len())) {
                    let more = b"99999999999999999999"[..1 + below(20)].to_vec();
                    changed.splice(at..at, more);
                    return changed;
                }
            }
            // Bytes too many, or too few.
            6 => drop(changed.splice(at..at, vec![below(256) as u8; 1 + below(40)])),
            _ => drop(changed.drain(at..(at + 1 + below(40)).min(changed.len()))),
        }
        if changed.len() < bytes.len() {
            break;
        }
    }
    changed
}

/// Reads `FILES` damaged copies of a scan: cut short at each of its header's bytes, and changed at random. `name` is
/// what the copies are called, `header` how many of the first bytes matter most.
fn scans(fixture: &str, name: &str, header: usize) {
    let bytes = fs::read(fixtures().join(fixture)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // The other half of a pair.
    for half in ["img", "raw", "zraw"] {
        let other = fixtures().join(fixture).with_extension(half);
        if other.is_file() {
            fs::copy(&other, folder.path().join(other.file_name().unwrap())).unwrap();
        }
    }
    let path = folder.path().join(name);
    let mut random = ChaCha8Rng::seed_from_u64(bytes.len() as u64);
    let (mut refused, mut files) = (0, 0);
    let mut read = |label: String, bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        within_limits(&label, bytes.len(), || {
            read_scan(&path);
        });
        files += 1;
        refused += usize::from(!read_scan(&path));
    };
    for length in 0..header.min(bytes.len()) {
        read(format!("{fixture} cut to {length} bytes"), &bytes[..length]);
    }
    for number in 0..FILES {
        read(format!("{fixture} changed, number {number}"), &damaged(&bytes, header, &mut random));
    }
    assert!(files >= FILES && refused > FILES / 10, "{fixture}: {refused} of {files} were refused");
}

#[test]
fn nifti() {
    let _alone = alone();
    scans("n1_int16.nii", "scan.nii", 352);
    scans("n2_int16.nii.gz", "scan.nii.gz", 200);
    scans("pair_two.hdr", "pair_two.hdr", 540);
    scans("pair_little.hdr", "pair_little.hdr", 348);
    // NIfTI-2 in one file, not compressed.
    let folder = tempfile::tempdir().unwrap();
    let mut inflated = Vec::new();
    let compressed = fs::File::open(fixtures().join("n2_int16.nii.gz")).unwrap();
    std::io::copy(&mut flate2::read::GzDecoder::new(compressed), &mut inflated).unwrap();
    let path = folder.path().join("scan.nii");
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for number in 0..FILES {
        let bytes = damaged(&inflated, 544, &mut random);
        fs::write(&path, &bytes).unwrap();
        within_limits(&format!("NIfTI-2, number {number}"), bytes.len(), || {
            read_scan(&path);
        });
        // And compressed after it was damaged, so that the damage gets through.
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&bytes).unwrap();
        let bytes = encoder.finish().unwrap();
        fs::write(&path, &bytes).unwrap();
        within_limits(&format!("NIfTI-2 compressed, number {number}"), bytes.len(), || {
            read_scan(&path);
        });
    }
}

#[test]
fn metaimage() {
    let _alone = alone();
    scans("mi_int16.mha", "scan.mha", 400);
    scans("mi_pair.mhd", "mi_pair.mhd", 400);
    scans("mi_pair_compressed.mhd", "mi_pair_compressed.mhd", 400);
}

#[test]
fn dicom() {
    let _alone = alone();
    for series in ["explicit", "implicit", "big_endian", "rle", "jpeg", "jpeg2000", "jpeg_ls", "jpeg_ls_near"] {
        scans(&format!("dicom_{series}/IM3"), "IM3", 2000);
    }
}

#[test]
fn weights() {
    let _alone = alone();
    let bytes = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/weights/plain")).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("best.safetensors");
    let open = || Predictor::open(&path, Box::new(CpuDevice::<f32>::new().unwrap())).map(drop);
    fs::write(&path, &bytes).unwrap();
    open().unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut refused = 0;
    let mut read = |label: String, bytes: &[u8]| {
        within_limits(&label, bytes.len(), || readers::weights(folder.path(), bytes));
        fs::write(&path, bytes).unwrap();
        if let Err(error) = open() {
            let text = error.to_string();
            assert!(!text.contains('\n') && text.contains("best.safetensors"), "{text}");
            refused += 1;
        }
    };
    for length in (0..header).step_by(7) {
        read(format!("weights cut to {length} bytes"), &bytes[..length]);
    }
    for number in 0..FILES {
        read(format!("weights changed, number {number}"), &damaged(&bytes, header, &mut random));
    }
    assert!(refused > FILES / 4, "{refused} were refused");
    // A network that the file does not hold is not set up.
    let text = String::from_utf8_lossy(&bytes[..header]).into_owned();
    for (from, to) in [("1,1,1,1,1", "4096,4096,4096,4096,4096"), ("1,1,1,1,1", "99999999999,1,1,1,1")] {
        let changed = text[8..].replace(from, to);
        let bytes = [&(changed.len() as u64).to_le_bytes()[..], changed.as_bytes(), &bytes[header..]].concat();
        fs::write(&path, &bytes).unwrap();
        within_limits(to, bytes.len(), || assert!(open().is_err()));
    }
}

#[test]
fn checkpoint() {
    let _alone = alone();
    let bytes = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/checkpoint/plain")).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let folder = tempfile::tempdir().unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let mut refused = 0;
    let mut read = |label: String, bytes: &[u8]| {
        within_limits(&label, bytes.len(), || readers::checkpoint(folder.path(), bytes));
        let newest = rarunet_cuda::train::checkpoint::newest(folder.path());
        if let Err(error) = &newest {
            assert!(error.to_string().contains("step-1.safetensors"), "{error}");
        }
        refused += usize::from(newest.is_err());
        newest.is_ok()
    };
    assert!(read("whole".into(), &bytes));
    for length in (0..header).step_by(97) {
        assert!(!read(format!("checkpoint cut to {length} bytes"), &bytes[..length]));
    }
    for number in 0..FILES {
        read(format!("checkpoint changed, number {number}"), &damaged(&bytes, header, &mut random));
    }
    let state = bytes.windows(8).position(|window| window == b"{\"epoch\"").unwrap();
    for number in 0..FILES {
        let changed = damaged(&bytes[state..], bytes.len() - state, &mut random);
        read(format!("state changed, number {number}"), &[&bytes[..state], &changed].concat());
    }
    // A list that is shorter than the others is noticed before anything counts on it.
    let text = b"\"displacement\":[0.0,0.0]";
    let at = bytes.windows(text.len()).position(|window| window == text).unwrap();
    let changed = [&bytes[..at], b"\"displacement\":[0.0    ]", &bytes[at + text.len()..]].concat();
    assert!(!read("a short list".into(), &changed));
    assert!(refused > FILES / 4, "{refused} were refused");
}

/// What the fuzzers found.
#[test]
fn corpus() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for (name, reader) in readers::READERS {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let files: Vec<PathBuf> = fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!files.is_empty(), "{name}");
        for file in files {
            let bytes = fs::read(&file).unwrap();
            within_limits(&file.display().to_string(), 2 * bytes.len(), || reader(folder.path(), &bytes));
        }
    }
}

fn gzip(path: &Path, chunks: impl Iterator<Item = Vec<u8>>) {
    let mut encoder = flate2::write::GzEncoder::new(fs::File::create(path).unwrap(), flate2::Compression::best());
    chunks.for_each(|chunk| encoder.write_all(&chunk).unwrap());
    encoder.finish().unwrap();
}

/// A NIfTI-1 header that claims `shape` voxels of bytes.
fn claiming(shape: [i16; 3]) -> Vec<u8> {
    let mut header = fs::read(fixtures().join("n1_uint8.nii")).unwrap()[..352].to_vec();
    for (axis, n) in shape.into_iter().enumerate() {
        header[42 + 2 * axis..44 + 2 * axis].copy_from_slice(&n.to_le_bytes());
    }
    header
}

#[test]
fn bombs() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let check = |name: &str, works: bool| {
        let path = folder.path().join(name);
        let size = path.metadata().unwrap().len() as usize;
        within_limits(name, size, || assert_eq!(read_scan(&path), works, "{name}"));
    };
    let zeros = |mebibytes: usize| (0..mebibytes).map(|_| vec![0; 1 << 20]);
    // A small volume, then much more than it takes.
    let volume = fs::read(fixtures().join("n1_uint8.nii")).unwrap();
    gzip(&folder.path().join("more.nii.gz"), std::iter::once(volume).chain(zeros(300)));
    check("more.nii.gz", true);
    // Much, but less than it claims.
    gzip(&folder.path().join("hollow.nii.gz"), std::iter::once(claiming([1000, 1000, 110])).chain(zeros(100)));
    check("hollow.nii.gz", false);
    // 93 bytes or so that claim 17 GB, and the most that a header can.
    for (name, shape) in [("claims.nii.gz", [3000, 3000, 1900]), ("most.nii.gz", [i16::MAX; 3])] {
        gzip(&folder.path().join(name), std::iter::once(claiming(shape)));
        assert!(folder.path().join(name).metadata().unwrap().len() < 120);
        check(name, false);
    }
    // The same as MetaImage.
    let header =
        "NDims = 3\nDimSize = 1000 1000 110\nElementType = MET_UCHAR\nCompressedData = True\nElementDataFile = LOCAL\n";
    let mut encoder = flate2::write::ZlibEncoder::new(header.as_bytes().to_vec(), flate2::Compression::best());
    zeros(100).for_each(|chunk| encoder.write_all(&chunk).unwrap());
    fs::write(folder.path().join("hollow.mha"), encoder.finish().unwrap()).unwrap();
    check("hollow.mha", false);
    // Voxels outside the header's folder, whatever they are called.
    fs::write(folder.path().join("secret.raw"), [0; 8]).unwrap();
    fs::create_dir(folder.path().join("inside")).unwrap();
    for (number, outside) in ["../secret.raw", "/etc/passwd", "a/../../secret.raw", "..\\secret.raw"].iter().enumerate()
    {
        let header = format!("NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = {outside}\n");
        let name = format!("inside/path{number}.mhd");
        fs::write(folder.path().join(&name), header).unwrap();
        check(&name, false);
        let error = read_image(&folder.path().join(&name)).err().unwrap().to_string();
        assert!(error.contains("the header's own folder"), "{error}");
    }
    // DICOM pictures that claim far more pixels than their bytes can be, in header and picture alike.
    for (series, frame) in
        [("jpeg", &[0xff, 0xc3][..]), ("jpeg2000", &[0xff, 0x4f, 0xff, 0x51]), ("jpeg_ls", &[0xff, 0xf7]), ("rle", &[])]
    {
        let bytes = fs::read(fixtures().join(format!("dicom_{series}/IM3"))).unwrap();
        let bytes = of_side(&bytes, 8000, frame);
        let name = format!("bomb_{series}.dcm");
        fs::write(folder.path().join(&name), bytes).unwrap();
        check(&name, false);
        let error = read_image(&folder.path().join(&name)).err().unwrap().to_string();
        assert!(error.contains("8000 x 8000 pixels cannot be in a compressed picture"), "{error}");
    }
    // Deflated DICOM is refused before anything is inflated.
    let bytes = fs::read(fixtures().join("dicom_explicit/IM3")).unwrap();
    let bytes = replaced(&bytes, b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99");
    fs::write(folder.path().join("deflated.dcm"), bytes).unwrap();
    check("deflated.dcm", false);
    let error = read_image(&folder.path().join("deflated.dcm")).err().unwrap().to_string();
    assert!(error.contains("is deflated (transfer syntax 1.2.840.10008.1.2.1.99)"), "{error}");
}

/// The first `from` in `bytes`, and the length of the element that it is the value of, replaced.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    let mut changed = bytes.to_vec();
    changed.splice(at..at + from.len(), to.to_vec());
    changed[at - 2..at].copy_from_slice(&(to.len() as u16).to_le_bytes());
    changed
}

/// An explicit little-endian file of `side` x `side` pixels, as is its picture, whose frame header begins with `frame`.
fn of_side(bytes: &[u8], side: u16, frame: &[u8]) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    for tag in [[0x28, 0x00, 0x10, 0x00, b'U', b'S'], [0x28, 0x00, 0x11, 0x00, b'U', b'S']] {
        let at = changed.windows(6).position(|window| window == tag).unwrap();
        changed[at + 8..at + 10].copy_from_slice(&side.to_le_bytes());
    }
    if !frame.is_empty() {
        let at = changed.windows(frame.len()).position(|window| window == frame).unwrap();
        match frame.len() {
            2 => (0..2).for_each(|i| changed[at + 5 + 2 * i..at + 7 + 2 * i].copy_from_slice(&side.to_be_bytes())),
            _ => [8, 12, 24, 28]
                .into_iter()
                .for_each(|i| changed[at + i..at + i + 4].copy_from_slice(&u32::from(side).to_be_bytes())),
        }
    }
    changed
}
