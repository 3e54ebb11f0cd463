//! One function for each reader: bytes as a file of its format, read in every way. Whether that works is up to the
//! bytes; what must not happen is a panic, or memory that the bytes do not fill.

use rarunet_cuda::Error;
use rarunet_cuda::data::{inspect, read_image};
use rarunet_cuda::device::cpu::CpuDevice;
use rarunet_cuda::model::weights::WeightsFile;
use rarunet_cuda::train::{Learner, Settings, checkpoint as checkpoints};
use std::cell::RefCell;
use std::path::Path;

/// Reads bytes, in a folder for files.
pub type Reader = fn(&Path, &[u8]);

/// The readers by the names of their corpora.
pub const READERS: [(&str, Reader); 6] = [
    ("nifti", nifti),
    ("metaimage", metaimage),
    ("dicom", dicom),
    ("weights", weights),
    ("checkpoint", checkpoint),
    ("config", config),
];

pub fn nifti(folder: &Path, bytes: &[u8]) {
    read_scan(folder, "scan.nii", bytes);
    std::fs::write(folder.join("pair.img"), bytes).expect("room for a file");
    read_scan(folder, "pair.hdr", bytes);
}

pub fn metaimage(folder: &Path, bytes: &[u8]) {
    std::fs::write(folder.join("scan.raw"), bytes).expect("room for a file");
    read_scan(folder, "scan.mha", bytes);
}

pub fn dicom(folder: &Path, bytes: &[u8]) {
    read_scan(folder, "scan.dcm", bytes);
}

fn read_scan(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    std::fs::write(&path, bytes).expect("room for a file");
    // A volume that compresses well is as large as it says; it is looked at without being kept.
    if one_line(inspect(&path)) && !bytes.starts_with(&[0x1f, 0x8b]) {
        assert!(one_line(read_image(&path)), "it can be inspected, but not read");
    }
}

/// Whether it worked; if not, the error must be one line.
fn one_line<T>(result: Result<T, Error>) -> bool {
    if let Err(error) = &result {
        let text = error.to_string();
        assert!(!text.contains('\n'), "more than a line: {text}");
    }
    result.is_ok()
}

pub fn weights(_: &Path, bytes: &[u8]) {
    let path = Path::new("weights.safetensors");
    let Ok(file) = WeightsFile::new(path, bytes) else { return };
    let _ = file.preprocessing();
    if let Ok(model) = file.model() {
        for parameter in model.parameters() {
            file.tensor(&parameter.name, &parameter.shape).expect("the model was said to be there");
        }
    }
}

/// A run's checkpoint, as `--resume` takes it: of a network that is set up once, and of [`SLICES`] training slices.
pub fn checkpoint(folder: &Path, bytes: &[u8]) {
    thread_local!(static LEARNERS: RefCell<[Learner; 1]> = RefCell::new([small_learner()]));
    let path = folder.join("last/step-1.safetensors");
    std::fs::create_dir_all(folder.join("last")).expect("room for a folder");
    std::fs::write(&path, bytes).expect("room for a file");
    let found = checkpoints::newest(folder);
    if one_line(found) {
        LEARNERS.with_borrow_mut(|learners| one_line(checkpoints::load(&path, learners, SLICES)));
    }
}

/// Training slices that a checkpoint is to be about.
const SLICES: usize = 2;

/// The smallest network there is.
fn small_learner() -> Learner {
    let settings = Settings { model: "unet".into(), widths: [1; 5], size: 16, batch: 1, ..Settings::default() };
    let device = CpuDevice::new().expect("the CPU is there");
    Learner::new(&settings, Box::new(device), 1).expect("a network on it")
}

pub fn config(_: &Path, bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(settings) = toml::from_str::<Settings>(text)
        && settings.check().is_ok()
    {
        toml::to_string(&settings).expect("settings that can be read can be written");
    }
}
