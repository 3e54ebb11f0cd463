//! Dilation: the background nearer to the foreground than a radius becomes foreground.

use super::calibration::Transform;
use super::erosion::vary;
use super::mask::{Mask, Window};
use rand_chacha::ChaCha8Rng;

pub(super) struct Dilation<'a> {
    mask: &'a Mask,
    window: Window,
    /// For each voxel the radius at which it becomes foreground; 0 for what is.
    radii: Vec<f64>,
}

impl<'a> Dilation<'a> {
    /// A dilation that can go on until no more than `overlap` is left, or the grid ends.
    pub fn new(mask: &'a Mask, overlap: f64, random: &mut ChaCha8Rng) -> Self {
        let window = mask.window(farthest(mask, overlap));
        let mut radii = mask.depths(&window, false);
        vary(&mut radii, mask, &window, random);
        Dilation { mask, window, radii }
    }
}

/// A radius that surely leaves no more than `overlap` unless the grid ends: that of a quarter disc, or an eighth of
/// a ball, as large as the foreground may grow, for a mask in the grid's corner.
fn farthest(mask: &Mask, overlap: f64) -> f64 {
    // Dice = 2 true / (true + grown).
    let grown = mask.count() as f64 * (2.0 / overlap.max(0.01) - 1.0) * mask.voxel_size();
    let coarsest = mask.spacing()[mask.axes()].iter().copied().fold(0.0, f64::max);
    let radius = match mask.axes().len() {
        2 => (grown * 4.0 / std::f64::consts::PI).sqrt(),
        _ => (grown * 6.0 / std::f64::consts::PI).cbrt(),
    };
    radius + 2.0 * coarsest
}

impl Transform for Dilation<'_> {
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
        self.radii.iter().map(|&gained_at| gained_at <= radius).collect()
    }
}
