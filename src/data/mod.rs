//! Volumes, data sets and what becomes of them on the way to the network.

pub mod dataset;
pub mod dtype;
pub mod file;
pub mod inspect;
pub mod loader;
pub mod nifti;
pub mod phantom;
pub mod slices;
pub mod source;
pub mod split;
pub mod volume;

use std::path::Path;

pub use dataset::{Case, Dataset, Labels};
pub use inspect::{Inspection, inspect};
pub use loader::Loader;
pub use slices::{Fit, Slice, SliceSet, Window};
pub use source::{Header, Source};
pub use split::Split;
pub use volume::{Geometry, Reorientation, Volume};

use crate::{Error, Result};

/// Opens a scan of any format, told by its contents, and reads its geometry but not yet its voxels.
///
/// # Errors
/// If it cannot be read, or is of no known format.
pub fn open(path: &Path) -> Result<Source> {
    let mut start = [0; 4];
    let filled = file::Input::open(path)?.fill(&mut start).map_err(|error| source::damaged(path, &error))?;
    if nifti::recognises(&start[..filled])
        || [".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz"].iter().any(|e| file::ends_with(path, e))
    {
        return nifti::open(path);
    }
    Err(Error::file(path, "is no scan that can be read: it should be NIfTI (.nii, .nii.gz, .hdr)"))
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
