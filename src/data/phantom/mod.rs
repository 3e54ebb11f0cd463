//! Synthetic spine CT: patients made of analytic shapes, with exact masks of their vertebrae.
//!
//! Each patient is drawn by lot: size, pose, curves of the spine, wear, density of the bones,
//! contrast medium, dose. Vertebrae are label 1; ribs, pelvis, calcifications, vessels and gut
//! full of contrast medium are as bright, but background, so that no threshold finds the mask.
//!
//! The scan lies between the middles of L5 and T9, on a RAS+ grid whose middle is the origin in x
//! and y; z counts from the middle of L5. The field of view is 220 to 300 mm wide whatever the
//! number of voxels, slices are 3 mm apart, or less if they would not fit.

mod anatomy;
mod organs;
mod render;
mod shapes;
mod tissue;
mod vertebra;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::volume::{Geometry, Volume};
use anatomy::Patient;
use render::Grid;

/// What a series of patients looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct PhantomSettings {
    /// Axial slices of a scan.
    pub slices: usize,
    /// Voxels along x and along y.
    pub size: usize,
    /// Another seed, other patients.
    pub seed: u64,
}

/// Patient number `patient` (from 0) of the series: the image in whole Hounsfield units
/// (-1024 to 3071) and the mask, 1 where at least half of a voxel is vertebra.
///
/// The same settings and number give the same bits, on any number of threads.
///
/// # Panics
/// If the settings ask for no voxels.
pub fn phantom(settings: &PhantomSettings, patient: usize) -> (Volume<f32>, Volume<u8>) {
    let PhantomSettings { slices, size, seed } = *settings;
    assert!(slices > 0 && size > 0, "a phantom needs at least one voxel");
    // One random stream for the anatomy and one for the noise of each slice.
    let stream = |number: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(((patient as u64) << 32) + number as u64);
        rng
    };
    let mut rng = stream(0);
    let anatomy = Patient::new(&mut rng);
    let grid = Grid::new(&anatomy, size, slices, rng.random());
    let mut image = vec![0.0; size * size * slices];
    let mut mask = vec![0; size * size * slices];
    let planes = image.par_chunks_mut(size * size).zip(mask.par_chunks_mut(size * size));
    planes.enumerate().for_each(|(z, (image, mask))| {
        render::slice(&anatomy, &grid, z, image, mask);
        render::scan(&anatomy, &grid, &mut stream(z + 1), image);
    });
    let geometry: Geometry = grid.geometry();
    (Volume { geometry: geometry.clone(), voxels: image }, Volume { geometry, voxels: mask })
}

#[cfg(test)]
mod tests;
