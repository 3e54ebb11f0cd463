//! Looks at a data set's cases for everything that is wrong with them, without keeping a volume in memory.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::dataset::{Case, Dataset, MaskCheck, mismatch, undefined_voxel};
use super::inspect::{CaseInspection, DatasetInspection};
use super::labels::{Labels, listed};
use super::source::whole;
use super::volume::Reorientation;
use super::{Geometry, Source, open};
use crate::{Error, Result};

/// What a CT's values lie between, paddings and metal included: at most 0 somewhere, bone somewhere.
const LOWEST: f64 = -4096.0;
const HIGHEST: f64 = 32767.0;
const BONE: f64 = 200.0;

/// A case's description, if both its files could be read, and what is wrong with it.
#[derive(Default)]
struct Findings {
    case: Option<CaseInspection>,
    /// What stops training.
    problems: Vec<String>,
    /// What does not.
    warnings: Vec<String>,
}

/// Looks at all cases of a data set.
pub(super) fn examine(dataset: &Dataset, mut problems: Vec<String>, foreground: &Labels) -> DatasetInspection {
    let examined: Vec<Findings> =
        dataset.cases.par_iter().map(|case| examine_case(dataset, case, foreground)).collect();
    let (mut cases, mut warnings) = (Vec::new(), Vec::new());
    let mut labels = BTreeMap::<i64, u64>::new();
    let mut any_foreground = dataset.cases.is_empty();
    for (case, findings) in dataset.cases.iter().zip(examined) {
        problems.extend(findings.problems);
        warnings.extend(findings.warnings);
        let Some(description) = findings.case else { continue };
        let wanted = foreground.in_mask(&case.mask);
        any_foreground |= description.labels.keys().any(|&label| wanted.contains(label));
        description.labels.iter().for_each(|(&label, &count)| *labels.entry(label).or_default() += count);
        cases.push(description);
    }
    if !any_foreground && !cases.is_empty() {
        let listed = listed(labels.keys().copied());
        problems.push(format!("no mask has {} (they have {listed}): there is nothing to learn", foreground.in_words()));
    }
    DatasetInspection { format: dataset.layout.name(), cases, labels, problems, warnings }
}

fn examine_case(dataset: &Dataset, case: &Case, foreground: &Labels) -> Findings {
    let mut findings = Findings::default();
    let image = findings.told(open(&case.image));
    let mask = findings.told(open(&case.mask));
    if let (Some(image), Some(mask)) = (&image, &mask) {
        findings.problems.extend(mismatch(case, image.geometry(), mask.geometry()).map(|error| error.to_string()));
    }
    for (source, path) in [(&image, &case.image), (&mask, &case.mask)] {
        let notes = source.iter().flat_map(|source| &source.header().notes);
        findings.warnings.extend(notes.map(|note| Error::file(path, note).to_string()));
    }
    let geometry = image.as_ref().map(|image| image.geometry().clone());
    let image_read = image.is_some_and(|image| findings.examine_image(case, image));
    let contents = mask.and_then(|mask| findings.examine_mask(dataset, case, mask, foreground));
    if let (Some(geometry), true, Some((labels, foreground_slices))) = (geometry, image_read, contents) {
        findings.case = Some(CaseInspection {
            name: case.name.clone(),
            shape: geometry.shape,
            spacing_mm: geometry.spacing(),
            orientation: geometry.orientation(),
            slices: Reorientation::to_ras_from(&geometry).ras().shape[2],
            foreground_slices,
            labels,
        });
    }
    findings
}

impl Findings {
    /// The value, if there is one; the error is a problem.
    fn told<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.problems.push(error.to_string())).ok()
    }

    /// Whether the image could be read to its end.
    fn examine_image(&mut self, case: &Case, mut image: Source) -> bool {
        let shape = image.geometry().shape;
        let mut range = (f64::INFINITY, f64::NEG_INFINITY);
        let mut undefined = Repeated::default();
        let read = image.for_each_block(|first, block| {
            for (offset, &value) in block.iter().enumerate() {
                match (value as f32).is_finite() {
                    true => range = (range.0.min(value), range.1.max(value)),
                    false => undefined.tell(1, || undefined_voxel(&case.image, shape, first + offset, value)),
                }
            }
            Ok(())
        });
        let read = self.told(read).is_some();
        self.problems.extend(undefined.line());
        let (low, high) = range;
        let plausible = (LOWEST..0.0).contains(&low) && (BONE..=HIGHEST).contains(&high);
        if read && low <= high && !plausible {
            self.warnings.push(
                Error::file(
                    &case.image,
                    format!(
                        "holds values from {low} to {high}, which are no Hounsfield units of a body (air is about -1000, \
                         bone from 200 to 2000): is a slope or intercept missing, or was it normalised?"
                    ),
                )
                .to_string(),
            );
        }
        read
    }

    /// The mask's labels with their voxels, and how many axial slices have foreground, if it could be read to its end.
    fn examine_mask(
        &mut self,
        dataset: &Dataset,
        case: &Case,
        mut mask: Source,
        foreground: &Labels,
    ) -> Option<(BTreeMap<i64, u64>, usize)> {
        let foreground = foreground.in_mask(&case.mask);
        let geometry = mask.geometry().clone();
        let check = MaskCheck::new(dataset, case, geometry.shape);
        let axial = AxialPlaces::new(&geometry);
        let mut labels = BTreeMap::<i64, u64>::new();
        let mut marked = vec![false; axial.count];
        let mut broken = Repeated::default();
        let mut undeclared = BTreeMap::<i64, Repeated>::new();
        let read = mask.for_each_run(|run, value| {
            let Some(label) = whole(value) else {
                broken.tell(run.len(), || check.not_whole(run.start, value));
                return Ok(());
            };
            *labels.entry(label).or_default() += run.len() as u64;
            if !check.is_declared(label) {
                undeclared.entry(label).or_default().tell(run.len(), || check.undeclared(run.start, label));
            }
            if foreground.contains(label) {
                run.for_each(|index| marked[axial.of(index)] = true);
            }
            Ok(())
        });
        let read = self.told(read);
        self.problems.extend(broken.line());
        self.problems.extend(undeclared.into_values().filter_map(Repeated::line));
        read?;
        if !marked.contains(&true) {
            let message = format!("is empty: no voxel has {}", foreground.in_words());
            self.warnings.push(Error::file(&case.mask, message).to_string());
        }
        Some((labels, marked.into_iter().filter(|&marked| marked).count()))
    }
}

/// One complaint about many voxels: the first one's, and how many there are.
#[derive(Default)]
struct Repeated {
    first: Option<Error>,
    count: usize,
}

impl Repeated {
    fn tell(&mut self, voxels: usize, complaint: impl FnOnce() -> Error) {
        self.count += voxels;
        if self.first.is_none() {
            self.first = Some(complaint());
        }
    }

    fn line(self) -> Option<String> {
        let more = match self.count {
            0 | 1 => String::new(),
            count => format!(" ({count} such voxels)"),
        };
        self.first.map(|first| format!("{first}{more}"))
    }
}

/// Which axial slice a voxel lies in, whatever the storage order.
struct AxialPlaces {
    count: usize,
    /// Voxels in memory from one slice to the next.
    stride: usize,
}

impl AxialPlaces {
    fn new(geometry: &Geometry) -> Self {
        let axis = Reorientation::to_ras_from(geometry).axial_axis();
        AxialPlaces { count: geometry.shape[axis], stride: geometry.shape[..axis].iter().product() }
    }

    fn of(&self, index: usize) -> usize {
        index / self.stride % self.count
    }
}
