//! The metrics against medpy and scipy (fixtures made by make_pairs.py), against definitions
//! written out voxel by voxel, and against what must hold for any pair of masks.

mod definitions;
mod printing;
mod properties;
mod statistics;

use rarunet_cuda::metrics::{Metric, Metrics, NEIGHBOURHOOD_RADIUS, evaluate_slices, evaluate_volume};
use serde::Deserialize;

/// One entry of pairs.json.
#[derive(Deserialize)]
struct Pair {
    kind: String,
    shape: [usize; 3],
    spacing: [f64; 3],
    prediction: String,
    reference: String,
    metrics: serde_json::Map<String, serde_json::Value>,
}

impl Pair {
    fn all() -> Vec<Pair> {
        serde_json::from_str(include_str!("pairs.json")).unwrap()
    }

    fn masks(&self) -> (Vec<bool>, Vec<bool>) {
        (self.unpack(&self.prediction), self.unpack(&self.reference))
    }

    fn unpack(&self, hexadecimal: &str) -> Vec<bool> {
        let digits = hexadecimal.chars().map(|digit| digit.to_digit(16).unwrap());
        let mut voxels: Vec<bool> = digits.flat_map(|digit| [8, 4, 2, 1].map(|bit| digit & bit != 0)).collect();
        let count = self.shape.iter().product();
        assert!(voxels[count..].iter().all(|padding| !padding));
        voxels.truncate(count);
        voxels
    }

    fn evaluate(&self) -> Metrics {
        let (prediction, reference) = self.masks();
        evaluate_volume(&prediction, &reference, self.shape, self.spacing, NEIGHBOURHOOD_RADIUS).unwrap()
    }
}

/// Asserts that two figures are equal to 1e-6, or both undefined.
#[track_caller]
fn assert_close(measured: Metric, expected: Option<f64>, what: &str) {
    match (measured, expected) {
        (Metric::Value(measured), Some(expected)) => {
            assert!((measured - expected).abs() <= 1e-6, "{what}: {measured}, expected {expected}");
        }
        (Metric::Undefined(reason), None) => assert!(!reason.is_empty(), "{what}: undefined for no reason"),
        (measured, expected) => panic!("{what}: {measured:?}, expected {expected:?}"),
    }
}

fn named(metrics: &Metrics, name: &str) -> Metric {
    let index = Metrics::NAMES.iter().position(|known| *known == name).unwrap();
    metrics.values()[index]
}

#[test]
fn pairs_agree_with_medpy() {
    let pairs = Pair::all();
    assert!(pairs.len() >= 200);
    for (index, pair) in pairs.iter().enumerate() {
        let measured = pair.evaluate();
        assert_eq!(pair.metrics.len(), 11);
        for (name, expected) in &pair.metrics {
            assert_close(named(&measured, name), expected.as_f64(), &format!("pair {index} ({}): {name}", pair.kind));
        }
    }
}

#[test]
fn slices_in_pixels_agree_with_medpy() {
    let mut compared = 0;
    for pair in Pair::all().iter().filter(|pair| pair.shape[2] == 1 && pair.spacing == [1.0; 3]) {
        let (prediction, reference) = pair.masks();
        let slices = evaluate_slices(&prediction, &reference, pair.shape, NEIGHBOURHOOD_RADIUS).unwrap();
        assert_eq!(slices.per_slice.len(), 1);
        for (name, expected) in &pair.metrics {
            assert_close(named(&slices.per_slice[0], name), expected.as_f64(), &pair.kind);
        }
        compared += 1;
    }
    assert!(compared >= 20);
}

#[test]
fn slices_are_two_dimensional_cases() {
    for pair in Pair::all().iter().filter(|pair| pair.shape[2] > 1) {
        let (prediction, reference) = pair.masks();
        let [x, y, z] = pair.shape;
        let slices = evaluate_slices(&prediction, &reference, pair.shape, 2).unwrap().per_slice;
        assert_eq!(slices.len(), z);
        for (index, measured) in slices.iter().enumerate() {
            let voxels = index * x * y..(index + 1) * x * y;
            let alone = evaluate_volume(&prediction[voxels.clone()], &reference[voxels], [x, y, 1], [1.0; 3], 2);
            assert_eq!(*measured, alone.unwrap());
        }
    }
}
