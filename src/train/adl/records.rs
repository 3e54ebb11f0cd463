//! What is remembered of each training slice's loss.

use serde::{Deserialize, Serialize};

/// Loss records of one learner; all lists run over the training slices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossRecords {
    /// The Dice loss in the last epoch that saw the slice, whether it was trained on or only scored; 0 before.
    pub last: Vec<f32>,
    /// How far the mask's outline lies from the predicted one, on average, in pixels: what mask and probabilities
    /// differ in, summed over the pixels, for each pixel of their outlines (the mean of both, so that masks too
    /// large and too small are judged alike). Unlike the loss, it means the same
    /// for small masks as for large ones. 0 before a slice is scored.
    pub displacement: Vec<f32>,
    /// The epoch in which the cumulative reading removed the slice; 0 if it did not.
    pub removed: Vec<u64>,
    /// In how many epochs the slice was left out.
    pub times_left_out: Vec<u64>,
}

impl LossRecords {
    /// Records of `slices` slices that no epoch has seen.
    pub fn new(slices: usize) -> Self {
        LossRecords {
            last: vec![0.0; slices],
            displacement: vec![0.0; slices],
            removed: vec![0; slices],
            times_left_out: vec![0; slices],
        }
    }
}
