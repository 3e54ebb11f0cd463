//! Boundary overlap (the paper's equations 6 and 7 and Table 3; V. Yeghiazaryan and I. Voiculescu,
//! Family of boundary overlap metrics for the evaluation of medical image segmentation, 2018): the
//! Dice of both masks within a small neighbourhood, averaged over a boundary. It tells how well the
//! boundaries match, which the Dice of the whole masks hides. The figures depend strongly on the
//! neighbourhood's radius, so quote it with them.

use rayon::prelude::*;

use super::pair::{MaskPair, PREDICTION, PREDICTION_BOUNDARY, REFERENCE, REFERENCE_BOUNDARY};
use super::{Metric, emptiness};

/// Means over boundary voxels x of `2 |G n M n N_x| / (|G n N_x| + |M n N_x|)`, where N_x is the von
/// Neumann neighbourhood of x: the voxels of the image at most `radius` city-block steps away.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BoundaryOverlap {
    /// Over the reference's boundary (equation 6); undefined if the reference is empty.
    pub dbd_g: Metric,
    /// Over the prediction's boundary; undefined if the prediction is empty.
    pub dbd_m: Metric,
    /// Over both, a shared voxel counted twice (equation 7); undefined if both masks are empty.
    pub sbd: Metric,
}

impl BoundaryOverlap {
    /// The boundary overlap of a pair in neighbourhoods of `radius` city-block steps.
    pub fn of(pair: &MaskPair, radius: usize) -> Self {
        let slices: Vec<_> = (0..pair.shape[2]).into_par_iter().map(|z| sums_of_slice(pair, z, radius)).collect();
        // Added up in order, so that the figures do not depend on the number of threads.
        let [g, m] = slices
            .into_iter()
            .fold([Sum::default(); 2], |[g, m], [slice_g, slice_m]| [g.plus(slice_g), m.plus(slice_m)]);
        let both = g.plus(m);
        let reason = emptiness(m.count == 0, g.count == 0).unwrap_or_default();
        let mean = |sum: Sum| Metric::ratio(sum.total, sum.count as f64, reason);
        BoundaryOverlap { dbd_g: mean(g), dbd_m: mean(m), sbd: mean(both) }
    }
}

#[derive(Clone, Copy, Default)]
struct Sum {
    total: f64,
    count: u64,
}

impl Sum {
    fn plus(self, other: Sum) -> Self {
        Sum { total: self.total + other.total, count: self.count + other.count }
    }
}

/// The sums over the reference's and the prediction's boundary in slice `z`.
fn sums_of_slice(pair: &MaskPair, z: usize, radius: usize) -> [Sum; 2] {
    let [columns, rows, _] = pair.shape;
    let mut sums = [Sum::default(); 2];
    let slice = &pair.flags[z * rows * columns..][..rows * columns];
    for (index, flags) in slice.iter().enumerate() {
        if flags & (REFERENCE_BOUNDARY | PREDICTION_BOUNDARY) == 0 {
            continue;
        }
        let dice = local_dice(pair, [index % columns, index / columns, z], radius);
        for (sum, flag) in sums.iter_mut().zip([REFERENCE_BOUNDARY, PREDICTION_BOUNDARY]) {
            if flags & flag != 0 {
                *sum = sum.plus(Sum { total: dice, count: 1 });
            }
        }
    }
    sums
}

/// The Dice of the masks within `radius` of a voxel that is in at least one of them.
fn local_dice(pair: &MaskPair, [x, y, z]: [usize; 3], radius: usize) -> f64 {
    let [columns, rows, slices] = pair.shape;
    let (mut sizes, mut overlap) = (0u64, 0u64);
    for near_z in span(z, radius, slices) {
        let left = radius - near_z.abs_diff(z);
        for near_y in span(y, left, rows) {
            let left = left - near_y.abs_diff(y);
            let row = &pair.flags[(near_z * rows + near_y) * columns..][..columns];
            for flags in &row[span(x, left, columns)] {
                let (g, m) = (u64::from(flags & REFERENCE != 0), u64::from(flags & PREDICTION != 0));
                sizes += g + m;
                overlap += g & m;
            }
        }
    }
    2.0 * overlap as f64 / sizes as f64
}

/// The positions at most `radius` from `centre` on an axis of `length`.
fn span(centre: usize, radius: usize, length: usize) -> std::ops::Range<usize> {
    centre.saturating_sub(radius)..centre.saturating_add(radius).saturating_add(1).min(length)
}
