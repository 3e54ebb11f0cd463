//! A training run.

use super::{EpochRecord, Settings};
use crate::data::file::write_atomically;
use crate::data::{Dataset, Labels, Loader, SliceSet, Split};
use crate::device::Device;
use crate::metrics::overlap::Counts;
use crate::model::weights;
use crate::model::{Mode, Network, Step};
use crate::preprocessing::{Preprocessing, THRESHOLD};
use crate::{Error, Result};
use serde::Serialize;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

/// Batches whose statistics batch norm's running ones are re-estimated from before they are used. Plain running
/// averages lag behind the weights so far that the Dice of inference jumps from epoch to epoch.
const STATISTICS_BATCHES: usize = 8;

/// What a run is about to do, known before it starts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub device: String,
    pub model: String,
    pub parameters: usize,
    pub train_slices: usize,
    pub validation_slices: usize,
    pub steps: u64,
    /// Floating-point operations of one step.
    pub operations_per_step: u64,
    /// Memory of parameters, moments, activations and gradients.
    pub planned_bytes: u64,
}

/// Is told how a run goes, and may stop it.
pub trait Observer {
    /// All is loaded; training begins.
    fn begin(&self, _: &Summary) {}
    /// A batch of the epoch was trained on.
    fn batch(&self, _epoch: u64, _done: usize, _batches: usize, _images: usize, _loss: f64) {}
    /// An epoch is over; `best` says whether it is the best so far.
    fn epoch(&self, _: &EpochRecord, _best: bool) {}
    /// The exit code to stop with, if the run is to stop.
    fn stop(&self) -> Option<u8> {
        None
    }
}

/// An observer that says nothing and never stops a run.
pub struct Silent;

impl Observer for Silent {}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    pub best_epoch: u64,
    pub best_val_dice: Option<f64>,
    pub epochs: u64,
    pub seconds: f64,
}

/// A training run: a network, its data, and a folder for what it leaves.
pub struct Run<'a> {
    settings: &'a Settings,
    folder: &'a Path,
    set: &'a SliceSet,
    split: Split,
    network: Network<f32>,
    train_step: Step,
    statistics_step: Step,
    evaluation_step: Step,
    /// Optimizer steps done.
    steps_done: u64,
    /// The images, masks and weights of a batch.
    image: Vec<f32>,
    target: Vec<f32>,
    weight: Vec<f32>,
}

impl<'a> Run<'a> {
    /// Loads the slices that `settings` ask for. `progress` is called once for every case.
    ///
    /// # Errors
    /// If the settings or the data cannot work.
    pub fn load_slices(settings: &Settings, dataset: &Dataset, progress: impl Fn() + Sync) -> Result<SliceSet> {
        settings.check()?;
        let labels = match settings.labels.is_empty() {
            true => Labels::default(),
            false => settings.labels.parse()?,
        };
        let cases = dataset.cases_without(&settings.test_cases)?;
        SliceSet::load(dataset, &cases, settings.size, settings.window, &labels, progress)
    }

    /// Plans a run into `folder`.
    ///
    /// # Errors
    /// If the settings cannot work, the device has no room, or the folder cannot be written.
    pub fn new(
        settings: &'a Settings,
        set: &'a SliceSet,
        device: Box<dyn Device<f32>>,
        folder: &'a Path,
    ) -> Result<Self> {
        let model = settings.check()?;
        let split = Split::new(set, &[], settings.validation_fraction, settings.seed)?;
        let mut network = Network::new(model, device)?;
        network.initialise(settings.seed)?;
        let size = [settings.size; 2];
        let train_step = network.load(Mode::Train, settings.batch, size)?;
        let statistics_step = network.load(Mode::Statistics, settings.batch, size)?;
        let evaluation_step = network.load(Mode::Evaluate, settings.batch, size)?;
        let pixels = settings.batch * settings.size * settings.size;
        Ok(Run {
            settings,
            folder,
            set,
            split,
            network,
            train_step,
            statistics_step,
            evaluation_step,
            steps_done: 0,
            image: vec![0.0; pixels],
            target: vec![0.0; pixels],
            weight: vec![0.0; settings.batch],
        })
    }

