//! What a scan or a data set holds, without keeping it in memory.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::dataset::Dataset;
use super::examine::examine;
use super::labels::Labels;
use super::source::{Source, whole};
use super::{dicom, layout, open_series};
use crate::Result;

/// Distinct labels above which a scan of whole numbers is taken for an image, not a mask.
const MOST_LABELS: usize = 256;

/// What `inspect` prints: a volume or a data set.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Inspection {
    Volume(Box<VolumeInspection>),
    Dataset(DatasetInspection),
}

/// A volume's geometry and contents.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VolumeInspection {
    pub format: &'static str,
    /// Voxels along x, y, z as stored.
    pub shape: [usize; 3],
    pub spacing_mm: [f64; 3],
    /// As nibabel's aff2axcodes.
    pub orientation: String,
    /// From voxel indices to RAS+ millimetres.
    pub affine: [[f64; 4]; 4],
    /// The stored number type, as numpy names it.
    pub dtype: &'static str,
    /// Over the finite voxels, after slope and intercept; null if there are none.
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub mean: Option<f64>,
    /// Voxels that are NaN or infinite.
    pub undefined: u64,
    /// For a mask (whole numbers from 0, at most 256 different ones): each label and its number of voxels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<i64, u64>>,
    /// What a person should know of how the file was read.
    pub notes: Vec<String>,
}

/// A data set's cases, and whatever would stop training on it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatasetInspection {
    pub format: &'static str,
    pub cases: Vec<CaseInspection>,
    /// Every label and the number of its voxels, over all cases that could be read.
    pub labels: BTreeMap<i64, u64>,
    /// A line for each thing that would stop training; none if it can be trained on.
    pub problems: Vec<String>,
    /// A line for each thing that does not, but should be looked at.
    pub warnings: Vec<String>,
}

/// A case of a data set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CaseInspection {
    pub name: String,
    pub shape: [usize; 3],
    pub spacing_mm: [f64; 3],
    pub orientation: String,
    /// Axial slices, and those of them with foreground.
    pub slices: usize,
    pub foreground_slices: usize,
    pub labels: BTreeMap<i64, u64>,
}

/// Looks at a scan (a file or a folder of DICOM slices), or at a data set.
///
/// # Errors
/// If it is neither, or a scan that cannot be read.
pub fn inspect(path: &Path) -> Result<Inspection> {
    inspect_with(path, &Labels::default(), None)
}

/// As [`inspect`], with these labels as a data set's foreground, or of this series of a DICOM folder.
///
/// # Errors
/// As [`inspect`], or if there is no such series.
pub fn inspect_with(path: &Path, foreground: &Labels, series: Option<&str>) -> Result<Inspection> {
    match series.is_none() && path.is_dir() && (layout::recognises(path) || !dicom::is_series(path)) {
        true => {
            let (dataset, problems) = Dataset::survey(path)?;
            Ok(Inspection::Dataset(examine(&dataset, problems, foreground)))
        }
        false => inspect_volume(open_series(path, series)?).map(|volume| Inspection::Volume(Box::new(volume))),
    }
}

fn inspect_volume(mut source: Source) -> Result<VolumeInspection> {
    let mut range = (f64::INFINITY, f64::NEG_INFINITY);
    let (mut sum, mut undefined, mut count) = (0.0, 0, 0u64);
    let mut labels = Some(BTreeMap::<i64, u64>::new());
    source.for_each_block(|_, block| {
        // Block sums first: fewer roundings than one long sum.
        let mut block_sum = 0.0;
        for &value in block {
            if !value.is_finite() {
                undefined += 1;
                labels = None;
                continue;
            }
            range = (range.0.min(value), range.1.max(value));
            block_sum += value;
            count += 1;
            if let Some(counts) = &mut labels {
                match whole(value) {
                    Some(label) if label >= 0 && (counts.len() < MOST_LABELS || counts.contains_key(&label)) => {
                        *counts.entry(label).or_default() += 1;
                    }
                    _ => labels = None,
                }
            }
        }
        sum += block_sum;
        Ok(())
    })?;
    let geometry = source.geometry();
    let some = |value: f64| (count > 0).then_some(value);
    Ok(VolumeInspection {
        format: source.header().format.name(),
        shape: geometry.shape,
        spacing_mm: geometry.spacing(),
        orientation: geometry.orientation(),
        affine: geometry.affine,
        dtype: source.header().dtype.name(),
        min: some(range.0),
        max: some(range.1),
        mean: some(sum / count as f64),
        undefined,
        labels,
        notes: source.header().notes.clone(),
    })
}
