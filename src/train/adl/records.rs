//! What is remembered of each training slice's loss.

use serde::{Deserialize, Serialize};

/// Loss records of one learner; all lists run over the training slices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossRecords {
    /// The Dice loss in the last epoch that saw the slice, whether it was trained on or only scored; 0 before.
    pub last: Vec<f32>,
    /// The epoch in which the cumulative reading removed the slice; 0 if it did not.
    pub removed: Vec<u64>,
    /// In how many epochs the slice was left out.
    pub times_left_out: Vec<u64>,
}

impl LossRecords {
    /// Records of `slices` slices that no epoch has seen.
    pub fn new(slices: usize) -> Self {
        LossRecords { last: vec![0.0; slices], removed: vec![0; slices], times_left_out: vec![0; slices] }
    }
}
