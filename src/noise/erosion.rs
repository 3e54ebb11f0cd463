//! Erosion: the foreground nearer to the background than a radius is lost.

use super::calibration::Transform;
use super::field::smooth;
use super::mask::{Mask, Window};
use rand_chacha::ChaCha8Rng;

/// How wide, in voxels, are the stretches of an outline that give way together.
pub(super) const STRETCH: f64 = 6.0;

/// By how many voxels the radius varies along an outline. Voxels of one outline are equally far from the other
/// side, so that a radius that is the same everywhere takes all of them or none; one that varies smoothly takes a
/// stretch after the other, and the strength is graded to single voxels.
pub(super) const VARIATION: f64 = 0.5;

pub(super) struct Erosion<'a> {
    mask: &'a Mask,
    window: Window,
    /// For each voxel the radius at which it is lost; 0 in the background.
    radii: Vec<f64>,
}

impl<'a> Erosion<'a> {
    pub fn new(mask: &'a Mask, random: &mut ChaCha8Rng) -> Self {
        let window = mask.framed();
        let mut radii = mask.depths(&window, true);
        vary(&mut radii, mask, &window, random);
        Erosion { mask, window, radii }
    }
}

/// Varies the radii that are not 0, by so little that they stay above 0.
pub(super) fn vary(radii: &mut [f64], mask: &Mask, window: &Window, random: &mut ChaCha8Rng) {
    let finest = mask.finest_spacing();
    let field = smooth(window.shape, mask.spacing(), STRETCH * finest, mask.axes(), random);
    for (radius, value) in radii.iter_mut().zip(field).filter(|(radius, _)| **radius > 0.0) {
        *radius += VARIATION * finest * f64::from(value);
    }
}

impl Transform for Erosion<'_> {
    fn mask(&self) -> &Mask {
        self.mask
    }

    fn window(&self) -> &Window {
        &self.window
    }

    fn strongest(&self) -> f64 {
        self.radii.iter().copied().fold(0.0, f64::max)
    }

    fn transformed(&self, radius: f64) -> Vec<bool> {
        self.radii.iter().map(|&lost_at| lost_at > radius).collect()
    }
}
