//! Elastic deformation: each voxel takes the value found a smooth random displacement away.

use super::calibration::Transform;
use super::field::smooth;
use super::mask::{Mask, Window};
use rand_chacha::ChaCha8Rng;

pub(super) struct Elastic<'a> {
    mask: &'a Mask,
    window: Window,
    /// How far the foreground is across where it is thickest, in millimetres.
    thickness: f64,
    /// For each axis and voxel the displacement, in voxels, at an amplitude of one millimetre.
    displacements: Vec<Vec<f32>>,
}

impl<'a> Elastic<'a> {
    pub fn new(mask: &'a Mask, random: &mut ChaCha8Rng) -> Self {
        let thickness = 2.0 * mask.depths(&mask.framed(), true).into_iter().fold(0.0, f64::max);
        let window = mask.window(thickness);
        let displacement = |axis: usize| {
            let spacing = mask.spacing();
            let mut field = smooth(window.shape, spacing, thickness, mask.axes(), random);
            field.iter_mut().for_each(|value| *value /= spacing[axis] as f32);
            field
        };
        let displacements = mask.axes().map(displacement).collect();
        Elastic { mask, window, thickness, displacements }
    }
}

impl Transform for Elastic<'_> {
    fn mask(&self) -> &Mask {
        self.mask
    }

    fn window(&self) -> &Window {
        &self.window
    }

    fn strongest(&self) -> f64 {
        4.0 * self.thickness
    }

    fn transformed(&self, amplitude: f64) -> Vec<bool> {
        let [width, height, depth] = self.window.shape;
        let mut foreground = Vec::with_capacity(self.window.foreground.len());
        for z in 0..depth {
            for y in 0..height {
                for x in 0..width {
                    let voxel = foreground.len();
                    let mut from = [x, y, z].map(|place| place as isize);
                    for (from, displacement) in from.iter_mut().zip(&self.displacements) {
                        *from += (amplitude * f64::from(displacement[voxel])).round() as isize;
                    }
                    foreground.push(self.window.is_foreground(from));
                }
            }
        }
        foreground
    }
}
