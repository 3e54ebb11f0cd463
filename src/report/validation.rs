//! How a run's network did on the validation slices when it did best: `validation/` in the run's folder has
//! `slices.csv` with each slice's confusion counts, and pictures of the best and the worst cases.

use super::{CasePictures, DISPLAY_WINDOW, overlay, spread};
use crate::data::file::write_atomically;
use crate::data::{Geometry, SliceSet, Volume};
use crate::metrics::Counts;
use crate::preprocessing::HounsfieldWindow;
use crate::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::Path;

/// Cases with pictures, half of them the best and half the worst, and pictures of each.
const PICTURED_CASES: usize = 6;
const PICTURED_SLICES: usize = 8;

/// The folder in a run's folder, and the file in it.
const FOLDER: &str = "validation";
const FILE: &str = "slices.csv";

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    epoch: u64,
    case: String,
    slice: usize,
    true_positives: u64,
    false_positives: u64,
    false_negatives: u64,
    true_negatives: u64,
}

/// A validation slice's counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidatedSlice {
    /// The slice's z in RAS order.
    pub index: usize,
    pub counts: Counts,
}

/// The validation slices of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidatedCase {
    pub name: String,
    pub slices: Vec<ValidatedSlice>,
    /// Of some slices, if the case is one of the best or the worst.
    pub pictures: Option<CasePictures>,
}

impl ValidatedCase {
    /// Over all pixels of the case's validation slices.
    pub fn counts(&self) -> Counts {
        self.slices.iter().map(|slice| slice.counts).sum()
    }

    fn dice(&self) -> Option<f64> {
        self.counts().dice().value()
    }
}

/// A run's validation slices in its best epoch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Validation {
    pub epoch: u64,
    pub cases: Vec<ValidatedCase>,
}

/// A slice of a set and its predicted mask.
#[derive(Debug, Clone)]
pub(super) struct Predicted {
    pub slice: usize,
    pub mask: Vec<u8>,
}

impl Predicted {
    fn counts(&self, set: &SliceSet) -> Result<Counts> {
        let foreground = |mask: &[u8]| mask.iter().map(|&pixel| pixel != 0).collect::<Vec<bool>>();
        Counts::of(&foreground(&self.mask), &foreground(&set.slices[self.slice].mask[..]))
    }

    /// The slice's picture: width and height, and the bytes of a PNG.
    pub fn picture(&self, set: &SliceSet, window: HounsfieldWindow) -> Result<Vec<u8>> {
        let slice = &set.slices[self.slice];
        let geometry = Geometry::axis_aligned([set.size, set.size, 1], [1.0; 3]);
        let hounsfield = |&value: &f32| (value / window.scale + window.shift) * (window.high - window.low) + window.low;
        let image = Volume::new(geometry.clone(), slice.image.iter().map(hounsfield).collect())?;
        let reference = Volume::new(geometry.clone(), slice.mask.to_vec())?;
        let prediction = Volume::new(geometry, self.mask.clone())?;
        overlay(&image, Some(&reference), Some(&prediction), 0, DISPLAY_WINDOW)
    }
}

impl Validation {
    /// What became of some slices of `set` in an epoch, with pictures.
    pub(super) fn new(epoch: u64, set: &SliceSet, predicted: &[Predicted], window: HounsfieldWindow) -> Result<Self> {
        let mut cases: Vec<(ValidatedCase, Vec<&Predicted>)> = Vec::new();
        for predicted in predicted {
            let slice = &set.slices[predicted.slice];
            let name = &set.cases[slice.case];
            if cases.last().is_none_or(|(case, _)| case.name != *name) {
                cases.push((ValidatedCase { name: name.clone(), slices: Vec::new(), pictures: None }, Vec::new()));
            }
            let (case, of_case) = cases.last_mut().expect("a case was just added");
            case.slices.push(ValidatedSlice { index: slice.index, counts: predicted.counts(set)? });
            of_case.push(predicted);
        }
        let mut order: Vec<usize> = (0..cases.len()).filter(|&case| cases[case].0.dice().is_some()).collect();
        order.sort_by(|&a, &b| cases[b].0.dice().unwrap_or(0.0).total_cmp(&cases[a].0.dice().unwrap_or(0.0)));
        let half = PICTURED_CASES / 2;
        if order.len() > PICTURED_CASES {
            order.drain(half..order.len() - half);
        }
        for case in order {
            let (case, of_case) = &mut cases[case];
            let places = spread(of_case.len(), PICTURED_SLICES);
            let draw = |place: usize| {
                let label = label(&case.slices[place]);
                Ok((label, of_case[place].picture(set, window)?))
            };
            let slices = places.into_par_iter().map(draw).collect::<Result<_>>()?;
            case.pictures = Some(CasePictures { name: case.name.clone(), dice: case.dice(), slices });
        }
        Ok(Validation { epoch, cases: cases.into_iter().map(|(case, _)| case).collect() })
    }