    fn loader(&self, chosen: &[usize], augment: bool) -> Loader<'a> {
        Loader::new(self.set, chosen.to_vec(), self.settings.batch, self.settings.seed, augment)
    }

    /// What the run is about to do.
    pub fn summary(&self) -> Summary {
        let plan = self.network.plan(&self.train_step);
        Summary {
            device: self.network.device().name(),
            model: self.network.model().architecture.name.into(),
            parameters: self.network.model().parameter_count(),
            train_slices: self.split.train.len(),
            validation_slices: self.split.validation.len(),
            steps: self.steps(),
            operations_per_step: plan.operations,
            planned_bytes: self.network.planned_bytes(),
        }
    }

    fn steps(&self) -> u64 {
        self.settings.epochs * self.split.train.len().div_ceil(self.settings.batch) as u64
    }

    /// Trains all epochs. The best weights by validation Dice (the last, if nothing validates) are in
    /// `best.safetensors`, a line for each epoch in `log.jsonl`, the settings in `config.toml`.
    ///
    /// # Errors
    /// If the device fails, a file cannot be written, the loss is not a number, or the observer stops the run;
    /// then, too, `best.safetensors` is there.
    pub fn train(mut self, observer: &dyn Observer) -> Result<Outcome> {
        self.write_settings()?;
        observer.begin(&self.summary());
        let started = Instant::now();
        let mut loader = self.loader(&self.split.train, self.settings.augment);
        let mut outcome = Outcome { best_epoch: 0, best_val_dice: None, epochs: 0, seconds: 0.0 };
        for epoch in 1..=self.settings.epochs {
            loader.begin_epoch(epoch);
            let record = match self.epoch(epoch, &loader, observer) {
                Err(Error::Interrupted { exit_code }) => {
                    if outcome.best_epoch == 0 {
                        self.estimate_statistics(&loader)?;
                        self.save()?;
                    }
                    return Err(Error::Interrupted { exit_code });
                }
                other => other?,
            };
            let validated = record.val_dice.is_some();
            let best = outcome.best_epoch == 0 || !validated || record.val_dice > outcome.best_val_dice;
            if best {
                self.save()?;
                (outcome.best_epoch, outcome.best_val_dice) = (epoch, record.val_dice);
            }
            record.append_to(&self.folder.join("log.jsonl"))?;
            outcome.epochs = epoch;
            observer.epoch(&record, best);
        }
        outcome.seconds = started.elapsed().as_secs_f64();
        Ok(outcome)
    }

    /// Trains one epoch and validates.
    fn epoch(&mut self, epoch: u64, loader: &Loader, observer: &dyn Observer) -> Result<EpochRecord> {
        let started = Instant::now();
        let batches = loader.batches();
        let (mut loss_sum, mut images, mut learning_rate, mut skipped_steps) = (0.0, 0, 0.0, 0);
        for batch in 0..batches {
            if let Some(exit_code) = observer.stop() {
                return Err(Error::Interrupted { exit_code });
            }
            learning_rate = self.settings.learning_rate * self.settings.schedule.factor(self.steps_done, self.steps());
            self.steps_done += 1;
            let slices = loader.fill(batch, &mut self.image, &mut self.target, &mut self.weight);
            self.network.write_batch(&self.train_step, &self.image, &self.target, &self.weight)?;
            let losses = self.network.train(&self.train_step, learning_rate, self.steps_done)?;
            if !losses.batch.is_finite() {
                return Err(self.not_finite(epoch, slices));
            }
            skipped_steps += u64::from(losses.skipped);
            loss_sum += f64::from(losses.batch);
            images += slices.len();
            observer.batch(epoch, batch + 1, batches, slices.len(), losses.batch.into());
        }
        let training_seconds = started.elapsed().as_secs_f64();
        self.estimate_statistics(loader)?;
        let counts = self.validate(observer)?;
        Ok(EpochRecord {
            epoch,
            train_loss: loss_sum / batches as f64,
            val_dice: counts.and_then(|counts| counts.dice().value()),
            val_iou: counts.and_then(|counts| counts.iou().value()),
            learning_rate,
            removed: 0,
            removed_total: 0,
            skipped_steps,
            images_per_s: images as f64 / training_seconds,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Replaces batch norm's running statistics by the mean over the epoch's first batches.
    fn estimate_statistics(&mut self, loader: &Loader) -> Result<()> {
        for number in 0..STATISTICS_BATCHES {
            loader.fill(number % loader.batches(), &mut self.image, &mut self.target, &mut self.weight);
            self.network.write_batch(&self.statistics_step, &self.image, &self.target, &self.weight)?;
            self.network.estimate_statistics(&self.statistics_step, number as u64 + 1)?;
        }
        Ok(())
    }

    /// The confusion counts over all pixels of the validation slices, if there are any.
    fn validate(&mut self, observer: &dyn Observer) -> Result<Option<Counts>> {
        let loader = self.loader(&self.split.validation, false);
        let pixels = self.settings.size * self.settings.size;
        let mut probabilities = vec![0.0; self.image.len()];
        let mut total = None;
        for batch in 0..loader.batches() {
            if let Some(exit_code) = observer.stop() {
                return Err(Error::Interrupted { exit_code });
            }
            let slices = loader.fill(batch, &mut self.image, &mut self.target, &mut self.weight).len();
            self.network.write_batch(&self.evaluation_step, &self.image, &self.target, &self.weight)?;
            self.network.evaluate(&self.evaluation_step)?;
            self.network.prediction(&self.evaluation_step, &mut probabilities)?;
            let foreground =
                |values: &[f32]| values[..slices * pixels].iter().map(|&v| v >= THRESHOLD).collect::<Vec<bool>>();
            let counts = Counts::of(&foreground(&probabilities), &foreground(&self.target))?;
            total = Some(total.map_or(counts, |total: Counts| total + counts));
        }
        Ok(total)
    }

    /// Saves the weights as they are as the best ones.
    fn save(&mut self) -> Result<()> {
        let preprocessing = Preprocessing { size: self.settings.size, window: self.settings.window };
        weights::save(&mut self.network, &preprocessing, &self.folder.join("best.safetensors"))
    }

    fn write_settings(&self) -> Result<()> {
        let path = self.folder.join("config.toml");
        let text = toml::to_string(self.settings).map_err(|error| Error::file(&path, error.to_string()))?;
        write_atomically(&path, |file| file.write_all(text.as_bytes()))
    }

    fn not_finite(&self, epoch: u64, slices: &[usize]) -> Error {
        let name = |&index: &usize| {
            let slice = &self.set.slices[index];
            format!("{} slice {}", self.set.cases[slice.case], slice.index)
        };
        let names: Vec<String> = slices.iter().map(name).collect();
        Error::Invalid(format!(
            "the loss is not a number in epoch {epoch}, on {}: lower --learning-rate, or look at these slices",
            names.join(", ")
        ))
    }
}
