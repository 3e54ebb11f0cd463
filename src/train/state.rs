//! Where a run stands between two batches: with the weights and moments, all that continuing it needs.

use super::adl::LossRecords;
use crate::model::LossScale;
use serde::{Deserialize, Serialize};

/// A run's position and memory. Order and turns of the slices follow from the seed and the epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The epoch that is being trained, from 1; one more than the settings ask for when the run is over.
    pub epoch: u64,
    /// Batches of it that are done.
    pub batch: usize,
    /// Optimizer steps done.
    pub steps: u64,
    /// Sum of the epoch's batch losses so far, and slices trained on.
    pub loss_sum: f64,
    pub images: u64,
    /// Of the epoch's steps so far, those that changed nothing; see [`super::EpochRecord::skipped_steps`].
    pub skipped_steps: u64,
    /// 0 before the first.
    pub best_epoch: u64,
    pub best_val_dice: Option<f64>,
    /// Of each learner.
    pub learners: Vec<LearnerState>,
}

/// What a run knows of the training slices from one learner. All lists run over the training slices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LearnerState {
    pub records: LossRecords,
    /// The weight of each slice in this epoch; those of weight 0 are left out.
    pub weights: Vec<f32>,
    /// What the loss is scaled by, where it is.
    pub loss_scale: Option<LossScale>,
}

impl LearnerState {
    /// Whether all lists are of as many slices.
    pub fn is_whole(&self) -> bool {
        let LossRecords { last, displacement, removed, times_left_out } = &self.records;
        let slices = self.weights.len();
        [last.len(), displacement.len(), removed.len(), times_left_out.len()] == [slices; 4]
    }
}

impl State {
    /// The beginning of a run with so many learners and training slices.
    pub fn new(learners: usize, slices: usize) -> Self {
        let learner = LearnerState { records: LossRecords::new(slices), weights: vec![1.0; slices], loss_scale: None };
        State {
            epoch: 1,
            batch: 0,
            steps: 0,
            loss_sum: 0.0,
            images: 0,
            skipped_steps: 0,
            best_epoch: 0,
            best_val_dice: None,
            learners: vec![learner; learners],
        }
    }
}
