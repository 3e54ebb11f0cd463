//! Volumes, data sets and what becomes of them on the way to the network.

pub mod cache;
pub mod dataset;
pub mod dicom;
pub mod dtype;
mod examine;
pub mod fault;
pub mod file;
pub mod fit;
pub mod inspect;
pub mod labels;
pub mod layout;
pub mod loader;
pub mod metaimage;
pub mod nifti;
pub mod phantom;
pub mod slices;
pub mod source;
pub mod split;
pub mod volume;

use std::path::{Path, PathBuf};

pub use cache::Cache;
pub use dataset::{Case, Dataset};
pub use fit::Fit;
pub use inspect::{Inspection, inspect};
pub use labels::Labels;
pub use loader::Loader;
pub use slices::{Pixels, Slice, SliceSet};
pub use source::{Header, Source};
pub use split::Split;
pub use volume::{Geometry, Reorientation, Volume};

use crate::{Error, Result};

/// Opens a scan of any format, told by its contents and name, and reads its geometry but not yet
/// its voxels. A folder is opened as a DICOM series.
///
/// # Errors
/// If it cannot be read, or is of no known format.
pub fn open(path: &Path) -> Result<Source> {
    open_series(path, None)
}

/// As [`open`], but of a folder with several DICOM series the one of this SeriesInstanceUID, if any is asked for.
///
/// # Errors
/// As [`open`], or if there is no such series.
pub fn open_series(path: &Path, series: Option<&str>) -> Result<Source> {
    if path.is_dir() || dicom::is_dicom(path) {
        return dicom::open(path, series);
    }
    if series.is_some() {
        return Err(Error::file(path, "is not DICOM: --series is for folders of DICOM files, leave it out"));
    }
    if [".mhd", ".mha"].iter().any(|ending| file::ends_with(path, ending)) {
        return metaimage::open(path);
    }
    let mut start = [0; 4];
    let filled = file::Input::open(path)?.fill(&mut start).map_err(|error| source::damaged(path, &error))?;
    let named =
        [".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz"].iter().any(|ending| file::ends_with(path, ending));
    if named || nifti::recognises(&start[..filled]) {
        return nifti::open(path);
    }
    Err(Error::file(
        path,
        "is no scan that can be read: it should be NIfTI (.nii.gz, .nii, .hdr), MetaImage (.mhd, .mha) or DICOM",
    ))
}

/// The scans that `path` stands for: itself, or, if it is a folder of scans or of DICOM series, each of them.
///
/// # Errors
/// If it does not exist, is a folder without scans, or holds two scans of one name.
pub fn list_scans(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        std::fs::metadata(path).map_err(Error::io(path))?;
        return Ok(vec![path.to_path_buf()]);
    }
    let (scans, conflicts) = layout::scans(path)?;
    if let Some(conflict) = conflicts.first() {
        return Err(Error::file(path, conflict));
    }
    let mut scans: Vec<PathBuf> = scans.into_values().collect();
    if scans.is_empty() && dicom::is_series(path) {
        return Ok(vec![path.to_path_buf()]);
    }
    scans.extend(layout::entries(path)?.into_iter().filter(|entry| entry.is_dir() && dicom::is_series(entry)));
    match scans.is_empty() {
        false => Ok(scans),
        true => Err(Error::file(path, "holds no scans: no NIfTI or MetaImage files and no DICOM series")),
    }
}

/// What a scan is called: its file's or folder's name without extension and without nnU-Net's `_0000`.
pub fn scan_name(path: &Path) -> String {
    // "." and ".." are named as the folder they stand for.
    let path = if path.file_name().is_none() { path.canonicalize().unwrap_or_default() } else { path.to_path_buf() };
    let stem = if path.is_dir() {
        path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    } else {
        layout::stem(&path)
    };
    stem.strip_suffix("_0000").map_or(stem.clone(), str::to_owned)
}

/// Reads a scan as an image, in Hounsfield units if it is a CT.
///
/// # Errors
/// If it cannot be read or is damaged.
pub fn read_image(path: &Path) -> Result<(Volume<f32>, Header)> {
    open(path)?.into_image()
}

/// Reads a scan as a mask.
///
/// # Errors
/// If it cannot be read or is damaged, or a voxel is not a whole number; the message says which and where.
pub fn read_labels(path: &Path) -> Result<(Volume<i32>, Header)> {
    open(path)?.into_labels()
}
