//! One function for each reader: bytes as a file of its format, read in every way. Whether that works is up to the
//! bytes; what must not happen is a panic, or memory that the bytes do not fill.

use rarunet_cuda::Error;
use rarunet_cuda::data::{inspect, read_image};
use rarunet_cuda::model::weights::WeightsFile;
use rarunet_cuda::train::Settings;
use std::path::Path;

/// Reads bytes, in a folder for files.
pub type Reader = fn(&Path, &[u8]);

/// The readers by the names of their corpora.
pub const READERS: [(&str, Reader); 5] =
    [("nifti", nifti), ("metaimage", metaimage), ("dicom", dicom), ("weights", weights), ("config", config)];

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
    let told = |result: Result<(), Error>| {
        if let Err(error) = &result {
            let text = error.to_string();
            assert!(!text.contains('\n'), "more than a line: {text}");
        }
        result.is_ok()
    };
    // A volume that compresses well is as large as it says; it is looked at without being kept.
    if told(inspect(&path).map(drop)) && !bytes.starts_with(&[0x1f, 0x8b]) {
        assert!(told(read_image(&path).map(drop)), "it can be inspected, but not read");
    }
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

pub fn config(_: &Path, bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(settings) = toml::from_str::<Settings>(text)
        && settings.check().is_ok()
    {
        toml::to_string(&settings).expect("settings that can be read can be written");
    }
}
