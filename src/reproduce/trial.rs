//! One row of a table, trained with one seed.

use super::Row;
use crate::data::file::write_atomically;
use crate::data::{SliceSet, Split};
use crate::device::Device;
use crate::metrics::overlap::Counts;
use crate::noise::{NoiseSettings, corrupt_slices};
use crate::train::{CONFIG, EpochRecord, Observer, Run, RunFolder, Settings, checkpoints};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::Path;

/// What a trial came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    pub seed: u64,
    /// Of the weights with the best validation Dice, and of the last ones.
    pub best: Scores,
    pub last: Scores,
    pub seconds: f64,
    /// How well noisy masks ranked above clean ones, epoch by epoch, where there is noise: the area under the curve.
    #[serde(default)]
    pub auroc: Vec<Option<f64>>,
}

/// How well the masks of the test cases are found, over all their pixels.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    pub iou: f64,
    pub dice: f64,
    pub recall: f64,
}

impl Scores {
    fn of(counts: Option<Counts>) -> Result<Self> {
        let counts = counts.ok_or_else(|| Error::Invalid("there is no test slice".into()))?;
        match (counts.iou().value(), counts.dice().value(), counts.recall().value()) {
            (Some(iou), Some(dice), Some(recall)) => Ok(Scores { iou, dice, recall }),
            _ => Err(Error::Invalid("the test cases have no foreground".into())),
        }
    }
}

/// Trains `row` into `folder` on `set`, which has clean masks and the test cases among its cases, and scores it on
/// those; a trial that is there already is read, one that was stopped goes on. `settings` say all but the row's model, noise and strategy.
///
/// The noise hits training masks alone, at the size the network sees; the same seed gives the same noise to every
/// row with the same amount of it.
///
/// # Errors
/// If the settings cannot work, the device fails, a file cannot be read or written, or the observer stops it.
pub fn run(
    row: &Row,
    settings: &Settings,
    set: &SliceSet,
    open_device: impl Fn() -> Result<Box<dyn Device<f32>>>,
    folder: &Path,
    observer: &dyn Observer,
) -> Result<Trial> {
    let settings = Settings {
        model: row.model.into(),
        adl: row.adl,
        noise_proportion: row.noise.map(|noise| noise.proportion),
        noise_overlap: row.noise.map(|noise| noise.overlap),
        ..settings.clone()
    };
    let result = folder.join("trial.json");
    if result.exists() {
        return read(folder, &result, &settings);
    }
    // A trial that was stopped goes on.
    let resume = !checkpoints(folder).is_empty();
    let run_folder = if resume { RunFolder::resume(folder)? } else { RunFolder::create(folder)? };
    let (set, truth) = with_noise(row, &settings, set)?;
    let mut run = Run::new(&settings, &set, Some(&truth), open_device, &run_folder)?;
    if resume {
        run.resume(false)?;
    }
    let outcome = run.train(observer)?;
    let last = Scores::of(run.test(observer)?)?;
    run.load_best()?;
    let best = Scores::of(run.test(observer)?)?;
    let records = EpochRecord::read_all(&run_folder.log())?;
    let auroc = match row.noise {
        Some(_) => records.iter().map(|record| record.detection.and_then(|detection| detection.auroc)).collect(),
        None => Vec::new(),
    };
    let trial = Trial { seed: settings.seed, best, last, seconds: outcome.seconds, auroc };
    let text = serde_json::to_string_pretty(&trial).map_err(|error| Error::file(&result, error.to_string()))?;
    write_atomically(&result, |file| writeln!(file, "{text}"))?;
    Ok(trial)
}

/// Reads a trial that is done, which must be of the same settings.
fn read(folder: &Path, result: &Path, settings: &Settings) -> Result<Trial> {
    if Settings::read(&folder.join(CONFIG))? != *settings {
        return Err(Error::file(folder, "was trained with other settings: give the same flags, or another --out"));
    }
    let text = std::fs::read_to_string(result).map_err(Error::io(result))?;
    serde_json::from_str(&text).map_err(|error| Error::file(result, error.to_string()))
}

/// The set with the row's noise in its training masks, and which slices have it.
fn with_noise(row: &Row, settings: &Settings, set: &SliceSet) -> Result<(SliceSet, Vec<bool>)> {
    let mut set = set.clone();
    let mut truth = vec![false; set.slices.len()];
    if let Some(noise) = row.noise {
        let split = Split::new(&set, &settings.test_cases, settings.validation_fraction, settings.seed)?;
        let mut masks: Vec<Vec<u8>> = split.train.iter().map(|&slice| set.slices[slice].mask.to_vec()).collect();
        let noise = NoiseSettings { seed: settings.seed, ..NoiseSettings::new(noise.proportion, noise.overlap) };
        let mut slices: Vec<&mut [u8]> = masks.iter_mut().map(Vec::as_mut_slice).collect();
        for corruption in corrupt_slices(&mut slices, set.size, &noise)? {
            let slice = split.train[corruption.mask];
            truth[slice] = true;
            set.slices[slice].mask = std::mem::take(&mut masks[corruption.mask]).into();
        }
    }
    Ok((set, truth))
}