    /// Writes the pictures, then the counts, and removes pictures of earlier epochs.
    pub(super) fn write(&self, run: &Path) -> Result<()> {
        let folder = run.join(FOLDER);
        let mut names = vec![FILE.to_owned()];
        let path = folder.join(FILE);
        let failed = |error: csv::Error| Error::file(&path, error.to_string());
        let mut table = csv::Writer::from_writer(Vec::new());
        for case in &self.cases {
            for ValidatedSlice { index, counts } in &case.slices {
                let Counts { true_positives, false_positives, false_negatives, true_negatives } = *counts;
                let (epoch, case, slice) = (self.epoch, case.name.clone(), *index);
                let line =
                    Line { epoch, case, slice, true_positives, false_positives, false_negatives, true_negatives };
                table.serialize(line).map_err(failed)?;
            }
            for (label, png) in case.pictures.iter().flat_map(|pictures| &pictures.slices) {
                let Some(slice) = case.slices.iter().find(|slice| self::label(slice) == *label) else { continue };
                let name = picture_name(&case.name, slice.index);
                write_atomically(&folder.join(&name), |file| file.write_all(png))?;
                names.push(name);
            }
        }
        let table = table.into_inner().map_err(|error| Error::file(&path, error.to_string()))?;
        write_atomically(&path, |file| file.write_all(&table))?;
        for entry in crate::data::layout::entries(&folder)? {
            let is_ours =
                entry.file_name().and_then(|name| name.to_str()).is_some_and(|n| names.iter().any(|o| o == n));
            if !is_ours && entry.extension().is_some_and(|extension| extension == "png") {
                std::fs::remove_file(&entry).map_err(Error::io(&entry))?;
            }
        }
        Ok(())
    }

    /// What a run's folder has, if anything.
    ///
    /// # Errors
    /// If the file is there and cannot be read.
    pub fn read(run: &Path) -> Result<Option<Self>> {
        let folder = run.join(FOLDER);
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let broken = |error: csv::Error| Error::file(&path, error.to_string());
        let mut reader = csv::Reader::from_path(&path).map_err(broken)?;
        let mut validation = Validation::default();
        for line in reader.deserialize() {
            let line: Line = line.map_err(broken)?;
            let Line { true_positives, false_positives, false_negatives, true_negatives, .. } = line;
            let counts = Counts { true_positives, false_positives, false_negatives, true_negatives };
            validation.epoch = line.epoch;
            if validation.cases.last().is_none_or(|case| case.name != line.case) {
                validation.cases.push(ValidatedCase { name: line.case, slices: Vec::new(), pictures: None });
            }
            let case = validation.cases.last_mut().expect("a case was just added");
            case.slices.push(ValidatedSlice { index: line.slice, counts });
        }
        for case in &mut validation.cases {
            let picture = |slice: &ValidatedSlice| {
                Some((label(slice), std::fs::read(folder.join(picture_name(&case.name, slice.index))).ok()?))
            };
            let slices: Vec<(String, Vec<u8>)> = case.slices.iter().filter_map(picture).collect();
            if !slices.is_empty() {
                case.pictures = Some(CasePictures { name: case.name.clone(), dice: case.dice(), slices });
            }
        }
        Ok(Some(validation))
    }
}

fn picture_name(case: &str, slice: usize) -> String {
    format!("{case}_{slice:04}.png")
}

fn label(slice: &ValidatedSlice) -> String {
    match slice.counts.dice().value() {
        Some(dice) => format!("slice {}, Dice {dice:.4}", slice.index),
        None => format!("slice {}, both masks are empty", slice.index),
    }
}
