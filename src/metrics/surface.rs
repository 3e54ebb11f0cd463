//! Distances between the boundaries of two masks (the paper's Table 2), as medpy defines them.

use super::distance::distances;
use super::pair::{MaskPair, PREDICTION, PREDICTION_BOUNDARY, REFERENCE, REFERENCE_BOUNDARY};
use super::summary::quantile;
use super::{Metric, emptiness};

/// Distances between two boundaries, in the unit of the spacing; undefined if a mask is empty.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SurfaceDistances {
    /// The Hausdorff distance: the larger of the two directed maxima.
    pub hd: Metric,
    /// The 95th percentile of both directed sets of distances together.
    pub hd95: Metric,
    /// The average symmetric surface distance: the mean of both sets together.
    pub assd: Metric,
}

impl SurfaceDistances {
    /// The distances of a pair whose voxels lie `spacing` apart along x, y and z.
    pub fn of(pair: &MaskPair, spacing: [f64; 3]) -> Self {
        if let Some(reason) = emptiness(!pair.has(PREDICTION), !pair.has(REFERENCE)) {
            let undefined = Metric::Undefined(reason);
            return SurfaceDistances { hd: undefined, hd95: undefined, assd: undefined };
        }
        let between = |sites, queries| distances(&pair.flags, pair.shape, spacing, sites, queries);
        let mut both = between(REFERENCE_BOUNDARY, PREDICTION_BOUNDARY);
        both.extend(between(PREDICTION_BOUNDARY, REFERENCE_BOUNDARY));
        SurfaceDistances {
            hd: Metric::Value(both.iter().copied().fold(0.0, f64::max)),
            assd: Metric::Value(both.iter().sum::<f64>() / both.len() as f64),
            hd95: Metric::Value(quantile(&mut both, 0.95)),
        }
    }
}
