//! Reading, writing, reorienting, slicing and handing out scans.

mod cache;
mod damage;
mod dataset;
mod dicom;
mod layouts;
mod metaimage;
mod postprocessing;
mod reorientation;
mod slices;
mod training;
mod volumes;

use std::path::PathBuf;

use rarunet_cuda::data::{Geometry, Volume};

/// The folder of small volumes that `make_volumes.py` writes.
pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/volumes")
}

/// A volume on `geometry` whose voxels `value` makes from x, y, z.
pub fn volume<T>(geometry: Geometry, mut value: impl FnMut(usize, usize, usize) -> T) -> Volume<T> {
    let [width, height, depth] = geometry.shape;
    let mut voxels = Vec::new();
    for z in 0..depth {
        for y in 0..height {
            voxels.extend((0..width).map(|x| value(x, y, z)));
        }
    }
    Volume::new(geometry, voxels).unwrap()
}

/// The one line that an error prints.
pub fn message<T>(result: rarunet_cuda::Result<T>) -> String {
    let text = result.err().expect("this should have failed").to_string();
    assert!(!text.contains('\n'), "an error is one line: {text}");
    text
}
