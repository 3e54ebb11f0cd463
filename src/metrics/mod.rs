//! Metrics of a predicted mask against a reference mask: the columns of the paper's Tables 1 to 3
//! and 5, exact, for each axial slice (2D, pixels) and for the volume (3D, millimetres).
//!
//! Masks are slices of `bool`, x fastest, then y, then z. A volume of one slice is a 2D case.
//! What a division by zero or an empty mask leaves undefined is [`Metric::Undefined`] with its
//! reason: never 0, NaN or a perfect score, and never part of a mean.
//!
//! [`overlap`] counts voxels, [`surface`] measures distances, [`boundary`] compares the masks near
//! their boundaries, [`summary`] and [`wilcoxon`] look at many cases, and [`evaluation`] prints them.

pub mod boundary;
pub mod distance;
pub mod evaluation;
pub mod overlap;
pub mod pair;
pub mod summary;
pub mod surface;
pub mod wilcoxon;

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::ser::{Serialize, SerializeMap, Serializer};

pub use evaluation::Evaluation;
pub use overlap::Counts;

use crate::{Error, Result};
use boundary::BoundaryOverlap;
use pair::MaskPair;
use summary::Tally;
use surface::SurfaceDistances;

/// The radius, in city-block steps, of the neighbourhood in [`boundary`] unless another is asked for.
pub const NEIGHBOURHOOD_RADIUS: usize = 1;

/// Spacings in millimetres beyond these bounds are mistakes; within them no square overflows.
const SPACING_BOUNDS: std::ops::RangeInclusive<f64> = 1e-6..=1e6;

/// A figure, or the reason why there is none. Serializes as a number or null.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Metric {
    Value(f64),
    Undefined(&'static str),
}

impl Metric {
    /// `numerator / denominator`, or undefined for `reason` where the denominator is 0.
    pub(crate) fn ratio(numerator: f64, denominator: f64, reason: &'static str) -> Self {
        if denominator == 0.0 { Metric::Undefined(reason) } else { Metric::Value(numerator / denominator) }
    }

    /// The figure, if there is one.
    pub fn value(self) -> Option<f64> {
        match self {
            Metric::Value(value) => Some(value),
            Metric::Undefined(_) => None,
        }
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.value().serialize(serializer)
    }
}

/// Why nothing can be measured between two masks of which one or both are empty, if so.
pub(crate) fn emptiness(prediction_is_empty: bool, reference_is_empty: bool) -> Option<&'static str> {
    match (prediction_is_empty, reference_is_empty) {
        (true, true) => Some("both masks are empty"),
        (true, false) => Some("the prediction is empty"),
        (false, true) => Some("the reference is empty"),
        (false, false) => None,
    }
}

/// Every metric of one 2D or 3D case. Serializes as one key a metric, and `undefined`: key to reason.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// 2 TP / (2 TP + FP + FN)
    pub dice: Metric,
    /// TP / (TP + FP + FN)
    pub iou: Metric,
    /// (TP + TN) / all
    pub accuracy: Metric,
    /// TP / (TP + FP)
    pub precision: Metric,
    /// TP / (TP + FN), also called sensitivity
    pub recall: Metric,
    /// TN / (TN + FP)
    pub specificity: Metric,
    /// (|prediction| - |reference|) / |reference|
    pub rvd: Metric,
    /// The absolute value of `rvd`.
    pub rvd_absolute: Metric,
    /// Hausdorff distance, in the spacing's unit.
    pub hd: Metric,
    /// 95th percentile of the distances between the boundaries, in the spacing's unit.
    pub hd95: Metric,
    /// Average symmetric surface distance, in the spacing's unit.
    pub assd: Metric,
    /// Directed boundary Dice relative to the reference (equation 6).
    pub dbd_g: Metric,
    /// Directed boundary Dice relative to the prediction.
    pub dbd_m: Metric,
    /// Symmetric boundary Dice (equation 7).
    pub sbd: Metric,
}

impl Metrics {
    /// How many metrics there are.
    pub const COUNT: usize = 14;

    /// The metrics' names, in the order of [`Metrics::values`].
    pub const NAMES: [&str; Metrics::COUNT] = [
        "dice",
        "iou",
        "accuracy",
        "precision",
        "recall",
        "specificity",
        "rvd",
        "rvd_absolute",
        "hd",
        "hd95",
        "assd",
        "dbd_g",
        "dbd_m",
        "sbd",
    ];

    /// The metrics in the order of [`Metrics::NAMES`].
    pub fn values(&self) -> [Metric; Metrics::COUNT] {
        [
            self.dice,
            self.iou,
            self.accuracy,
            self.precision,
            self.recall,
            self.specificity,
            self.rvd,
            self.rvd_absolute,
            self.hd,
            self.hd95,
            self.assd,
            self.dbd_g,
            self.dbd_m,
            self.sbd,
        ]
    }
}

impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let mut undefined = BTreeMap::new();
        for (name, value) in Metrics::NAMES.into_iter().zip(self.values()) {
            map.serialize_entry(name, &value)?;
            if let Metric::Undefined(reason) = value {
                undefined.insert(name, reason);
            }
        }
        map.serialize_entry("undefined", &undefined)?;
        map.end()
    }
}

/// The metrics of every axial slice of a volume, in pixels. Serializes as one key a metric with its
/// mean over the slices where it is defined, `count`: the number of slices, and `undefined`: key to
/// reason to number of slices.
#[derive(Debug, Clone, PartialEq)]
pub struct SliceMetrics {
    /// One entry a slice, from slice 0 on.
    pub per_slice: Vec<Metrics>,
}

impl Serialize for SliceMetrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let mut undefined = BTreeMap::new();
        for (name, tally) in Metrics::NAMES.into_iter().zip(Tally::of_each(&self.per_slice)) {
            map.serialize_entry(name, &tally.mean())?;
            if !tally.undefined.is_empty() {
                undefined.insert(name, tally.undefined);
            }
        }
        map.serialize_entry("count", &self.per_slice.len())?;
        map.serialize_entry("undefined", &undefined)?;
        map.end()
    }
}

/// The metrics of one case, slice by slice and as a volume.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct CaseMetrics {
    /// 2D, in pixels.
    pub slices: SliceMetrics,
    /// 3D, in millimetres.
    pub volume: Metrics,
}

/// Both [`evaluate_slices`] and [`evaluate_volume`].
///
/// # Errors
/// If the masks do not fill `shape`, or a spacing is no length.
pub fn evaluate_case(
    prediction: &[bool],
    reference: &[bool],
    shape: [usize; 3],
    spacing_mm: [f64; 3],
    radius: usize,
) -> Result<CaseMetrics> {
    Ok(CaseMetrics {
        slices: evaluate_slices(prediction, reference, shape, radius)?,
        volume: evaluate_volume(prediction, reference, shape, spacing_mm, radius)?,
    })
}

/// The metrics of every axial slice of two masks of `shape` [x, y, z], in pixels; `radius` is that
/// of the neighbourhood in [`boundary`].
///
/// # Errors
/// If the masks do not fill `shape`.
pub fn evaluate_slices(
    prediction: &[bool],
    reference: &[bool],
    shape: [usize; 3],
    radius: usize,
) -> Result<SliceMetrics> {
    check_shape(prediction, reference, shape)?;
    let [x, y, _] = shape;
    let per_slice = prediction
        .par_chunks(x * y)
        .zip(reference.par_chunks(x * y))
        .map(|(prediction, reference)| evaluate_volume(prediction, reference, [x, y, 1], [1.0; 3], radius))
        .collect::<Result<_>>()?;
    Ok(SliceMetrics { per_slice })
}

/// The metrics of two masks of `shape` [x, y, z] whose voxels lie `spacing_mm` millimetres apart;
/// `radius` is that of the neighbourhood in [`boundary`]. One slice is a 2D case.
///
/// # Errors
/// If the masks do not fill `shape`, or a spacing is no length.
pub fn evaluate_volume(
    prediction: &[bool],
    reference: &[bool],
    shape: [usize; 3],
    spacing_mm: [f64; 3],
    radius: usize,
) -> Result<Metrics> {
    check_shape(prediction, reference, shape)?;
    if let Some(spacing) = spacing_mm.iter().find(|spacing| !SPACING_BOUNDS.contains(*spacing)) {
        return Err(Error::Invalid(format!("a voxel spacing of {spacing} mm: correct the volume's header")));
    }
    let counts = Counts::of(prediction, reference)?;
    let pair = MaskPair::new(prediction, reference, shape);
    let SurfaceDistances { hd, hd95, assd } = SurfaceDistances::of(&pair, spacing_mm);
    let BoundaryOverlap { dbd_g, dbd_m, sbd } = BoundaryOverlap::of(&pair, radius);
    Ok(Metrics {
        dice: counts.dice(),
        iou: counts.iou(),
        accuracy: counts.accuracy(),
        precision: counts.precision(),
        recall: counts.recall(),
        specificity: counts.specificity(),
        rvd: counts.rvd(),
        rvd_absolute: counts.rvd_absolute(),
        hd,
        hd95,
        assd,
        dbd_g,
        dbd_m,
        sbd,
    })
}

fn check_shape(prediction: &[bool], reference: &[bool], shape: [usize; 3]) -> Result<()> {
    let voxels = shape.iter().try_fold(1usize, |product, &length| product.checked_mul(length));
    if voxels.is_some_and(|voxels| voxels > 0 && voxels == prediction.len() && voxels == reference.len()) {
        return Ok(());
    }
    let [x, y, z] = shape;
    Err(Error::shape(
        "evaluate",
        format!(
            "a prediction of {} voxels and a reference of {} on a grid of {x} x {y} x {z}: give two masks on one grid",
            prediction.len(),
            reference.len()
        ),
    ))
}
