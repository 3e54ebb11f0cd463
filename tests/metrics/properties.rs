//! What holds for any pair of masks.

use proptest::prelude::*;
use rarunet_cuda::metrics::{CaseMetrics, Metric, Metrics, evaluate_case, evaluate_volume};

#[derive(Debug, Clone)]
struct Masks {
    prediction: Vec<bool>,
    reference: Vec<bool>,
    shape: [usize; 3],
    spacing: [f64; 3],
    radius: usize,
}

impl Masks {
    fn evaluate(&self) -> Metrics {
        evaluate_volume(&self.prediction, &self.reference, self.shape, self.spacing, self.radius).unwrap()
    }

    fn evaluate_case(&self) -> CaseMetrics {
        evaluate_case(&self.prediction, &self.reference, self.shape, self.spacing, self.radius).unwrap()
    }

    /// The same masks on a grid with empty `margins` before and after them on each axis.
    fn padded(&self, margins: [[usize; 2]; 3]) -> Masks {
        let shape: [usize; 3] = std::array::from_fn(|axis| self.shape[axis] + margins[axis][0] + margins[axis][1]);
        let pad = |mask: &[bool]| {
            let mut padded = vec![false; shape.iter().product()];
            let (columns, rows) = (self.shape[0], self.shape[1]);
            for (index, &voxel) in mask.iter().enumerate() {
                let at = [index % columns, index / columns % rows, index / columns / rows];
                let [x, y, z]: [usize; 3] = std::array::from_fn(|axis| at[axis] + margins[axis][0]);
                padded[(z * shape[1] + y) * shape[0] + x] = voxel;
            }
            padded
        };
        Masks { prediction: pad(&self.prediction), reference: pad(&self.reference), shape, ..self.clone() }
    }
}

/// Masks from sparse to dense, 2D and 3D.
fn masks() -> impl Strategy<Value = Masks> {
    let shape = [1usize..12, 1..12, 1..8];
    (shape, [0.0f64..1.0, 0.0..1.0], [0.1f64..10.0, 0.1..10.0, 0.1..10.0], 0usize..4).prop_flat_map(
        |(shape, [predicted, referred], spacing, radius)| {
            let mask = |share| prop::collection::vec(prop::bool::weighted(share), shape.iter().product::<usize>());
            (mask(predicted), mask(referred)).prop_map(move |(prediction, reference)| Masks {
                prediction,
                reference,
                shape,
                spacing,
                radius,
            })
        },
    )
}

fn close(first: Metric, second: Metric) -> bool {
    match (first, second) {
        (Metric::Value(first), Metric::Value(second)) => (first - second).abs() <= 1e-9 * (1.0 + first.abs()),
        (first, second) => first == second,
    }
}

fn scaled(metric: Metric, factor: f64) -> Metric {
    match metric {
        Metric::Value(value) => Metric::Value(value * factor),
        undefined => undefined,
    }
}

proptest! {
    #[test]
    fn swapping_the_masks(masks in masks()) {
        let swapped = Masks { prediction: masks.reference.clone(), reference: masks.prediction.clone(), ..masks.clone() };
        let (one, other) = (masks.evaluate(), swapped.evaluate());
        let equal = |one: Metric, other: Metric| match (one, other) {
            // The reasons name the other mask.
            (Metric::Undefined(_), Metric::Undefined(_)) => true,
            (one, other) => close(one, other),
        };
        prop_assert!(equal(one.dice, other.dice) && equal(one.iou, other.iou) && equal(one.accuracy, other.accuracy));
        prop_assert!(equal(one.hd, other.hd) && equal(one.hd95, other.hd95) && equal(one.assd, other.assd));
        prop_assert!(equal(one.precision, other.recall) && equal(one.recall, other.precision));
        prop_assert!(equal(one.dbd_g, other.dbd_m) && equal(one.dbd_m, other.dbd_g) && equal(one.sbd, other.sbd));
    }

    #[test]
    fn a_mask_against_itself(masks in masks()) {
        let same = Masks { prediction: masks.reference.clone(), ..masks }.evaluate();
        let perfect = [same.dice, same.iou, same.precision, same.recall, same.dbd_g, same.dbd_m, same.sbd];
        let zero = [same.rvd, same.rvd_absolute, same.hd, same.hd95, same.assd];
        if same.dice.value().is_some() {
            prop_assert_eq!(perfect, [Metric::Value(1.0); 7]);
            prop_assert_eq!(zero, [Metric::Value(0.0); 5]);
        } else {
            prop_assert!(perfect.iter().chain(&zero).all(|metric| *metric == Metric::Undefined("both masks are empty")));
        }
        prop_assert_eq!(same.accuracy, Metric::Value(1.0));
    }

    #[test]
    fn moving_both_masks(masks in masks(), before in [0usize..4, 0..4, 0..4], after in [0usize..4, 0..4, 0..4]) {
        // A volume of one slice must stay one.
        let depth = |margin| if masks.shape[2] == 1 { 0 } else { margin };
        let moved = masks.padded([[before[0], after[0]], [before[1], after[1]], [depth(before[2]), depth(after[2])]]);
        let (here, there) = (masks.evaluate().values(), moved.evaluate().values());
        for ((name, here), there) in Metrics::NAMES.into_iter().zip(here).zip(there) {
            // Only these two see the background.
            if name != "accuracy" && name != "specificity" {
                prop_assert_eq!(here, there, "{}", name);
            }
        }
    }

    #[test]
    fn scaling_the_spacing_scales_distances(masks in masks(), factor in 0.01f64..100.0) {
        let larger = Masks { spacing: masks.spacing.map(|step| step * factor), ..masks.clone() };
        let (one, other) = (masks.evaluate(), larger.evaluate());
        for (name, (one, other)) in Metrics::NAMES.into_iter().zip(one.values().into_iter().zip(other.values())) {
            let factor = if ["hd", "hd95", "assd"].contains(&name) { factor } else { 1.0 };
            prop_assert!(close(scaled(one, factor), other), "{}: {:?} and {:?}", name, one, other);
        }
    }

    #[test]
    fn figures_are_within_bounds_and_ordered(masks in masks()) {
        let metrics = masks.evaluate();
        let shares = [metrics.dice, metrics.iou, metrics.accuracy, metrics.precision, metrics.recall];
        let shares = shares.into_iter().chain([metrics.specificity, metrics.dbd_g, metrics.dbd_m, metrics.sbd]);
        prop_assert!(shares.filter_map(Metric::value).all(|share| (0.0..=1.0).contains(&share)));
        if let [Some(dice), Some(iou)] = [metrics.dice.value(), metrics.iou.value()] {
            prop_assert!((dice - 2.0 * iou / (1.0 + iou)).abs() < 1e-12);
        }
        if let [Some(hd), Some(hd95), Some(assd)] = [metrics.hd, metrics.hd95, metrics.assd].map(Metric::value) {
            prop_assert!(0.0 <= assd && assd <= hd * (1.0 + 1e-12) && hd95 <= hd);
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit(masks in masks()) {
        let with_threads = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| masks.evaluate_case())
        };
        prop_assert_eq!(with_threads(1), with_threads(5));
    }
}
