//! What a slice goes through before a network: the window of Hounsfield units, and the size it is brought to.

use crate::{Error, Result};

/// Height and width of what goes through a network must be multiples of this: it halves them four times.
pub const SIZE_MULTIPLE: usize = 16;

/// Whether a probability (or a mask's 0 or 1) is foreground: from 0.5 on.
pub fn is_foreground(probability: f32) -> bool {
    probability >= 0.5
}

/// What a scan goes through before a network; it belongs to the network's weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocessing {
    /// Height and width of the slices, in pixels.
    pub size: usize,
    pub window: HounsfieldWindow,
}

/// The Hounsfield window, and how it is scaled for the network.
///
/// A voxel becomes `(clamp((hu - low) / (high - low), 0, 1) - shift) * scale`. With the default
/// window a lumbar CT has mean 0.095 and standard deviation 0.10 before shift and scale, so that
/// the network's input has about mean 0 and deviation 0.5; air is -0.5, near the zeros that
/// convolutions pad with, and dense bone 4.5.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HounsfieldWindow {
    /// Hounsfield units at and below which all is alike.
    pub low: f32,
    /// Hounsfield units at and above which all is alike.
    pub high: f32,
    pub shift: f32,
    pub scale: f32,
}

impl Default for HounsfieldWindow {
    fn default() -> Self {
        HounsfieldWindow { low: -200.0, high: 1000.0, shift: 0.1, scale: 5.0 }
    }
}

impl HounsfieldWindow {
    /// The network's number for a voxel of `hounsfield` units.
    pub fn apply(&self, hounsfield: f32) -> f32 {
        let inside = ((hounsfield - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        (inside - self.shift) * self.scale
    }

    /// The network's number for air, which also surrounds a slice that is not square.
    pub fn air(&self) -> f32 {
        -self.shift * self.scale
    }
}

/// Says whether slices of `size` x `size` pixels can go through the network, which halves them four times.
///
/// # Errors
/// If `size` is 0 or not a multiple of [`SIZE_MULTIPLE`].
pub fn check_size(size: usize) -> Result<()> {
    match size > 0 && size.is_multiple_of(SIZE_MULTIPLE) {
        true => Ok(()),
        false => Err(Error::Invalid(format!(
            "size {size}: the network halves a slice four times, so its size must be a multiple of {SIZE_MULTIPLE}, such as {}",
            size.next_multiple_of(SIZE_MULTIPLE).max(SIZE_MULTIPLE)
        ))),
    }
}
