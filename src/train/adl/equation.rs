//! Equation 5: how many masks are removed in each epoch.

use serde::{Deserialize, Serialize};

/// How noisy a set of masks is. The paper's beta is the proportion, its alpha the overlap.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// The share of masks that are noisy.
    pub proportion: f64,
    /// Their mean Dice overlap with the truth: the higher, the less noise.
    pub overlap: f64,
}

/// N(t) of equation 5: what is removed in epoch `epoch` (from 1) of `epochs` with `masks` training masks. Not
/// rounded.
pub fn removals(noise: Noise, masks: usize, epochs: u64, epoch: u64) -> f64 {
    let Noise { proportion, overlap } = noise;
    let (level, masks) = ((1.0 - overlap) * proportion, masks as f64);
    let progress = epoch as f64 / epochs as f64;
    if progress < 0.1 * level {
        0.5 * level * masks
    } else if progress <= 0.5 * level {
        (0.6 * level - progress) * masks
    } else {
        0.1 * level * masks
    }
}

/// What the cumulative reading has removed by epoch `epoch`: the sum of equation 5 so far, its fractions
/// carried over, and never more than are believed noisy.
pub fn removals_until(noise: Noise, masks: usize, epochs: u64, epoch: u64) -> usize {
    let sum: f64 = (1..=epoch).map(|epoch| removals(noise, masks, epochs, epoch)).sum();
    // A sum that is whole but for rounding counts as whole.
    (sum + 1e-6).min(noise.proportion * masks as f64 + 0.5).floor() as usize
}
