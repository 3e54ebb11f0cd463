//! Metrics from the confusion counts alone: Dice, IoU, accuracy, precision, recall, specificity
//! (the paper's Tables 1 and 5) and the relative volume difference (Table 2). Cheap enough for
//! validation during training: counts of several masks add up.

use std::iter::Sum;
use std::ops::Add;

use rayon::prelude::*;

use super::{Metric, emptiness};
use crate::{Error, Result};

/// Voxels counted at a time: small enough for u32 sums, which vectorize, and for both caches.
const CHUNK: usize = 1 << 16;

/// How often prediction and reference agree and differ, in voxels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub true_positives: u64,
    pub false_positives: u64,
    pub false_negatives: u64,
    pub true_negatives: u64,
}

impl Counts {
    /// The counts of two masks, voxel by voxel.
    ///
    /// # Errors
    /// If the masks differ in length.
    pub fn of(prediction: &[bool], reference: &[bool]) -> Result<Self> {
        if prediction.len() != reference.len() {
            let message = format!("the prediction has {} voxels, the reference {}", prediction.len(), reference.len());
            return Err(Error::shape("evaluate", message + ": give two masks on one grid"));
        }
        Ok(prediction.par_chunks(CHUNK).zip(reference.par_chunks(CHUNK)).map(|(p, r)| Counts::of_chunk(p, r)).sum())
    }

    fn of_chunk(prediction: &[bool], reference: &[bool]) -> Self {
        let (mut both, mut predicted, mut referred) = (0u32, 0u32, 0u32);
        for (&p, &r) in prediction.iter().zip(reference) {
            both += u32::from(p & r);
            predicted += u32::from(p);
            referred += u32::from(r);
        }
        let (both, predicted, referred) = (u64::from(both), u64::from(predicted), u64::from(referred));
        Counts {
            true_positives: both,
            false_positives: predicted - both,
            false_negatives: referred - both,
            true_negatives: prediction.len() as u64 + both - predicted - referred,
        }
    }

    /// 2 TP / (2 TP + FP + FN); undefined if both masks are empty.
    pub fn dice(&self) -> Metric {
        let overlap = 2 * self.true_positives;
        self.ratio(overlap as f64, overlap + self.false_positives + self.false_negatives)
    }

    /// TP / (TP + FP + FN); undefined if both masks are empty.
    pub fn iou(&self) -> Metric {
        self.ratio(self.true_positives as f64, self.true_positives + self.false_positives + self.false_negatives)
    }

    /// (TP + TN) / all; undefined for masks of no voxels.
    pub fn accuracy(&self) -> Metric {
        let right = self.true_positives + self.true_negatives;
        Metric::ratio(
            right as f64,
            (right + self.false_positives + self.false_negatives) as f64,
            "the masks have no voxels",
        )
    }

    /// TP / (TP + FP); undefined if the prediction is empty.
    pub fn precision(&self) -> Metric {
        self.ratio(self.true_positives as f64, self.prediction_size())
    }

    /// TP / (TP + FN), also called sensitivity; undefined if the reference is empty.
    pub fn recall(&self) -> Metric {
        self.ratio(self.true_positives as f64, self.reference_size())
    }

    /// TN / (TN + FP); undefined if the reference has no background.
    pub fn specificity(&self) -> Metric {
        Metric::ratio(
            self.true_negatives as f64,
            (self.true_negatives + self.false_positives) as f64,
            "the reference has no background",
        )
    }

    /// The relative volume difference (|prediction| - |reference|) / |reference|, negative where
    /// the prediction is smaller; undefined if the reference is empty.
    pub fn rvd(&self) -> Metric {
        self.ratio(self.false_positives as f64 - self.false_negatives as f64, self.reference_size())
    }

    /// The absolute value of [`Counts::rvd`].
    pub fn rvd_absolute(&self) -> Metric {
        self.ratio(self.false_positives.abs_diff(self.false_negatives) as f64, self.reference_size())
    }

    fn prediction_size(&self) -> u64 {
        self.true_positives + self.false_positives
    }

    fn reference_size(&self) -> u64 {
        self.true_positives + self.false_negatives
    }

    /// A ratio whose denominator is 0 only if one of the masks, or both, are empty.
    fn ratio(&self, numerator: f64, denominator: u64) -> Metric {
        let reason = emptiness(self.prediction_size() == 0, self.reference_size() == 0);
        Metric::ratio(numerator, denominator as f64, reason.unwrap_or_default())
    }
}

impl Add for Counts {
    type Output = Counts;

    fn add(self, other: Counts) -> Counts {
        Counts {
            true_positives: self.true_positives + other.true_positives,
            false_positives: self.false_positives + other.false_positives,
            false_negatives: self.false_negatives + other.false_negatives,
            true_negatives: self.true_negatives + other.true_negatives,
        }
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Counts>>(counts: I) -> Counts {
        counts.fold(Counts::default(), Add::add)
    }
}
