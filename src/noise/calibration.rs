//! How strong a transform has to be to leave a wanted overlap.

use super::mask::{Mask, Window};

/// A way to change a mask that grows with its strength.
pub(super) trait Transform {
    fn mask(&self) -> &Mask;
    /// The voxels that may change.
    fn window(&self) -> &Window;
    /// The strength beyond which nothing more happens, or nothing sensible.
    fn strongest(&self) -> f64;
    /// The foreground of the window at `strength`, from 0, which changes nothing, to the strongest.
    fn transformed(&self, strength: f64) -> Vec<bool>;
}

/// A mask at the strength that was found.
pub(super) struct Calibrated {
    /// Dice overlap with the true mask.
    pub overlap: f64,
    /// Voxels that changed, as indices into the grid.
    pub flipped: Vec<usize>,
}

/// The search ends this near to the wanted overlap, or when it has halved the strengths this often.
const NEAR: f64 = 1e-4;
const HALVINGS: usize = 48;

/// Searches, by bisection, the strength at which the overlap with the true mask is nearest to `wanted`; nothing if
/// no strength changes the mask and leaves something of it.
pub(super) fn calibrate(transform: &impl Transform, wanted: f64) -> Option<Calibrated> {
    let mut best: Option<(f64, Vec<bool>)> = None;
    let mut attempt = |strength: f64| {
        let foreground = transform.transformed(strength);
        let (overlap, count) = dice(transform, &foreground);
        let miss = |overlap: f64| (overlap - wanted).abs();
        let is_nearer = best.as_ref().is_none_or(|(best, _)| miss(overlap) < miss(*best));
        if count > 0 && overlap < 1.0 && is_nearer {
            best = Some((overlap, foreground));
        }
        overlap
    };
    let (mut weak, mut strong) = (0.0, transform.strongest());
    if strong.is_finite() && attempt(strong) < wanted {
        for _ in 0..HALVINGS {
            let middle = 0.5 * (weak + strong);
            let overlap = attempt(middle);
            if (overlap - wanted).abs() <= NEAR {
                break;
            }
            *(if overlap > wanted { &mut weak } else { &mut strong }) = middle;
        }
    }
    let (overlap, foreground) = best?;
    Some(Calibrated { overlap, flipped: transform.mask().flipped(transform.window(), &foreground) })
}

/// The Dice overlap of a foreground with the true one, and how many voxels it has.
fn dice(transform: &impl Transform, foreground: &[bool]) -> (f64, usize) {
    let (mut both, mut count) = (0usize, 0usize);
    for (&new, &old) in foreground.iter().zip(&transform.window().foreground) {
        both += usize::from(new & old);
        count += usize::from(new);
    }
    (2.0 * both as f64 / (count + transform.mask().count()) as f64, count)
}
